//! PatchEmbed.

use ocelli::mem::{DType, Region};
use ocelli::ops::PatchEmbed;

use crate::FLOATS;
use crate::bed::Bed;
use crate::bound::{Account, Exact, U, round};
use crate::norm::layer_norm;

/// Tiles, image size, patch size and hidden width; a convolution ignores what is left of a whole number of patches.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (1, 1, 1, 3),
    (1, 4, 4, 8),
    (2, 6, 2, 5),
    (1, 8, 4, 16),
    (3, 15, 5, 17),
    (2, 15, 4, 9),
    (1, 28, 14, 24),
    (2, 42, 14, 33),
    (1, 64, 16, 20),
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

fn case(account: &mut Account, dtype: DType, shape: (usize, usize, usize, usize)) {
    let (tiles, image_size, patch_size, hidden) = shape;
    let grid = image_size / patch_size;
    let mut bed = Bed::new(dtype, (image_size * hidden) as u64);
    let bytes: Vec<u8> = (0..tiles * image_size * image_size * 3).map(|_| bed.rng.next() as u8).collect();
    let pixels = bed.bytes(&bytes);
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

    let (table, weight, class) = (ran.input(table), ran.input(weight), ran.input(class));
    let (position, norm_weight, norm_bias) = (ran.input(position), ran.input(norm_weight), ran.input(norm_bias));
    let found = ran.output(y);
    // The convolution, in the order of its weight [hidden, channel, y, x]. The input is cast to the weight's type.
    let convolved = |tile: usize, gy: usize, gx: usize, out: usize| -> Vec<f64> {
        let mut terms = Vec::new();
        for c in 0..3 {
            for y in 0..patch_size {
                for x in 0..patch_size {
                    let (row, column) = (gy * patch_size + y, gx * patch_size + x);
                    let byte = bytes[((tile * image_size + row) * image_size + column) * 3 + c];
                    let pixel = round(dtype, table[c * 256 + usize::from(byte)]);
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
