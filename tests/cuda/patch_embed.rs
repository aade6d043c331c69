//! PatchEmbed on a GPU, against an oracle in f64.
//!
//! A bound in three steps, with `u = 2^-24`:
//!
//! * The product. Terms are exact in f32; a tensor core may cut off where f32 would round, so each of `k + 1` additions
//!   (the position is one) costs up to `2 u` of what the magnitudes of the terms add up to: `e`.
//! * LayerNorm of a row of which every element is off by at most `e`: the mean is off by at most `e`, a distance to it by
//!   `2 e`, and the standard deviation, a 2-norm, by `2 e`; so the scale by `2 e * scale` in relation to itself.
//! * LayerNorm in f32, `n` additions: as in the test of LayerNorm, and half a unit in the last place at the end.

use ocelli::mem::{DType, Region};
use ocelli::ops::PatchEmbed;

use crate::parity::{Pair, Stage, decode, encode, normal, ulp};
use crate::{gpu, timing};

const EPS: f32 = 1e-5;
/// Products of errors, which the bound leaves out.
const SLACK: f64 = 1.02;
const U: f64 = 1.0 / (1 << 24) as f64;

#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Of each tile, as the op reads it.
    sources: &'static [i32],
    image_size: usize,
    patch_size: usize,
    hidden: usize,
}

impl Shape {
    fn tiles(&self) -> usize {
        self.sources.len()
    }

    /// Tiles that are values.
    fn of_values(&self) -> usize {
        self.sources.iter().filter(|&&n| n < 0).count()
    }

    fn tile_len(&self) -> usize {
        3 * self.image_size * self.image_size
    }

    fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    fn patch_len(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }
}

fn op(stage: &mut Stage, s: &Shape, shift: usize) -> PatchEmbed {
    let mut take = |region, len: usize| stage.take(region, len + shift).slice(shift..len + shift);
    let (n, d) = (1 + s.patches(), s.hidden);
    let y = take(Region::Scratch, s.tiles() * n * d);
    let weight = take(Region::Weights, d * s.patch_len());
    let [class, norm_weight, norm_bias] = [(); 3].map(|()| take(Region::Weights, d));
    let position = take(Region::Weights, n * d);
    let (tiles, image_size, patch_size, hidden) = (s.tiles(), s.image_size, s.patch_size, s.hidden);
    let pixels = stage.take(Region::Io, (tiles - s.of_values()) * s.tile_len());
    let values = s.of_values() * s.tile_len();
    let values = stage.take(Region::Io, values + shift).slice(shift..values + shift);
    let source = stage.take(Region::Io, tiles);
    let table = stage.take(Region::Weights, 3 * 256);
    PatchEmbed {
        y,
        pixels,
        values,
        source,
        table,
        weight,
        class,
        position,
        norm_weight,
        norm_bias,
        tiles,
        image_size,
        patch_size,
        hidden,
        eps: EPS,
    }
}

/// What the op reads, as it is stored, widened.
struct Case {
    /// `[tiles, 3, image_size, image_size]`: what stands for the tiles in the product.
    rounded: Vec<f32>,
    dtype: DType,
    shape: Shape,
    pixels: Vec<u8>,
    values: Vec<f32>,
    table: Vec<f32>,
    weight: Vec<f32>,
    class: Vec<f32>,
    position: Vec<f32>,
    norm_weight: Vec<f32>,
    norm_bias: Vec<f32>,
}

impl Case {
    fn new(dtype: DType, shape: Shape) -> Case {
        let round = |v: Vec<f32>| decode(dtype, &encode(dtype, &v));
        let scaled = |n: usize, seed, by: f32| round(normal(n, seed).iter().map(|v| v * by).collect());
        let (d, values) = (shape.hidden, shape.of_values() * shape.tile_len());
        let pixels = shape.tiles() * shape.tile_len() - values;
        let pixels: Vec<u8> = normal(pixels, 1).iter().map(|v| (128.0 + 60.0 * v) as u8).collect();
        let values = normal(values, 7);
        // CLIP's normalisation of the three channels.
        let channel = |(mean, std): (f32, f32)| (0..256).map(move |b| (b as f32 / 255.0 - mean) / std);
        let table: Vec<f32> = [(0.481, 0.269), (0.458, 0.261), (0.408, 0.276)].into_iter().flat_map(channel).collect();
        let tile = |&n: &i32| -> Vec<f32> {
            let at = n.max(-1 - n) as usize * shape.tile_len();
            if n < 0 {
                return values[at..][..shape.tile_len()].to_vec();
            }
            let of_channel =
                |c: usize| pixels[at + c..].iter().step_by(3).take(shape.tile_len() / 3).map(move |&b| (c, b));
            (0..3).flat_map(of_channel).map(|(c, b)| table[c * 256 + usize::from(b)]).collect()
        };
        Case {
            rounded: round(shape.sources.iter().flat_map(tile).collect()),
            dtype,
            shape,
            pixels,
            values,
            table,
            weight: scaled(d * shape.patch_len(), 2, 0.02),
            class: scaled(d, 3, 0.5),
            position: scaled((1 + shape.patches()) * d, 4, 0.1),
            norm_weight: round(normal(d, 5).iter().map(|v| 1.0 + 0.2 * v).collect()),
            norm_bias: scaled(d, 6, 0.3),
        }
    }

    fn write(&self, pair: &Pair, op: &PatchEmbed) {
        pair.write(op.pixels, &self.pixels);
        pair.write(op.values, &self.values);
        pair.write(op.source, self.shape.sources);
        pair.write(op.table, &self.table);
        for (buf, values) in [
            (op.weight, &self.weight),
            (op.class, &self.class),
            (op.position, &self.position),
            (op.norm_weight, &self.norm_weight),
            (op.norm_bias, &self.norm_bias),
        ] {
            pair.floats(buf, values);
        }
    }

    /// Hidden state `token` of `tile` before LayerNorm, and the magnitudes that each was added up from.
    fn embedded(&self, tile: usize, token: usize) -> Vec<(f64, f64)> {
        let Shape { image_size, patch_size: p, hidden, .. } = self.shape;
        let position = &self.position[token * hidden..][..hidden];
        if token == 0 {
            let sum = |(&c, &p): (&f32, &f32)| (f64::from(c) + f64::from(p), f64::from(c.abs() + p.abs()));
            return self.class.iter().zip(position).map(sum).collect();
        }
        let (gy, gx) = ((token - 1) / (image_size / p), (token - 1) % (image_size / p));
        let value = |k: usize| {
            let (c, y, x) = (k / (p * p), gy * p + k / p % p, gx * p + k % p);
            self.rounded[((tile * 3 + c) * image_size + y) * image_size + x]
        };
        let patch: Vec<f32> = (0..self.shape.patch_len()).map(value).collect();
        let project = |(weights, &position): (&[f32], &f32)| {
            let (mut sum, mut magnitude) = (f64::from(position), f64::from(position.abs()));
            for (&w, &x) in weights.iter().zip(&patch) {
                let term = f64::from(w) * f64::from(x);
                sum += term;
                magnitude += term.abs();
            }
            (sum, magnitude)
        };
        self.weight.chunks_exact(patch.len()).zip(position).map(project).collect()
    }

    /// Value and bound of every element of a hidden state.
    fn exact(&self, tile: usize, token: usize) -> Vec<(f64, f64)> {
        let (rows, d) = (self.embedded(tile, token), self.shape.hidden);
        let n = d as f64;
        let magnitude = rows.iter().map(|r| r.1).fold(0.0, f64::max);
        let e = 2.0 * (self.shape.patch_len() as f64 + 1.0) * U * magnitude;
        let mean = rows.iter().map(|r| r.0).sum::<f64>() / n;
        let scale = 1.0 / (rows.iter().map(|r| (r.0 - mean).powi(2)).sum::<f64>() / n + f64::from(EPS)).sqrt();
        // A lane adds up every 32nd element, and 32 lanes are added up in five steps.
        let additions = d.div_ceil(32) as f64 + 5.0;
        let off_mean = e + (additions + 1.0) * U * rows.iter().map(|r| r.0.abs()).sum::<f64>() / n;
        let off_scale = 2.0 * e * scale + (additions + 5.0) * U / 2.0 + 4.0 * U;
        let element = |(i, &(x, _)): (usize, &(f64, f64))| {
            let (w, b, distance) = (f64::from(self.norm_weight[i]), f64::from(self.norm_bias[i]), x - mean);
            let y = distance * scale * w + b;
            let off = w.abs() * scale * (e + off_mean + distance.abs() * (off_scale + 3.0 * U));
            let off = (off + U * (y.abs() + b.abs())) * SLACK;
            (y, off + 0.5 * f64::from(ulp(self.dtype, (y.abs() + off) as f32)))
        };
        rows.iter().enumerate().map(element).collect()
    }
}

/// Compare every `step`-th hidden state, the class tokens and the last ones included.
fn check(dtype: DType, shape: Shape, shift: usize, step: usize) {
    let mut stage = Stage::new(dtype);
    let op = op(&mut stage, &shape, shift);
    let pair = stage.open();
    let case = Case::new(dtype, shape);
    case.write(&pair, &op);
    let written = pair.run(op).remove(0);
    let tokens = 1 + shape.patches();
    let mut used = 0.0f64;
    for (row, y) in written.found.chunks_exact(shape.hidden).enumerate() {
        let (tile, token) = (row / tokens, row % tokens);
        assert!(y.iter().all(|v| v.is_finite()), "{dtype} {shape:?}: tile {tile} token {token} is not finite");
        if token % step != 0 && token + 1 != tokens {
            continue;
        }
        for (col, ((e, bound), &y)) in case.exact(tile, token).into_iter().zip(y).enumerate() {
            let share = (f64::from(y) - e).abs() / bound;
            let at = format!("tile {tile} token {token} column {col}");
            assert!(share <= 1.0, "{dtype} {shape:?}: {at} is {y}, not {e} within {bound}");
            used = used.max(share);
        }
    }
    println!("{dtype} {shape:?} shifted by {shift}: {:.1} % of the bound used", 100.0 * used);

    // The last tile alone gives the same bits.
    let (last, row) = (shape.tiles() - 1, tokens * shape.hidden);
    let alone = PatchEmbed {
        y: op.y.slice(last * row..(last + 1) * row),
        source: op.source.slice(last..last + 1),
        tiles: 1,
        ..op
    };
    assert_eq!(pair.run(alone).remove(0).found, written.found[last * row..], "{dtype} {shape:?}: alone");
}

#[test]
fn the_kernel_agrees_with_the_oracle() {
    let Some(_device) = gpu::device() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        // A pixel; a patch that is no multiple of four; a rest of patches and pixels at the border; the demo; 7B.
        let shapes: [(&[i32], usize, usize, usize); 7] = [
            (&[0], 1, 1, 1),
            (&[-1], 1, 1, 1),
            (&[1, 0], 9, 3, 33),
            (&[-2, 1, 0, -1], 23, 5, 40),
            (&[0, 1], 36, 6, 1100),
            (&[0, -1], 36, 6, 1100),
            (&[-1, 0], 168, 14, 192),
        ];
        for (sources, image_size, patch_size, hidden) in shapes {
            let shape = Shape { sources, image_size, patch_size, hidden };
            check(dtype, shape, 0, 1);
            check(dtype, shape, 1, 7);
        }
        check(dtype, Shape { sources: &[0, -1], image_size: 336, patch_size: 14, hidden: 1024 }, 0, 64);
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    let mixes: [&[i32]; 5] = [&[0], &[-1], &[0, 1, 2, 3, 4], &[-1, 0, 1, 2, 3], &[0; 32]];
    for sources in mixes {
        let shape = Shape { sources, image_size: 336, patch_size: 14, hidden: 1024 };
        let mut stage = Stage::new(DType::F16);
        let op = op(&mut stage, &shape, 0);
        let pair = stage.open();
        Case::new(DType::F16, shape).write(&pair, &op);
        timing::print(
            &pair.cuda,
            DType::F16,
            &format!("{} tiles, {} of them values", shape.tiles(), shape.of_values()),
            op,
        );
    }
}
