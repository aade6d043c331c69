//! Attention of a vision tower on a GPU, against a softmax in f64. The bound is derived at the oracle.

use ocelli::kernel::Kernel;
use ocelli::mem::{Act, Buf, DType, Region};
use ocelli::ops::{DenseAttention, DenseAttentionParams};

use crate::attention::{Bed, DTYPES, Exact, Query, check, modules, normal, oracle, rounded};
use crate::gpu;

/// Tiles, tokens, heads, head_dim: one token, the borders of 64, the towers of the tiny models, a CLIP of 336 pixels
/// with four tiles.
const SHAPES: [[usize; 4]; 9] = [
    [1, 1, 1, 64],
    [2, 2, 1, 32],
    [2, 63, 2, 64],
    [1, 64, 3, 32],
    [1, 65, 2, 64],
    [2, 128, 1, 64],
    [2, 145, 4, 32],
    [3, 145, 16, 64],
    [4, 577, 16, 64],
];

/// Rows behind those of the op, which must stay as they are.
const SPARE: usize = 2;

struct Case {
    bed: Bed,
    op: DenseAttention,
    /// With the rows behind.
    o: Buf<Act>,
    qkv: Vec<f32>,
}

fn case(dtype: DType, [tiles, tokens, heads, head_dim]: [usize; 4]) -> Case {
    let (rows, width) = (tiles * tokens, heads * head_dim);
    let mut bed = Bed::new(dtype);
    let qkv = rounded(dtype, &normal(rows * 3 * width, (tokens * heads) as u64));
    let o = bed.take(Region::Scratch, (rows + SPARE) * width);
    let op = DenseAttention {
        o: o.slice(0..rows * width),
        qkv: bed.floats(Region::Scratch, &qkv),
        tiles,
        tokens,
        heads,
        head_dim,
    };
    Case { bed, op, o, qkv }
}

impl Case {
    fn exact(&self) -> Vec<Exact> {
        let DenseAttention { tiles, tokens, heads, head_dim: d, .. } = self.op;
        let width = heads * d;
        oracle(self.bed.dtype, tiles * tokens * heads, |i| {
            let (row, head) = (i / heads, i % heads);
            let first = row / tokens * tokens;
            let part = |row: usize, which: usize| &self.qkv[(row * 3 + which) * width + head * d..][..d];
            Query {
                q: part(row, 0),
                keys: (first..first + tokens).map(|row| part(row, 1)).collect(),
                values: (first..first + tokens).map(|row| part(row, 2)).collect(),
            }
        })
    }
}

#[test]
fn the_kernel_agrees_with_the_oracle() {
    let Some(device) = gpu::device() else { return };
    for dtype in DTYPES {
        for shape in SHAPES {
            let case = case(dtype, shape);
            let exact = case.exact();
            let behind = case.op.o.len()..case.o.len();
            for (arch, module) in modules::<DenseAttention>(&device) {
                let o = case.bed.run(&device, &module, &case.op, case.o);
                check(&format!("{arch} {dtype} {shape:?}"), dtype, &o[..behind.start], &exact);
                assert!(o[behind.clone()].iter().all(|&bits| bits == 0xffff), "{arch} {dtype} {shape:?}: rows behind");
            }
        }
    }
}

#[test]
fn a_tile_has_the_same_bits_alone() {
    let Some(device) = gpu::device() else { return };
    for (arch, module) in modules::<DenseAttention>(&device) {
        let case = case(DType::Bf16, [3, 145, 2, 64]);
        let all = case.bed.run(&device, &module, &case.op, case.op.o);
        let (o, qkv) = (case.op.o.len() / 3, case.op.qkv.len() / 3);
        let last = DenseAttention {
            o: case.op.o.slice(2 * o..3 * o),
            qkv: case.op.qkv.slice(2 * qkv..3 * qkv),
            tiles: 1,
            ..case.op
        };
        let alone = case.bed.run(&device, &module, &last, last.o);
        assert!(all[2 * o..] == alone, "{arch}: the last of three tiles");
    }
}

#[test]
fn how_long_it_takes() {
    let Some(device) = gpu::device() else { return };
    let module = device.load(DenseAttention::NAME, size_of::<DenseAttentionParams>()).expect("module");
    for shape in [[1, 145, 16, 64], [1, 577, 16, 64], [4, 577, 16, 64], [16, 577, 16, 64]] {
        let case = case(DType::Bf16, shape);
        let us = case.bed.time(&device, &module, &case.op, 0xff);
        println!("bf16 {shape:?}: {us:.1} us, {:.0} TFLOP/s", case.op.cost().flops as f64 / us * 1e-6);
    }
}
