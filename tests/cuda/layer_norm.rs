//! LayerNorm on a GPU, against an oracle in f64.
//!
//! With `u = 2^-24` and sums of which no term goes through more than `n` additions, an implementation in f32 has
//!
//! * a mean off by at most `dm = (n + 1) u mean|x|`;
//! * a variance off by `(n + 5) u` of itself, and by `dm^2` because it is taken about that mean;
//! * a scale off by half of that in relation to it, and by `4 u` for the reciprocal root (2 units in the last place);
//! * three more roundings up to `(x - mean) * scale * weight`, and one when the bias is added.
//!
//! The result is rounded to the stored type once: half a unit in the last place. The bound is the sum of these.

use ocelli::kernel::{GpuInfo, Launch};
use ocelli::mem::{DType, Region};
use ocelli::ops::LayerNorm;

use crate::parity::{Stage, decode, encode, normal, ulp};
use crate::{gpu, timing};

const EPS: f32 = 1e-5;
/// Products of errors, which the bound leaves out.
const SLACK: f64 = 1.01;
const U: f64 = 1.0 / (1 << 24) as f64;

/// Rows of different magnitude and mean, one of them constant.
fn rows(dtype: DType, rows: usize, cols: usize) -> Vec<f32> {
    let mut x = normal(rows * cols, (rows * 131 + cols) as u64);
    for (r, row) in x.chunks_exact_mut(cols).enumerate() {
        let (scale, mean) = [(1.0, 0.0), (1e-3, 0.0), (100.0, 30.0), (0.05, 20.0), (0.0, 3.0)][r % 5];
        row.iter_mut().for_each(|v| *v = *v * scale + mean);
    }
    decode(dtype, &encode(dtype, &x))
}

/// Value and bound of every element of a row.
fn exact(dtype: DType, x: &[f32], weight: &[f32], bias: &[f32], additions: usize) -> Vec<(f64, f64)> {
    let n = x.len() as f64;
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n + f64::from(EPS);
    let off_mean = (additions as f64 + 1.0) * U * x.iter().map(|&v| f64::from(v).abs()).sum::<f64>() / n;
    let scale = 1.0 / variance.sqrt();
    let off_scale = ((additions as f64 + 5.0) * U + off_mean * off_mean / variance) / 2.0 + 4.0 * U;
    let element = |((&x, &w), &b): ((&f32, &f32), &f32)| {
        let (distance, w, b) = (f64::from(x) - mean, f64::from(w), f64::from(b));
        let y = distance * scale * w + b;
        let off = w.abs() * scale * (off_mean + distance.abs() * (off_scale + 3.0 * U)) + U * (y.abs() + b.abs());
        let off = off * SLACK;
        (y, off + 0.5 * f64::from(ulp(dtype, (y.abs() + off) as f32)))
    };
    x.iter().zip(weight).zip(bias).map(element).collect()
}

/// Additions on the longest way: in a thread, in its warp, across the warps.
fn additions(op: &LayerNorm, gpu: &GpuInfo) -> usize {
    8 * op.cols.div_ceil(8 * op.geometry(gpu).block[0] as usize) + 5 + 5
}

fn check(dtype: DType, n: usize, cols: usize, shift: usize) {
    let mut stage = Stage::new(dtype);
    let mut take = |len: usize| stage.take(Region::Scratch, len + shift).slice(shift..len + shift);
    let (x, y, weight, bias) = (take(n * cols), take(n * cols), take(cols), take(cols));
    let op = LayerNorm { y, x, weight, bias, rows: n, cols, eps: EPS };
    let pair = stage.open();
    let values = rows(dtype, n, cols);
    let round = |v: Vec<f32>| decode(dtype, &encode(dtype, &v));
    let w = round(normal(cols, 5).iter().map(|v| 1.0 + 0.1 * v).collect());
    let b = round(normal(cols, 6));
    [(x, &values), (weight, &w), (bias, &b)].into_iter().for_each(|(at, values)| pair.floats(at, values));
    let additions = additions(&op, &pair.cuda.device().properties().gpu);

    let found = pair.run(op).remove(0).found;
    let mut used = 0.0f64;
    for (r, (x, y)) in values.chunks_exact(cols).zip(found.chunks_exact(cols)).enumerate() {
        for (c, ((e, bound), &y)) in exact(dtype, x, &w, &b, additions).into_iter().zip(y).enumerate() {
            let share = (f64::from(y) - e).abs() / bound;
            assert!(share <= 1.0, "{dtype} {n}x{cols}: row {r} column {c} is {y}, not {e} within {bound}");
            used = used.max(share);
        }
    }
    println!("{dtype} {n}x{cols} shifted by {shift}: {:.1} % of the bound used", 100.0 * used);

    // In place, and the last row alone: not a bit differs.
    let same = pair.run(LayerNorm { y: x, ..op }).remove(0).found;
    assert_eq!(same, found, "{dtype} {n}x{cols}: in place");
    pair.floats(x, &values);
    let last = (n - 1) * cols..n * cols;
    let alone = LayerNorm { y: y.slice(last.clone()), x: x.slice(last.clone()), rows: 1, ..op };
    assert_eq!(pair.run(alone).remove(0).found, found[last], "{dtype} {n}x{cols}: alone");
}

#[test]
fn the_kernel_agrees_with_the_oracle() {
    let Some(_device) = gpu::device() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for (rows, cols) in
            [(1, 1), (5, 7), (5, 8), (3, 64), (5, 192), (577, 1024), (2, 1025), (5, 4096), (3, 8200), (2, 20_000)]
        {
            check(dtype, rows, cols, 0);
        }
        check(dtype, 5, 1024, 3);
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    for (rows, cols) in [(577, 1024), (32 * 577, 1024)] {
        let mut stage = Stage::new(DType::F16);
        let mut take = |len: usize| stage.take(Region::Scratch, len);
        let (x, y, weight, bias) = (take(rows * cols), take(rows * cols), take(cols), take(cols));
        let pair = stage.open();
        let op = LayerNorm { y, x, weight, bias, rows, cols, eps: EPS };
        timing::print(&pair.cuda, DType::F16, &format!("{rows}x{cols}"), op);
    }
}
