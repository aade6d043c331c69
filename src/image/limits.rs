//! What a picture may cost, checked against its headers before anything is allocated for its pixels.

use super::error::{DecodeError, Result};

/// Upper bounds of what [`decode`](super::decode()) accepts. A field of `u64::MAX` (`u32::MAX`) is no limit.
///
/// The decoded size is the danger, not the file: a 6 KB JPEG can claim 13000x13000 pixels, and a 1x20000 picture becomes
/// 336x6720000 when its short edge is resized to 336.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded file. Default 64 MiB.
    pub max_bytes: u64,
    /// Pixels of the longer side. Default 32768.
    pub max_side: u32,
    /// Width times height. Default 50 million.
    pub max_pixels: u64,
    /// Longer side over shorter side. Default 200: the short edge resized to 336 then gives at most 336x67200.
    pub max_aspect: u32,
    /// Bytes that decoding may hold at its peak beside the encoded file itself, by an estimate from the headers
    /// that counts the decoder's planes and the RGB result. Default 512 MiB.
    pub max_decode_bytes: u64,
    /// Scans of a progressive JPEG, each of which costs a pass over the picture. Default 100; encoders write about 10.
    pub max_scans: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: 64 << 20,
            max_side: 32_768,
            max_pixels: 50_000_000,
            max_aspect: 200,
            max_decode_bytes: 512 << 20,
            max_scans: 100,
        }
    }
}

impl Limits {
    /// The encoded file.
    pub(super) fn check_bytes(&self, len: usize) -> Result<()> {
        let len = len as u64;
        if len > self.max_bytes {
            return too_large(format!(
                "the picture is {len} bytes; the limit is {} (send a smaller file, or raise max_bytes)",
                self.max_bytes
            ));
        }
        Ok(())
    }

    /// The size that a header claims.
    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let (long, short) = (width.max(height), width.min(height));
        if short == 0 {
            return Err(DecodeError::Invalid(format!(
                "the picture claims to be {width}x{height}: both sides must be at least 1"
            )));
        }
        if long > self.max_side {
            return too_large(format!(
                "{width}x{height} has a side of {long} pixels; the limit is {} (shrink it, or raise max_side)",
                self.max_side
            ));
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels {
            return too_large(format!(
                "{width}x{height} is {pixels} pixels; the limit is {} (shrink it, or raise max_pixels)",
                self.max_pixels
            ));
        }
        if u64::from(long) > u64::from(short) * u64::from(self.max_aspect) {
            return Err(DecodeError::AspectRatio(format!(
                "{width}x{height} is longer than {} times its shorter side (crop it, or raise max_aspect)",
                self.max_aspect
            )));
        }
        Ok(())
    }

    /// What decoding is estimated to hold at its peak.
    pub(super) fn check_memory(&self, bytes: u64) -> Result<()> {
        if bytes > self.max_decode_bytes {
            return too_large(format!(
                "decoding the picture needs about {bytes} bytes; the limit is {} (shrink it, or raise max_decode_bytes)",
                self.max_decode_bytes
            ));
        }
        Ok(())
    }
}

fn too_large<T>(message: String) -> Result<T> {
    Err(DecodeError::TooLarge(message))
}

/// `width * height * bytes`, which cannot overflow: both sides passed [`Limits::check_size`] or are 16 bits wide.
pub(super) fn plane(width: u32, height: u32, bytes: u64) -> u64 {
    (u64::from(width) * u64::from(height)).saturating_mul(bytes)
}
