//! DenseAttention.

use ocelli::mem::{DType, Region};
use ocelli::ops::DenseAttention;

use crate::FLOATS;
use crate::attention::attend;
use crate::bed::Bed;
use crate::bound::Account;

/// Tiles, tokens, heads and width of a head.
const SHAPES: [(usize, usize, usize, usize); 11] = [
    (1, 1, 1, 1),
    (1, 1, 2, 64),
    (1, 2, 1, 7),
    (2, 5, 3, 9),
    (3, 7, 2, 8),
    (1, 15, 2, 16),
    (2, 16, 1, 20),
    (1, 17, 4, 24),
    (2, 33, 2, 64),
    (1, 50, 3, 80),
    (1, 128, 1, 32),
];

#[test]
fn every_token_attends_to_its_tile() {
    for dtype in FLOATS {
        let mut account = Account::new("dense_attention", dtype);
        for shape in SHAPES {
            // Scores of a few units; such that one key takes nearly all the weight; and such that exp overflows f32.
            for scale in [1.0, 6.0, 30.0] {
                case(&mut account, dtype, shape, scale);
            }
        }
    }
}

fn case(account: &mut Account, dtype: DType, shape: (usize, usize, usize, usize), scale: f64) {
    let (tiles, tokens, heads, head_dim) = shape;
    let width = heads * head_dim;
    let mut bed = Bed::new(dtype, (tokens * heads * head_dim) as u64);
    let qkv = bed.random(Region::Scratch, tiles * tokens * 3 * width, scale);
    let o = bed.random(Region::Scratch, tiles * tokens * width, 1.0);
    let ran = bed.run(DenseAttention { o, qkv, tiles, tokens, heads, head_dim });
    let (qkv, found) = (ran.input(qkv), ran.output(o));
    let part = |tile: usize, token: usize, which: usize, head: usize| {
        &qkv[(tile * tokens + token) * 3 * width + which * width + head * head_dim..][..head_dim]
    };
    for (tile, head) in (0..tiles).flat_map(|t| (0..heads).map(move |h| (t, h))) {
        let all = |which| (0..tokens).flat_map(|t| part(tile, t, which, head)).copied().collect::<Vec<f64>>();
        let (keys, values) = (all(1), all(2));
        for token in 0..tokens {
            let exact = attend(part(tile, token, 0, head), &keys, &values);
            let found = &found[(tile * tokens + token) * width + head * head_dim..][..head_dim];
            account.check(format_args!("{shape:?} tile {tile} head {head} token {token}"), found, &exact);
        }
    }
}

#[test]
fn a_tile_has_the_same_bits_alone_and_among_others() {
    for dtype in FLOATS {
        let (tiles, tokens, heads, head_dim) = (3, 18, 2, 24);
        let (from, to) = (tokens * 3 * heads * head_dim, tokens * heads * head_dim);
        let mut bed = Bed::new(dtype, 3);
        let qkv = bed.random(Region::Scratch, tiles * from, 1.0);
        let o = bed.random(Region::Scratch, tiles * to, 1.0);
        let whole = bed.run(DenseAttention { o, qkv, tiles, tokens, heads, head_dim });
        for tile in 0..tiles {
            let (o, qkv) = (o.slice(tile * to..(tile + 1) * to), qkv.slice(tile * from..(tile + 1) * from));
            let alone = bed.run(DenseAttention { o, qkv, tiles: 1, tokens, heads, head_dim });
            assert_eq!(alone.bits(o), whole.bits(o), "{dtype} tile {tile}");
        }
    }
}
