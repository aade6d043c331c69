//! JPEG, baseline and progressive, on several threads, to the samples that libjpeg-turbo gives and so to Pillow's pixels.
//!
//! Decoders that are to be had as libraries work on one thread, and they are made to show something of any file: half a file
//! decodes to a full picture, half of it grey; so does a 6 KB file whose header has been patched to claim 13000x13000.
//! Here every code of every block that the header promises must be there ([`scan`]); several threads read them ([`runs`]).
//! The inverse DCT ([`idct`]), the interpolation of chroma ([`planes`]) and the conversion of colours ([`colour`]) are
//! integer arithmetic with libjpeg's roundings; they run behind the reading of codes and, in large pictures, beside it.
//!
//! One thing libjpeg does is not done: smoothing what a progressive file has left half-coded.

mod bands;
mod colour;
mod frame;
mod huffman;
mod idct;
mod planes;
mod runs;
mod scan;
mod segments;

use image::metadata::Orientation;

use super::Rgb;
use super::error::{Result, invalid};
use super::limits::Limits;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Rgb, Orientation)> {
    let file = segments::read(bytes, limits)?;
    let data = colour::to_rgb(&file.planes, file.colour, file.width as usize, file.height as usize);
    let picture = Rgb::new(file.width, file.height, data).or_else(|e| invalid(format!("the JPEG is damaged: {e}")))?;
    Ok((picture, file.orientation))
}
