//! The paged key/value cache, as the ops that read and write it see it.

use rayon::prelude::*;

use super::math::attend;
use crate::host::HostMem;
use crate::mem::{Act, Buf};

/// Tokens of a cache block.
pub const KV_BLOCK: usize = 16;

/// Keys and values of one layer, in blocks of [`KV_BLOCK`] tokens that any sequence may own.
///
/// Token `t` of a sequence lies in block `block_table[t / 16]` at place `t % 16`; its *slot* is `block * 16 + place`.
#[derive(Clone, Copy, Debug)]
pub struct PagedKv {
    /// `[blocks, kv_heads, 16, head_dim]`
    pub k: Buf<Act>,
    /// `[blocks, kv_heads, 16, head_dim]`
    pub v: Buf<Act>,
    /// Heads of keys and values; each serves `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl PagedKv {
    /// First element of `slot` of `kv_head`.
    pub(super) fn at(&self, slot: usize, kv_head: usize) -> usize {
        ((slot / KV_BLOCK * self.kv_heads + kv_head) * KV_BLOCK + slot % KV_BLOCK) * self.head_dim
    }

    /// Keys or values of the first `len` tokens of a sequence for one head, `[len, head_dim]`.
    fn gather(&self, m: &HostMem, which: Buf<Act>, blocks: &[i32], len: usize, kv_head: usize) -> Vec<f32> {
        let mut out = vec![0.0; len * self.head_dim];
        m.with_floats(which, |cache| {
            for (i, tokens) in out.chunks_mut(KV_BLOCK * self.head_dim).enumerate() {
                cache.widen(self.at(blocks[i] as usize * KV_BLOCK, kv_head), tokens);
            }
        });
        out
    }
}

/// The factor of scores whose softmax is taken to base two, as the kernels do it: `log2(e) / sqrt(head_dim)`.
pub(super) fn scale_log2(head_dim: usize) -> f32 {
    (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32
}

/// The name of a kernel for a float type and one of the head widths that it is compiled for. Another width gives a name
/// that no image has, so that linking says which kernel is missing.
macro_rules! entry_point {
    ($kernel:literal, $dtype:expr, $head_dim:expr, [$($width:literal),*]) => {
        match ($dtype, $head_dim) {
            $((DType::F16, $width) => concat!($kernel, "_f16_d", $width),)*
            $((DType::Bf16, $width) => concat!($kernel, "_bf16_d", $width),)*
            _ => concat!($kernel, " for this type and head_dim"),
        }
    };
}
pub(super) use entry_point;

/// The queries of one sequence: rows `first_row .. first_row + rows` of the step, which are its last `rows` tokens.
pub(super) struct Queries<'a> {
    pub first_row: usize,
    pub rows: usize,
    pub seq_len: usize,
    pub blocks: &'a [i32],
}

/// Causal attention of the queries of one sequence over its cache; `qkv` is the whole step's and `o` too.
pub(super) fn attend_sequence(m: &HostMem, kv: &PagedKv, heads: usize, s: &Queries<'_>, qkv: &[f32], o: &mut [f32]) {
    let (d, group) = (kv.head_dim, heads / kv.kv_heads);
    let width = (heads + 2 * kv.kv_heads) * d;
    let scale = 1.0 / (d as f32).sqrt();
    let caches: Vec<(Vec<f32>, Vec<f32>)> = (0..kv.kv_heads)
        .map(|h| (kv.gather(m, kv.k, s.blocks, s.seq_len, h), kv.gather(m, kv.v, s.blocks, s.seq_len, h)))
        .collect();
    let rows = &mut o[s.first_row * heads * d..][..s.rows * heads * d];
    rows.par_chunks_exact_mut(d).enumerate().for_each(|(i, o)| {
        let (row, head) = (i / heads, i % heads);
        let (keys, values) = &caches[head / group];
        let seen = (s.seq_len - s.rows + row + 1) * d;
        let query = &qkv[(s.first_row + row) * width + head * d..][..d];
        attend(query, &keys[..seen], &values[..seen], scale, o);
    });
}
