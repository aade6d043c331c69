//! Attention of a vision tower: every token sees every token of its tile.

use rayon::prelude::*;

use super::math::attend;
use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

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
