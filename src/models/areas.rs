//! The memory that a model and the engine share: where pictures, image rows and steps lie, and the sizes of all regions.

use anyhow::Result;

use super::RowMove;
use super::clip::TileInput;
use super::io::{Limits, StepArea, layouts};
use super::load::{Loader, Placement};
use super::picture::PictureArea;
use crate::mem::{Act, Buf, DType, Layout, Region};
use crate::ops::Gather;
use crate::plan::Plan;

/// What a model has of pictures. Decides how much room there is for them.
#[derive(Clone, Copy, Debug)]
pub struct PictureSizes {
    /// Side of a tile in pixels; 0 in a model without its tower.
    pub image_size: usize,
    /// Image rows of a tile.
    pub tile_rows: usize,
    /// Columns of an image row: the width of the text model.
    pub hidden: usize,
    /// Columns of the features that callers may bring; 0 in a model that takes none.
    pub feature_columns: usize,
    /// Image rows that are the same for every picture.
    pub constants: usize,
    /// Whether a tile may be values instead of bytes.
    pub values: bool,
    /// Whether the device makes tiles of pictures.
    pub resizes: bool,
}

/// The buffers of a model that others read and write, and the sizes of all regions.
pub struct Areas {
    /// Type of activations and weights.
    pub dtype: DType,
    /// Values of a tile: three for each of its pixels.
    pub tile_len: usize,
    /// Image rows of a tile.
    pub tile_rows: usize,
    /// Columns of an image row.
    pub hidden: usize,
    /// Where tiles stand before they are encoded.
    pub tiles: TileInput,
    /// `[max_tiles * tile_rows, feature_columns]`: features that callers bring.
    pub features: Buf<Act>,
    /// `[(max_tiles + kept_tiles) * tile_rows + constants, hidden]`: what prompts refer to, which outlives the plan that
    /// wrote it. First those of the last encoding, then those that are kept, then those that are the same for every picture.
    pub image_rows: Buf<Act>,
    /// The first of the last.
    pub constant_row: usize,
    /// How many those are.
    pub constants: usize,
    /// Where a picture stands before the device resizes it.
    pub picture: PictureArea,
    /// What the host and the device exchange at a step.
    pub io: StepArea,
    /// What every plan takes its activations from.
    pub scratch: Layout,
    /// Sizes of the regions in bytes, in the order of [`Region::ALL`].
    pub regions: [usize; 4],
    /// What goes where in the weights region.
    pub placements: Vec<Placement>,
    /// What was odd about the checkpoint but does not change a result.
    pub warnings: Vec<String>,
    /// `0, 1, 2, ...` for every row of a tile: what copies rows is told so.
    row_index: Buf<i32>,
}

impl Areas {
    /// Ends the loading and takes room for everything but the activations of plans: see [`Areas::reserve`]. `kv` holds the
    /// caches, `vocab` is the number of logits of a row.
    ///
    /// # Errors
    /// With every tensor that is missing or has another shape.
    pub fn new(
        mut loader: Loader<'_>,
        kv: &Layout,
        limits: Limits,
        sizes: PictureSizes,
        vocab: usize,
    ) -> Result<Areas> {
        let PictureSizes { image_size, tile_rows, hidden, feature_columns, constants, values, resizes } = sizes;
        let dtype = loader.dtype();
        let [_, _, mut scratch, mut io] = layouts(dtype);
        let max_tiles = limits.max_tiles;
        let row_index = loader.table(tile_rows, move || (0..tile_rows as i32).collect());
        let constant_row = (max_tiles + limits.kept_tiles) * tile_rows;
        let image_rows = scratch.take((constant_row + constants) * hidden);
        let side = image_size * image_size * 3;
        let pixel_tiles = if image_size > 0 { max_tiles } else { 0 };
        let tiles = TileInput {
            pixels: io.take(pixel_tiles * side),
            // A picture has one at most, and bytes beside it.
            values: io.take(if values { pixel_tiles.div_ceil(2) * side } else { 0 }),
            // Where all tiles are bytes, which is which never changes.
            source: if values {
                io.take(max_tiles)
            } else {
                loader.table(max_tiles, move || (0..max_tiles as i32).collect())
            },
        };
        let picture = PictureArea::new(&mut io, resizes && pixel_tiles > 0);
        let features = io.take(max_tiles * tile_rows * feature_columns);
        let step = StepArea::new(&mut io, limits, vocab);
        let (placements, weights, warnings) = loader.finish()?;
        Ok(Areas {
            dtype,
            tile_len: side,
            tile_rows,
            hidden,
            tiles,
            features,
            image_rows,
            constant_row,
            constants,
            picture,
            io: step,
            regions: [weights.bytes(), kv.bytes(), scratch.bytes(), io.bytes()],
            scratch,
            placements,
            warnings,
            row_index,
        })
    }

    /// Scratch bytes of a plan, which `build` takes the activations of.
    pub fn scratch_of(&self, build: impl FnOnce(&mut Plan, &mut Layout)) -> usize {
        let mut scratch = self.scratch.clone();
        build(&mut Plan::new(self.dtype), &mut scratch);
        scratch.bytes()
    }

    /// Makes the scratch region large enough for plans that take so many bytes of it each.
    pub fn reserve(&mut self, plans: impl IntoIterator<Item = usize>) {
        let region = &mut self.regions[Region::Scratch as usize];
        *region = plans.into_iter().fold(*region, usize::max);
    }

    /// A plan, which `build` takes the activations of.
    pub fn plan(&self, build: impl FnOnce(&mut Plan, &mut Layout)) -> Plan {
        let mut plan = Plan::new(self.dtype);
        build(&mut plan, &mut self.scratch.clone());
        plan
    }

    /// Image rows `first .. first + rows`.
    pub fn rows(&self, first: usize, rows: usize) -> Buf<Act> {
        self.image_rows.slice(first * self.hidden..(first + rows) * self.hidden)
    }

    /// Copy image rows that an encode plan left behind to where they are kept.
    pub fn keep_plan(&self, moves: &[RowMove]) -> Plan {
        let mut plan = Plan::new(self.dtype);
        plan.scope("projector/keep", |p| {
            for &RowMove { from, to, rows } in moves {
                let (y, x, index) = (self.rows(to, rows), self.rows(from, rows), self.row_index.slice(0..rows));
                p.push(Gather { y, x, index, rows, cols: self.hidden, y_cols: self.hidden, first_col: 0 });
            }
        });
        plan
    }

    /// Push what copies a row of the weights to constant image row `constant`, for [`Vlm::setup_plan`](super::Vlm::setup_plan).
    pub fn push_constant(&self, plan: &mut Plan, row: Buf<Act>, constant: usize) {
        let (y, index, cols) = (self.rows(self.constant_row + constant, 1), self.row_index.slice(0..1), self.hidden);
        plan.push(Gather { y, x: row, index, rows: 1, cols, y_cols: cols, first_col: 0 });
    }
}
