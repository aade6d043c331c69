//! RopeKv and the table it reads.

use ocelli::mem::{DType, Region};
use ocelli::ops::{PagedKv, RopeKv, rope_table};

use crate::FLOATS;
use crate::bed::Bed;
use crate::bound::{Account, Exact, U, round};

/// Tokens of a cache block, as the layout of the cache is documented.
const BLOCK: usize = 16;

/// Heads, heads of keys and values, width of a head.
const HEADS: [(usize, usize, usize); 6] = [(1, 1, 2), (2, 2, 64), (4, 1, 96), (8, 2, 128), (3, 3, 10), (6, 3, 80)];

/// Positions, and slots scattered over the blocks: both ends of blocks, the last slot, and tokens without a slot.
const TOKENS: [(i32, i32); 9] =
    [(0, 5 * 16), (1, 15), (4095, 16), (17, -1), (2048, 31), (33, 6 * 16 + 15), (32, 0), (4094, -1), (31, 2 * 16 + 7)];
const BLOCKS: usize = 7;

/// Cosines, then sines, of `position theta^(-2j/d)` in f64.
fn table(head_dim: usize, positions: usize) -> Vec<f64> {
    let angle = |p: usize, j: usize| p as f64 * 10000f64.powf(-2.0 * j as f64 / head_dim as f64);
    let half = head_dim / 2;
    (0..positions)
        .flat_map(|p| (0..head_dim).map(move |i| if i < half { angle(p, i).cos() } else { angle(p, i - half).sin() }))
        .collect()
}

/// One head, rotated by the half-split rule. Two products and a sum: 2u of the magnitudes.
fn rotated(head: &[f64], cos: &[f64], sin: &[f64]) -> Vec<Exact> {
    let half = head.len() / 2;
    let pair = |i: usize| {
        let j = i % half;
        if i < half {
            (head[j] * cos[j], -head[j + half] * sin[j])
        } else {
            (head[j + half] * cos[j], head[j] * sin[j])
        }
    };
    let element = |(a, b): (f64, f64)| Exact { value: a + b, error: 2.0 * U * (a.abs() + b.abs()) };
    (0..head.len()).map(|i| element(pair(i))).collect()
}

#[test]
fn queries_and_keys_rotate_and_the_cache_gets_keys_and_values() {
    for dtype in FLOATS {
        let mut account = Account::new("rope_kv", dtype);
        for heads in HEADS {
            case(&mut account, dtype, heads);
        }
    }
}

fn case(account: &mut Account, dtype: DType, (heads, kv_heads, head_dim): (usize, usize, usize)) {
    let (tokens, d) = (TOKENS.len(), head_dim);
    let width = (heads + 2 * kv_heads) * d;
    let mut bed = Bed::new(dtype, (heads * d) as u64);
    let angles = bed.put(Region::Weights, &table(d, 4096));
    // Rows after `tokens` belong to nobody.
    let qkv = bed.random(Region::Scratch, (tokens + 2) * width, 2.0);
    let kv = PagedKv {
        k: bed.random(Region::Kv, BLOCKS * kv_heads * BLOCK * d, 1.0),
        v: bed.random(Region::Kv, BLOCKS * kv_heads * BLOCK * d, 1.0),
        kv_heads,
        head_dim,
    };
    let positions = bed.ints(&TOKENS.map(|t| t.0));
    let slot_mapping = bed.ints(&TOKENS.map(|t| t.1));
    let ran = bed.run(RopeKv { qkv, kv, table: angles, positions, slot_mapping, tokens, heads });

    let angles: Vec<f64> = ran.input(angles).iter().map(|&a| round(dtype, a)).collect();
    let (before, after) = (ran.input(qkv), ran.output(qkv));
    let (keys, values) = (ran.output(kv.k), ran.output(kv.v));
    let mut written = vec![false; keys.len()];
    for (token, (position, slot)) in TOKENS.into_iter().enumerate() {
        if slot < 0 {
            assert!(ran.untouched(qkv, token * width..(token + 1) * width), "a token without a slot was rotated");
            continue;
        }
        let row = &before[token * width..][..width];
        let (cos, sin) = angles[position as usize * d..][..d].split_at(d / 2);
        let (block, place) = (slot as usize / BLOCK, slot as usize % BLOCK);
        for head in 0..heads {
            let exact = rotated(&row[head * d..][..d], cos, sin);
            account.check(format_args!("q of token {token}"), &after[token * width + head * d..][..d], &exact);
        }
        for head in 0..kv_heads {
            let at = ((block * kv_heads + head) * BLOCK + place) * d;
            let exact = rotated(&row[(heads + head) * d..][..d], cos, sin);
            account.check(format_args!("key of token {token}"), &keys[at..][..d], &exact);
            assert_eq!(values[at..][..d], row[(heads + kv_heads + head) * d..][..d], "value of token {token}");
            written[at..][..d].fill(true);
        }
        let v = (heads + kv_heads) * d;
        assert!(ran.untouched(qkv, token * width + v..(token + 1) * width), "v of token {token} in qkv");
    }
    assert!(ran.untouched(qkv, tokens * width..(tokens + 2) * width), "a row after the last token");
    for (i, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
        assert!(ran.untouched(kv.k, i..i + 1) && ran.untouched(kv.v, i..i + 1), "element {i} of another slot");
    }
}

#[test]
fn a_step_without_slots_changes_nothing_at_all() {
    for dtype in FLOATS {
        let mut bed = Bed::new(dtype, 1);
        let angles = bed.put(Region::Weights, &table(8, 4));
        let qkv = bed.random(Region::Scratch, 2 * 32, 1.0);
        let (k, v) = (bed.random(Region::Kv, 128, 1.0), bed.random(Region::Kv, 128, 1.0));
        let kv = PagedKv { k, v, kv_heads: 1, head_dim: 8 };
        let (positions, slot_mapping) = (bed.ints(&[3, 1]), bed.ints(&[-1, -1]));
        let ran = bed.run(RopeKv { qkv, kv, table: angles, positions, slot_mapping, tokens: 2, heads: 2 });
        assert!(ran.untouched(qkv, 0..64) && ran.untouched(k, 0..128) && ran.untouched(v, 0..128));
    }
}

/// The frequency is a power (its exponent off by u, so `u ln theta`, and an ulp of its own) and a reciprocal, the angle a
/// product: relatively `(ln theta + 5) u` of the angle in all; then an ulp of the cosine or sine.
#[test]
fn the_table_is_that_of_the_definition() {
    for (theta, head_dim) in [(10000f64, 64), (10000.0, 96), (10000.0, 128), (1e6, 128)] {
        let table = rope_table(theta, head_dim, 4096);
        assert_eq!(table.len(), 4096 * head_dim);
        let mut account = Account::new(format_args!("rope_table {theta} {head_dim}"), DType::F32);
        for (position, found) in table.chunks(head_dim).enumerate() {
            let angle = |j: usize| position as f64 * theta.powf(-2.0 * j as f64 / head_dim as f64);
            let exact = |(value, angle): (f64, f64)| Exact { value, error: angle * (theta.ln() + 5.0) * U + 2.0 * U };
            let cosines = (0..head_dim / 2).map(|j| exact((angle(j).cos(), angle(j))));
            let sines = (0..head_dim / 2).map(|j| exact((angle(j).sin(), angle(j))));
            let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
            account.check(format_args!("position {position}"), &found, &cosines.chain(sines).collect::<Vec<_>>());
        }
    }
}

/// The frequencies that Hugging Face computes for Mistral, read off the angles of position 1.
#[test]
fn frequencies_of_a_base_of_a_million_are_the_published_ones() {
    let table = rope_table(1e6, 128, 2);
    let angle = |j: usize| f64::from(table[128 + 64 + j]).atan2(f64::from(table[128 + j]));
    for (j, expected) in [(0, 1.0), (1, 0.805842221), (2, 0.649381638), (63, 1.24093776e-6)] {
        assert!((angle(j) - expected).abs() < 2e-7 * expected, "{j}: {}", angle(j));
    }
}
