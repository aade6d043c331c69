//! Encoded bytes to RGB, under limits.
//!
//! Each format has a file of its own that reads the container by itself, checks the claimed size against the [`Limits`]
//! before anything is allocated, and hands a decoder nothing but the parts that carry pixels. Metadata (ICC profiles,
//! compressed text, EXIF) is therefore never inflated, whatever it claims to be.
//!
//! What the pixels mean, everywhere the same:
//!
//! | case | rule |
//! |---|---|
//! | format | by the first bytes; a file name or MIME type is not asked |
//! | EXIF orientation | applied, all eight, from JPEG, PNG (`eXIf`) and WebP; a broken EXIF block is ignored |
//! | transparency | composited on white in 8 bits as Pillow's `paste` does, or dropped: [`Alpha`] |
//! | 16 bits a sample | the high byte, as Pillow does for RGB, RGBA and LA. Pillow *clips* 16-bit grey instead, which makes nearly every such picture white; that is not followed |
//! | grey, palette, 1, 2 and 4 bits | expanded to RGB |
//! | CMYK and YCCK JPEG | inverted as Adobe writes them and multiplied out, as Pillow does; no profile |
//! | ICC profiles, gamma and chromaticity chunks | ignored, as Hugging Face's processors do |
//! | animations | the first frame; a later one is never decoded |
//! | cut off | an error, also when only the end marker (JPEG EOI, PNG IEND) is missing; bytes after the end are ignored |

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{Result, invalid};
use super::limits::Limits;
use super::sniff::{Format, sniff};
use super::{Rgb, bmp, gif, jpeg, orient, png, webp};

/// What becomes of transparency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alpha {
    /// Composited on white: what a person sees on a page, and what vLLM feeds its models.
    #[default]
    White,
    /// Dropped, which uncovers whatever colour lies under it: Pillow's `convert("RGB")`, and so Hugging Face's
    /// processors.
    Drop,
}

/// Decodes the first picture in `bytes`.
///
/// # Errors
/// [`DecodeError`](super::DecodeError) says which limit it breaks, what it is if it is no picture, or where it is damaged.
pub fn decode(bytes: &[u8], alpha: Alpha, limits: &Limits) -> Result<Rgb> {
    limits.check_bytes(bytes.len())?;
    let format = sniff(bytes)?;
    // The decoders are third-party code that parses hostile bytes: a panic in one costs this picture, not the process.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Png => png::decode(bytes, alpha, limits),
        Format::Jpeg => jpeg::decode(bytes, limits),
        Format::Webp => webp::decode(bytes, alpha, limits),
        Format::Gif => gif::decode(bytes, alpha, limits),
        Format::Bmp => bmp::decode(bytes, alpha, limits),
    }));
    let Ok(decoded) = decoded else { return invalid(format!("the {format:?} decoder failed on this picture")) };
    let (picture, orientation) = decoded?;
    Ok(orient::apply(picture, orientation))
}
