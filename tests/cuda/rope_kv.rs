//! RopeKv on a GPU. Cosine, sine and elements are numbers of two bytes, whose products are exact in f32; so a sum of two
//! is rounded once in f32 and once on storing, whether the multiplication is fused or not, and every bit must be the
//! reference's: in q, in the cache, and in everything that is not to be touched.

use ocelli::mem::{DType, Region};
use ocelli::ops::{PagedKv, RopeKv, rope_table};

use crate::parity::{Stage, normal};
use crate::{gpu, timing};

const POSITIONS: usize = 4096;

struct Shape {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// `shift` elements off the alignment that a layout gives.
fn op(stage: &mut Stage, s: &Shape, shift: usize) -> RopeKv {
    let Shape { tokens, heads, kv_heads, head_dim } = *s;
    let blocks = tokens.div_ceil(16) + 2;
    let mut take = |region, len: usize| stage.take(region, len + shift).slice(shift..len + shift);
    let qkv = take(Region::Scratch, tokens * (heads + 2 * kv_heads) * head_dim);
    let cache = blocks * 16 * kv_heads * head_dim;
    let kv = PagedKv { k: take(Region::Kv, cache), v: take(Region::Kv, cache), kv_heads, head_dim };
    RopeKv {
        qkv,
        kv,
        table: stage.take(Region::Weights, POSITIONS * head_dim),
        positions: stage.take(Region::Io, tokens),
        slot_mapping: stage.take(Region::Io, tokens),
        tokens,
        heads,
    }
}

fn check(dtype: DType, s: &Shape, shift: usize) {
    let mut stage = Stage::new(dtype);
    let op = op(&mut stage, s, shift);
    let pair = stage.open();
    for (seed, buf) in [(1, op.qkv), (2, op.kv.k), (3, op.kv.v)] {
        pair.floats(buf, &normal(buf.len(), seed));
    }
    pair.write(op.table, &rope_table(10000.0, s.head_dim, POSITIONS));
    pair.write(op.positions, &(0..s.tokens).map(|t| (t * 37 % POSITIONS) as i32).collect::<Vec<_>>());
    // Tokens run backwards through the cache; every fifth has no slot.
    let slot = |t: usize| if t % 5 == 3 { -1 } else { (16 + s.tokens - t) as i32 };
    pair.write(op.slot_mapping, &(0..s.tokens).map(slot).collect::<Vec<_>>());
    for written in pair.run(op) {
        let Shape { tokens, heads, kv_heads, head_dim } = *s;
        let what = format!("{dtype} {tokens} tokens of {heads}/{kv_heads} heads of {head_dim}, shift {shift}");
        assert!(written.expected.iter().all(|v| v.is_finite()));
        assert_eq!(written.found, written.expected, "{what}: {:?}", written.span);
    }
}

#[test]
fn the_kernel_gives_the_bits_of_the_reference() {
    let Some(_device) = gpu::device() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for (tokens, heads, kv_heads, head_dim) in
            [(1, 1, 1, 2), (7, 2, 1, 20), (4, 4, 2, 32), (33, 6, 3, 80), (65, 32, 32, 96), (645, 32, 32, 128)]
        {
            let shape = Shape { tokens, heads, kv_heads, head_dim };
            check(dtype, &shape, 0);
            check(dtype, &shape, 1);
        }
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    for tokens in [1, 64, 645, 4096] {
        let shape = Shape { tokens, heads: 32, kv_heads: 32, head_dim: 128 };
        let mut stage = Stage::new(DType::F16);
        let op = op(&mut stage, &shape, 0);
        let pair = stage.open();
        pair.floats(op.qkv, &vec![0.0; op.qkv.len()]);
        pair.write(op.table, &rope_table(10000.0, 128, POSITIONS));
        let ids: Vec<i32> = (0..tokens as i32).collect();
        pair.write(op.positions, &ids);
        pair.write(op.slot_mapping, &ids);
        timing::print(&pair.cuda, DType::F16, &format!("{tokens} tokens, 32 heads of 128"), op);
    }
}
