//! Token embeddings with the rows of pictures in their places.

use bytemuck::{Pod, Zeroable};

use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, Spans};

/// Ids below this one refer to tokens that the step before sampled.
const REFERENCES: i32 = i32::MIN / 2;

/// The id of the token that the step before sampled for its row `row` of logits, for a host that does not know it yet.
pub const fn sampled_id(row: usize) -> i32 {
    i32::MIN + row as i32
}

/// `y[i] = table[id]` for an id of a token, `image_rows[-1 - id]` for a negative one, and `table[sampled[row]]` for
/// [`sampled_id`] of a row. A row without a token (-1) counts as token 0: whoever reads the -1 has no use for the rest.
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
    /// `[any]`: the tokens that the step before sampled.
    pub sampled: Buf<i32>,
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
        let (ids, sampled) = (m.read(self.ids), m.read(self.sampled));
        let row = |id: i32| {
            let id = if id < REFERENCES { sampled[(id - i32::MIN) as usize].max(0) } else { id };
            let (rows, i) = if id < 0 { (self.image_rows, !id as usize) } else { (self.table, id as usize) };
            m.load(rows.slice(i * self.cols..(i + 1) * self.cols))
        };
        let y: Vec<f32> = ids[..self.rows].iter().flat_map(|&id| row(id)).collect();
        m.store(self.y.slice(0..y.len()), &y);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct EmbedSpliceParams {
    y: u64,
    table: u64,
    image_rows: u64,
    ids: u64,
    sampled: u64,
    rows: u32,
    cols: u32,
}

impl Launch for EmbedSplice {
    type Params = EmbedSpliceParams;

    fn params(&self, at: &Bases) -> EmbedSpliceParams {
        EmbedSpliceParams {
            y: at.at(self.y),
            table: at.at(self.table),
            image_rows: at.at(self.image_rows),
            ids: at.at(self.ids),
            sampled: at.at(self.sampled),
            rows: self.rows as u32,
            cols: self.cols as u32,
        }
    }

    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        Geometry::row_a_block(symbol!("embed_splice", self.y.dtype()), self.rows, self.cols, gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};

    #[test]
    fn a_row_is_a_block() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };
        let mut l = Layout::new(Region::Scratch, DType::F16);
        let (y, table, image_rows, ids) = (l.take(645 * 4096), l.take(4096), l.take(4096), l.take(645));
        let sampled = ids;
        let g = EmbedSplice { y, table, image_rows, ids, sampled, rows: 645, cols: 4096 }.geometry(&gpu);
        assert_eq!((g.symbol, g.grid, g.block), ("embed_splice_f16", [645, 1, 1], [512, 1, 1]));
    }
}
