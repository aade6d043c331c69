//! EXIF orientation: reading it, and turning a picture by it.

use image::metadata::Orientation;
use rayon::prelude::*;

use super::Rgb;

/// Output rows that one job of a transposition writes: 16 pixels of a source row are then read together.
const BAND: usize = 16;

/// The orientation in an EXIF block, which may still carry JPEG's `Exif\0\0` prefix. Garbage is "as it is".
pub(super) fn from_exif(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}

/// Turns `img` upright.
pub(super) fn apply(mut img: Rgb, orientation: Orientation) -> Rgb {
    let stride = img.width as usize * 3;
    match orientation {
        Orientation::NoTransforms => img,
        Orientation::FlipHorizontal => {
            img.data.par_chunks_mut(stride).for_each(|row| row.as_chunks_mut::<3>().0.reverse());
            img
        }
        Orientation::Rotate180 => {
            img.data.as_chunks_mut::<3>().0.reverse();
            img
        }
        Orientation::FlipVertical => {
            let half = img.height as usize / 2 * stride;
            let (top, bottom) = img.data.split_at_mut(half);
            for (a, b) in top.chunks_mut(stride).zip(bottom.rchunks_mut(stride)) {
                a.swap_with_slice(b);
            }
            img
        }
        Orientation::Rotate90FlipH => transpose(&img, false, false),
        Orientation::Rotate90 => transpose(&img, false, true),
        Orientation::Rotate270 => transpose(&img, true, false),
        Orientation::Rotate270FlipH => transpose(&img, true, true),
    }
}

/// `out(x, y) = src(y, x)`, the source being mirrored first in x, in y or both.
fn transpose(src: &Rgb, flip_x: bool, flip_y: bool) -> Rgb {
    let (width, height) = (src.height as usize, src.width as usize);
    let mut data = vec![0; src.data.len()];
    data.par_chunks_mut(width * 3 * BAND).enumerate().for_each(|(band, out)| {
        let rows = out.len() / (width * 3);
        let first = if flip_x { height - band * BAND - rows } else { band * BAND };
        for x in 0..width {
            let row = src.row(if flip_y { width - 1 - x } else { x });
            let pixels = &row.as_chunks::<3>().0[first..first + rows];
            for (i, px) in pixels.iter().enumerate() {
                let y = if flip_x { rows - 1 - i } else { i };
                out[(y * width + x) * 3..][..3].copy_from_slice(px);
            }
        }
    });
    Rgb { width: src.height, height: src.width, data }
}
