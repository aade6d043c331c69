//! WebP: the RIFF chunks are walked for sizes and orientation before the decoder sees them.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;

use super::Rgb;
use super::bytes::{array, le16, le24, le32, slice};
use super::convert;
use super::decode::Alpha;
use super::error::{Result, invalid};
use super::limits::{Limits, plane};
use super::{orient, vp8l};

/// Bytes before the first chunk: `RIFF`, size, `WEBP`.
const RIFF: usize = 12;
/// Bytes of an ANMF chunk before the frame's own chunks.
const ANMF: usize = 16;
/// The flag in VP8X that marks an animation.
const ANIMATION: u8 = 0x02;

/// Bytes a pixel that `image-webp` and the conversion to RGB hold at their peak. Lossy: 4:2:0 planes and RGB. With
/// alpha: planes, RGBA, the alpha plane with the RGBA of its own lossless picture, RGB. Lossless: RGBA and RGB. An
/// animation holds a frame of any kind beside the canvas.
const LOSSY: u64 = 5;
const LOSSY_ALPHA: u64 = 14;
const LOSSLESS: u64 = 8;
const ANIMATED: u64 = LOSSY_ALPHA + LOSSLESS;

pub(super) fn decode(bytes: &[u8], alpha: Alpha, limits: &Limits) -> Result<(Rgb, Orientation)> {
    let file = riff(bytes)?;
    let canvas = check(file, limits)?;
    let decoder = WebPDecoder::new(Cursor::new(file)).or_else(|e| invalid(format!("the WebP is damaged: {e}")))?;
    let picture = convert::read(decoder, canvas, alpha)?;
    let exif = chunks(file, RIFF).find_map(|c| c.ok().filter(|c| c.kind == *b"EXIF"));
    Ok((picture, exif.map_or(Orientation::NoTransforms, |c| orient::from_exif(c.data))))
}

/// The file up to the end that its header states: bytes behind it are nobody's.
fn riff(bytes: &[u8]) -> Result<&[u8]> {
    let size = le32(bytes, 4).map_or(u64::MAX, u64::from).saturating_add(8);
    let len = bytes.len();
    match usize::try_from(size).ok().and_then(|size| bytes.get(..size)) {
        Some(file) if file.len() >= RIFF => Ok(file),
        _ => invalid(format!("the WebP is cut off: its header says {size} bytes, the file has {len}")),
    }
}

/// Holds every size that the decoder will allocate by to the limits, not only the canvas: a bitstream has a size of its
/// own. Returns the canvas.
fn check(file: &[u8], limits: &Limits) -> Result<(u32, u32)> {
    let Some(first) = chunks(file, RIFF).next().transpose()? else {
        return invalid("the WebP is damaged: it has no chunks");
    };
    if first.kind != *b"VP8X" {
        let canvas = bitstream_size(&first)?;
        limits.check_size(canvas.0, canvas.1)?;
        let pixel = if first.kind == *b"VP8L" { LOSSLESS } else { LOSSY };
        check_picture(std::iter::once(Ok(first)), canvas, plane(canvas.0, canvas.1, pixel), limits)?;
        return Ok(canvas);
    }
    let (Some([flags]), Some(w), Some(h)) = (array(first.data, 0), le24(first.data, 4), le24(first.data, 7)) else {
        return invalid("the WebP is damaged: its VP8X chunk has fewer than 10 bytes");
    };
    let canvas = (w + 1, h + 1);
    limits.check_size(canvas.0, canvas.1)?;
    if flags & ANIMATION == 0 {
        check_picture(chunks(file, RIFF), canvas, plane(canvas.0, canvas.1, LOSSY_ALPHA), limits)?;
    } else {
        let (frame, size) = first_frame(file, canvas)?;
        check_picture(chunks(frame, ANMF), size, plane(canvas.0, canvas.1, ANIMATED), limits)?;
    }
    Ok(canvas)
}

/// The first ANMF chunk and the size of its frame, which must lie on the canvas.
fn first_frame(file: &[u8], canvas: (u32, u32)) -> Result<(&[u8], (u32, u32))> {
    let mut frames = chunks(file, RIFF).filter(|c| c.as_ref().map_or(true, |c| c.kind == *b"ANMF"));
    let Some(frame) = frames.next().transpose()?.map(|c| c.data) else {
        return invalid("the WebP is damaged: an animation without a frame");
    };
    let field = |at| le24(frame, at);
    let (Some(x), Some(y), Some(w), Some(h)) = (field(0), field(3), field(6), field(9)) else {
        return invalid("the WebP is damaged: its first frame has fewer than 16 bytes");
    };
    let (right, bottom) = (x * 2 + w + 1, y * 2 + h + 1);
    if right > canvas.0 || bottom > canvas.1 {
        let (w, h) = canvas;
        return invalid(format!(
            "the WebP is damaged: its first frame reaches {right}x{bottom}, its canvas is {w}x{h}"
        ));
    }
    Ok((frame, (w + 1, h + 1)))
}

/// Holds the bitstreams among `chunks` to the size that their container states, and their code tables with the `held`
/// bytes of the pixels to the memory limit.
fn check_picture<'a>(
    chunks: impl Iterator<Item = Result<Chunk<'a>>>,
    size: (u32, u32),
    held: u64,
    limits: &Limits,
) -> Result<()> {
    limits.check_memory(held)?;
    let mut held = held;
    let mut found = false;
    for chunk in chunks {
        let chunk = chunk?;
        // Lossless streams begin behind a header of five bytes; that of an alpha plane has one, and may be raw.
        let lossless = match (&chunk.kind, chunk.data) {
            (b"VP8L", data) => data.get(5..),
            (b"ALPH", [header, data @ ..]) if header & 3 == 1 => Some(data),
            _ => None,
        };
        if matches!(&chunk.kind, b"VP8 " | b"VP8L") {
            found = true;
            let (w, h) = bitstream_size(&chunk)?;
            if (w, h) != size {
                return invalid(format!(
                    "the WebP contradicts itself: its container says {}x{}, its bitstream {w}x{h}",
                    size.0, size.1
                ));
            }
        }
        if let Some(stream) = lossless {
            let budget = limits.max_decode_bytes - held;
            let Some(tables) = vp8l::table_bytes(stream, size.0, size.1, budget) else {
                return invalid("the WebP is damaged: its lossless stream has an invalid code, or ends too early");
            };
            held += tables;
            limits.check_memory(held)?;
        }
    }
    if found { Ok(()) } else { invalid("the WebP is damaged: it has no bitstream (VP8 or VP8L chunk)") }
}

/// The size that a VP8 or VP8L chunk states.
fn bitstream_size(chunk: &Chunk) -> Result<(u32, u32)> {
    let data = chunk.data;
    let parsed = match &chunk.kind {
        b"VP8 " if array(data, 3) == Some([0x9d, 0x01, 0x2a]) => {
            le16(data, 6).zip(le16(data, 8)).map(|(w, h)| (u32::from(w & 0x3fff), u32::from(h & 0x3fff)))
        }
        b"VP8L" if data.first() == Some(&0x2f) => {
            le32(data, 1).map(|bits| ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        _ => None,
    };
    match parsed {
        Some(size) => Ok(size),
        None => invalid(format!("the WebP is damaged: its {} chunk has no valid header", chunk.kind.escape_ascii())),
    }
}

struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
}

/// The chunks of `body` from `at` on. One that does not fit is an error, and the last.
fn chunks(body: &[u8], mut at: usize) -> impl Iterator<Item = Result<Chunk<'_>>> {
    std::iter::from_fn(move || {
        let (kind, len) = (array::<4>(body, at)?, le32(body, at + 4)? as usize);
        let Some(data) = slice(body, at + 8, len) else {
            let name = kind.escape_ascii().to_string();
            let left = body.len() - at - 8;
            at = body.len();
            return Some(invalid(format!("the WebP is damaged: chunk {name} has {len} bytes, {left} are left")));
        };
        // Chunks are padded to even lengths.
        at = (at + 8 + len + len % 2).min(body.len());
        Some(Ok(Chunk { kind, data }))
    })
}
