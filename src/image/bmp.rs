//! BMP: the size from its header, the rest by the decoder.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use image::metadata::Orientation;

use super::Rgb;
use super::bytes::{le16, le32};
use super::convert;
use super::decode::Alpha;
use super::error::{Result, invalid};
use super::limits::{Limits, plane};

/// Where the second header, whose first field is its own size, begins.
const INFO: usize = 14;

pub(super) fn decode(bytes: &[u8], alpha: Alpha, limits: &Limits) -> Result<(Rgb, Orientation)> {
    let Some((width, height)) = size(bytes) else {
        return invalid(format!("the BMP is cut off: its headers do not fit into {} bytes", bytes.len()));
    };
    limits.check_size(width, height)?;
    let decoder = BmpDecoder::new(Cursor::new(bytes)).or_else(|e| invalid(format!("the BMP is damaged: {e}")))?;
    let converted = if decoder.color_type() == image::ColorType::Rgb8 { 0 } else { 3 };
    limits.check_memory(plane(width, height, u64::from(decoder.color_type().bytes_per_pixel()) + converted))?;
    Ok((convert::read(decoder, (width, height), alpha)?, Orientation::NoTransforms))
}

/// 16-bit sides in the 12-byte core header, signed 32-bit ones in all others; a negative height means top-down rows.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    if le32(bytes, INFO)? == 12 {
        return Some((u32::from(le16(bytes, INFO + 4)?), u32::from(le16(bytes, INFO + 6)?)));
    }
    let height = le32(bytes, INFO + 8)?.cast_signed();
    Some((le32(bytes, INFO + 4)?, height.unsigned_abs()))
}
