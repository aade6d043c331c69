//! Ops that work row by row, and one that knows no rows: normalisation, the picking of rows, random weights.

use super::{Case, Size, Tolerance, U};
use crate::kernel::Kernel;
use crate::mem::{Act, Region};
use crate::ops::{EmbedSplice, Gather, LayerNorm, RandomFill, RmsNorm, sampled_id};
use crate::workbench::Bed;

const EPS: f32 = 1e-5;

/// Rows and columns of the edges: one of either, less and more than a vector or a warp, more than a block's worth.
const EDGES: [[usize; 2]; 6] = [[1, 1], [3, 7], [2, 64], [5, 1030], [1, 4097], [2, 9000]];

fn sizes(real: &'static [[usize; 2]]) -> impl Iterator<Item = (Size, usize, usize)> {
    let edges = EDGES.iter().map(|&[rows, cols]| (Size::Edge, rows, cols));
    edges.chain(real.iter().map(|&[rows, cols]| (Size::Real, rows, cols)))
}

/// The normalised row is rounded before it is scaled. Where that rounding goes the other way, the product is off by a
/// step relative to its size, which is at most two units in its last place; its own rounding is the third. Before, sums
/// of `n / 8` additions in either order and a root: relative, so times the largest result, below 2.
fn rms_norm(size: Size, rows: usize, cols: usize) -> Case {
    let tolerance = Tolerance { ulps: 3.0, arithmetic: (cols as f64 / 8.0 + 16.0) * U * 2.0, ..Tolerance::BITS };
    Case::new(RmsNorm::NAME, format!("{rows}x{cols}"), size, tolerance, move |bed: &mut Bed| RmsNorm {
        y: bed.output(Region::Scratch, rows * cols),
        x: bed.uniform(Region::Scratch, rows * cols, 3.0),
        weight: bed.around(Region::Weights, cols, 1.0, 0.1),
        rows,
        cols,
        eps: EPS,
    })
}

/// `n` additions for the mean, of numbers around half the size of their spread, and `n` for the variance, which the root
/// halves; results are below 2. One rounding.
fn layer_norm(size: Size, rows: usize, cols: usize) -> Case {
    let tolerance = Tolerance { ulps: 1.0, arithmetic: (cols as f64 + 8.0) * U * 3.0, ..Tolerance::BITS };
    Case::new(LayerNorm::NAME, format!("{rows}x{cols}"), size, tolerance, move |bed: &mut Bed| LayerNorm {
        y: bed.output(Region::Scratch, rows * cols),
        x: bed.around(Region::Scratch, rows * cols, 0.5, 1.0),
        weight: bed.around(Region::Weights, cols, 1.0, 0.1),
        bias: bed.uniform(Region::Weights, cols, 0.2),
        rows,
        cols,
        eps: EPS,
    })
}

/// Rows of the embedding table: enough for every row of a step to have its own, and how many more there are changes
/// nothing.
const VOCAB: usize = 2048;

/// Tokens of text, one of them known to the device alone, and after the fifth the rows of a picture.
fn embed_splice(size: Size, rows: usize, cols: usize) -> Case {
    let id = |row: usize| match row {
        2 => sampled_id(1),
        5..581 => 4 - row as i32,
        _ => (row * 577 % VOCAB) as i32,
    };
    Case::new(EmbedSplice::NAME, format!("{rows}x{cols}"), size, Tolerance::BITS, move |bed: &mut Bed| EmbedSplice {
        y: bed.output(Region::Scratch, rows * cols),
        table: bed.uniform(Region::Weights, VOCAB.min(rows * 577) * cols, 1.0),
        image_rows: bed.uniform(Region::Scratch, 576.min(rows) * cols, 1.0),
        ids: bed.ints(&(0..rows).map(|row| if rows < 4 { row as i32 } else { id(row) }).collect::<Vec<_>>()),
        sampled: bed.ints(&[-1, 1]),
        rows,
        cols,
    })
}

/// Rows of `x` backwards, from the second on, into the middle third of rows of `y` or into all of it.
fn gather(what: &str, size: Size, rows: usize, cols: usize, thirds: bool) -> Case {
    let y_cols = if thirds { 3 * cols } else { cols };
    Case::new(Gather::NAME, format!("{what} {rows}x{cols}"), size, Tolerance::BITS, move |bed: &mut Bed| Gather {
        y: if thirds {
            bed.uniform(Region::Scratch, rows * y_cols, 1.0)
        } else {
            bed.output::<Act>(Region::Scratch, rows * y_cols)
        },
        x: bed.uniform(Region::Scratch, (rows + 1) * cols, 1.0),
        index: bed.ints(&(1..=rows as i32).rev().collect::<Vec<_>>()),
        rows,
        cols,
        y_cols,
        first_col: if thirds { cols } else { 0 },
    })
}

/// The same bits on the host and on a device: every step is one rounding.
fn random_fill(size: Size, len: usize) -> Case {
    Case::new(RandomFill::NAME, len.to_string(), size, Tolerance::BITS, move |bed: &mut Bed| RandomFill {
        y: bed.output(Region::Weights, len),
        seed: 0x1234_5678_9abc_def0,
        mean: 0.25,
        spread: 1.5,
    })
}

pub(super) fn cases() -> Vec<Case> {
    let language = &[[1, 4096], [8, 4096], [645, 4096]];
    let norms = sizes(language).map(|(size, rows, cols)| rms_norm(size, rows, cols));
    let vision = sizes(&[[577, 1024]]).map(|(size, rows, cols)| layer_norm(size, rows, cols));
    let embeddings = sizes(language).map(|(size, rows, cols)| embed_splice(size, rows, cols));
    let thirds = EDGES.into_iter().map(|[rows, cols]| gather("part", Size::Edge, rows, cols, true));
    let picked = [
        gather("all", Size::Edge, 3, 520, false),
        gather("patches", Size::Real, 576, 1024, false),
        gather("last", Size::Real, 1, 4096, false),
        gather("last", Size::Real, 8, 4096, false),
    ];
    let fills = [(Size::Edge, 1), (Size::Edge, 2051), (Size::Real, 4096 * 4096)];
    let fills = fills.map(|(size, len)| random_fill(size, len));
    norms.chain(vision).chain(embeddings).chain(thirds).chain(picked).chain(fills).collect()
}
