//! From pixels to the first hidden states.

use super::{Case, Size, Tolerance, U};
use crate::kernel::Kernel;
use crate::mem::Region;
use crate::ops::PatchEmbed;
use crate::workbench::Bed;

/// Values of the bytes of a channel: steps of a quarter from -2 to 2, so that sums over a patch are exact in f32.
fn table() -> Vec<f32> {
    (0..3 * 256).map(|i: u16| f32::from(i % 17) / 4.0 - 2.0).collect()
}

/// The projection is exact. Its rows are normalised: `n` additions for the mean and `n` for the variance, which the root
/// halves, of rows whose mean is small beside their spread; results are below 5.5. One rounding.
fn patch_embed(size: Size, tiles: usize, image_size: usize, patch_size: usize, hidden: usize) -> Case {
    let (places, patch) = (1 + (image_size / patch_size).pow(2), 3 * patch_size * patch_size);
    let tolerance = Tolerance { ulps: 1.0, arithmetic: (hidden as f64 + 8.0) * U * 5.0, ..Tolerance::BITS };
    let name = format!("{tiles}x{image_size}x{image_size} by {patch_size} to {hidden}");
    Case::new(PatchEmbed::NAME, name, size, tolerance, move |bed: &mut Bed| PatchEmbed {
        y: bed.output(Region::Scratch, tiles * places * hidden),
        pixels: bed.noise(tiles * 3 * image_size * image_size),
        table: bed.floats(Region::Weights, table()),
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
        patch_embed(Size::Edge, 1, 14, 14, 64),
        patch_embed(Size::Edge, 2, 70, 14, 96),
        patch_embed(Size::Edge, 1, 24, 4, 33),
        patch_embed(Size::Real, 1, 336, 14, 1024),
        patch_embed(Size::Real, 5, 336, 14, 1024),
    ]
}
