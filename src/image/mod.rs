//! Pixels: encoded bytes to RGB, Pillow-exact resizing, CLIP preprocessing. No device, no tensors.
//!
//! ```text
//! bytes -> decode (limits, orientation, alpha) -> Rgb -> ClipProcessor (resize, crop), Anyres or Hd (tiles)
//!       -> table lookup on the device
//! ```

pub mod anyres;
mod bmp;
mod bytes;
pub mod clip;
mod convert;
pub mod decode;
mod error;
mod gif;
pub mod hd;
mod jpeg;
mod limits;
mod orient;
mod png;
pub mod resize;
mod sniff;
mod vp8l;
mod webp;

use std::fmt;

use anyhow::{Result, ensure};
use rayon::prelude::*;

pub use anyres::{Anyres, View};
pub use clip::{ClipProcessor, Crop, Size, Tile};
pub use decode::{Alpha, decode};
pub use error::DecodeError;
pub use hd::{Hd, HdShape};
pub use limits::Limits;
pub use resize::{Axis, Canvas, Cut, Filter, Window, resize};

/// Bytes of all tiles of a picture: 1 GiB.
const MAX_TILE_BYTES: u64 = 1 << 30;

/// Rows that are worth a thread, where they are copied.
const ROWS: usize = 32;

/// A picture: 8-bit RGB, rows from the top, pixels from the left, no padding (HWC).
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Rgb {
    /// Wraps `data`, which must hold `height * width * 3` bytes.
    ///
    /// # Errors
    /// A zero side, or a length that does not fit.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Rgb> {
        ensure!(width > 0 && height > 0, "a picture of {width}x{height}: both sides must be at least 1");
        let need = u64::from(width).checked_mul(u64::from(height)).and_then(|n| n.checked_mul(3));
        ensure!(
            need == u64::try_from(data.len()).ok(),
            "{} bytes do not make a {width}x{height} RGB picture, which has width * height * 3 bytes",
            data.len()
        );
        Ok(Rgb { width, height, data })
    }

    /// A picture of one colour.
    ///
    /// # Errors
    /// A zero side, or more bytes than memory can address.
    pub fn filled(width: u32, height: u32, colour: [u8; 3]) -> Result<Rgb> {
        let pixels =
            usize::try_from(u64::from(width) * u64::from(height)).ok().filter(|n| *n <= isize::MAX as usize / 3);
        let Some(pixels) = pixels else { anyhow::bail!("a picture of {width}x{height} does not fit into memory") };
        // Zeros are the kernel's, page by page, as threads write there.
        Rgb::new(width, height, if colour == [0; 3] { vec![0; 3 * pixels] } else { colour.repeat(pixels) })
    }

    /// Pixels a row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// All bytes, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// All bytes, `[height, width, 3]`, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// One row, `[width, 3]`; empty below the picture.
    pub fn row(&self, y: usize) -> &[u8] {
        let stride = self.width as usize * 3;
        y.checked_mul(stride).and_then(|at| self.data.get(at..at + stride)).unwrap_or_default()
    }

    /// The picture on a canvas of one colour, its first pixel in column `left` of row `top`; all of it must lie there.
    fn framed(&self, width: u32, height: u32, (left, top): (u32, u32), colour: [u8; 3]) -> Result<Rgb> {
        let mut canvas = Rgb::filled(width, height, [0; 3])?;
        let fill = |bytes: &mut [u8]| bytes.as_chunks_mut::<3>().0.fill(colour);
        let rows = canvas.data.par_chunks_exact_mut(3 * width as usize).with_min_len(ROWS).enumerate();
        rows.for_each(|(y, row)| {
            let pixels = y.checked_sub(top as usize).map(|y| self.row(y)).unwrap_or_default();
            let (before, row) = row.split_at_mut(3 * left as usize);
            let (row, behind) = row.split_at_mut(pixels.len());
            row.copy_from_slice(pixels);
            [before, behind].into_iter().for_each(fill);
        });
        Ok(canvas)
    }

    /// Its tiles of `side` pixels, row by row of them, `[side, side, 3]` each, to `tiles`, which is as long as all of them.
    fn cut(&self, side: u32, tiles: &mut [u8]) {
        let (side, across) = (side as usize, (self.width / side) as usize);
        tiles.par_chunks_exact_mut(3 * side).with_min_len(ROWS).enumerate().for_each(|(i, row)| {
            let (tile, y) = (i / side, i % side);
            row.copy_from_slice(&self.row(tile / across * side + y)[tile % across * 3 * side..][..3 * side]);
        });
    }
}

impl fmt::Debug for Rgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rgb({}x{})", self.width, self.height)
    }
}
