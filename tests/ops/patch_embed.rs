//! PatchEmbed.

use ocelli::mem::{DType, Region};
use ocelli::ops::PatchEmbed;

use crate::FLOATS;
use crate::bed::Bed;
use crate::bound::{Account, Exact, U, round};
use crate::norm::layer_norm;

/// The source of each tile, image size, patch size and hidden width; a convolution ignores what is left of a whole number
/// of patches.
type Shape = (&'static [i32], usize, usize, usize);
const SHAPES: [Shape; 11] = [
    (&[0], 1, 1, 3),
    (&[-1], 1, 1, 3),
    (&[0], 4, 4, 8),
    (&[0, 1], 6, 2, 5),
    (&[0], 8, 4, 16),
    (&[2, 0, 1], 15, 5, 17),
    (&[1, -2, 0, -1, -3], 15, 5, 17),
    (&[0, -1], 15, 4, 9),
    (&[0], 28, 14, 24),
    (&[-1, 0], 42, 14, 33),
    (&[0], 64, 16, 20),
];

/// Value of a byte by channel: CLIP's rescaling and normalisation.
fn clip_table() -> Vec<f64> {
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    (0..3).flat_map(|c| (0..256).map(move |byte| (f64::from(byte) / 255.0 - mean[c]) / std[c])).collect()
}

#[test]
fn tiles_become_normalised_hidden_states() {
    for dtype in FLOATS {
        let mut account = Account::new("patch_embed", dtype);
        for shape in SHAPES {
            case(&mut account, dtype, shape);
        }
    }
}

fn case(account: &mut Account, dtype: DType, shape: Shape) {
    let (sources, image_size, patch_size, hidden) = shape;
    let (tiles, tile_len, grid) = (sources.len(), 3 * image_size * image_size, image_size / patch_size);
    let mut bed = Bed::new(dtype, (image_size * hidden) as u64);
    let of_values = sources.iter().filter(|&&n| n < 0).count();
    let bytes: Vec<u8> = (0..(tiles - of_values) * tile_len).map(|_| bed.rng.next() as u8).collect();
    let pixels = bed.bytes(&bytes);
    let values = bed.random::<f32>(Region::Io, of_values * tile_len, 2.0);
    let source = bed.ints(sources);
    let table = bed.put(Region::Weights, &clip_table());
    let weight = bed.random(Region::Weights, hidden * 3 * patch_size * patch_size, 0.2);
    let class = bed.random(Region::Weights, hidden, 1.0);
    let position = bed.random(Region::Weights, (1 + grid * grid) * hidden, 1.0);
    let norm_weight = bed.random(Region::Weights, hidden, 2.0);
    let norm_bias = bed.random(Region::Weights, hidden, 1.0);
    let y = bed.random(Region::Scratch, tiles * (1 + grid * grid) * hidden, 1.0);
    let ran = bed.run(PatchEmbed {
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
        eps: 1e-5,
    });

    let (table, values) = (ran.input(table), ran.input(values));
    let (weight, class) = (ran.input(weight), ran.input(class));
    let (position, norm_weight, norm_bias) = (ran.input(position), ran.input(norm_weight), ran.input(norm_bias));
    let found = ran.output(y);
    // Channel `c` of a pixel of a tile, before it is rounded.
    let value = |tile: usize, c: usize, row: usize, column: usize| match sources[tile] {
        n @ 0.. => table[c * 256 + usize::from(bytes[((n as usize * image_size + row) * image_size + column) * 3 + c])],
        n => values[(((-1 - n) as usize * 3 + c) * image_size + row) * image_size + column],
    };
    // The convolution, in the order of its weight [hidden, channel, y, x]. The input is cast to the weight's type.
    let convolved = |tile: usize, gy: usize, gx: usize, out: usize| -> Vec<f64> {
        let mut terms = Vec::new();
        for c in 0..3 {
            for y in 0..patch_size {
                for x in 0..patch_size {
                    let (row, column) = (gy * patch_size + y, gx * patch_size + x);
                    let pixel = round(dtype, value(tile, c, row, column));
                    terms.push(pixel * weight[((out * 3 + c) * patch_size + y) * patch_size + x]);
                }
            }
        }
        terms
    };
    // Class token or patch, plus position: a sum whose terms all count for its error.
    let token = |tile: usize, t: usize, out: usize| -> Exact {
        let mut terms = match t.checked_sub(1) {
            None => vec![class[out]],
            Some(patch) => convolved(tile, patch / grid, patch % grid, out),
        };
        terms.push(position[t * hidden + out]);
        let magnitude: f64 = terms.iter().map(|t| t.abs()).sum();
        Exact { value: terms.iter().sum(), error: terms.len() as f64 * U * magnitude }
    };
    for (tile, t) in (0..tiles).flat_map(|tile| (0..1 + grid * grid).map(move |t| (tile, t))) {
        let sum: Vec<Exact> = (0..hidden).map(|out| token(tile, t, out)).collect();
        let exact = layer_norm(&sum, &norm_weight, &norm_bias, f64::from(1e-5f32));
        let found = &found[(tile * (1 + grid * grid) + t) * hidden..][..hidden];
        account.check(format_args!("{shape:?} tile {tile} token {t}"), found, &exact);
    }
}

/// What a byte is looked up to may as well be given, and a tile has the same bits wherever it stands.
#[test]
fn tiles_have_the_same_bits_as_bytes_and_as_values_and_in_any_order() {
    for dtype in FLOATS {
        let (tiles, image_size, patch_size, hidden) = (3, 15usize, 4, 9);
        let (places, tile_len) = (1 + (image_size / patch_size).pow(2), 3 * image_size * image_size);
        let mut bed = Bed::new(dtype, 4);
        let bytes: Vec<u8> = (0..tiles * tile_len).map(|_| bed.rng.next() as u8).collect();
        let table = clip_table();
        let looked_up = |tile: usize| {
            let (bytes, table) = (&bytes[tile * tile_len..][..tile_len], &table);
            (0..3).flat_map(move |c| bytes[c..].iter().step_by(3).map(move |&b| table[c * 256 + usize::from(b)]))
        };
        let values: Vec<f64> = looked_up(2).chain(looked_up(0)).collect();
        let bytes_in_order = PatchEmbed {
            y: bed.random(Region::Scratch, tiles * places * hidden, 1.0),
            pixels: bed.bytes(&bytes),
            values: bed.put(Region::Io, &values),
            source: bed.ints(&[0, 1, 2]),
            table: bed.put(Region::Weights, &table),
            weight: bed.random(Region::Weights, hidden * 3 * patch_size * patch_size, 0.2),
            class: bed.random(Region::Weights, hidden, 1.0),
            position: bed.random(Region::Weights, places * hidden, 1.0),
            norm_weight: bed.random(Region::Weights, hidden, 2.0),
            norm_bias: bed.random(Region::Weights, hidden, 1.0),
            tiles,
            image_size,
            patch_size,
            hidden,
            eps: 1e-5,
        };
        let mut outputs = |source: &[i32]| {
            let op = PatchEmbed { source: bed.ints(source), ..bytes_in_order };
            let found = bed.run(op).output(op.y);
            found.chunks_exact(places * hidden).map(<[f64]>::to_vec).collect::<Vec<_>>()
        };
        let expected = outputs(&[0, 1, 2]);
        assert!(expected[0] != expected[1] && expected[1] != expected[2] && expected[2] != expected[0]);
        for (source, order) in [([-2, 1, -1], [0, 1, 2]), ([2, 0, 1], [2, 0, 1]), ([-1, -2, 0], [2, 0, 0])] {
            for (i, (found, tile)) in outputs(&source).iter().zip(order).enumerate() {
                assert!(*found == expected[tile], "{dtype} {source:?}: place {i} does not hold tile {tile}");
            }
        }
    }
}
