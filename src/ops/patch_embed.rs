//! From pixels to the first hidden states of a vision transformer.

use bytemuck::{Pod, Zeroable};

use super::math::{layer_norm, matmul_nt};
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, Spans};

/// Normalise, cut into patches, project, prepend the class token, add positions and apply the pre-norm.
///
/// Pixels stay bytes until here: a byte of channel `c` stands for `table[c, byte]`, so the rescaling and normalisation
/// of any processor is exact and costs one look-up. A tile that was resized after its normalisation comes as values. A
/// patch is flattened in the order (channel, y, x), as the convolution's weight is stored, and rounded to the stored type
/// of the weights. Which tiles are bytes is read through a buffer, so that a captured graph stays valid for any mix.
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbed {
    /// `[tiles, 1 + grid^2, hidden]`, class token first.
    pub y: Buf<Act>,
    /// `[any, image_size, image_size, 3]`, RGB.
    pub pixels: Buf<u8>,
    /// `[any, 3, image_size, image_size]`, normalised; may be empty.
    pub values: Buf<f32>,
    /// `[tiles]`: `n` for tile `n` of `pixels`, `-1 - n` for tile `n` of `values`.
    pub source: Buf<i32>,
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

/// Patches of a block of the kernel.
const BLOCK_PATCHES: usize = 16;

impl PatchEmbed {
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    fn patch_len(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// Shared memory of a block of the kernel in bytes: the table and its patches in a 2-byte type, its rows in f32.
    /// The strides keep rows on different banks; twin of `Shared` in `cuda/patch_embed.cu`.
    fn smem(&self) -> usize {
        let steps = self.patch_len().div_ceil(16);
        let patch_stride = 16 * (steps + usize::from(steps.is_multiple_of(2)));
        2 * 3 * 256 + BLOCK_PATCHES * (2 * patch_stride + 4 * (self.hidden + 8))
    }

    /// Numbers of a tile.
    fn tile_len(&self) -> usize {
        3 * self.image_size * self.image_size
    }

    /// The patches of one tile as rows, `[grid^2, 3 * patch_size^2]`, from its values, `[3, image_size, image_size]`.
    fn patches(&self, values: &[f32]) -> Vec<f32> {
        let (g, p, s) = (self.grid(), self.patch_size, self.image_size);
        let mut rows = Vec::with_capacity(g * g * self.patch_len());
        for (gy, gx) in (0..g).flat_map(|gy| (0..g).map(move |gx| (gy, gx))) {
            for (c, y) in (0..3).flat_map(|c| (0..p).map(move |y| (c, y))) {
                let line = &values[(c * s + gy * p + y) * s + gx * p..][..p];
                rows.extend(line.iter().map(|&v| round_to(self.weight.dtype(), v)));
            }
        }
        rows
    }
}

/// The values of a tile of bytes, channel after channel.
fn look_up(pixels: &[u8], table: &[f32]) -> Vec<f32> {
    let channel = |c: usize| pixels[c..].iter().step_by(3).map(move |&byte| table[c * 256 + usize::from(byte)]);
    (0..3).flat_map(channel).collect()
}

impl Kernel for PatchEmbed {
    const NAME: &'static str = "patch_embed";

    /// Counts every tile as bytes: which ones are values is known only when the step runs.
    fn cost(&self) -> Cost {
        let patches = self.tiles * self.grid() * self.grid();
        let parameters = self.hidden * self.patch_len() + self.position.len() + 3 * self.hidden;
        Cost {
            bytes: (self.tiles * (self.tile_len() + 4)
                + 4 * self.table.len()
                + (parameters + self.y.len()) * self.y.dtype().size()) as u64,
            flops: (2 * patches * self.hidden * self.patch_len() + 8 * self.y.len()) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (table, class, position) = (m.read(self.table), m.load(self.class), m.load(self.position));
        let (norm_weight, norm_bias) = (m.load(self.norm_weight), m.load(self.norm_bias));
        let (patches, d) = (self.grid() * self.grid(), self.hidden);
        let mut y = Vec::with_capacity(self.y.len());
        let tile = |n: usize| n * self.tile_len()..(n + 1) * self.tile_len();
        for source in m.read(self.source) {
            let values = match usize::try_from(source) {
                Ok(n) => look_up(&m.read(self.pixels.slice(tile(n))), &table),
                Err(_) => m.read(self.values.slice(tile((-1 - source) as usize))),
            };
            let rows = self.patches(&values);
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

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PatchEmbedParams {
    y: u64,
    pixels: u64,
    values: u64,
    source: u64,
    table: u64,
    weight: u64,
    class_token: u64,
    position: u64,
    norm_weight: u64,
    norm_bias: u64,
    tiles: u32,
    image_size: u32,
    patch_size: u32,
    hidden: u32,
    eps: f32,
    pad: u32,
}

impl Launch for PatchEmbed {
    type Params = PatchEmbedParams;

    fn params(&self, at: &Bases) -> PatchEmbedParams {
        PatchEmbedParams {
            y: at.at(self.y),
            pixels: at.at(self.pixels),
            values: at.at(self.values),
            source: at.at(self.source),
            table: at.at(self.table),
            weight: at.at(self.weight),
            class_token: at.at(self.class),
            position: at.at(self.position),
            norm_weight: at.at(self.norm_weight),
            norm_bias: at.at(self.norm_bias),
            tiles: self.tiles as u32,
            image_size: self.image_size as u32,
            patch_size: self.patch_size as u32,
            hidden: self.hidden as u32,
            eps: self.eps,
            pad: 0,
        }
    }

    /// A block for 16 patches of a tile and one more for the tile's class token; a block sees whole rows, because it
    /// normalises them.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let blocks = (self.grid() * self.grid()).div_ceil(BLOCK_PATCHES) + 1;
        Geometry {
            symbol: symbol!("patch_embed", self.weight.dtype()),
            grid: [blocks as u32, self.tiles as u32, 1],
            block: [512, 1, 1],
            smem: self.smem() as u32,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};

    #[test]
    fn rows_and_patches_of_a_block_lie_in_shared_memory() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };
        for (image_size, patch_size, hidden, blocks, smem) in
            [(336usize, 14usize, 1024, 37, 86_528), (168, 14, 192, 10, 33_280)]
        {
            let mut l = Layout::new(Region::Scratch, DType::F16);
            let (n, k) = (1 + (image_size / patch_size).pow(2), 3 * patch_size * patch_size);
            let row = l.take(hidden);
            let op = PatchEmbed {
                y: l.take(2 * n * hidden),
                pixels: l.take(2 * 3 * image_size * image_size),
                values: l.take(0),
                source: l.take(2),
                table: l.take(3 * 256),
                weight: l.take(hidden * k),
                class: row,
                position: l.take(n * hidden),
                norm_weight: row,
                norm_bias: row,
                tiles: 2,
                image_size,
                patch_size,
                hidden,
                eps: 1e-5,
            };
            let g = op.geometry(&gpu);
            assert_eq!((g.symbol, g.grid, g.block), ("patch_embed_f16", [blocks, 2, 1], [512, 1, 1]));
            assert_eq!(g.smem, smem);
        }
    }
}
