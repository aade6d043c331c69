//! Attention of single tokens on a GPU, against a softmax in f64 whose bound is derived at the oracle; what is rotated and
//! written to the cache must be the bits of the definition.

use std::ops::Range;

use ocelli::kernel::Kernel;
use ocelli::mem::{DType, Region};
use ocelli::ops::{KV_BLOCK, PagedDecode, PagedDecodeParams, PagedKv};

use crate::attention::{Bed, DTYPES, Exact, Heads, NewKv, Sequence, Step, bits, check, modules, oracle, step};
use crate::gpu;

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
    let step = step(dtype, h, parts, 0, NewKv::InRows);
    let &Step { o, qkv, kv, table, positions, slot_mapping, block_table, seq_lens, max_blocks, tokens: seqs, .. } =
        &step;
    let op = PagedDecode {
        o,
        qkv,
        kv,
        table,
        positions,
        slot_mapping,
        block_table,
        seq_lens,
        seqs,
        heads: h.heads,
        max_blocks,
        context: 1,
    };
    (step, op)
}

fn last(sequence: &Sequence) -> (&Sequence, Range<usize>) {
    (sequence, sequence.len - 1..sequence.len)
}

fn exact(dtype: DType, h: Heads, sequences: &[Sequence]) -> Vec<Exact> {
    oracle(dtype, sequences.len() * h.heads, |i| sequences[i / h.heads].newest(i % h.heads))
}

/// The cache, k or v, holds what it did before and the new token of each sequence.
fn check_cache(what: &str, dtype: DType, step: &Step, sequences: &[Sequence], k: &[u16], v: &[u16]) {
    let PagedKv { kv_heads, head_dim: d, .. } = step.kv;
    let [mut expected_k, mut expected_v] = [step.kv.k, step.kv.v].map(|cache| step.bed.before(cache));
    for (sequence, &slot) in sequences.iter().zip(&step.slots) {
        let (block, place) = (slot as usize / KV_BLOCK, slot as usize % KV_BLOCK);
        for head in 0..kv_heads {
            let at = ((block * kv_heads + head) * KV_BLOCK + place) * d;
            let (key, value) = sequence.cached(head);
            expected_k[at..at + d].copy_from_slice(&bits(dtype, key));
            expected_v[at..at + d].copy_from_slice(&bits(dtype, value));
        }
    }
    assert!(k == expected_k, "{what}: the cache of keys");
    assert!(v == expected_v, "{what}: the cache of values");
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
                let [o, k, v] = step.bed.run_for(&device, &module, &op, [op.o, op.kv.k, op.kv.v]);
                let (o, behind) = o.split_at(lens.len() * h.heads * h.head_dim);
                check(&what, dtype, o, &exact);
                check_cache(&what, dtype, &step, &sequences, &k, &v);
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
                let alone = [0, 1, 2].map(|i| {
                    let (step, op) = laid_out(dtype, h, &[last(&sequences[i])]);
                    step.bed.run(&device, &module, &op, op.o)[..width].to_vec()
                });
                // The more rows, the fewer stages of shared memory a warp has.
                for batch in [3, 4, 7, 16] {
                    let parts: Vec<_> = (0..batch).map(|row| last(&sequences[row % 3])).collect();
                    let (mut step, mut op) = laid_out(dtype, h, &parts);
                    // Two rows are idle, whatever their table and their query hold.
                    let (mut slots, mut lens): (Vec<i32>, Vec<i32>) =
                        (step.slots.clone(), parts.iter().map(|p| p.1.end as i32).collect());
                    (slots[1], lens[2]) = (-1, 0);
                    (op.slot_mapping, op.seq_lens) = (step.bed.ints(&slots), step.bed.ints(&lens));
                    let [o, k, v] = step.bed.run_for(&device, &module, &op, [op.o, op.kv.k, op.kv.v]);
                    for (row, o) in o.chunks(width).take(batch).enumerate() {
                        let what = format!("{arch} {dtype} {h:?}: row {row} of {batch}");
                        match row {
                            1 | 2 => assert!(o.iter().all(|&bits| bits == 0), "{what} is idle"),
                            _ => assert!(o == alone[row % 3], "{what}"),
                        }
                    }
                    for (cache, found) in [(op.kv.k, k), (op.kv.v, v)] {
                        let before = step.bed.before(cache);
                        for slot in [1, 2].map(|row| step.slots[row] as usize) {
                            let at = (slot / KV_BLOCK * h.kv_heads * KV_BLOCK + slot % KV_BLOCK) * h.head_dim;
                            let place = at..at + h.head_dim;
                            assert!(
                                found[place.clone()] == before[place],
                                "{arch} {dtype} {h:?}: written for an idle row"
                            );
                        }
                    }
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
        for seqs in [1, 8, 64] {
            for context in [1, 64, 645, 4096].into_iter().filter(|context| seqs * context <= 64 * 645) {
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
        table: bed.table(&vec![0.0; context * h.head_dim]),
        positions: bed.ints(&vec![context as i32 - 1; seqs]),
        slot_mapping: bed.ints(&(0..seqs).map(|s| (s * blocks * KV_BLOCK + context - 1) as i32).collect::<Vec<_>>()),
        block_table: bed.ints(&(0..(seqs * blocks) as i32).collect::<Vec<_>>()),
        seq_lens: bed.ints(&vec![context as i32; seqs]),
        seqs,
        heads: h.heads,
        max_blocks: blocks,
        context,
    };
    (bed, op)
}
