//! Root-mean-square normalisation of rows.

use bytemuck::{Pod, Zeroable};

use super::math::dot;
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

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
        let mut y = m.load(self.x);
        normalise(&mut y, &m.load(self.weight), self.eps, self.x.dtype());
        m.store(self.y, &y);
    }
}

/// Every row of `x`, as long as `weight`, up to the last rounding.
pub(super) fn normalise(x: &mut [f32], weight: &[f32], eps: f32, dtype: DType) {
    for row in x.chunks_exact_mut(weight.len()) {
        let mean_square = dot(row, row) / row.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for (v, w) in row.iter_mut().zip(weight) {
            *v = round_to(dtype, *v * scale) * w;
        }
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RmsNormParams {
    y: u64,
    x: u64,
    weight: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

impl Launch for RmsNorm {
    type Params = RmsNormParams;

    fn params(&self, at: &Bases) -> RmsNormParams {
        RmsNormParams {
            y: at.at(self.y),
            x: at.at(self.x),
            weight: at.at(self.weight),
            rows: self.rows as u32,
            cols: self.cols as u32,
            eps: self.eps,
            pad: 0,
        }
    }

    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        Geometry::row_a_block(symbol!("rmsnorm", self.x.dtype()), self.rows, self.cols, gpu)
    }
}
