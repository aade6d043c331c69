//! Root-mean-square normalisation of rows.

use super::math::dot;
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

/// `y = round(x / sqrt(mean(x^2) + eps)) * weight`, row by row.
///
/// The normalised row is rounded to the stored type before it is scaled, as Llama does: two roundings in f16 and bf16.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// `[rows, cols]`, may be `x`.
    pub y: Buf<Act>,
    /// `[rows, cols]`
    pub x: Buf<Act>,
    /// `[cols]`
    pub weight: Buf<Act>,
    /// Rows.
    pub rows: usize,
    /// Length of a row.
    pub cols: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl Kernel for RmsNorm {
    const NAME: &'static str = "rmsnorm";

    fn cost(&self) -> Cost {
        let n = (self.rows * self.cols) as u64;
        Cost { bytes: (2 * n + self.cols as u64) * self.x.dtype().size() as u64, flops: 4 * n }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let weight = m.load(self.weight);
        let mut y = m.load(self.x);
        for row in y.chunks_exact_mut(self.cols) {
            let mean_square = dot(row, row) / self.cols as f32;
            let scale = 1.0 / (mean_square + self.eps).sqrt();
            for (v, w) in row.iter_mut().zip(&weight) {
                *v = round_to(self.x.dtype(), *v * scale) * w;
            }
        }
        m.store(self.y, &y);
    }
}
