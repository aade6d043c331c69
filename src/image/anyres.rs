//! LLaVA-NeXT's "anyres": the picture squashed to one tile, and the picture at the best of a list of resolutions, cut
//! into tiles, as `LlavaNextImageProcessor` of Hugging Face does on its PIL backend, bit for bit.
//!
//! The features of the tiles are put together again to a grid, of which the rows or columns that show nothing but the
//! border around the picture are dropped. [`View`] is the only place that says how many are left.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::resize::Filter;
use super::{MAX_TILE_BYTES, Rgb, resize};

/// The settings of config.json and preprocessor_config.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anyres {
    /// `image_grid_pinpoints`: (height, width) of the resolutions, each a multiple of `tile`, in their order.
    pub pinpoints: Vec<(u32, u32)>,
    /// Side of a tile in pixels.
    pub tile: u32,
    /// Filter of all resizing.
    pub resample: Filter,
}

/// How the tiles of pictures of one size lie. Sizes are (height, width).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Size of the picture.
    pub picture: (u32, u32),
    /// The resolution that was chosen.
    pub resolution: (u32, u32),
    /// Size of the picture on it; black around.
    pub resized: (u32, u32),
    /// Tiles in a column and in a row, without the first one, which shows everything.
    pub grid: (u32, u32),
}

impl Anyres {
    /// The tiles of pictures of one size, in numbers.
    ///
    /// # Errors
    /// A zero side, no resolution, or one that is no multiple of a tile.
    pub fn view(&self, width: u32, height: u32) -> Result<View> {
        ensure!(width > 0 && height > 0, "a picture of {width}x{height}: both sides must be at least 1");
        ensure!(self.tile > 0, "crop_size asks for tiles of 0 pixels");
        for &(h, w) in &self.pinpoints {
            ensure!(
                h > 0 && w > 0 && h % self.tile == 0 && w % self.tile == 0,
                "image_grid_pinpoints has {h}x{w}; both sides must be multiples of a tile's {}",
                self.tile
            );
        }
        let resolution = best_resolution(&self.pinpoints, (height, width)).context("image_grid_pinpoints is empty")?;
        let resized = fitted((height, width), resolution);
        ensure!(
            resized.0 > 0 && resized.1 > 0,
            "a picture of {width}x{height} would be {}x{} on {}x{}",
            resized.1,
            resized.0,
            resolution.1,
            resolution.0
        );
        let grid = (resolution.0 / self.tile, resolution.1 / self.tile);
        Ok(View { picture: (height, width), resolution, resized, grid })
    }

    /// The tiles of a picture: `[1 + tiles of the grid, tile, tile, 3]` bytes, the whole picture first, then the grid row
    /// by row.
    ///
    /// # Errors
    /// As [`Anyres::view`], or if the tiles do not fit into memory.
    pub fn apply(&self, img: &Rgb) -> Result<Vec<u8>> {
        let view = self.view(img.width(), img.height())?;
        let bytes = view.tiles() as u64 * 3 * u64::from(self.tile).pow(2);
        ensure!(
            bytes <= MAX_TILE_BYTES,
            "the {} tiles of a picture take {bytes} bytes; the limit is {MAX_TILE_BYTES}",
            view.tiles()
        );
        let ((height, width), (top, left)) = (view.resized, view.border());
        let resized = resize(img, width, height, self.resample)?;
        let canvas = resized.framed(view.resolution.1, view.resolution.0, (left, top), [0; 3])?;
        let mut tiles = vec![0; bytes as usize];
        let (whole, grid) = tiles.split_at_mut(3 * (self.tile as usize).pow(2));
        whole.copy_from_slice(resize(img, self.tile, self.tile, self.resample)?.data());
        canvas.cut(self.tile, grid);
        Ok(tiles)
    }
}

impl View {
    /// Tiles, the one that shows everything included.
    pub fn tiles(&self) -> usize {
        1 + self.grid.0 as usize * self.grid.1 as usize
    }

    /// Black rows above the picture and columns left of it; an odd remainder is below and right.
    pub fn border(&self) -> (u32, u32) {
        ((self.resolution.0 - self.resized.0) / 2, (self.resolution.1 - self.resized.1) / 2)
    }

    /// Rows and columns that are kept of the grid of features, `side` by `side` for a tile: all but those which hold
    /// nothing of the picture, counted from its shape alone, so that of a very thin one none may be left. Widths over
    /// heights are compared as the quotients in f64 that Hugging Face compares.
    pub fn kept(&self, side: usize) -> (Range<usize>, Range<usize>) {
        let (height, width) = (self.picture.0 as usize, self.picture.1 as usize);
        let (rows, columns) = (self.grid.0 as usize * side, self.grid.1 as usize * side);
        if width as f64 / height as f64 > columns as f64 / rows as f64 {
            let cut = (rows - height * columns / width) / 2;
            (cut..rows - cut, 0..columns)
        } else {
            let cut = (columns - width * rows / height) / 2;
            (0..rows, cut..columns - cut)
        }
    }

    /// Places of the picture in a sequence: the features of the first tile, and those of the grid with a separator at the
    /// end of every row.
    pub fn tokens(&self, side: usize) -> usize {
        let (rows, columns) = self.kept(side);
        side * side + rows.len() * (columns.len() + 1)
    }
}

/// The resolution on which most of the picture's pixels are left, and of those the one with the least border. All in f64,
/// as in Hugging Face's `select_best_resolution`: exact fractions choose otherwise for a few sizes.
fn best_resolution(pinpoints: &[(u32, u32)], picture: (u32, u32)) -> Option<(u32, u32)> {
    let (height, width) = (f64::from(picture.0), f64::from(picture.1));
    let mut best = None;
    for &(h, w) in pinpoints {
        let scale = (f64::from(w) / width).min(f64::from(h) / height);
        let shown = ((width * scale).trunc() * (height * scale).trunc()).min(width * height);
        let waste = f64::from(w) * f64::from(h) - shown;
        if best.is_none_or(|(most, least, _)| shown > most || (shown == most && waste < least)) {
            best = Some((shown, waste, (h, w)));
        }
    }
    best.map(|(_, _, resolution)| resolution)
}

/// The largest size of the picture's shape that fits the resolution. 300 x 300 on 336 x 672 is 336 x 337: 300 times
/// 1.12 is more than 336 in f64, and Hugging Face rounds up.
fn fitted(picture: (u32, u32), resolution: (u32, u32)) -> (u32, u32) {
    let (height, width) = (f64::from(picture.0), f64::from(picture.1));
    let (across, down) = (f64::from(resolution.1) / width, f64::from(resolution.0) / height);
    if across < down {
        (((height * across).ceil() as u32).min(resolution.0), resolution.1)
    } else {
        (resolution.0, ((width * down).ceil() as u32).min(resolution.1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> Anyres {
        let pinpoints = vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
        Anyres { pinpoints, tile: 336, resample: Filter::Bicubic }
    }

    #[test]
    fn views_are_those_of_hugging_face() {
        // Width, height; resolution; resized; rows and columns kept; tokens.
        let cases = [
            (336, 336, (336, 672), (336, 336), (24, 24), 1176),
            (300, 300, (336, 672), (336, 337), (24, 24), 1176),
            (448, 336, (336, 672), (336, 448), (24, 32), 1368),
            (640, 480, (672, 672), (504, 672), (36, 48), 2340),
            (480, 640, (672, 672), (672, 504), (48, 36), 2352),
            (1100, 808, (672, 672), (494, 672), (36, 48), 2340),
            (1024, 899, (672, 672), (590, 672), (42, 48), 2634),
            (1920, 1080, (672, 672), (378, 672), (28, 48), 1948),
            (1080, 1920, (672, 672), (672, 378), (48, 28), 1968),
            (800, 200, (336, 1008), (252, 1008), (18, 72), 1890),
            (200, 800, (1008, 336), (1008, 252), (72, 18), 1944),
            (1000, 1000, (672, 672), (672, 672), (48, 48), 2928),
            (100, 3000, (1008, 336), (1008, 34), (72, 2), 792),
        ];
        for (width, height, resolution, resized, kept, tokens) in cases {
            let view = settings().view(width, height).unwrap();
            let (rows, columns) = view.kept(24);
            assert_eq!((view.resolution, view.resized), (resolution, resized), "{width}x{height}");
            assert_eq!(((rows.len(), columns.len()), view.tokens(24)), (kept, tokens), "{width}x{height}");
        }
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let error = |anyres: Anyres| anyres.view(8, 8).unwrap_err().to_string();
        assert!(error(Anyres { pinpoints: vec![], ..settings() }).contains("is empty"));
        assert!(error(Anyres { pinpoints: vec![(336, 500)], ..settings() }).contains("336x500"));
        assert!(error(Anyres { tile: 0, ..settings() }).contains("0 pixels"));
    }

    #[test]
    fn tiles_show_the_picture_and_black_around_it() {
        let anyres = Anyres { pinpoints: vec![(4, 8)], tile: 4, resample: Filter::Bilinear };
        // Red on the left, blue on the right; 6 x 4 of 8 x 4, a black column on each side.
        let row = [[255u8, 0, 0].repeat(3), [0u8, 0, 255].repeat(3)].concat();
        let tiles = anyres.apply(&Rgb::new(6, 4, row.repeat(4)).unwrap()).unwrap();
        assert_eq!(tiles.len(), 3 * 4 * 4 * 3);
        let pixel = |tile: usize, y: usize, x: usize| &tiles[((tile * 4 + y) * 4 + x) * 3..][..3];
        assert_eq!((pixel(0, 0, 0), pixel(0, 3, 3)), (&[255, 0, 0][..], &[0, 0, 255][..]));
        for y in 0..4 {
            assert_eq!((pixel(1, y, 0), pixel(1, y, 3)), (&[0, 0, 0][..], &[255, 0, 0][..]));
            assert_eq!((pixel(2, y, 0), pixel(2, y, 3)), (&[0, 0, 255][..], &[0, 0, 0][..]));
        }
    }

    /// Rows and columns that transformers' `unpad_image` keeps: by scale factors, rounded to seven decimals.
    fn unpadded(view: &View, side: usize) -> (usize, usize) {
        let (rows, columns) = (view.grid.0 as usize * side, view.grid.1 as usize * side);
        let (height, width) = (f64::from(view.picture.0), f64::from(view.picture.1));
        let whole = |x: f64| ((x * 1e7).round() / 1e7) as usize;
        let left = |all: usize, shown: usize| all - 2 * ((all - shown) / 2);
        if width / height > columns as f64 / rows as f64 {
            (left(rows, whole(height * (columns as f64 / width))), columns)
        } else {
            (rows, left(columns, whole(width * (rows as f64 / height))))
        }
    }

    proptest! {
        #[test]
        fn as_many_rows_and_columns_are_kept_as_are_counted(width in 1u32..3000, height in 1u32..3000, side in 1usize..30) {
            let view = settings().view(width, height).unwrap();
            let (rows, columns) = view.kept(side);
            prop_assert_eq!((rows.len(), columns.len()), unpadded(&view, side));
            prop_assert_eq!(rows.start + rows.end, view.grid.0 as usize * side, "as much is cut above as below");
            prop_assert_eq!(columns.start + columns.end, view.grid.1 as usize * side);
            prop_assert_eq!(view.tokens(side), side * side + rows.len() * columns.len() + rows.len());
            prop_assert!(view.resized.0 <= view.resolution.0 && view.resized.1 <= view.resolution.1);
        }
    }
}
