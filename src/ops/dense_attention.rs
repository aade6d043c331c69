//! Attention of a vision tower: every token sees every token of its tile.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::attention::{entry_point, scale_log2};
use super::math::attend;
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

/// Tokens whose queries one block of the kernel answers, and keys that it takes at a time.
const TILE: usize = 64;

/// `o = softmax(q k^T / sqrt(head_dim)) v`, without a mask, tile by tile and head by head.
#[derive(Clone, Copy, Debug)]
pub struct DenseAttention {
    /// `[tiles, tokens, heads * head_dim]`
    pub o: Buf<Act>,
    /// `[tiles, tokens, 3 * heads * head_dim]`: q, then k, then v, each head-major.
    pub qkv: Buf<Act>,
    /// Independent sequences.
    pub tiles: usize,
    /// Tokens of a tile.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Kernel for DenseAttention {
    const NAME: &'static str = "dense_attention";

    fn cost(&self) -> Cost {
        let scores = self.tiles * self.heads * self.tokens * self.tokens;
        Cost {
            bytes: ((self.qkv.len() + self.o.len()) * self.o.dtype().size()) as u64,
            flops: (scores * (4 * self.head_dim + 4)) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.o.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (n, d, width) = (self.tokens, self.head_dim, self.heads * self.head_dim);
        let qkv = m.load(self.qkv);
        let scale = 1.0 / (d as f32).sqrt();
        let heads: Vec<Vec<f32>> = (0..self.tiles * self.heads)
            .into_par_iter()
            .map(|i| {
                let (tile, head) = (i / self.heads, i % self.heads);
                let part = |which: usize| -> Vec<f32> {
                    let first = which * width + head * d;
                    (0..n).flat_map(|t| &qkv[(tile * n + t) * 3 * width + first..][..d]).copied().collect()
                };
                let (q, k, v) = (part(0), part(1), part(2));
                let mut o = vec![0.0; n * d];
                for (q, o) in q.chunks_exact(d).zip(o.chunks_exact_mut(d)) {
                    attend(q, &k, &v, scale, o);
                }
                o
            })
            .collect();
        let mut o = vec![0.0; self.o.len()];
        for (i, part) in heads.iter().enumerate() {
            let (tile, head) = (i / self.heads, i % self.heads);
            for (t, row) in part.chunks_exact(d).enumerate() {
                o[(tile * n + t) * width + head * d..][..d].copy_from_slice(row);
            }
        }
        m.store(self.o, &o);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct DenseAttentionParams {
    o: u64,
    qkv: u64,
    tokens: u32,
    heads: u32,
    scale_log2: f32,
    pad: u32,
}

impl Launch for DenseAttention {
    type Params = DenseAttentionParams;

    fn params(&self, at: &Bases) -> DenseAttentionParams {
        DenseAttentionParams {
            o: at.at(self.o),
            qkv: at.at(self.qkv),
            tokens: self.tokens as u32,
            heads: self.heads as u32,
            scale_log2: scale_log2(self.head_dim),
            pad: 0,
        }
    }

    /// A block for 64 queries of a head; shared memory for two steps of 64 keys and values.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        Geometry {
            symbol: entry_point!("dense_attention", self.o.dtype(), self.head_dim, [32, 64]),
            grid: [self.tokens.div_ceil(TILE) as u32, self.heads as u32, self.tiles as u32],
            block: [128, 1, 1],
            smem: (4 * TILE * self.head_dim * self.o.dtype().size()) as u32,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};

    #[test]
    fn a_block_for_every_64_tokens_of_a_head_of_a_tile() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };
        let mut scratch = Layout::new(Region::Scratch, DType::Bf16);
        let mut geometry = |tiles: usize, tokens, heads, head_dim| {
            let n = tiles * tokens * heads * head_dim;
            let (o, qkv) = (scratch.take(n), scratch.take(3 * n));
            DenseAttention { o, qkv, tiles, tokens, heads, head_dim }.geometry(&gpu)
        };
        let clip = geometry(4, 577, 16, 64);
        assert_eq!((clip.symbol, clip.grid, clip.smem), ("dense_attention_bf16_d64", [10, 16, 4], 32 << 10));
        assert_eq!(geometry(1, 64, 2, 32).grid, [1, 2, 1]);
        assert_eq!(geometry(1, 65, 2, 80).symbol, "dense_attention for this type and head_dim");
    }
}
