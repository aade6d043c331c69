//! Token embeddings with the rows of pictures in their places.

use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

/// `y[i] = table[id]` for an id of a token, and `image_rows[-1 - id]` for a negative one.
///
/// A place of a picture is never an id of the vocabulary, so no text can point at a picture's rows.
#[derive(Clone, Copy, Debug)]
pub struct EmbedSplice {
    /// `[rows, cols]`
    pub y: Buf<Act>,
    /// `[vocab, cols]`
    pub table: Buf<Act>,
    /// `[any, cols]`: projected features of the pictures in flight.
    pub image_rows: Buf<Act>,
    /// `[rows]`
    pub ids: Buf<i32>,
    /// Tokens.
    pub rows: usize,
    /// Width of an embedding.
    pub cols: usize,
}

impl Kernel for EmbedSplice {
    const NAME: &'static str = "embed_splice";

    fn cost(&self) -> Cost {
        Cost { bytes: (2 * self.rows * self.cols * self.y.dtype().size() + 4 * self.rows) as u64, flops: 0 }
    }

    fn writes(&self) -> Spans {
        vec![self.y.slice(0..self.rows * self.cols).span()]
    }

    fn reference(&self, m: &HostMem) {
        let ids = m.read(self.ids);
        let row = |id: i32| {
            let (rows, i) = if id < 0 { (self.image_rows, !id as usize) } else { (self.table, id as usize) };
            m.load(rows.slice(i * self.cols..(i + 1) * self.cols))
        };
        let y: Vec<f32> = ids[..self.rows].iter().flat_map(|&id| row(id)).collect();
        m.store(self.y.slice(0..y.len()), &y);
    }
}
