//! PNG: the chunks that carry pixels go to the decoder, the rest is walked over.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;

use super::Rgb;
use super::bytes::{array, be32, slice};
use super::convert;
use super::decode::Alpha;
use super::error::{Result, invalid};
use super::limits::{Limits, plane};
use super::orient;

const SIGNATURE: usize = 8;

/// A PNG without its ancillary chunks.
struct Png {
    width: u32,
    height: u32,
    orientation: Orientation,
    /// Signature, critical chunks and tRNS: all that the pixels depend on. Profiles and compressed text, which a decoder
    /// would inflate, and the later frames of an APNG are left out.
    stream: Vec<u8>,
}

pub(super) fn decode(bytes: &[u8], alpha: Alpha, limits: &Limits) -> Result<(Rgb, Orientation)> {
    let png = read_chunks(bytes, limits)?;
    let mut inner = image::Limits::no_limits();
    inner.max_alloc = Some(limits.max_decode_bytes);
    let decoder = PngDecoder::with_limits(Cursor::new(png.stream.as_slice()), inner)
        .or_else(|e| invalid(format!("the PNG is damaged: {e}")))?;
    let converted = if decoder.color_type() == image::ColorType::Rgb8 { 0 } else { 3 };
    let pixel = u64::from(decoder.color_type().bytes_per_pixel()) + converted;
    limits.check_memory(plane(png.width, png.height, pixel) + png.stream.len() as u64)?;
    Ok((convert::read(decoder, (png.width, png.height), alpha)?, png.orientation))
}

/// Walks the chunks up to IEND. The size in IHDR is checked before anything is copied.
fn read_chunks(bytes: &[u8], limits: &Limits) -> Result<Png> {
    let mut png = Png { width: 0, height: 0, orientation: Orientation::NoTransforms, stream: Vec::new() };
    let mut at = SIGNATURE;
    while let (Some(len), Some(kind)) = (be32(bytes, at), array::<4>(bytes, at + 4)) {
        let name = kind.escape_ascii();
        if !kind.iter().all(u8::is_ascii_alphabetic) {
            return invalid(format!("the PNG is damaged: \"{name}\" at byte {at} is no chunk name"));
        }
        let len = len as usize;
        // Length, name, data, checksum.
        let Some(chunk) = slice(bytes, at, len.saturating_add(12)) else {
            let left = bytes.len() - at - 8;
            return invalid(format!("the PNG is cut off: chunk {name} at byte {at} has {len} bytes, {left} are left"));
        };
        if at == SIGNATURE {
            (png.width, png.height) = size(chunk, &kind)?;
            limits.check_size(png.width, png.height)?;
            png.stream.reserve_exact(bytes.len());
            png.stream.extend_from_slice(&bytes[..SIGNATURE]);
        }
        let critical = kind[0].is_ascii_uppercase();
        // Empty pieces of IDAT are legal and mean nothing; a million of them would each cost the decoder a turn.
        if (critical || kind == *b"tRNS") && !(kind == *b"IDAT" && len == 0) {
            png.stream.extend_from_slice(chunk);
        }
        if kind == *b"eXIf" && png.orientation == Orientation::NoTransforms {
            png.orientation = orient::from_exif(&chunk[8..8 + len]);
        }
        if kind == *b"IEND" {
            return Ok(png);
        }
        at += chunk.len();
    }
    invalid(format!("the PNG is cut off: it ends after {} bytes without an IEND chunk", bytes.len()))
}

/// Width and height from the first chunk.
fn size(chunk: &[u8], kind: &[u8; 4]) -> Result<(u32, u32)> {
    match (kind, chunk.len(), be32(chunk, 8), be32(chunk, 12)) {
        (b"IHDR", 25, Some(width), Some(height)) => Ok((width, height)),
        _ => invalid("the PNG is damaged: it does not begin with a 13-byte IHDR chunk"),
    }
}
