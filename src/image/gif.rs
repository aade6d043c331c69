//! GIF: the first frame alone, on its full canvas.
//!
//! The file is rewritten to that one frame, without comments, application blocks and later frames. As in Pillow and in
//! browsers, a canvas smaller than its first frame grows to hold it. What the frame leaves uncovered is transparent
//! (white); under [`Alpha::Drop`] it has, as in Pillow, the palette's transparent colour, or its first.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::gif::GifDecoder;
use image::metadata::Orientation;

use super::Rgb;
use super::bytes::{array, le16, slice};
use super::convert;
use super::decode::Alpha;
use super::error::{Result, invalid};
use super::limits::{Limits, plane};

/// Signature and logical screen descriptor.
const HEADER: usize = 13;
/// Label of the extension that names the transparent colour.
const GRAPHIC_CONTROL: u8 = 0xf9;

/// The first frame: where it lies, on what canvas, and a GIF of nothing else.
struct Frame {
    canvas: (u32, u32),
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// The colour under uncovered canvas, should transparency be dropped.
    backdrop: [u8; 3],
    stream: Vec<u8>,
}

pub(super) fn decode(bytes: &[u8], alpha: Alpha, limits: &Limits) -> Result<(Rgb, Orientation)> {
    let Some(frame) = first_frame(bytes)? else {
        return invalid(format!("the GIF is cut off: its first frame does not end within {} bytes", bytes.len()));
    };
    let (width, height) = frame.canvas;
    limits.check_size(width, height)?;
    // Canvas as RGBA and as RGB, the frame as indices and as RGBA.
    let held = plane(width, height, 7) + plane(frame.width, frame.height, 5) + frame.stream.len() as u64;
    limits.check_memory(held)?;
    let mut inner = image::Limits::no_limits();
    inner.max_alloc = Some(limits.max_decode_bytes);
    let mut decoder = GifDecoder::new(Cursor::new(frame.stream.as_slice())).or_else(damaged)?;
    decoder.set_limits(inner).or_else(damaged)?;
    let mut picture = convert::read(decoder, frame.canvas, alpha)?;
    if alpha == Alpha::Drop {
        frame.paint_backdrop(&mut picture);
    }
    Ok((picture, Orientation::NoTransforms))
}

fn damaged<T>(e: image::ImageError) -> Result<T> {
    invalid(format!("the GIF is damaged: {e}"))
}

/// `None` when the bytes end first.
fn first_frame(bytes: &[u8]) -> Result<Option<Frame>> {
    let Some(global) = palette(bytes, HEADER, 10) else { return Ok(None) };
    let mut stream = Vec::with_capacity(bytes.len() + 1);
    stream.extend_from_slice(&bytes[..HEADER + global.len()]);
    let mut at = HEADER + global.len();
    let mut control: &[u8] = &[];
    loop {
        match bytes.get(at) {
            None => return Ok(None),
            Some(b'!') => {
                let Some(body) = sub_blocks(bytes, at + 2) else { return Ok(None) };
                if bytes.get(at + 1) == Some(&GRAPHIC_CONTROL) {
                    control = &bytes[at..at + 2 + body];
                }
                at += 2 + body;
            }
            Some(b',') => break,
            Some(b';') => return invalid("the GIF has no frames"),
            Some(other) => {
                return invalid(format!("the GIF is damaged: byte {at} is {other:#04x}, which begins no block"));
            }
        }
    }
    // Image descriptor, local palette, minimum code size, data.
    let Some(local) = palette(bytes, at + 10, at + 9) else { return Ok(None) };
    let data = at + 10 + local.len() + 1;
    let Some(body) = sub_blocks(bytes, data) else { return Ok(None) };
    stream.extend_from_slice(control);
    stream.extend_from_slice(&bytes[at..data + body]);
    stream.push(b';');

    let field = |at| le16(bytes, at).map_or(0, u32::from);
    let (left, top, width, height) = (field(at + 1), field(at + 3), field(at + 5), field(at + 7));
    // Both sums may reach 131070, which the canvas fields cannot hold.
    let canvas = (field(6).max(left + width), field(8).max(top + height));
    let (Ok(w), Ok(h)) = (u16::try_from(canvas.0), u16::try_from(canvas.1)) else {
        return invalid(format!("the GIF is damaged: its first frame reaches {}x{}, beyond 65535", canvas.0, canvas.1));
    };
    stream[6..8].copy_from_slice(&w.to_le_bytes());
    stream[8..10].copy_from_slice(&h.to_le_bytes());
    let table = if local.is_empty() { global } else { local };
    let transparent = match array(control, 3) {
        Some([flags, _, _, index]) if flags & 1 != 0 => usize::from(index),
        _ => 0,
    };
    let backdrop = array(table, transparent * 3).unwrap_or_default();
    Ok(Some(Frame { canvas, left, top, width, height, backdrop, stream }))
}

/// The palette at `at`, if the flags at `flags` say that there is one.
fn palette(bytes: &[u8], at: usize, flags: usize) -> Option<&[u8]> {
    let flags = *bytes.get(flags)?;
    let len = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    slice(bytes, at, len)
}

/// Length of a chain of sub-blocks with the empty one that ends it.
fn sub_blocks(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1 + len;
        if len == 0 {
            return Some(at - start);
        }
    }
}

impl Frame {
    fn paint_backdrop(&self, picture: &mut Rgb) {
        let covered = |x: usize, y: usize| {
            (self.left as usize..(self.left + self.width) as usize).contains(&x)
                && (self.top as usize..(self.top + self.height) as usize).contains(&y)
        };
        let stride = picture.width as usize * 3;
        for (y, row) in picture.data.chunks_mut(stride).enumerate() {
            for (x, px) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                if !covered(x, y) {
                    *px = self.backdrop;
                }
            }
        }
    }
}
