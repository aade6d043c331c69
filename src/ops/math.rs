//! Loops that several references share.

use rayon::prelude::*;

use crate::host::Floats;

/// Partial sums of one dot product. Eight keep the f32 rounding error of a long row small and let the compiler use
/// vector registers without reordering anything at run time.
const LANES: usize = 8;

/// Rows of `b` that one task widens and multiplies: small enough to stay in the L2 cache at a row length of 4096.
const TASK_ROWS: usize = 16;

/// Below this many multiplications a call is faster on one thread.
const PARALLEL_FROM: usize = 1 << 15;

/// `c[i, j] = sum over k of a[i, k] * b[j, k]`, for `a` of `[m, k]` and `b` of `[n, k]`, both row-major.
///
/// Each `c[i, j]` is summed in an order that depends on `k` alone, so a row's result is the same bits whatever other
/// rows are computed beside it and however many threads there are.
pub fn matmul_nt(a: &[f32], b: Floats<'_>, m: usize, n: usize, k: usize) -> Vec<f32> {
    assert_eq!(a.len(), m * k, "a is not [{m}, {k}]");
    let mut c = vec![0.0; m * n];
    if m == 0 || n == 0 {
        return c;
    }
    let columns = |first: usize| {
        let rows = TASK_ROWS.min(n - first);
        let mut wide = vec![0.0; rows * k];
        b.widen(first * k, &mut wide);
        multiply(a, &wide, m, rows, k)
    };
    let starts = (0..n).step_by(TASK_ROWS);
    let blocks: Vec<Vec<f32>> = if m * n * k < PARALLEL_FROM {
        starts.map(columns).collect()
    } else {
        starts.collect::<Vec<_>>().into_par_iter().map(columns).collect()
    };
    for (block, first) in blocks.iter().zip((0..n).step_by(TASK_ROWS)) {
        let rows = block.len() / m;
        for i in 0..m {
            c[i * n + first..][..rows].copy_from_slice(&block[i * rows..][..rows]);
        }
    }
    c
}

/// One task of [`matmul_nt`]: tiles of two rows of `a` by four rows of `b`, which is what sixteen registers hold.
fn multiply(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    let mut c = vec![0.0; m * n];
    for i in (0..m).step_by(2) {
        for j in (0..n).step_by(4) {
            match (m - i, n - j) {
                (2.., 4..) => tile::<2, 4>(a, b, &mut c, i, j, n, k),
                (_, 4..) => tile::<1, 4>(a, b, &mut c, i, j, n, k),
                (rows, left) => {
                    for (i, j) in (i..i + rows.min(2)).flat_map(|i| (j..j + left).map(move |j| (i, j))) {
                        tile::<1, 1>(a, b, &mut c, i, j, n, k);
                    }
                }
            }
        }
    }
    c
}

#[inline(always)]
fn tile<const R: usize, const C: usize>(a: &[f32], b: &[f32], c: &mut [f32], i: usize, j: usize, n: usize, k: usize) {
    let a: [&[f32]; R] = std::array::from_fn(|r| &a[(i + r) * k..][..k]);
    let b: [&[f32]; C] = std::array::from_fn(|s| &b[(j + s) * k..][..k]);
    let mut sums = [[[0.0f32; LANES]; C]; R];
    let whole = k - k % LANES;
    for at in (0..whole).step_by(LANES) {
        let x: [&[f32; LANES]; R] = std::array::from_fn(|r| lanes(a[r], at));
        let y: [&[f32; LANES]; C] = std::array::from_fn(|s| lanes(b[s], at));
        for r in 0..R {
            for s in 0..C {
                for l in 0..LANES {
                    sums[r][s][l] += x[r][l] * y[s][l];
                }
            }
        }
    }
    for r in 0..R {
        for s in 0..C {
            for at in whole..k {
                sums[r][s][at - whole] += a[r][at] * b[s][at];
            }
            c[(i + r) * n + j + s] = reduce(sums[r][s]);
        }
    }
}

#[inline(always)]
fn lanes(x: &[f32], at: usize) -> &[f32; LANES] {
    x[at..].first_chunk().expect("a whole chunk")
}

#[inline(always)]
fn reduce(s: [f32; LANES]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

/// The dot product of two rows of equal length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut c = [0.0];
    tile::<1, 1>(a, b, &mut c, 0, 0, 1, a.len());
    c[0]
}

/// Softmax attention of one query over `keys` and `values`, both `[n, head_dim]`; `out` is `[head_dim]`.
///
/// Scores, softmax and the weighted sum are in f32; keys are visited in order, so the result does not depend on how a
/// prompt was cut into chunks.
pub fn attend(query: &[f32], keys: &[f32], values: &[f32], scale: f32, out: &mut [f32]) {
    let d = query.len();
    let mut weights: Vec<f32> = keys.chunks_exact(d).map(|key| dot(query, key) * scale).collect();
    let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for w in &mut weights {
        *w = (*w - max).exp();
        total += *w;
    }
    out.fill(0.0);
    for (w, value) in weights.iter().zip(values.chunks_exact(d)) {
        for (o, v) in out.iter_mut().zip(value) {
            *o += w * v;
        }
    }
    for o in out {
        *o /= total;
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over a row, with the biased variance.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for i in 0..x.len() {
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
}

/// Exact GELU: `x/2 * (1 + erf(x / sqrt 2))`.
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x * sigmoid(1.702 x)`, CLIP's approximation of GELU.
pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + (-1.702 * x).exp())
}

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / 8388608.0) - 1.0).collect()
    }

    #[test]
    fn matmul_agrees_with_a_sum_in_f64() {
        for (m, n, k) in [(1, 1, 1), (1, 17, 7), (2, 4, 8), (3, 5, 9), (5, 33, 64), (33, 40, 130)] {
            let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
            let c = matmul_nt(&a, Floats::F32(&b), m, n, k);
            for i in 0..m {
                for j in 0..n {
                    let exact: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[j * k + x])).sum();
                    // Inputs are below 1, so k roundings of at most 2^-24 * k bound the error.
                    let bound = (k * k) as f64 * 2f64.powi(-24) + 1e-12;
                    assert!((f64::from(c[i * n + j]) - exact).abs() <= bound, "[{m},{n},{k}] at {i},{j}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (m, n, k) = (7, 37, 75);
        let (a, b) = (numbers(m * k, 3), numbers(n * k, 4));
        let all = matmul_nt(&a, Floats::F32(&b), m, n, k);
        for i in 0..m {
            let alone = matmul_nt(&a[i * k..][..k], Floats::F32(&b), 1, n, k);
            assert_eq!(alone, all[i * n..][..n]);
        }
    }

    #[test]
    fn activations_have_their_known_values() {
        assert!((gelu(1.0) - 0.841_344_7).abs() < 1e-6);
        assert!((quick_gelu(1.0) - 0.845_795_8).abs() < 1e-6);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6);
    }
}
