//! CLIP preprocessing: resize, centre crop, rescale, normalise, as `CLIPImageProcessor` and `LlavaImageProcessor` of
//! Hugging Face do on their PIL backend, bit for bit.
//!
//! The picture stays in bytes: rescaling and normalising are a function of one byte and its channel, so they are a table
//! of 3 x 256 floats, which the first kernel of the vision tower looks up as it reads the pixels.

use anyhow::{Context, Result, ensure};

use super::Rgb;
use super::resize::{Canvas, Cut, Filter, Window};

/// Pixels of the largest result: 64 Mi, 192 MiB of bytes. Reached only without a centre crop.
const MAX_PIXELS: u64 = 64 << 20;

/// What `size` of preprocessor_config.json asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// `{"shortest_edge": n}`: the shorter side becomes n, the other keeps the shape (rounded down).
    ShortestEdge(u32),
    /// `{"height": h, "width": w}`: squashed to exactly this.
    Exact {
        /// Rows.
        height: u32,
        /// Pixels a row.
        width: u32,
    },
}

/// The settings of preprocessor_config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipProcessor {
    /// First put the picture in the middle of a square whose colour is `trunc(mean * 255)`. `do_pad` of
    /// `LlavaImageProcessor`; `CLIPImageProcessor` has no such step.
    pub do_pad: bool,
    /// Resize to `size` with `resample`.
    pub do_resize: bool,
    /// Target of the resizing.
    pub size: Size,
    /// Its filter (2 is bilinear, 3 bicubic).
    pub resample: Filter,
    /// Cut `crop` out of the middle, with black around a picture that is smaller.
    pub do_center_crop: bool,
    /// `crop_size`: (height, width).
    pub crop: (u32, u32),
    /// Multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// Usually 1/255.
    pub rescale_factor: f64,
    /// Subtract `mean` and divide by `std`.
    pub do_normalize: bool,
    /// `image_mean`, by channel.
    pub mean: [f64; 3],
    /// `image_std`, by channel; must not be zero.
    pub std: [f64; 3],
}

impl ClipProcessor {
    /// The bytes that the vision tower sees: `img` padded, resized and cropped.
    ///
    /// Only what the crop keeps is resized, so a thin picture costs no more than a square one.
    ///
    /// # Errors
    /// A zero side in the settings, or a result above 64 Mi pixels (a thin picture without a centre crop).
    pub fn apply(&self, img: &Rgb) -> Result<Rgb> {
        self.tile(img.width(), img.height())?.apply(img)
    }

    /// [`ClipProcessor::apply`] for pictures of one size, in numbers.
    ///
    /// # Errors
    /// As there.
    pub fn tile(&self, width: u32, height: u32) -> Result<Tile> {
        let img = (width, height);
        let canvas =
            if self.do_pad { Canvas::square(width, height, self.background()) } else { Canvas::of(width, height) };
        let (width, height) = self.resized(canvas.width(), canvas.height())?;
        let (across, down) = if self.do_center_crop {
            (Crop::new(width, self.crop.1), Crop::new(height, self.crop.0))
        } else {
            (Crop::new(width, width), Crop::new(height, height))
        };
        let pixels = u64::from(across.size) * u64::from(down.size);
        ensure!(
            pixels <= MAX_PIXELS,
            "a {}x{} picture becomes {}x{}, {pixels} pixels; the limit is {MAX_PIXELS} (crop it to a less extreme shape)",
            img.0,
            img.1,
            across.size,
            down.size
        );
        let window = Window { x: across.from, y: down.from, width: across.kept, height: down.kept };
        let cut = Cut::new(canvas, (width, height), self.resample, window)?;
        Ok(Tile { cut, across, down })
    }

    /// Width and height after resizing.
    fn resized(&self, width: u32, height: u32) -> Result<(u32, u32)> {
        if !self.do_resize {
            return Ok((width, height));
        }
        let (w, h) = match self.size {
            Size::Exact { height, width } => (width, height),
            Size::ShortestEdge(short) => {
                let stretch = |long: u32, by: u32| u32::try_from(u64::from(short) * u64::from(long) / u64::from(by));
                let wide = width > height;
                let long = stretch(width.max(height), width.min(height)).with_context(|| {
                    format!("a {width}x{height} picture is too thin to resize its short edge to {short}")
                })?;
                if wide { (long, short) } else { (short, long) }
            }
        };
        ensure!(w > 0 && h > 0, "size asks for {w}x{h}: both sides must be at least 1");
        Ok((w, h))
    }

    /// The colour around a padded picture.
    fn background(&self) -> [u8; 3] {
        self.mean.map(|m| (m * 255.0) as u8)
    }

    /// What every byte becomes: `[3, 256]`, channel by channel.
    ///
    /// `f32(f64(byte) * rescale_factor)`, then `(v - f32(mean)) / f32(std)` in f32, in this order: NumPy's arithmetic.
    pub fn table(&self) -> Vec<f32> {
        let mut table = Vec::with_capacity(3 * 256);
        for (mean, std) in self.mean.into_iter().zip(self.std) {
            for byte in 0..=255u8 {
                let v = if self.do_rescale { (f64::from(byte) * self.rescale_factor) as f32 } else { f32::from(byte) };
                table.push(if self.do_normalize { (v - mean as f32) / std as f32 } else { v });
            }
        }
        table
    }

    /// `img` through the table: `pixel_values`, `[3, height, width]`.
    pub fn normalise(&self, img: &Rgb) -> Vec<f32> {
        let table = self.table();
        let pixels = img.data().as_chunks::<3>().0;
        let channels = table.chunks_exact(256).enumerate();
        channels.flat_map(|(c, values)| pixels.iter().map(move |px| values[usize::from(px[c])])).collect()
    }
}

/// What the vision tower sees of pictures of one size: a part of them, resized, perhaps with black around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The part.
    pub cut: Cut,
    /// Where it stands from left to right.
    pub across: Crop,
    /// Where it stands from top to bottom.
    pub down: Crop,
}

impl Tile {
    /// The tile of a picture.
    ///
    /// # Errors
    /// A picture of another size, or a result that does not fit into memory.
    pub fn apply(&self, img: &Rgb) -> Result<Rgb> {
        let (cut, Tile { across, down, .. }) = (self.cut.apply(img)?, self);
        if (across.kept, down.kept) == (across.size, down.size) {
            return Ok(cut);
        }
        cut.framed(across.size, down.size, (across.to, down.to), [0; 3])
    }
}

/// A centre crop along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// What the result measures.
    pub size: u32,
    /// First position of the resized picture that is kept.
    from: u32,
    /// How many are kept.
    pub kept: u32,
    /// Where they stand in the result; black before and after.
    pub to: u32,
}

impl Crop {
    /// Hugging Face's `center_crop`: an odd remainder leaves the larger part of a cut at the end, and of a padding at the
    /// beginning.
    fn new(n: u32, size: u32) -> Crop {
        if size <= n {
            Crop { size, from: (n - size) / 2, kept: size, to: 0 }
        } else {
            Crop { size, from: 0, kept: n, to: (size - n).div_ceil(2) }
        }
    }
}
