//! Attention of one new token a sequence over the paged cache.

use bytemuck::{Pod, Zeroable};

use super::attention::{KV_BLOCK, PagedKv, Queries, attend_sequence, entry_point, scale_log2};
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

/// Query heads of one key head that a block of the kernel answers together.
const QUERIES: usize = 8;

/// Blocks of a cluster, which divide the keys of a sequence among them. Of 2, 4 and 8 it was the best compromise on an
/// H200: with 32 key heads of 128, one sequence of 4096 tokens takes 39, 26 and 23 us and eight of 645 take 31, 32
/// and 44 us; with 8 key heads, 28, 16 and 11 us and 10, 10 and 14 us.
const CLUSTER: u32 = 4;

/// Attention for sequences that bring one new token each, which is in the cache already: row `s` of the step is the
/// last of `seq_lens[s]` tokens. A length of 0 marks a row that is only there to fill the batch; it yields zeros.
#[derive(Clone, Copy, Debug)]
pub struct PagedDecode {
    /// `[tokens of the step, heads * head_dim]`; rows from `seqs` on are left alone.
    pub o: Buf<Act>,
    /// `[tokens of the step, (heads + 2 * kv_heads) * head_dim]`; q is rotated.
    pub qkv: Buf<Act>,
    /// Keys and values of the layer.
    pub kv: PagedKv,
    /// `[seqs, max_blocks]`
    pub block_table: Buf<i32>,
    /// `[seqs]`: tokens in the cache, the new one included.
    pub seq_lens: Buf<i32>,
    /// Sequences.
    pub seqs: usize,
    /// Query heads.
    pub heads: usize,
    /// Blocks of a row of the table.
    pub max_blocks: usize,
    /// Tokens in a sequence's cache that the cost is stated for.
    pub context: usize,
}

impl Kernel for PagedDecode {
    const NAME: &'static str = "paged_decode";

    fn cost(&self) -> Cost {
        let d = self.kv.head_dim;
        let cached = 2 * self.context * self.kv.kv_heads * d;
        let table = self.context.div_ceil(KV_BLOCK) + 1;
        Cost {
            bytes: (self.seqs * ((2 * self.heads * d + cached) * self.o.dtype().size() + 4 * table)) as u64,
            flops: (self.seqs * self.heads * self.context * (4 * d + 4)) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.o.slice(0..self.seqs * self.heads * self.kv.head_dim).span()]
    }

    fn reference(&self, m: &HostMem) {
        let (qkv, mut o) = (m.load(self.qkv), m.load(self.o));
        let (table, lens) = (m.read(self.block_table), m.read(self.seq_lens));
        let width = self.heads * self.kv.head_dim;
        for s in 0..self.seqs {
            if lens[s] == 0 {
                o[s * width..][..width].fill(0.0);
                continue;
            }
            let queries = Queries {
                first_row: s,
                rows: 1,
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
pub struct PagedDecodeParams {
    o: u64,
    qkv: u64,
    k: u64,
    v: u64,
    block_table: u64,
    seq_lens: u64,
    heads: u32,
    kv_heads: u32,
    max_blocks: u32,
    scale_log2: f32,
}

impl Launch for PagedDecode {
    type Params = PagedDecodeParams;

    fn params(&self, at: &Bases) -> PagedDecodeParams {
        PagedDecodeParams {
            o: at.at(self.o),
            qkv: at.at(self.qkv),
            k: at.at(self.kv.k),
            v: at.at(self.kv.v),
            block_table: at.at(self.block_table),
            seq_lens: at.at(self.seq_lens),
            heads: self.heads as u32,
            kv_heads: self.kv.kv_heads as u32,
            max_blocks: self.max_blocks as u32,
            scale_log2: scale_log2(self.kv.head_dim),
        }
    }

    /// A cluster of blocks for each key head of each sequence, so that one sequence fills the device. Its size does not
    /// depend on the batch: it decides the order of additions.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let group = self.heads / self.kv.kv_heads;
        let cluster = if gpu.compute_capability >= (9, 0) { CLUSTER } else { 1 };
        Geometry {
            symbol: entry_point!("paged_decode", self.o.dtype(), self.kv.head_dim, [32, 64, 96, 128]),
            grid: [cluster, (self.kv.kv_heads * group.div_ceil(QUERIES)) as u32, self.seqs as u32],
            block: [128, 1, 1],
            smem: 0,
            cluster,
            pdl: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};

    fn op(seqs: usize, heads: usize, kv_heads: usize) -> PagedDecode {
        let [mut kv, mut scratch, mut io] =
            [Region::Kv, Region::Scratch, Region::Io].map(|region| Layout::new(region, DType::F16));
        let mut cache = || kv.take(kv_heads * KV_BLOCK * 96);
        PagedDecode {
            kv: PagedKv { k: cache(), v: cache(), kv_heads, head_dim: 96 },
            o: scratch.take(seqs * heads * 96),
            qkv: scratch.take(seqs * (heads + 2 * kv_heads) * 96),
            block_table: io.take(seqs),
            seq_lens: io.take(seqs),
            seqs,
            heads,
            max_blocks: 1,
            context: 1,
        }
    }

    #[test]
    fn the_cluster_depends_on_the_architecture_alone() {
        let gpu = |compute_capability| GpuInfo { compute_capability, sms: 132, max_smem: 166_912, sm_90a: false };
        let shape = |capability, seqs, heads, kv_heads| {
            let geometry = op(seqs, heads, kv_heads).geometry(&gpu(capability));
            assert_eq!(geometry.symbol, "paged_decode_f16_d96");
            (geometry.grid, geometry.cluster)
        };
        assert_eq!(shape((9, 0), 1, 32, 32), ([4, 32, 1], 4));
        assert_eq!(shape((9, 0), 64, 32, 32), ([4, 32, 64], 4));
        assert_eq!(shape((9, 0), 8, 32, 8), ([4, 8, 8], 4));
        assert_eq!(shape((8, 6), 8, 32, 8), ([1, 8, 8], 1));
        // Groups of 12 query heads need two blocks.
        assert_eq!(shape((9, 0), 1, 24, 2), ([4, 4, 1], 4));
    }
}
