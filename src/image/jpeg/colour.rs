//! From the rows of the components to RGB, with the integers of libjpeg (`jdcolor.c`) and Pillow (`cmyk2rgb`).

use rayon::prelude::*;

use super::planes::{Plane, Scratch};

/// What the components are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    Rgb,
    YCbCr,
    /// Inverted, as Adobe writes them and everybody assumes.
    Cmyk,
    Ycck,
}

/// Rows that are one job.
const BAND: usize = 16;

/// `[height, width, 3]` bytes.
pub(super) fn to_rgb(planes: &[Plane], colour: Colour, width: usize, height: usize) -> Vec<u8> {
    let mut rgb = vec![0; 3 * width * height];
    rgb.par_chunks_mut(3 * width * BAND).enumerate().for_each(|(band, rows)| {
        let mut scratch: Vec<Scratch> = planes.iter().map(|_| Scratch::default()).collect();
        for (y, row) in rows.chunks_exact_mut(3 * width).enumerate() {
            let samples = planes.iter().zip(&mut scratch).map(|(plane, room)| plane.row(BAND * band + y, room));
            mix(&samples.collect::<Vec<_>>(), colour, row.as_chunks_mut::<3>().0);
        }
    });
    rgb
}

fn mix(samples: &[&[u8]], colour: Colour, row: &mut [[u8; 3]]) {
    match (colour, samples) {
        (Colour::Grey, [grey]) => row.iter_mut().zip(*grey).for_each(|(px, g)| *px = [*g; 3]),
        (Colour::Rgb, [r, g, b]) => {
            row.iter_mut().zip(*r).zip(*g).zip(*b).for_each(|(((px, r), g), b)| *px = [*r, *g, *b]);
        }
        (Colour::YCbCr, [y, cb, cr]) => {
            row.iter_mut().zip(*y).zip(*cb).zip(*cr).for_each(|(((px, y), cb), cr)| *px = rgb(*y, *cb, *cr));
        }
        (Colour::Cmyk, [c, m, y, k]) => {
            let ink = row.iter_mut().zip(*c).zip(*m).zip(*y).zip(*k);
            ink.for_each(|((((px, c), m), y), k)| *px = [*c, *m, *y].map(|v| multiplied(v, *k)));
        }
        (Colour::Ycck, [y, cb, cr, k]) => {
            let ink = row.iter_mut().zip(*y).zip(*cb).zip(*cr).zip(*k);
            // What comes out of the conversion is 255 less the ink; the ink is stored inverted.
            ink.for_each(|((((px, y), cb), cr), k)| *px = rgb(*y, *cb, *cr).map(|v| multiplied(255 - v, *k)));
        }
        // The frame has as many components as its colours say.
        _ => unreachable!("{colour:?} of {} components", samples.len()),
    }
}

/// `round(x * 2^16)` of 1.402, 1.772, 0.34414 and 0.71414, less the whole numbers that make them fit 16 bits: what Cr adds
/// to red and Cb to blue, and what both take from green.
const RED: i32 = 91_881 - 65_536;
const BLUE: i32 = 116_130 - 2 * 65_536;
const GREEN_CB: i32 = 22_554;
const GREEN_CR: i32 = 46_802 - 65_536;

fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let [y, cb, cr] = [i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128];
    let half = 1 << 15;
    let red = y + cr + ((RED * cr + half) >> 16);
    let green = y - cr + ((half - GREEN_CB * cb - GREEN_CR * cr) >> 16);
    let blue = y + 2 * cb + ((BLUE * cb + half) >> 16);
    [red, green, blue].map(|v| v.clamp(0, 255) as u8)
}

/// Light through an ink and black, both stored inverted: `k - (255 - v) * k / 255`, rounded as Pillow does.
fn multiplied(v: u8, k: u8) -> u8 {
    let product = (255 - u32::from(v)) * u32::from(k) + 128;
    (u32::from(k)).saturating_sub(((product >> 8) + product) >> 8) as u8
}
