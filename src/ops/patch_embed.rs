//! From pixels to the first hidden states of a vision transformer.

use super::math::{layer_norm, matmul_nt};
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

/// Normalise, cut into patches, project, prepend the class token, add positions and apply the pre-norm.
///
/// Pixels stay bytes until here: a byte of channel `c` stands for `table[c, byte]`, so the rescaling and normalisation
/// of any processor is exact and costs one look-up. A patch is flattened in the order (channel, y, x), as the
/// convolution's weight is stored, and rounded to the stored type of the weights.
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbed {
    /// `[tiles, 1 + grid^2, hidden]`, class token first.
    pub y: Buf<Act>,
    /// `[tiles, image_size, image_size, 3]`, RGB.
    pub pixels: Buf<u8>,
    /// `[3, 256]`: value of a byte, by channel.
    pub table: Buf<f32>,
    /// `[hidden, 3 * patch_size^2]`
    pub weight: Buf<Act>,
    /// `[hidden]`
    pub class: Buf<Act>,
    /// `[1 + grid^2, hidden]`
    pub position: Buf<Act>,
    /// `[hidden]`
    pub norm_weight: Buf<Act>,
    /// `[hidden]`
    pub norm_bias: Buf<Act>,
    /// Pictures or parts of pictures.
    pub tiles: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels; `grid` is `image_size / patch_size`.
    pub patch_size: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl PatchEmbed {
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    fn patch_len(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// The patches of one tile as rows, `[grid^2, 3 * patch_size^2]`.
    fn patches(&self, pixels: &[u8], table: &[f32]) -> Vec<f32> {
        let (g, p, s) = (self.grid(), self.patch_size, self.image_size);
        let mut rows = Vec::with_capacity(g * g * self.patch_len());
        for (gy, gx) in (0..g).flat_map(|gy| (0..g).map(move |gx| (gy, gx))) {
            for (c, y) in (0..3).flat_map(|c| (0..p).map(move |y| (c, y))) {
                for x in 0..p {
                    let byte = pixels[((gy * p + y) * s + gx * p + x) * 3 + c];
                    rows.push(round_to(self.weight.dtype(), table[c * 256 + usize::from(byte)]));
                }
            }
        }
        rows
    }
}

impl Kernel for PatchEmbed {
    const NAME: &'static str = "patch_embed";

    fn cost(&self) -> Cost {
        let patches = self.tiles * self.grid() * self.grid();
        let parameters = self.hidden * self.patch_len() + self.position.len() + 3 * self.hidden;
        Cost {
            bytes: (self.pixels.len() + 4 * self.table.len() + (parameters + self.y.len()) * self.y.dtype().size())
                as u64,
            flops: (2 * patches * self.hidden * self.patch_len() + 8 * self.y.len()) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (pixels, table) = (m.read(self.pixels), m.load(self.table));
        let (class, position) = (m.load(self.class), m.load(self.position));
        let (norm_weight, norm_bias) = (m.load(self.norm_weight), m.load(self.norm_bias));
        let (patches, d) = (self.grid() * self.grid(), self.hidden);
        let mut y = Vec::with_capacity(self.y.len());
        for tile in pixels.chunks_exact(3 * self.image_size * self.image_size) {
            let rows = self.patches(tile, &table);
            let embedded = m.with_floats(self.weight, |w| matmul_nt(&rows, w, patches, d, self.patch_len()));
            let tokens = std::iter::once(&class[..]).chain(embedded.chunks_exact(d));
            for (token, position) in tokens.zip(position.chunks_exact(d)) {
                let sum: Vec<f32> = token.iter().zip(position).map(|(t, p)| t + p).collect();
                let mut out = vec![0.0; d];
                layer_norm(&sum, &norm_weight, &norm_bias, self.eps, &mut out);
                y.extend(out);
            }
        }
        m.store(self.y, &y);
    }
}
