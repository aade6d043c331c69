//! The pictures of a prompt: files, or ones that are made from a seed and that no cache has seen.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Args;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;

use crate::engine::ImageInput;
use crate::image::{Alpha, Limits, Rgb, decode};

/// Longest side of a picture.
const SIDE: u16 = 8192;
/// Pillow's and most cameras' middle way.
const QUALITY: u8 = 75;
/// Brightness that a pixel is off its place in the gradient, at most: the grain of a photograph.
const GRAIN: f32 = 16.0;

#[derive(Args)]
pub(super) struct PicturesArgs {
    /// A picture file; may be given several times
    #[arg(long, value_name = "FILE", conflicts_with = "images")]
    pub image: Vec<PathBuf>,
    /// Pictures of a prompt, made from the seed, each another one
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=64))]
    pub images: u32,
    /// Width and height of those
    #[arg(long, default_value = "640x480", value_name = "WxH")]
    image_size: Size,
}

/// The content of a picture file.
pub(super) type Bytes = Vec<u8>;

impl PicturesArgs {
    /// What the files hold, or what the seed makes for prompt `index`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of_prompt(&self, seed: u64, index: u64) -> Result<Vec<Bytes>> {
        if self.image.is_empty() {
            return self.image_size.pictures(self.images, &mut Random::new(seed, index));
        }
        self.image.iter().map(|path| read(path)).collect()
    }

    /// What the seed makes for each of some prompts.
    ///
    /// # Errors
    /// As [`Size::pictures`].
    pub fn of_prompts(&self, seed: u64, prompts: u64) -> Result<Vec<Vec<Bytes>>> {
        (0..prompts).into_par_iter().map(|index| self.of_prompt(seed, index)).collect()
    }

    /// Pictures of a prompt that has all of them.
    pub fn count(&self) -> usize {
        self.image.len().max(self.images as usize)
    }
}

/// The content of a picture file.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read(path: &Path) -> Result<Bytes> {
    match ImageInput::open(path)? {
        ImageInput::Bytes(bytes) => Ok(bytes),
        _ => anyhow::bail!("{} is no picture file", path.display()),
    }
}

/// Its pixels.
///
/// # Errors
/// If it is no picture.
pub(super) fn pixels(bytes: &[u8]) -> Result<Rgb> {
    decode(bytes, Alpha::White, &Limits::default()).map_err(anyhow::Error::new).context("decoding a picture")
}

/// Width and height of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub width: u16,
    pub height: u16,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let side = |side: &str| side.parse().ok().filter(|side| (1..=SIDE).contains(side));
        let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        let (width, height) = sides.ok_or_else(|| format!("must be WxH, each from 1 to {SIDE}"))?;
        Ok(Size { width, height })
    }
}

impl Size {
    /// So many pictures of this size.
    ///
    /// # Errors
    /// If the encoder fails.
    pub fn pictures(self, count: u32, random: &mut Random) -> Result<Vec<Bytes>> {
        (0..count).map(|_| self.picture(random)).collect()
    }

    /// A grainy gradient between four colours, as JPEG.
    ///
    /// # Errors
    /// If the encoder fails.
    pub fn picture(self, random: &mut Random) -> Result<Bytes> {
        let (width, height) = (usize::from(self.width), usize::from(self.height));
        let corners: [[f32; 3]; 4] = std::array::from_fn(|_| std::array::from_fn(|_| random.below(256) as f32));
        let mut pixels = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            let down = y as f32 / height as f32;
            for x in 0..width {
                let right = x as f32 / width as f32;
                let grain = GRAIN * (2.0 * random.unit() as f32 - 1.0);
                pixels.extend([0, 1, 2].map(|c| {
                    let top = corners[0][c] + (corners[1][c] - corners[0][c]) * right;
                    let bottom = corners[2][c] + (corners[3][c] - corners[2][c]) * right;
                    (top + (bottom - top) * down + grain) as u8
                }));
            }
        }
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
        let encoded = encoder.encode(&pixels, self.width.into(), self.height.into(), ExtendedColorType::Rgb8);
        encoded.context("encoding a picture")?;
        Ok(jpeg)
    }
}

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    /// One of the sequences of a seed.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed);
        random.0 = random.next() ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 on, below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 on, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }
}

/// Words that are one token each to most tokenizers of English.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as", "his",
    "they", "be", "at", "one", "have", "this", "from", "or", "had", "by", "hot", "but", "some", "what", "there", "we",
    "can", "out", "other", "were", "all", "your", "when", "up", "use", "word", "how", "said", "an", "each", "she",
    "which", "do", "their", "time", "if", "will", "way", "about", "many", "then", "them", "would", "write", "like",
    "so", "these",
];

/// So many words.
pub(super) fn words(count: usize, random: &mut Random) -> Vec<&'static str> {
    (0..count).map(|_| WORDS[random.below(WORDS.len())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_those_of_the_seed_and_all_different() {
        let args = |images| PicturesArgs { image: vec![], images, image_size: Size { width: 33, height: 20 } };
        let made = args(2).of_prompts(1, 3).unwrap();
        assert_eq!(made, args(2).of_prompts(1, 3).unwrap());
        assert_ne!(made, args(2).of_prompts(2, 3).unwrap());
        let mut all: Vec<_> = made.concat();
        for picture in &all {
            let rgb = pixels(picture).unwrap();
            assert_eq!((rgb.width(), rgb.height()), (33, 20));
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!("640x480".parse(), Ok(Size { width: 640, height: 480 }));
        for wrong in ["640", "0x1", "1x8193", "axb", "1x1x1", ""] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
