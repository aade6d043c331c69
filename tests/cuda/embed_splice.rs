//! EmbedSplice on a GPU: bytes are moved, so every bit must be the reference's.

use ocelli::mem::{DType, Region};
use ocelli::ops::EmbedSplice;

use crate::parity::{Stage, normal};
use crate::{gpu, timing};

fn check(dtype: DType, rows: usize, vocab: usize, pictures: usize, cols: usize, shift: usize) {
    let mut stage = Stage::new(dtype);
    let mut take = |region, len: usize| stage.take(region, len + shift).slice(shift..len + shift);
    let table = take(Region::Weights, vocab * cols);
    let (image_rows, y) = (take(Region::Scratch, pictures * cols), take(Region::Scratch, rows * cols));
    let ids = stage.take::<i32>(Region::Io, rows);
    let pair = stage.open();
    pair.floats(table, &normal(table.len(), 1));
    pair.floats(image_rows, &normal(image_rows.len(), 2));
    // Text, then a run of a picture from its first row, over both ends of both tables.
    let id = |i: usize| if i % 3 == 2 { -1 - (i / 3 % pictures) as i32 } else { (vocab - 1 - i * 5 % vocab) as i32 };
    pair.write(ids, &(0..rows).map(id).collect::<Vec<_>>());
    let written = pair.run(EmbedSplice { y, table, image_rows, ids, rows, cols }).remove(0);
    assert_eq!(written.found, written.expected, "{dtype} {rows}x{cols}, shift {shift}");
}

#[test]
fn the_kernel_moves_what_the_reference_moves() {
    let Some(_device) = gpu::device() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for (rows, vocab, pictures, cols) in
            [(1, 1, 1, 1), (9, 3, 2, 7), (40, 11, 5, 8), (7, 5, 2, 64), (5, 3, 1, 9000), (645, 1000, 576, 4096)]
        {
            check(dtype, rows, vocab, pictures, cols, 0);
            check(dtype, rows, vocab, pictures, cols, 3);
        }
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    for rows in [1, 645, 8192] {
        let (vocab, cols) = (32_064, 4096);
        let mut stage = Stage::new(DType::F16);
        let (table, y) = (stage.take(Region::Weights, vocab * cols), stage.take(Region::Scratch, rows * cols));
        let ids = stage.take::<i32>(Region::Io, rows);
        let pair = stage.open();
        pair.write(ids, &(0..rows as i32).map(|i| i * 37 % vocab as i32).collect::<Vec<_>>());
        let op = EmbedSplice { y, table, image_rows: table, ids, rows, cols };
        timing::print(&pair.cuda, DType::F16, &format!("{rows}x{cols}"), op);
    }
}
