//! Causal attention of prompt chunks over the paged cache.

use bytemuck::{Pod, Zeroable};

use super::attention::{KV_BLOCK, PagedKv, Queries, attend_sequence, entry_point, scale_log2};
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

/// Rows that one block of the kernel answers, and keys that it takes at a time.
const TILE: usize = 64;

/// Attention for sequences that bring several new tokens each; the new tokens are in the cache already.
///
/// Sequence `s` owns rows `query_start[s] .. query_start[s + 1]` of the step, and they are its last tokens: row `i` of
/// `n` sees the first `seq_lens[s] - n + i + 1` tokens of the cache.
#[derive(Clone, Copy, Debug)]
pub struct PagedPrefill {
    /// `[tokens of the step, heads * head_dim]`; rows of other sequences are left alone.
    pub o: Buf<Act>,
    /// `[tokens of the step, (heads + 2 * kv_heads) * head_dim]`; q is rotated.
    pub qkv: Buf<Act>,
    /// Keys and values of the layer.
    pub kv: PagedKv,
    /// `[seqs, max_blocks]`
    pub block_table: Buf<i32>,
    /// `[seqs]`: tokens in the cache, the new ones included.
    pub seq_lens: Buf<i32>,
    /// `[seqs + 1]`: rows of the step.
    pub query_start: Buf<i32>,
    /// Sequences.
    pub seqs: usize,
    /// Query heads.
    pub heads: usize,
    /// New tokens of all these sequences.
    pub tokens: usize,
    /// Blocks of a row of the table.
    pub max_blocks: usize,
    /// Tokens in a sequence's cache that the cost is stated for.
    pub context: usize,
}

impl Kernel for PagedPrefill {
    const NAME: &'static str = "paged_prefill";

    fn cost(&self) -> Cost {
        let (d, chunk) = (self.kv.head_dim, self.tokens / self.seqs.max(1));
        let earlier = self.context.saturating_sub(chunk);
        let pairs = self.seqs * (chunk * earlier + chunk * (chunk + 1) / 2);
        let cached = 2 * self.seqs * self.context * self.kv.kv_heads * d;
        let tables = self.seqs * (self.context.div_ceil(KV_BLOCK) + 2) + 1;
        Cost {
            bytes: ((2 * self.tokens * self.heads * d + cached) * self.o.dtype().size() + 4 * tables) as u64,
            flops: (self.heads * pairs * (4 * d + 4)) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.o.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (qkv, mut o) = (m.load(self.qkv), m.load(self.o));
        let (table, lens, start) = (m.read(self.block_table), m.read(self.seq_lens), m.read(self.query_start));
        for s in 0..self.seqs {
            let queries = Queries {
                first_row: start[s] as usize,
                rows: (start[s + 1] - start[s]) as usize,
                seq_len: lens[s] as usize,
                blocks: &table[s * self.max_blocks..][..self.max_blocks],
            };
            attend_sequence(m, &self.kv, self.heads, &queries, &qkv, &mut o);
        }
        m.store(self.o, &o);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PagedPrefillParams {
    o: u64,
    qkv: u64,
    k: u64,
    v: u64,
    block_table: u64,
    seq_lens: u64,
    query_start: u64,
    seqs: u32,
    heads: u32,
    kv_heads: u32,
    max_blocks: u32,
    scale_log2: f32,
    pad: u32,
}

impl Launch for PagedPrefill {
    type Params = PagedPrefillParams;

    fn params(&self, at: &Bases) -> PagedPrefillParams {
        PagedPrefillParams {
            o: at.at(self.o),
            qkv: at.at(self.qkv),
            k: at.at(self.kv.k),
            v: at.at(self.kv.v),
            block_table: at.at(self.block_table),
            seq_lens: at.at(self.seq_lens),
            query_start: at.at(self.query_start),
            seqs: self.seqs as u32,
            heads: self.heads as u32,
            kv_heads: self.kv.kv_heads as u32,
            max_blocks: self.max_blocks as u32,
            scale_log2: scale_log2(self.kv.head_dim),
            pad: 0,
        }
    }

    /// As many blocks a head as `tokens` rows can need, however they are divided among the sequences: `n` rows of one
    /// need `ceil(n / 64)`, which is at most `(n + 63) / 64`.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let blocks = (self.tokens + self.seqs * (TILE - 1)) / TILE;
        Geometry {
            symbol: entry_point!("paged_prefill", self.o.dtype(), self.kv.head_dim, [32, 64, 96, 128]),
            grid: [self.heads as u32, blocks as u32, 1],
            block: [128, 1, 1],
            smem: (4 * TILE * self.kv.head_dim * self.o.dtype().size()) as u32,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};

    fn op(dtype: DType, seqs: usize, tokens: usize, head_dim: usize) -> PagedPrefill {
        let [mut kv, mut scratch, mut io] =
            [Region::Kv, Region::Scratch, Region::Io].map(|region| Layout::new(region, dtype));
        let mut cache = || kv.take(2 * KV_BLOCK * head_dim);
        PagedPrefill {
            kv: PagedKv { k: cache(), v: cache(), kv_heads: 2, head_dim },
            o: scratch.take(tokens * 4 * head_dim),
            qkv: scratch.take(tokens * 8 * head_dim),
            block_table: io.take(seqs),
            seq_lens: io.take(seqs),
            query_start: io.take(seqs + 1),
            seqs,
            heads: 4,
            tokens,
            max_blocks: 1,
            context: tokens,
        }
    }

    #[test]
    fn there_are_blocks_enough_for_any_division_among_the_sequences() {
        let gpu = GpuInfo { compute_capability: (8, 0), sms: 108, max_smem: 166_912, sm_90a: false };
        let blocks = |seqs, tokens| op(DType::F16, seqs, tokens, 96).geometry(&gpu).grid;
        assert_eq!(blocks(1, 1), [4, 1, 1]);
        assert_eq!(blocks(1, 645), [4, 11, 1]);
        // One token each; and 65, 1 and 1.
        assert_eq!(blocks(3, 3), [4, 3, 1]);
        assert_eq!(blocks(3, 67), [4, 4, 1]);
        let wide = op(DType::Bf16, 1, 9, 128).geometry(&gpu);
        assert_eq!((wide.symbol, wide.smem), ("paged_prefill_bf16_d128", 64 << 10));
        assert_eq!(op(DType::F32, 1, 9, 128).geometry(&gpu).symbol, "paged_prefill for this type and head_dim");
    }
}
