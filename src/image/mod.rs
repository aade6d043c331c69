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

pub use anyres::{Anyres, View};
pub use clip::{ClipProcessor, Crop, Size, Tile};
pub use decode::{Alpha, decode};
pub use error::DecodeError;
pub use hd::{Hd, HdShape};
pub use limits::Limits;
pub use resize::{Axis, Canvas, Cut, Filter, Window, resize};

/// Bytes of all tiles of a picture: 1 GiB.
const MAX_TILE_BYTES: u64 = 1 << 30;

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
        Rgb::new(width, height, colour.repeat(pixels))
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

    /// Put `img`, which must fit, on this picture, its first pixel in column `left` of row `top`.
    fn paste(&mut self, img: &Rgb, left: u32, top: u32) {
        let rows = self.data.chunks_exact_mut(self.width as usize * 3).skip(top as usize);
        for (row, pixels) in rows.zip(img.data.chunks_exact(img.width as usize * 3)) {
            row[left as usize * 3..][..pixels.len()].copy_from_slice(pixels);
        }
    }

    /// Append the tiles of `side` pixels to `tiles`, row by row of them, `[side, side, 3]` each.
    fn cut(&self, side: u32, tiles: &mut Vec<u8>) {
        for (top, left) in (0..self.height / side).flat_map(|y| (0..self.width / side).map(move |x| (y, x))) {
            for y in top * side..(top + 1) * side {
                tiles.extend_from_slice(&self.row(y as usize)[(left * side * 3) as usize..][..(side * 3) as usize]);
            }
        }
    }
}

impl fmt::Debug for Rgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rgb({}x{})", self.width, self.height)
    }
}
