//! From a decoded picture to what a model encodes: tiles, and the only token count.

use anyhow::{Context, Result, ensure};

use super::picture::PictureArea;
use super::{Content, ImageRow, RowMap, Tiles};
use crate::config::{Preprocessor, Resample, Resize};
use crate::image::{Anyres, ClipProcessor, Filter, Hd, HdShape, Rgb, Size, View};
use crate::mem::Buf;

/// Makes pictures ready for a model.
pub trait Processor: Send + Sync {
    /// Tiles and places of a picture.
    ///
    /// # Errors
    /// If the picture cannot be brought into the shape that the model takes, or the model was built without its tower.
    fn prepare(&self, picture: &Rgb) -> Result<Tiles>;

    /// The same with the resizing left to the device, if it is one that it can do; the pixels are the same to the byte.
    ///
    /// # Errors
    /// As [`Processor::prepare`].
    fn prepare_for_device(&self, picture: Rgb) -> Result<Tiles> {
        self.prepare(&picture)
    }

    /// All that is done to a picture, in words that differ wherever what comes out may differ: pictures are known by them.
    fn describe(&self) -> String;
}

/// Why a model without its tower takes no pixels.
pub(super) fn needs_tower(has_tower: bool) -> Result<()> {
    ensure!(
        has_tower,
        "it is given as pixels, and this model was loaded without its vision tower (--image-input-type \
         image_features); give it as image features or embeddings, or load the model with --image-input-type \
         pixel_values"
    );
    Ok(())
}

/// LLaVA-1.5: every picture is one tile.
pub struct OneTile {
    /// The steps.
    pub how: ClipProcessor,
    /// Image rows of a tile.
    pub tile_rows: usize,
    /// Whether the model takes pixels at all.
    pub has_tower: bool,
    /// Where a picture stands before the device resizes it.
    pub area: PictureArea,
    /// Where the first tile stands.
    pub tile: Buf<u8>,
}

impl OneTile {
    fn tiles(&self, content: Content) -> Tiles {
        Tiles { content, tiles: 1, rows: RowMap::straight(self.tile_rows) }
    }
}

impl Processor for OneTile {
    fn prepare(&self, picture: &Rgb) -> Result<Tiles> {
        needs_tower(self.has_tower)?;
        let tile = self.how.apply(picture).context("preparing the picture")?;
        Ok(self.tiles(Content::Pixels(tile.into_data())))
    }

    fn prepare_for_device(&self, picture: Rgb) -> Result<Tiles> {
        needs_tower(self.has_tower)?;
        let tile = self.how.tile(picture.width(), picture.height()).context("preparing the picture")?;
        match self.area.picture(picture, &tile, self.tile) {
            Ok(picture) => Ok(self.tiles(Content::Picture(Box::new(picture)))),
            Err(picture) => self.prepare(&picture),
        }
    }

    fn describe(&self) -> String {
        format!("{:?}", self.how)
    }
}

/// LLaVA-NeXT: the whole picture in one tile, and the picture at the best of several resolutions in more of them.
pub struct AnyresTiles {
    /// The steps.
    pub how: Anyres,
    /// Patches of a tile, a side.
    pub grid: usize,
}

impl AnyresTiles {
    /// Constant row that ends every line.
    pub const NEWLINE: usize = 0;

    /// The first tile's patches; then those of the grid that show the picture, line by line.
    pub fn rows(&self, view: &View) -> RowMap {
        let (side, tile_rows) = (self.grid, self.grid * self.grid);
        let across = view.grid.1 as usize;
        let (lines, columns) = view.kept(side);
        let line = |y: usize| {
            let patch = move |x: usize| {
                let tile = 1 + y / side * across + x / side;
                ImageRow::Encoded(tile * tile_rows + y % side * side + x % side)
            };
            columns.clone().map(patch).chain([ImageRow::Constant(AnyresTiles::NEWLINE)])
        };
        let base = (0..tile_rows).map(ImageRow::Encoded);
        RowMap::listed(view.tiles() * tile_rows, base.chain(lines.flat_map(line)))
    }
}

impl Processor for AnyresTiles {
    fn prepare(&self, picture: &Rgb) -> Result<Tiles> {
        let view = self.how.view(picture.width(), picture.height())?;
        let pixels = self.how.apply(picture).context("preparing the picture")?;
        Ok(Tiles { content: Content::Pixels(pixels), tiles: view.tiles(), rows: self.rows(&view) })
    }

    fn describe(&self) -> String {
        format!("{:?}", self.how)
    }
}

/// Phi-3-vision: the picture in as many tiles as it may have, and all of it once more in a tile of values.
pub struct HdTiles {
    /// The steps.
    pub how: Hd,
    /// Merged patches of a tile, a side.
    pub grid: usize,
}

impl HdTiles {
    /// Constant row that ends every line.
    pub const LINE_END: usize = 0;
    /// Constant row between the tiles and the view of everything.
    pub const BETWEEN: usize = 1;

    /// The tiles line by line, a separator, the view of everything. It is encoded first.
    pub fn rows(&self, shape: &HdShape) -> RowMap {
        let (side, tile_rows) = (self.grid, self.grid * self.grid);
        let (down, across) = (shape.grid.0 as usize, shape.grid.1 as usize);
        let line = move |y: usize, first_tile: usize, across: usize| {
            let row = move |x: usize| {
                let tile = first_tile + y / side * across + x / side;
                ImageRow::Encoded(tile * tile_rows + y % side * side + x % side)
            };
            (0..across * side).map(row).chain([ImageRow::Constant(HdTiles::LINE_END)])
        };
        let tiles = (0..down * side).flat_map(|y| line(y, 1, across));
        let overview = (0..side).flat_map(|y| line(y, 0, 1));
        let places = tiles.chain([ImageRow::Constant(HdTiles::BETWEEN)]).chain(overview);
        RowMap::listed((1 + shape.tiles()) * tile_rows, places)
    }
}

impl Processor for HdTiles {
    fn prepare(&self, picture: &Rgb) -> Result<Tiles> {
        let shape = self.how.shape(picture.width(), picture.height())?;
        let canvas = self.how.canvas(picture).context("preparing the picture")?;
        let content = Content::Views { overview: self.how.overview(&canvas), pixels: self.how.tiles(&canvas) };
        Ok(Tiles { content, tiles: 1 + shape.tiles(), rows: self.rows(&shape) })
    }

    fn describe(&self) -> String {
        format!("{:?}", self.how)
    }
}

/// The filter of preprocessor_config.json.
pub(super) fn filter(resample: Resample) -> Filter {
    match resample {
        Resample::Bilinear => Filter::Bilinear,
        Resample::Bicubic => Filter::Bicubic,
    }
}

/// The processor that preprocessor_config.json describes; its sizes were checked when it was read.
pub fn clip_processor(p: &Preprocessor) -> ClipProcessor {
    ClipProcessor {
        do_pad: p.do_pad,
        do_resize: p.do_resize,
        size: match p.size {
            Resize::ShortestEdge(n) => Size::ShortestEdge(n as u32),
            Resize::Exact { height, width } => Size::Exact { height: height as u32, width: width as u32 },
        },
        resample: filter(p.resample),
        do_center_crop: p.do_center_crop,
        crop: (p.crop_size.0 as u32, p.crop_size.1 as u32),
        do_rescale: p.do_rescale,
        rescale_factor: p.rescale_factor,
        do_normalize: p.do_normalize,
        mean: p.mean,
        std: p.std,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn anyres() -> AnyresTiles {
        let pinpoints = vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
        AnyresTiles { how: Anyres { pinpoints, tile: 336, resample: Filter::Bicubic }, grid: 24 }
    }

    fn hd(num_crops: u32) -> HdTiles {
        HdTiles { how: Hd { num_crops, tile: 336, mean: [0.5; 3], std: [0.5; 3] }, grid: 12 }
    }

    #[test]
    fn a_line_of_the_grid_goes_through_its_tiles_and_ends() {
        let view = anyres().how.view(640, 480).unwrap();
        let rows = anyres().rows(&view);
        assert_eq!((rows.len(), rows.encoded()), (2340, 5 * 576));
        // 36 of 48 lines of patches show the picture: line 6 of the grid is the first.
        let line: Vec<_> = (576..576 + 49).map(|i| rows.at(i)).collect();
        assert_eq!(line[0], ImageRow::Encoded(576 + 6 * 24));
        assert_eq!(line[23..26], [6 * 24 + 23, 576 + 6 * 24, 576 + 6 * 24 + 1].map(|row| ImageRow::Encoded(576 + row)));
        assert_eq!(line[48], ImageRow::Constant(AnyresTiles::NEWLINE));
    }

    #[test]
    fn the_view_of_everything_comes_last_and_is_encoded_first() {
        let shape = hd(4).how.shape(640, 480).unwrap();
        let rows = hd(4).rows(&shape);
        assert_eq!((rows.len(), rows.encoded()), (757, 5 * 144));
        let at = |i| rows.at(i);
        assert_eq!([at(0), at(11), at(12)], [144, 155, 288].map(ImageRow::Encoded), "two tiles side by side");
        assert_eq!([at(24), at(25)], [ImageRow::Constant(HdTiles::LINE_END), ImageRow::Encoded(156)]);
        assert_eq!([at(600), at(601)], [ImageRow::Constant(HdTiles::BETWEEN), ImageRow::Encoded(0)]);
        assert_eq!(at(756), ImageRow::Constant(HdTiles::LINE_END));
    }

    proptest! {
        #[test]
        fn as_many_rows_stand_in_the_sequence_as_are_counted(width in 1u32..3000, height in 1u32..3000, crops in 1u32..20) {
            let view = anyres().how.view(width, height).unwrap();
            let rows = anyres().rows(&view);
            prop_assert_eq!((rows.len(), rows.encoded()), (view.tokens(24), view.tiles() * 576));
            if let Ok(shape) = hd(crops).how.shape(width, height) {
                let rows = hd(crops).rows(&shape);
                prop_assert_eq!((rows.len(), rows.encoded()), (shape.tokens(24), (1 + shape.tiles()) * 144));
            }
        }
    }
}
