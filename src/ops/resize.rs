//! Pillow's resizing of a picture, cut to a tile.

use bytemuck::{Pod, Zeroable};

use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Bases, Buf, Spans};

/// A tile of a picture on a canvas: columns are summed with the weights of one axis and rounded to bytes, then rows with
/// those of the other; black lies around what is kept.
///
/// The arithmetic is Pillow's (`ImagingResample` for 8 bits): integers with 22 fraction bits, so a result is right to
/// the byte or wrong. The weights come from [`image::Cut`](crate::image::Cut), which does the same on the host. The picture
/// and the tables are the host's: no op of the same plan writes them.
#[derive(Clone, Copy, Debug)]
pub struct Resize {
    /// `[rows.tile, columns.tile, 3]`, RGB.
    pub y: Buf<u8>,
    /// `[rows.picture, columns.picture, 3]`, RGB.
    pub x: Buf<u8>,
    /// From left to right.
    pub columns: ResizeAxis,
    /// From top to bottom.
    pub rows: ResizeAxis,
    /// Of the canvas around the picture, red first.
    pub colour: [u8; 3],
    /// Most canvas rows that 16 successive rows are made of: see [`Resize::reach`].
    pub reach: usize,
}

/// One axis of a [`Resize`], in pixels.
#[derive(Clone, Copy, Debug)]
pub struct ResizeAxis {
    /// `[1 + taps, kept]`: the first canvas position of each output, then its weights.
    pub table: Buf<i32>,
    /// Weights of an output.
    pub taps: usize,
    /// Length of the picture.
    pub picture: usize,
    /// Where on the canvas it starts.
    pub offset: usize,
    /// Length of the tile.
    pub tile: usize,
    /// Where in the tile the outputs start.
    pub first: usize,
    /// Outputs.
    pub kept: usize,
}

/// Fraction bits of a weight.
const PRECISION: u32 = 22;
/// Columns and rows of the tile that a block of the kernel computes, and its threads.
const COLUMNS: usize = 32;
const ROWS: usize = 16;
const THREADS: u32 = 256;
/// Shared memory that a block has on any device.
const SMEM: usize = 96 << 10;

impl Resize {
    /// Largest [`Resize::reach`] that the kernel takes.
    pub const MAX_REACH: usize = SMEM / (3 * COLUMNS);

    /// Most canvas rows that a block's rows are made of, given the table of the rows: their sums need them all at once.
    pub fn reach(table: &[i32], taps: usize, kept: usize) -> usize {
        let first = &table[..kept];
        let last = |i: usize| first[(i + ROWS - 1).min(kept - 1)];
        first.iter().enumerate().map(|(i, &row)| (last(i) - row) as usize + taps).max().unwrap_or(0)
    }
}

/// `0.5` and the products in fixed point, rounded down to a byte.
fn sum(terms: impl Iterator<Item = (i32, u8)>) -> u8 {
    let sum = terms.fold(1 << (PRECISION - 1), |sum, (weight, value)| sum + weight * i32::from(value));
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Positions on the canvas and weights of output `i`.
fn terms(axis: &ResizeAxis, table: &[i32], i: usize) -> impl Iterator<Item = (usize, i32)> {
    let first = table[i] as usize;
    (0..axis.taps).map(move |k| (first + k, table[(1 + k) * axis.kept + i]))
}

impl Kernel for Resize {
    const NAME: &'static str = "resize";

    fn cost(&self) -> Cost {
        let (columns, rows) = (&self.columns, &self.rows);
        let tables = (1 + columns.taps) * columns.kept + (1 + rows.taps) * rows.kept;
        Cost {
            bytes: (self.x.len() + self.y.len() + 4 * tables) as u64,
            flops: (6 * columns.kept * (rows.picture * columns.taps + rows.kept * rows.taps)) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let Resize { columns, rows, colour, .. } = self;
        let (x, across, down) = (m.read(self.x), m.read(columns.table), m.read(rows.table));
        let pixel = |row: usize, column: usize, c: usize| {
            let place = row.checked_sub(rows.offset).zip(column.checked_sub(columns.offset));
            match place.filter(|&(row, column)| row < rows.picture && column < columns.picture) {
                Some((row, column)) => x[(row * columns.picture + column) * 3 + c],
                None => colour[c],
            }
        };
        let end = |i: usize| down[i] as usize + rows.taps;
        let squeezed: Vec<[u8; 3]> = (0..end(rows.kept - 1))
            .flat_map(|row| (0..columns.kept).map(move |i| (row, i)))
            .map(|(row, i)| [0, 1, 2].map(|c| sum(terms(columns, &across, i).map(|(at, w)| (w, pixel(row, at, c))))))
            .collect();
        let mut y = vec![0; self.y.len()];
        for i in 0..rows.kept {
            for j in 0..columns.kept {
                let at = ((rows.first + i) * columns.tile + columns.first + j) * 3;
                for (c, out) in y[at..at + 3].iter_mut().enumerate() {
                    *out = sum(terms(rows, &down, i).map(|(row, w)| (w, squeezed[row * columns.kept + j][c])));
                }
            }
        }
        m.bytes_mut(self.y.span()).copy_from_slice(&y);
    }
}

/// One axis as the kernel takes it; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ResizeAxisParams {
    table: u64,
    taps: u32,
    picture: u32,
    offset: u32,
    tile: u32,
    first: u32,
    kept: u32,
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ResizeParams {
    y: u64,
    x: u64,
    columns: ResizeAxisParams,
    rows: ResizeAxisParams,
    colour: u32,
    pad: u32,
}

impl Launch for Resize {
    type Params = ResizeParams;

    fn params(&self, at: &Bases) -> ResizeParams {
        let axis = |a: &ResizeAxis| ResizeAxisParams {
            table: at.at(a.table),
            taps: a.taps as u32,
            picture: a.picture as u32,
            offset: a.offset as u32,
            tile: a.tile as u32,
            first: a.first as u32,
            kept: a.kept as u32,
        };
        let [red, green, blue] = self.colour;
        ResizeParams {
            y: at.at(self.y),
            x: at.at(self.x),
            columns: axis(&self.columns),
            rows: axis(&self.rows),
            colour: u32::from_le_bytes([red, green, blue, 0]),
            pad: 0,
        }
    }

    /// A block for each piece of the tile, with room for the canvas rows that the piece is made of.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        Geometry {
            symbol: "resize_u8",
            grid: [self.columns.tile.div_ceil(COLUMNS) as u32, self.rows.tile.div_ceil(ROWS) as u32, 1],
            block: [THREADS, 1, 1],
            smem: (self.reach * 3 * COLUMNS) as u32,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};

    #[test]
    fn a_block_has_room_for_the_rows_behind_its_rows() {
        // Every output starts two rows further down than the last and is a sum of five.
        let table: Vec<i32> = (0..40).map(|i| 2 * i).collect();
        let reach = Resize::reach(&table, 5, 40);
        assert_eq!(reach, 2 * 15 + 5);
        assert_eq!(Resize::reach(&table[..1], 5, 1), 5);

        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: true };
        let mut l = Layout::new(Region::Io, DType::F16);
        let mut axis =
            || ResizeAxis { table: l.take(6 * 40), taps: 5, picture: 100, offset: 0, tile: 50, first: 5, kept: 40 };
        let (columns, rows) = (axis(), axis());
        let (y, x) = (l.take(50 * 50 * 3), l.take(100 * 100 * 3));
        let g = Resize { y, x, columns, rows, colour: [0; 3], reach }.geometry(&gpu);
        assert_eq!((g.symbol, g.grid, g.block, g.smem), ("resize_u8", [2, 4, 1], [256, 1, 1], 35 * 96));
    }
}
