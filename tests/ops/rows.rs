//! EmbedSplice and Gather: copies, so every bit counts.

use ocelli::mem::Region;
use ocelli::ops::{EmbedSplice, Gather, sampled_id};

use crate::FLOATS;
use crate::bed::Bed;

#[test]
fn ids_pick_embeddings_rows_of_pictures_and_what_the_step_before_sampled() {
    let (vocab, pictures) = (37, 19);
    let tokens = [36, 0, -1, 21];
    let s = sampled_id;
    let ids = [0, 36, -1, -2, -19, s(0), 5, -19, 1, s(3), -10, 0, s(2), 8, s(1), s(0), 11];
    for dtype in FLOATS {
        for (rows, cols) in [(1, 1), (1, 64), (2, 7), (15, 8), (16, 9), (17, 33)] {
            let mut bed = Bed::new(dtype, cols as u64);
            let table = bed.random(Region::Weights, vocab * cols, 1.0);
            let image_rows = bed.random(Region::Scratch, pictures * cols, 1.0);
            // A buffer for the largest step; this one has fewer rows.
            let y = bed.random(Region::Scratch, (rows + 2) * cols, 1.0);
            let (all, sampled) = (bed.ints(&ids), bed.ints(&tokens));
            let ran = bed.run(EmbedSplice { y, table, image_rows, ids: all, sampled, rows, cols });
            for (i, &id) in ids[..rows].iter().enumerate() {
                // A row that had no token counts as token 0.
                let known = [36, 0, 0, 21].into_iter().enumerate().find(|&(row, _)| id == s(row));
                let from = match known.map_or(id, |(_, token)| token) {
                    row @ ..0 => image_rows.slice((-1 - row) as usize * cols..(-row) as usize * cols),
                    token => table.slice(token as usize * cols..(token as usize + 1) * cols),
                };
                assert_eq!(ran.bits(y.slice(i * cols..(i + 1) * cols)), ran.bits(from), "{dtype} row {i}, id {id}");
            }
            assert!(ran.untouched(y, rows * cols..(rows + 2) * cols), "rows after the step's");
        }
    }
}

#[test]
fn gather_puts_rows_side_by_side_and_leaves_the_rest() {
    let n = 23;
    let index = [22, 0, 7, 7, 1, 21, 13, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12];
    for dtype in FLOATS {
        for rows in [1, 2, 15, 16, 17] {
            for (cols, y_cols, first_col) in [(1, 1, 0), (8, 8, 0), (7, 21, 0), (7, 21, 7), (7, 21, 14), (33, 50, 16)] {
                let mut bed = Bed::new(dtype, y_cols as u64);
                let x = bed.random(Region::Scratch, n * cols, 1.0);
                let y = bed.random(Region::Scratch, (rows + 1) * y_cols, 1.0);
                let all = bed.ints(&index);
                let ran = bed.run(Gather { y, x, index: all, rows, cols, y_cols, first_col });
                for (i, &from) in index[..rows].iter().enumerate() {
                    let (row, from) = (i * y_cols, from as usize * cols);
                    let to = row + first_col..row + first_col + cols;
                    assert_eq!(ran.bits(y.slice(to.clone())), ran.bits(x.slice(from..from + cols)), "{dtype} row {i}");
                    assert!(ran.untouched(y, row..to.start) && ran.untouched(y, to.end..row + y_cols), "columns");
                }
                assert!(ran.untouched(y, rows * y_cols..(rows + 1) * y_cols), "rows after the last");
            }
        }
    }
}

/// Several layers' features side by side: the second gather keeps what the first put there.
#[test]
fn two_gathers_share_rows() {
    let mut bed = Bed::new(ocelli::mem::DType::F16, 1);
    let (a, b) = (bed.random(Region::Scratch, 3 * 4, 1.0), bed.random(Region::Scratch, 3 * 4, 1.0));
    let y = bed.random(Region::Scratch, 2 * 8, 1.0);
    let index = bed.ints(&[2, 1]);
    let side = |x, first_col| Gather { y, x, index, rows: 2, cols: 4, y_cols: 8, first_col }.into();
    let ran = bed.run_all(&[side(a, 0), side(b, 4)]);
    let (a, b) = (ran.input(a), ran.input(b));
    assert_eq!(ran.output(y), [&a[8..], &b[8..], &a[4..8], &b[4..8]].concat());
}
