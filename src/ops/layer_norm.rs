//! Layer normalisation of rows.

use bytemuck::{Pod, Zeroable};

use super::math::layer_norm;
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, Spans};

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

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LayerNormParams {
    y: u64,
    x: u64,
    weight: u64,
    bias: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

impl Launch for LayerNorm {
    type Params = LayerNormParams;

    fn params(&self, at: &Bases) -> LayerNormParams {
        LayerNormParams {
            y: at.at(self.y),
            x: at.at(self.x),
            weight: at.at(self.weight),
            bias: at.at(self.bias),
            rows: self.rows as u32,
            cols: self.cols as u32,
            eps: self.eps,
            pad: 0,
        }
    }

    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        Geometry::row_a_block(symbol!("layer_norm", self.x.dtype()), self.rows, self.cols, gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};

    #[test]
    fn a_row_is_a_block_whose_threads_depend_on_its_length_alone() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };
        for (rows, cols, threads) in [(577, 1024, 128), (1, 1024, 128), (3, 1, 32), (2, 20_000, 1024)] {
            let mut l = Layout::new(Region::Scratch, DType::F16);
            let (x, weight, bias) = (l.take(rows * cols), l.take(cols), l.take(cols));
            let g = LayerNorm { y: x, x, weight, bias, rows, cols, eps: 1e-5 }.geometry(&gpu);
            assert_eq!((g.symbol, g.grid, g.block), ("layer_norm_f16", [rows as u32, 1, 1], [threads, 1, 1]));
        }
    }
}
