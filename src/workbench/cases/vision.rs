//! From a decoded picture to the first hidden states.

use super::{Case, Size, Tolerance, U};
use crate::image::{self, Axis, ClipProcessor, Crop, Filter};
use crate::kernel::Kernel;
use crate::mem::Region;
use crate::ops::{PatchEmbed, Resize, ResizeAxis};
use crate::workbench::Bed;

/// How LLaVA-1.5 prepares a picture.
const LLAVA: ClipProcessor = ClipProcessor {
    do_pad: false,
    do_resize: true,
    size: image::Size::ShortestEdge(336),
    resample: Filter::Bicubic,
    do_center_crop: true,
    crop: (336, 336),
    do_rescale: true,
    rescale_factor: 1.0 / 255.0,
    do_normalize: true,
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
};

/// A small tile, cut from the middle.
const SMALL: ClipProcessor = ClipProcessor { size: image::Size::ShortestEdge(28), crop: (28, 28), ..LLAVA };

/// A tile that is larger than the resized picture one way and smaller the other, of sizes that fill no block.
const FRAMED: ClipProcessor =
    ClipProcessor { size: image::Size::Exact { height: 33, width: 91 }, crop: (40, 44), ..LLAVA };

/// Integers throughout, so every byte is right or wrong.
fn resize(what: &str, size: Size, processor: ClipProcessor, [width, height]: [u32; 2]) -> Case {
    let name = format!("{what} {width}x{height}");
    Case::new(Resize::NAME, name, size, Tolerance::BITS, move |bed: &mut Bed| {
        let tile = processor.tile(width, height).expect("sizes that the processor takes");
        let ([columns, rows], canvas) = (tile.cut.axes(), tile.cut.canvas());
        let (left, top) = canvas.picture_at();
        let reach = Resize::reach(&rows.table(), rows.taps(), rows.len());
        let mut axis = |axis: &Axis, picture: u32, offset: u32, crop: &Crop| ResizeAxis {
            table: bed.ints(&axis.table()),
            taps: axis.taps(),
            picture: picture as usize,
            offset: offset as usize,
            tile: crop.size as usize,
            first: crop.to as usize,
            kept: axis.len(),
        };
        let (columns, rows) = (axis(columns, width, left, &tile.across), axis(rows, height, top, &tile.down));
        Resize {
            y: bed.output(Region::Io, columns.tile * rows.tile * 3),
            x: bed.noise((width * height * 3) as usize),
            columns,
            rows,
            colour: canvas.colour(),
            reach,
        }
    })
}

/// Values of bytes, or of a tile that comes as values: steps of a quarter from -2 to 2, so that sums over a patch are
/// exact in f32.
fn quarters(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 17) as f32 / 4.0 - 2.0).collect()
}

/// The projection is exact. Its rows are normalised: `n` additions for the mean and `n` for the variance, which the root
/// halves, of rows whose mean is small beside their spread; results are below 5.5. One rounding.
fn patch_embed(size: Size, source: &'static [i32], image_size: usize, patch_size: usize, hidden: usize) -> Case {
    let (places, patch) = (1 + (image_size / patch_size).pow(2), 3 * patch_size * patch_size);
    let (tiles, tile) = (source.len(), 3 * image_size * image_size);
    let values = source.iter().filter(|&&n| n < 0).count();
    let tolerance = Tolerance { ulps: 1.0, arithmetic: (hidden as f64 + 8.0) * U * 5.0, ..Tolerance::BITS };
    let some = if values > 0 { format!(" with {values} as values") } else { String::new() };
    let name = format!("{tiles}x{image_size}x{image_size}{some} by {patch_size} to {hidden}");
    Case::new(PatchEmbed::NAME, name, size, tolerance, move |bed: &mut Bed| PatchEmbed {
        y: bed.output(Region::Scratch, tiles * places * hidden),
        pixels: bed.noise((tiles - values) * tile),
        values: bed.floats(Region::Io, quarters(values * tile)),
        source: bed.ints(source),
        table: bed.floats(Region::Weights, quarters(3 * 256)),
        weight: bed.factors(Region::Weights, hidden * patch, 1.0 / 32.0),
        class: bed.factors(Region::Weights, hidden, 0.25),
        position: bed.factors(Region::Weights, places * hidden, 0.25),
        norm_weight: bed.around(Region::Weights, hidden, 1.0, 0.1),
        norm_bias: bed.uniform(Region::Weights, hidden, 0.2),
        tiles,
        image_size,
        patch_size,
        hidden,
        eps: 1e-5,
    })
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        resize("one pixel", Size::Edge, SMALL, [1, 1]),
        resize("cut", Size::Edge, SMALL, [50, 37]),
        resize("thin and padded", Size::Edge, ClipProcessor { do_pad: true, ..SMALL }, [9, 64]),
        resize("framed", Size::Edge, FRAMED, [50, 37]),
        resize("cut", Size::Real, LLAVA, [640, 480]),
        resize("padded", Size::Real, ClipProcessor { do_pad: true, ..LLAVA }, [640, 480]),
        patch_embed(Size::Edge, &[0], 14, 14, 64),
        patch_embed(Size::Edge, &[0, 1], 70, 14, 96),
        patch_embed(Size::Edge, &[0], 24, 4, 33),
        patch_embed(Size::Edge, &[-1], 23, 5, 40),
        patch_embed(Size::Edge, &[1, -2, 0, -1], 70, 14, 96),
        patch_embed(Size::Real, &[0], 336, 14, 1024),
        patch_embed(Size::Real, &[0, 1, 2, 3, 4], 336, 14, 1024),
        patch_embed(Size::Real, &[-1, 0, 1, 2, 3], 336, 14, 1024),
    ]
}
