//! Rotary position embedding, and the write into the paged cache.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::attention::PagedKv;
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, Spans};

/// Rotate q in place, and put the rotated k and v into the cache at each token's slot. A slot of -1 writes nothing.
/// The k and v of `qkv` stay as they are.
///
/// Half-split rotation: with `h = head_dim / 2`, `x'[j] = x[j] cos - x[j+h] sin` and `x'[j+h] = x[j+h] cos + x[j] sin`.
/// Cosine and sine are rounded to the stored type first, as Hugging Face does.
#[derive(Clone, Copy, Debug)]
pub struct RopeKv {
    /// `[tokens, (heads + 2 * kv_heads) * head_dim]`: q, then k, then v, each head-major.
    pub qkv: Buf<Act>,
    /// Keys and values of the layer.
    pub kv: PagedKv,
    /// `[positions, head_dim]`: cosines, then sines, as [`rope_table`] and [`long_rope_table`] make them.
    pub table: Buf<f32>,
    /// `[tokens]`: row of the table: place of the token in its sequence, or where the angles of that place are.
    pub positions: Buf<i32>,
    /// `[tokens]`: `block * 16 + place`, or -1.
    pub slot_mapping: Buf<i32>,
    /// Rows.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
}

/// Cosines and sines of positions `0 .. positions`, `[positions, head_dim]`, computed in f32 as Hugging Face does:
/// `angle = position / theta^(2j / head_dim)`.
pub fn rope_table(theta: f64, head_dim: usize, positions: usize) -> Vec<f32> {
    table(theta, &vec![1.0; head_dim / 2], 1.0, positions)
}

/// [`rope_table`] with frequency `j` divided by `factors[j]`, `[head_dim / 2]`, and cosines and sines multiplied by
/// `attention_factor`: `longrope` of Hugging Face.
pub fn long_rope_table(theta: f64, factors: &[f64], attention_factor: f64, positions: usize) -> Vec<f32> {
    let factors: Vec<f32> = factors.iter().map(|&f| f as f32).collect();
    table(theta, &factors, attention_factor as f32, positions)
}

fn table(theta: f64, factors: &[f32], scale: f32, positions: usize) -> Vec<f32> {
    let half = factors.len();
    let power = |j: usize| (theta as f32).powf(2.0 * j as f32 / (2 * half) as f32);
    let inverse: Vec<f32> = factors.iter().enumerate().map(|(j, factor)| 1.0 / (factor * power(j))).collect();
    let mut table = vec![0.0; positions * 2 * half];
    // A long context has millions of angles.
    table.par_chunks_exact_mut(2 * half).enumerate().for_each(|(position, row)| {
        let (cos, sin) = row.split_at_mut(half);
        for (j, f) in inverse.iter().enumerate() {
            let angle = position as f32 * f;
            (cos[j], sin[j]) = (angle.cos() * scale, angle.sin() * scale);
        }
    });
    table
}

/// Threads of a block of the kernel.
const THREADS: usize = 256;

impl Kernel for RopeKv {
    const NAME: &'static str = "rope_kv";

    fn cost(&self) -> Cost {
        let d = self.kv.head_dim;
        let (q, kv) = (self.heads * d, 2 * self.kv.kv_heads * d);
        let rotated = q + kv / 2;
        Cost {
            // q, k and v are read and written once each; an angle table row, a position and a slot are read.
            bytes: (self.tokens * (2 * (q + kv) * self.qkv.dtype().size() + 4 * d + 8)) as u64,
            flops: (self.tokens * 3 * rotated) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.qkv.span(), self.kv.k.span(), self.kv.v.span()]
    }

    fn reference(&self, m: &HostMem) {
        let width = (self.heads + 2 * self.kv.kv_heads) * self.kv.head_dim;
        let mut qkv = m.load(self.qkv);
        let (positions, slots) = (m.read(self.positions), m.read(self.slot_mapping));
        for (row, (&position, &slot)) in qkv.chunks_exact_mut(width).zip(positions.iter().zip(&slots)).take(self.tokens)
        {
            if let Ok(slot) = usize::try_from(slot) {
                rotate_and_cache(m, row, self.heads, &self.kv, self.table, position as usize, slot);
            }
        }
        m.store(self.qkv, &qkv);
    }
}

/// One row of q, k and v: q is rotated in place, unrounded; k, rotated, and v go to `slot` of the cache.
pub(super) fn rotate_and_cache(
    m: &HostMem,
    row: &mut [f32],
    heads: usize,
    cache: &PagedKv,
    table: Buf<f32>,
    position: usize,
    slot: usize,
) {
    let (d, kv_heads) = (cache.head_dim, cache.kv_heads);
    let mut angles = m.load(table.slice(position * d..(position + 1) * d));
    angles.iter_mut().for_each(|a| *a = round_to(cache.k.dtype(), *a));
    let (cos, sin) = angles.split_at(d / 2);
    let (q, kv) = row.split_at_mut(heads * d);
    q.chunks_exact_mut(d).for_each(|head| rotate(head, cos, sin));
    let (k, v) = kv.split_at(kv_heads * d);
    let mut k = k.to_vec();
    k.chunks_exact_mut(d).for_each(|head| rotate(head, cos, sin));
    for h in 0..kv_heads {
        let at = cache.at(slot, h);
        m.store(cache.k.slice(at..at + d), &k[h * d..][..d]);
        m.store(cache.v.slice(at..at + d), &v[h * d..][..d]);
    }
}

fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for j in 0..cos.len() {
        let (a, b) = (low[j], high[j]);
        low[j] = a * cos[j] - b * sin[j];
        high[j] = b * cos[j] + a * sin[j];
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RopeKvParams {
    qkv: u64,
    k: u64,
    v: u64,
    table: u64,
    positions: u64,
    slot_mapping: u64,
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
}

impl Launch for RopeKv {
    type Params = RopeKvParams;

    fn params(&self, at: &Bases) -> RopeKvParams {
        RopeKvParams {
            qkv: at.at(self.qkv),
            k: at.at(self.kv.k),
            v: at.at(self.kv.v),
            table: at.at(self.table),
            positions: at.at(self.positions),
            slot_mapping: at.at(self.slot_mapping),
            tokens: self.tokens as u32,
            heads: self.heads as u32,
            kv_heads: self.kv.kv_heads as u32,
            head_dim: self.kv.head_dim as u32,
        }
    }

    /// A token along x and slices of its heads along y; a thread turns eight pairs of a head, or one pair where a half
    /// head is no multiple of eight.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let half = self.kv.head_dim / 2;
        let pieces = if half.is_multiple_of(8) { half / 8 } else { half };
        let slices = ((self.heads + 2 * self.kv.kv_heads) * pieces).div_ceil(THREADS);
        Geometry {
            symbol: symbol!("rope_kv", self.qkv.dtype()),
            grid: [self.tokens as u32, slices as u32, 1],
            block: [THREADS as u32, 1, 1],
            smem: 0,
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
    fn inverse_frequencies_are_the_published_ones() {
        let table = rope_table(10000.0, 128, 2);
        let angle = |j: usize| f64::from(table[128 + 64 + j]).atan2(f64::from(table[128 + j]));
        for (j, expected) in [(0, 1.0), (1, 0.865964353), (2, 0.749894202), (63, 0.000115478193)] {
            assert!((angle(j) - expected).abs() < 1e-7, "{j}: {}", angle(j));
        }
        assert!(table[..64].iter().all(|&c| c == 1.0) && table[64..128].iter().all(|&s| s == 0.0));
    }

    /// Of Phi-3.5-vision's factors, as transformers computes them.
    #[test]
    fn long_ropes_are_the_published_ones() {
        let short = [1.08, 1.1, 1.13];
        let scale = (1.0f64 + 5.0 / 12.0).sqrt();
        let mut factors = vec![1.0; 48];
        factors[..3].copy_from_slice(&short);
        let table = long_rope_table(10000.0, &factors, scale, 2);
        for (j, expected) in [(0, 0.92592591), (1, 0.750367403), (2, 0.60291332)] {
            let (cos, sin) = (f64::from(table[96 + j]), f64::from(table[96 + 48 + j]));
            assert!((sin.atan2(cos) - expected).abs() < 1e-7, "{j}: {}", sin.atan2(cos));
            assert!((sin.hypot(cos) - 1.1902380714238083).abs() < 1e-6);
        }
    }

    #[test]
    fn the_heads_of_a_token_are_spread_over_blocks() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };
        // 7B; Phi-3-vision; the demo's grouped heads; an odd half head.
        for (heads, kv_heads, head_dim, slices) in [(32, 32, 128, 3), (32, 32, 96, 3), (4, 2, 32, 1), (2, 1, 20, 1)] {
            let mut l = Layout::new(Region::Scratch, DType::Bf16);
            let (qkv, cache) = (l.take(7 * (heads + 2 * kv_heads) * head_dim), l.take(16 * kv_heads * head_dim));
            let kv = PagedKv { k: cache, v: cache, kv_heads, head_dim };
            let (table, positions) = (l.take(64 * head_dim), l.take(7));
            let op = RopeKv { qkv, kv, table, positions, slot_mapping: positions, tokens: 7, heads };
            let g = op.geometry(&gpu);
            assert_eq!((g.symbol, g.grid, g.block), ("rope_kv_bf16", [7, slices, 1], [256, 1, 1]));
        }
    }
}
