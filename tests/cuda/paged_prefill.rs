//! Attention of prompt chunks on a GPU, against a softmax in f64. The bound is derived at the oracle.

use std::ops::Range;

use ocelli::kernel::Kernel;
use ocelli::mem::DType;
use ocelli::ops::{PagedPrefill, PagedPrefillParams};

use crate::attention::{DTYPES, Exact, Heads, NewKv, SPARE, Sequence, Step, check, modules, oracle, step};
use crate::gpu;

const fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

/// Heads, then cached and new tokens of each sequence: one token, borders of 16 and 64, sequences without new tokens,
/// chunks behind a cache, and the largest of LLaVA, of a model with grouped heads, and of Phi-3-vision's width.
const CASES: [(Heads, &[(usize, usize)]); 12] = [
    (heads(1, 1, 64), &[(0, 1)]),
    (heads(2, 1, 32), &[(0, 15), (0, 16), (0, 17)]),
    (heads(2, 2, 64), &[(0, 63), (0, 64), (0, 65)]),
    (heads(4, 2, 96), &[(15, 1), (16, 1), (17, 1), (31, 2), (63, 1), (64, 1)]),
    (heads(4, 1, 128), &[(1, 15), (5, 0), (30, 70), (0, 5), (100, 129)]),
    (heads(6, 2, 96), &[(0, 0), (127, 130), (128, 64)]),
    (heads(3, 3, 128), &[(200, 1)]),
    (heads(8, 8, 96), &[(0, 777)]),
    (heads(32, 32, 128), &[(0, 645)]),
    (heads(32, 32, 64), &[(0, 333)]),
    (heads(32, 8, 128), &[(0, 645)]),
    (heads(32, 8, 128), &[(600, 100), (0, 45)]),
];

fn sequences(dtype: DType, h: Heads, lens: &[(usize, usize)]) -> Vec<(Sequence, Range<usize>)> {
    // Every third sequence has scores so far apart that few keys count, and that their exponentials overflow.
    let sharpness = [1.0, 3.0, 40.0].into_iter().cycle();
    let one = |(&(cached, new), sharpness)| (Sequence::new(dtype, h, cached + new, sharpness), cached..cached + new);
    lens.iter().zip(sharpness).map(one).collect()
}

fn laid_out(dtype: DType, h: Heads, parts: &[(&Sequence, Range<usize>)]) -> (Step, PagedPrefill) {
    let step = step(dtype, h, parts, SPARE, NewKv::Cached);
    let &Step { o, qkv, kv, block_table, seq_lens, query_start, max_blocks, tokens, .. } = &step;
    let (seqs, context) = (parts.len(), parts[0].1.end);
    let op = PagedPrefill {
        o,
        qkv,
        kv,
        block_table,
        seq_lens,
        query_start,
        seqs,
        heads: h.heads,
        tokens,
        max_blocks,
        context,
    };
    (step, op)
}

fn exact(dtype: DType, h: Heads, parts: &[(Sequence, Range<usize>)]) -> Vec<Exact> {
    let rows: Vec<(&Sequence, usize)> = parts.iter().flat_map(|(s, new)| new.clone().map(move |t| (s, t))).collect();
    oracle(dtype, rows.len() * h.heads, |i| rows[i / h.heads].0.query(rows[i / h.heads].1, i % h.heads))
}

#[test]
fn the_kernel_agrees_with_the_oracle_and_leaves_other_rows_alone() {
    let Some(device) = gpu::device() else { return };
    for dtype in DTYPES {
        for (h, lens) in CASES {
            let parts = sequences(dtype, h, lens);
            let exact = exact(dtype, h, &parts);
            let (step, op) = laid_out(dtype, h, &parts.iter().map(|(s, new)| (s, new.clone())).collect::<Vec<_>>());
            for (arch, module) in modules::<PagedPrefill>(&device) {
                let what = format!("{arch} {dtype} {h:?} {lens:?}");
                let o = step.bed.run(&device, &module, &op, op.o);
                let width = h.heads * h.head_dim;
                let (before, o) = o.split_at(SPARE * width);
                let (o, behind) = o.split_at(step.tokens * width);
                check(&what, dtype, o, &exact);
                assert!(before.iter().chain(behind).all(|&bits| bits == 0xffff), "{what}: rows of nobody");
            }
        }
    }
}

#[test]
fn a_prompt_in_any_chunks_has_the_same_bits() {
    let Some(device) = gpu::device() else { return };
    for (arch, module) in modules::<PagedPrefill>(&device) {
        for dtype in DTYPES {
            for h in [heads(2, 2, 64), heads(4, 2, 96), heads(4, 1, 128)] {
                let (sequence, other) = (Sequence::new(dtype, h, 250, 2.0), Sequence::new(dtype, h, 90, 1.0));
                let width = h.heads * h.head_dim;
                let run = |parts: &[(&Sequence, Range<usize>)]| {
                    let (step, op) = laid_out(dtype, h, parts);
                    let o = step.bed.run(&device, &module, &op, op.o);
                    o[SPARE * width..][..step.tokens * width].to_vec()
                };
                let whole = run(&[(&sequence, 0..250)]);
                for chunk in [0..1, 0..63, 1..65, 16..250, 60..70, 77..200, 128..192, 130..250, 249..250] {
                    let beside = run(&[(&other, 20..90), (&sequence, chunk.clone()), (&other, 0..3)]);
                    assert!(
                        beside[70 * width..][..chunk.len() * width] == whole[chunk.start * width..chunk.end * width],
                        "{arch} {dtype} {h:?}: tokens {chunk:?} beside others"
                    );
                }
            }
        }
    }
}

#[test]
fn how_long_it_takes() {
    let Some(device) = gpu::device() else { return };
    let module = device.load(PagedPrefill::NAME, size_of::<PagedPrefillParams>()).expect("module");
    for (h, cached, new) in [
        (heads(32, 32, 128), 0, 645),
        (heads(32, 8, 128), 0, 645),
        (heads(32, 32, 128), 600, 100),
        (heads(32, 8, 128), 600, 100),
        (heads(32, 32, 96), 0, 777),
        (heads(32, 32, 128), 0, 2048),
    ] {
        let parts = sequences(DType::Bf16, h, &[(cached, new)]);
        let (step, op) = laid_out(DType::Bf16, h, &[(&parts[0].0, parts[0].1.clone())]);
        let us = step.bed.time(&device, &module, &op, 0xff);
        println!("bf16 {h:?} {cached} + {new}: {us:.1} us, {:.0} TFLOP/s", op.cost().flops as f64 / us * 1e-6);
    }
}
