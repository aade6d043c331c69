//! What a decoder wrote, as RGB.

use image::{ColorType, ImageDecoder};

use super::Rgb;
use super::decode::Alpha;
use super::error::{Result, invalid};

/// Runs `decoder`, whose size must be the one that passed the limits.
pub(super) fn read(decoder: impl ImageDecoder, (width, height): (u32, u32), alpha: Alpha) -> Result<Rgb> {
    if decoder.dimensions() != (width, height) {
        let (w, h) = decoder.dimensions();
        return invalid(format!("the picture contradicts itself: {width}x{height} in one place, {w}x{h} in another"));
    }
    let colour = decoder.color_type();
    let mut data = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX)];
    decoder.read_image(&mut data).or_else(|e| invalid(format!("the picture is damaged: {e}")))?;
    let data = match colour {
        ColorType::L8 => spread(&data),
        ColorType::La8 => flatten_la(&data, alpha),
        ColorType::Rgb8 => data,
        ColorType::Rgba8 => flatten_rgba(&data, alpha),
        ColorType::L16 => spread(&high_bytes(data)),
        ColorType::La16 => flatten_la(&high_bytes(data), alpha),
        ColorType::Rgb16 => high_bytes(data),
        ColorType::Rgba16 => flatten_rgba(&high_bytes(data), alpha),
        other => return invalid(format!("the picture decodes to {other:?}, which has no rule here")),
    };
    Rgb::new(width, height, data).or_else(|e| invalid(e.to_string()))
}

/// Grey to RGB.
pub(super) fn spread(grey: &[u8]) -> Vec<u8> {
    let mut rgb = vec![0; grey.len() * 3];
    for (px, g) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(grey) {
        *px = [*g; 3];
    }
    rgb
}

/// 16-bit samples in the machine's order to their high bytes.
fn high_bytes(samples: Vec<u8>) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().map(|s| (u16::from_ne_bytes(*s) >> 8) as u8).collect()
}

fn flatten_la(la: &[u8], alpha: Alpha) -> Vec<u8> {
    let pixels = la.as_chunks::<2>().0;
    let mut rgb = vec![0; pixels.len() * 3];
    for (px, [l, a]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *px = match alpha {
            Alpha::White => [over_white(*l, *a); 3],
            Alpha::Drop => [*l; 3],
        };
    }
    rgb
}

fn flatten_rgba(rgba: &[u8], alpha: Alpha) -> Vec<u8> {
    let pixels = rgba.as_chunks::<4>().0;
    let mut rgb = vec![0; pixels.len() * 3];
    for (px, [r, g, b, a]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *px = match alpha {
            Alpha::White => [over_white(*r, *a), over_white(*g, *a), over_white(*b, *a)],
            Alpha::Drop => [*r, *g, *b],
        };
    }
    rgb
}

/// `(c * a + 255 * (255 - a)) / 255`, rounded to nearest without a division: Pillow's DIV255.
fn over_white(colour: u8, alpha: u8) -> u8 {
    let (c, a) = (u32::from(colour), u32::from(alpha));
    let t = c * a + 255 * (255 - a) + 128;
    (((t >> 8) + t) >> 8) as u8
}
