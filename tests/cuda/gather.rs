//! Gather on a GPU: bytes are moved, so every bit must be the reference's, and what is not written must stay.

use ocelli::mem::{DType, Region};
use ocelli::ops::Gather;

use crate::parity::{Stage, normal};
use crate::{gpu, timing};

fn check(dtype: DType, [rows, x_rows, cols, y_cols, first_col]: [usize; 5], shift: usize) {
    let mut stage = Stage::new(dtype);
    let mut take = |len: usize| stage.take(Region::Scratch, len + shift).slice(shift..len + shift);
    let (x, y) = (take(x_rows * cols), take(rows * y_cols));
    let index = stage.take::<i32>(Region::Io, rows);
    let pair = stage.open();
    pair.floats(x, &normal(x.len(), 1));
    pair.floats(y, &normal(y.len(), 2));
    // Every row of x in an order that is not its own, the last one first.
    let picked: Vec<i32> = (0..rows).map(|i| (x_rows - 1 - i * 7 % x_rows) as i32).collect();
    pair.write(index, &picked);
    let written = pair.run(Gather { y, x, index, rows, cols, y_cols, first_col }).remove(0);
    assert_eq!(written.found, written.expected, "{dtype} {rows}x{cols} at {first_col} of {y_cols}, shift {shift}");
}

#[test]
fn the_kernel_moves_what_the_reference_moves() {
    let Some(_device) = gpu::device() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for shape in [
            [1, 1, 1, 1, 0],
            [3, 5, 7, 7, 0],
            [3, 5, 7, 30, 11],
            [5, 2, 8, 24, 8],
            [5, 9, 64, 200, 68],
            [2, 3, 10_000, 10_000, 0],
            [576, 577, 1024, 4096, 3072],
            [2 * 576, 2 * 577, 1024, 1024, 0],
            [64, 700, 4096, 4096, 0],
        ] {
            check(dtype, shape, 0);
            check(dtype, shape, 1);
        }
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    for (rows, cols) in [(1, 4096), (576, 1024), (32 * 576, 1024)] {
        let mut stage = Stage::new(DType::F16);
        let (x, y) = (stage.take(Region::Scratch, rows * cols), stage.take(Region::Scratch, rows * cols));
        let index = stage.take::<i32>(Region::Io, rows);
        let pair = stage.open();
        pair.write(index, &(0..rows as i32).collect::<Vec<_>>());
        let op = Gather { y, x, index, rows, cols, y_cols: cols, first_col: 0 };
        timing::print(&pair.cuda, DType::F16, &format!("{rows}x{cols}"), op);
    }
}
