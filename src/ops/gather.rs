//! Rows picked by index.

use bytemuck::{Pod, Zeroable};

use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, Spans};

/// `y[i, first_col .. first_col + cols] = x[index[i]]`.
///
/// Picks the rows whose logits are wanted, and the features of a vision tower without their class token; `first_col`
/// sets features of several layers side by side.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// `[rows, y_cols]`
    pub y: Buf<Act>,
    /// `[any, cols]`
    pub x: Buf<Act>,
    /// `[rows]`
    pub index: Buf<i32>,
    /// Rows to pick.
    pub rows: usize,
    /// Length of a row of `x`.
    pub cols: usize,
    /// Length of a row of `y`.
    pub y_cols: usize,
    /// Where a row of `x` goes in a row of `y`.
    pub first_col: usize,
}

impl Kernel for Gather {
    const NAME: &'static str = "gather";

    fn cost(&self) -> Cost {
        let moved = 2 * self.rows * self.cols * self.x.dtype().size() + 4 * self.rows;
        Cost { bytes: moved as u64, flops: 0 }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (x, index) = (m.load(self.x), m.read(self.index));
        let mut y = m.load(self.y);
        for (row, &i) in y.chunks_exact_mut(self.y_cols).zip(&index).take(self.rows) {
            row[self.first_col..][..self.cols].copy_from_slice(&x[i as usize * self.cols..][..self.cols]);
        }
        m.store(self.y, &y);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GatherParams {
    y: u64,
    x: u64,
    index: u64,
    rows: u32,
    cols: u32,
    y_cols: u32,
    first_col: u32,
}

impl Launch for Gather {
    type Params = GatherParams;

    fn params(&self, at: &Bases) -> GatherParams {
        GatherParams {
            y: at.at(self.y),
            x: at.at(self.x),
            index: at.at(self.index),
            rows: self.rows as u32,
            cols: self.cols as u32,
            y_cols: self.y_cols as u32,
            first_col: self.first_col as u32,
        }
    }

    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        Geometry::row_a_block(symbol!("gather", self.x.dtype()), self.rows, self.cols, gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};

    #[test]
    fn a_row_is_a_block() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };
        let mut l = Layout::new(Region::Scratch, DType::Bf16);
        let (y, x, index) = (l.take(9 * 4096), l.take(5 * 1024), l.take(9));
        let g = Gather { y, x, index, rows: 9, cols: 1024, y_cols: 4096, first_col: 1024 }.geometry(&gpu);
        assert_eq!((g.symbol, g.grid, g.block), ("gather_bf16", [9, 1, 1], [128, 1, 1]));
    }
}
