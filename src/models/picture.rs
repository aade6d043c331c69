//! Pictures that the device resizes: the host brings the decoded pixels and the weights of the sums, and no more.

use crate::image::{Axis, Crop, Rgb, Tile};
use crate::mem::{Buf, Layout};
use crate::ops::{Resize, ResizeAxis};

/// Bytes of the largest picture that the device resizes, 5.6 million pixels. Larger ones are resized on the host, where
/// decoding them takes most of the time.
const MAX_BYTES: usize = 16 << 20;
/// Integers of both tables of such a picture, unless it is very thin.
const MAX_TABLES: usize = 1 << 17;

/// A picture and what its tile is made of.
#[derive(Clone, Debug)]
pub struct Picture {
    /// All of it, to be written to the start of `resize.x`.
    pub rgb: Rgb,
    /// The tables of both axes, to be written to [`PictureArea::tables`].
    pub tables: Vec<i32>,
    /// The op that makes the tile; its `y` is the first tile's place.
    pub resize: Resize,
}

/// The part of the io region in which a picture stands before it is resized, one at a time.
#[derive(Clone, Copy, Debug)]
pub struct PictureArea {
    /// `[height, width, 3]` of any picture that is small enough.
    pixels: Buf<u8>,
    /// Where the tables go, the columns' first.
    pub tables: Buf<i32>,
}

impl PictureArea {
    /// Take room for a picture, or none where there are no pictures.
    pub fn new(io: &mut Layout, pictures: bool) -> PictureArea {
        let room = |n: usize| if pictures { n } else { 0 };
        PictureArea { pixels: io.take(room(MAX_BYTES)), tables: io.take(room(MAX_TABLES)) }
    }

    /// `rgb` with all that makes it the tile `y`; the picture comes back if it is too large, or so thin that the sums of a
    /// few rows go over more of it than a kernel can hold.
    pub fn picture(&self, rgb: Rgb, tile: &Tile, y: Buf<u8>) -> Result<Picture, Rgb> {
        let [columns, rows] = tile.cut.axes();
        let tables = [columns.table(), rows.table()];
        let reach = Resize::reach(&tables[1], rows.taps(), rows.len());
        let (bytes, numbers) = (rgb.data().len(), tables[0].len() + tables[1].len());
        let size = [tile.down.size, tile.across.size, 3].map(|n| n as usize).iter().product::<usize>();
        if bytes > self.pixels.len() || numbers > self.tables.len() || reach > Resize::MAX_REACH || size != y.len() {
            return Err(rgb);
        }
        let canvas = tile.cut.canvas();
        let (left, top) = canvas.picture_at();
        let (across, down) = (self.tables.slice(0..tables[0].len()), self.tables.slice(tables[0].len()..numbers));
        let resize = Resize {
            y,
            x: self.pixels.slice(0..bytes),
            columns: axis(across, columns, rgb.width(), left, &tile.across),
            rows: axis(down, rows, rgb.height(), top, &tile.down),
            colour: canvas.colour(),
            reach,
        };
        Ok(Picture { rgb, tables: tables.concat(), resize })
    }
}

fn axis(table: Buf<i32>, axis: &Axis, picture: u32, offset: u32, crop: &Crop) -> ResizeAxis {
    ResizeAxis {
        table,
        taps: axis.taps(),
        picture: picture as usize,
        offset: offset as usize,
        tile: crop.size as usize,
        first: crop.to as usize,
        kept: axis.len(),
    }
}
