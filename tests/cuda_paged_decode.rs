//! Attention of single tokens on a GPU, against a softmax in f64. The bound is derived at the oracle.

#![cfg(feature = "cuda")]
// The helpers of tests print, too.
#![allow(clippy::print_stdout)]

#[path = "gpu/attention.rs"]
#[allow(dead_code)] // Each test of attention uses a part.
mod attention;
mod gpu;

use std::ops::Range;

use attention::{Bed, DTYPES, Exact, Heads, Sequence, Step, check, modules, oracle, step};
use ocelli::kernel::Kernel;
use ocelli::mem::{DType, Region};
use ocelli::ops::{KV_BLOCK, PagedDecode, PagedDecodeParams, PagedKv};

const fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

/// Heads and tokens in the cache of each sequence: the borders of a block and of a round of the cluster's warps, groups
/// of one, some, eight and more heads, and the largest of real models.
const CASES: [(Heads, &[usize]); 11] = [
    (heads(1, 1, 64), &[1]),
    (heads(2, 1, 32), &[15, 16, 17, 31, 33]),
    (heads(2, 2, 64), &[63, 64, 65, 1, 2]),
    (heads(4, 2, 96), &[127, 128, 129, 1023, 1025]),
    (heads(8, 1, 128), &[1024, 5, 511, 513]),
    (heads(24, 2, 96), &[100, 7]),
    (heads(20, 20, 64), &[511, 512, 513, 529]),
    (heads(3, 1, 128), &[4096]),
    (heads(32, 32, 128), &[645, 1, 16, 17, 4096, 31, 100, 2049]),
    (heads(32, 8, 128), &[645, 1, 16, 17, 4096, 31, 100, 2049]),
    (heads(32, 32, 96), &[777, 2529]),
];

fn sequences(dtype: DType, h: Heads, lens: &[usize]) -> Vec<Sequence> {
    // Every third sequence has scores so far apart that few keys count, and that their exponentials overflow.
    let sharpness = [1.0, 3.0, 40.0].into_iter().cycle();
    lens.iter().zip(sharpness).map(|(&len, sharpness)| Sequence::new(dtype, h, len, sharpness)).collect()
}

fn laid_out(dtype: DType, h: Heads, parts: &[(&Sequence, Range<usize>)]) -> (Step, PagedDecode) {
    let step = step(dtype, h, parts, 0);
    let &Step { o, qkv, kv, block_table, seq_lens, max_blocks, tokens, .. } = &step;
    let op =
        PagedDecode { o, qkv, kv, block_table, seq_lens, seqs: tokens, heads: h.heads, max_blocks, context: tokens };
    (step, op)
}

fn last(sequence: &Sequence) -> (&Sequence, Range<usize>) {
    (sequence, sequence.len - 1..sequence.len)
}

fn exact(dtype: DType, h: Heads, sequences: &[Sequence]) -> Vec<Exact> {
    oracle(dtype, sequences.len() * h.heads, |i| {
        let sequence = &sequences[i / h.heads];
        sequence.query(sequence.len - 1, i % h.heads)
    })
}

#[test]
fn the_kernel_agrees_with_the_oracle_and_leaves_other_rows_alone() {
    let Some(device) = gpu::device() else { return };
    for dtype in DTYPES {
        for (h, lens) in CASES {
            let sequences = sequences(dtype, h, lens);
            let exact = exact(dtype, h, &sequences);
            let (step, op) = laid_out(dtype, h, &sequences.iter().map(last).collect::<Vec<_>>());
            for (arch, module) in modules::<PagedDecode>(&device) {
                let what = format!("{arch} {dtype} {h:?} {lens:?}");
                let o = step.bed.run(&device, &module, &op, op.o);
                let (o, behind) = o.split_at(lens.len() * h.heads * h.head_dim);
                check(&what, dtype, o, &exact);
                assert!(behind.iter().all(|&bits| bits == 0xffff), "{what}: rows of nobody");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_idle_rows_are_zeros() {
    let Some(device) = gpu::device() else { return };
    for (arch, module) in modules::<PagedDecode>(&device) {
        for dtype in DTYPES {
            for h in [heads(32, 32, 128), heads(8, 2, 96)] {
                let sequences = sequences(dtype, h, &[300, 77, 1500]);
                let width = h.heads * h.head_dim;
                let run = |parts: &[(&Sequence, Range<usize>)], lens: &[i32]| {
                    let (mut step, mut op) = laid_out(dtype, h, parts);
                    op.seq_lens = step.bed.ints(lens);
                    step.bed.run(&device, &module, &op, op.o)[..parts.len() * width].to_vec()
                };
                let [a, b, c] = [0, 1, 2].map(|i| last(&sequences[i]));
                // The second b is idle: its length is 0, whatever its table and its query hold.
                let all = run(&[a, b.clone(), b, c], &[300, 0, 77, 1500]);
                assert!(all[width..2 * width].iter().all(|&bits| bits == 0), "{arch} {dtype} {h:?}: an idle row");
                for (row, sequence) in [(0, &sequences[0]), (2, &sequences[1]), (3, &sequences[2])] {
                    let alone = run(&[last(sequence)], &[sequence.len as i32]);
                    assert!(alone == all[row * width..][..width], "{arch} {dtype} {h:?}: row {row} alone");
                }
            }
        }
    }
}

#[test]
fn how_long_it_takes() {
    let Some(device) = gpu::device() else { return };
    let module = device.load(PagedDecode::NAME, size_of::<PagedDecodeParams>()).expect("module");
    for h in [heads(32, 32, 128), heads(32, 8, 128), heads(32, 32, 96)] {
        for seqs in [1, 8] {
            for context in [1, 64, 645, 4096] {
                let (bed, op) = idle_cache(h, seqs, context);
                let us = bed.time(&device, &module, &op, 0);
                println!("bf16 {h:?} {seqs} x {context}: {us:.1} us, {:.2} TB/s", op.cost().bytes as f64 / us * 1e-6);
            }
        }
    }
}

/// A step whose cache and queries are what the memory was filled with, for timing caches too large to make up.
fn idle_cache(h: Heads, seqs: usize, context: usize) -> (Bed, PagedDecode) {
    let mut bed = Bed::new(DType::Bf16);
    let (blocks, width) = (context.div_ceil(KV_BLOCK), h.heads * h.head_dim);
    let cache = seqs * blocks * KV_BLOCK * h.kv_heads * h.head_dim;
    let op = PagedDecode {
        kv: PagedKv {
            k: bed.take(Region::Kv, cache),
            v: bed.take(Region::Kv, cache),
            kv_heads: h.kv_heads,
            head_dim: h.head_dim,
        },
        o: bed.take(Region::Scratch, seqs * width),
        qkv: bed.take(Region::Scratch, seqs * (width + 2 * h.kv_heads * h.head_dim)),
        block_table: bed.ints(&(0..(seqs * blocks) as i32).collect::<Vec<_>>()),
        seq_lens: bed.ints(&vec![context as i32; seqs]),
        seqs,
        heads: h.heads,
        max_blocks: blocks,
        context,
    };
    (bed, op)
}
