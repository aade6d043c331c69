//! JPEG: read marker by marker here, turned into pixels by `zune-jpeg`.
//!
//! `zune-jpeg` is made to show something of any file. Half a file decodes to a full picture, half of it grey; so does a
//! 6 KB file whose header has been patched to claim 13000x13000. Its strict mode notices some of this. So the file is
//! read here, too, down to its last Huffman code ([`scan`]), which decides whether every block that the header promises
//! is there; and the decoder gets a clean rewriting of the parts that matter, in which nothing is left to interpret:
//! no metadata, the tables of each scan before it, component names that say what the colours are. Where one scan is all
//! there is, codes are counted beside the decoder instead of before it.
//!
//! Pixels differ from libjpeg-turbo's (Pillow's) by a few levels, because the inverse DCT and the interpolation of chroma
//! round differently; `tests/images.rs` states by how much.

mod huffman;
mod scan;
mod segments;

use image::metadata::Orientation;
use segments::Jpeg;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Rgb;
use super::convert::spread;
use super::error::{Result, invalid};
use super::limits::Limits;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Rgb, Orientation)> {
    let file = segments::read(bytes, limits)?;
    let mut counted = Ok(());
    let pixels = rayon::in_place_scope(|scope| {
        scope.spawn(|_| counted = file.count());
        pixels(&file)
    });
    // What the file lacks says more than what the decoder made of it.
    counted?;
    Ok((pixels?, file.orientation))
}

fn pixels(file: &Jpeg) -> Result<Rgb> {
    let space = if file.grey { ColorSpace::Luma } else { ColorSpace::RGB };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(usize::MAX)
        .jpeg_set_out_colorspace(space);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file.stream.as_slice()), options);
    let data = decoder.decode().or_else(|e| invalid(format!("the JPEG is damaged: {e:?}")))?;
    let data = if file.grey { spread(&data) } else { data };
    Rgb::new(file.width, file.height, data).or_else(|e| invalid(format!("the JPEG is damaged: {e}")))
}
