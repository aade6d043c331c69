//! Layer normalisation of rows.

use super::math::layer_norm;
use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias`, row by row, with the biased variance.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// `[rows, cols]`, may be `x`.
    pub y: Buf<Act>,
    /// `[rows, cols]`
    pub x: Buf<Act>,
    /// `[cols]`
    pub weight: Buf<Act>,
    /// `[cols]`
    pub bias: Buf<Act>,
    /// Rows.
    pub rows: usize,
    /// Length of a row.
    pub cols: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl Kernel for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn cost(&self) -> Cost {
        let n = (self.rows * self.cols) as u64;
        Cost { bytes: (2 * n + 2 * self.cols as u64) * self.x.dtype().size() as u64, flops: 7 * n }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (weight, bias) = (m.load(self.weight), m.load(self.bias));
        let x = m.load(self.x);
        let mut y = vec![0.0; x.len()];
        for (x, y) in x.chunks_exact(self.cols).zip(y.chunks_exact_mut(self.cols)) {
            layer_norm(x, &weight, &bias, self.eps, y);
        }
        m.store(self.y, &y);
    }
}
