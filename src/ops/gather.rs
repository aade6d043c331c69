//! Rows picked by index.

use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

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
