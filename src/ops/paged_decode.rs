//! The whole attention of one new token a sequence: rotary embedding, write into the paged cache, attention over it.

use bytemuck::{Pod, Zeroable};

use super::attention::{KV_BLOCK, PagedKv, Queries, attend_sequence, entry_point, scale_log2};
use super::rope_kv::rotate_and_cache;
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

/// Query heads of one key head that a block of the kernel answers together.
const QUERIES: usize = 8;

/// Warps of a block. With 6, one sequence of 645 tokens (32 key heads of 128) took 0.7 us less, but 64 of them 187 us
/// instead of 164 on an H200, where more blocks of 4 warps fit a multiprocessor.
const WARPS: usize = 4;

/// Blocks of a cluster, which divide the keys of a sequence among them. With 8, one sequence of 645 tokens took 0.5 us
/// less and eight took 12 us more.
const CLUSTER: usize = 4;

/// Cache blocks of a warp that may be in shared memory at a time.
const MAX_STAGES: usize = 4;

/// Blocks that fit the registers of a multiprocessor: `kResident` of the kernel.
const RESIDENT: usize = 5;

/// Attention for sequences that bring one new token each: row `s` of the step is the last of `seq_lens[s]` tokens. Its q
/// and k are rotated as [`RopeKv`](super::RopeKv) does it, its k and v go to their slot of the cache, and it attends to
/// the whole sequence, itself included.
///
/// A slot of -1, or a length of 0, marks a row that is only there to fill the batch: it yields zeros, and nothing is
/// written to the cache for it.
#[derive(Clone, Copy, Debug)]
pub struct PagedDecode {
    /// `[tokens of the step, heads * head_dim]`; rows from `seqs` on are left alone.
    pub o: Buf<Act>,
    /// `[tokens of the step, (heads + 2 * kv_heads) * head_dim]`: q, then k, then v; stays as it is.
    pub qkv: Buf<Act>,
    /// Keys and values of the layer.
    pub kv: PagedKv,
    /// `[positions, head_dim]`: cosines, then sines, as [`rope_table`](super::rope_table) makes them.
    pub table: Buf<f32>,
    /// `[seqs]`: place of the new token in its sequence.
    pub positions: Buf<i32>,
    /// `[seqs]`: where the new token goes; with `t = seq_lens[s] - 1` this is `block_table[s][t / 16] * 16 + t % 16`, or
    /// -1.
    pub slot_mapping: Buf<i32>,
    /// `[seqs, max_blocks]`
    pub block_table: Buf<i32>,
    /// `[seqs]`: tokens of the sequence, the new one included.
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
        let (d, kv_heads) = (self.kv.head_dim, self.kv.kv_heads);
        // q, k and v of the new token in, o out, and the context's keys and values, of which the new ones are written.
        let elements = 2 * self.heads * d + 2 * kv_heads * d + 2 * self.context * kv_heads * d;
        // A row of angles, a position, a slot, a length, and the blocks of the context.
        let words = d + 3 + self.context.div_ceil(KV_BLOCK);
        Cost {
            bytes: (self.seqs * (elements * self.o.dtype().size() + 4 * words)) as u64,
            flops: (self.seqs * (self.heads * self.context * (4 * d + 4) + 3 * (self.heads + kv_heads) * d)) as u64,
        }
    }

    fn writes(&self) -> Spans {
        let o = self.o.slice(0..self.seqs * self.heads * self.kv.head_dim);
        vec![o.span(), self.kv.k.span(), self.kv.v.span()]
    }

    fn reference(&self, m: &HostMem) {
        let (mut qkv, mut o) = (m.load(self.qkv), m.load(self.o));
        let (table, lens) = (m.read(self.block_table), m.read(self.seq_lens));
        let (positions, slots) = (m.read(self.positions), m.read(self.slot_mapping));
        let width = self.heads * self.kv.head_dim;
        let row_width = width + 2 * self.kv.kv_heads * self.kv.head_dim;
        for s in 0..self.seqs {
            if slots[s] < 0 || lens[s] == 0 {
                o[s * width..][..width].fill(0.0);
                continue;
            }
            let row = &mut qkv[s * row_width..][..row_width];
            rotate_and_cache(m, row, self.heads, &self.kv, self.table, positions[s] as usize, slots[s] as usize);
            // What is attended with is rounded as a stored q is.
            row[..width].iter_mut().for_each(|q| *q = round_to(self.qkv.dtype(), *q));
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
    table: u64,
    positions: u64,
    slot_mapping: u64,
    block_table: u64,
    seq_lens: u64,
    group: u32,
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
            table: at.at(self.table),
            positions: at.at(self.positions),
            slot_mapping: at.at(self.slot_mapping),
            block_table: at.at(self.block_table),
            seq_lens: at.at(self.seq_lens),
            group: self.group() as u32,
            kv_heads: self.kv.kv_heads as u32,
            max_blocks: self.max_blocks as u32,
            scale_log2: scale_log2(self.kv.head_dim),
        }
    }

    /// A cluster of blocks for each key head of each sequence, so that one sequence fills the device. Its size does not
    /// depend on the batch: it decides the order of additions. The number of stages decides nothing but the time.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let cluster = if gpu.compute_capability >= (9, 0) { CLUSTER } else { 1 };
        let tiles = self.group().div_ceil(QUERIES);
        let blocks = cluster * tiles * self.kv.kv_heads * self.seqs;
        Geometry {
            symbol: entry_point!("paged_decode", self.o.dtype(), self.kv.head_dim, [32, 64, 96, 128]),
            grid: [(cluster * tiles) as u32, self.kv.kv_heads as u32, self.seqs as u32],
            block: [32 * WARPS as u32, 1, 1],
            smem: self.smem(cluster, self.stages(gpu, cluster, blocks)) as u32,
            cluster: cluster as u32,
            pdl: gpu.sm_90a,
        }
    }
}

impl PagedDecode {
    /// Query heads of a key head.
    fn group(&self) -> usize {
        self.heads / self.kv.kv_heads
    }

    /// Bytes of shared memory of a block: `Shared` of the kernel.
    fn smem(&self, cluster: usize, stages: usize) -> usize {
        let (d, queries) = (self.kv.head_dim, self.group().min(QUERIES));
        let found = cluster * WARPS * queries * (d / cluster + 2) * size_of::<f32>();
        let new_token = (queries + 2) * d * self.o.dtype().size();
        let (mailbox, stage) = (size_of::<u64>(), 2 * KV_BLOCK * d * self.o.dtype().size());
        found + new_token + mailbox + WARPS * stages * stage
    }

    /// As many stages as leave room for all `blocks` of the launch at once, or one: many blocks hide latency better
    /// than deep queues, and a block that has to wait for another to end costs most. Clusters of blocks find a place
    /// on four fifths of a device only, because each must fit into one of its clusters of multiprocessors.
    fn stages(&self, gpu: &GpuInfo, cluster: usize, blocks: usize) -> usize {
        // Of a multiprocessor: what one block can have at most, and what is reserved for each block.
        const RESERVED: usize = 1 << 10;
        let resident = |stages| {
            let fit = (gpu.max_smem as usize + RESERVED) / (self.smem(cluster, stages) + RESERVED);
            fit.min(RESIDENT) * gpu.sms as usize
        };
        (2..=MAX_STAGES).rev().find(|&stages| 5 * blocks <= 4 * resident(stages)).unwrap_or(1)
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
            table: io.take(96),
            positions: io.take(seqs),
            slot_mapping: io.take(seqs),
            block_table: io.take(seqs),
            seq_lens: io.take(seqs),
            seqs,
            heads,
            max_blocks: 1,
            context: 1,
        }
    }

    fn gpu(compute_capability: (u32, u32), max_smem: u32) -> GpuInfo {
        GpuInfo { compute_capability, sms: 132, max_smem, sm_90a: false }
    }

    #[test]
    fn the_cluster_depends_on_the_architecture_alone() {
        let shape = |capability, seqs, heads, kv_heads| {
            let geometry = op(seqs, heads, kv_heads).geometry(&gpu(capability, 166_912));
            assert_eq!((geometry.symbol, geometry.block), ("paged_decode_f16_d96", [128, 1, 1]));
            (geometry.grid, geometry.cluster)
        };
        assert_eq!(shape((9, 0), 1, 32, 32), ([4, 32, 1], 4));
        assert_eq!(shape((9, 0), 64, 32, 32), ([4, 32, 64], 4));
        assert_eq!(shape((9, 0), 8, 32, 8), ([4, 8, 8], 4));
        assert_eq!(shape((8, 6), 8, 32, 8), ([1, 8, 8], 1));
        // Groups of 12 query heads need two blocks.
        assert_eq!(shape((9, 0), 1, 24, 2), ([8, 2, 1], 4));
    }

    #[test]
    fn stages_fill_shared_memory_only_as_long_as_all_blocks_fit() {
        let h200 = gpu((9, 0), 232_448);
        let stages = |seqs, heads, kv_heads| {
            let op = op(seqs, heads, kv_heads);
            (1..=MAX_STAGES).find(|&n| op.smem(CLUSTER, n) == op.geometry(&h200).smem as usize)
        };
        // A stage of four warps with heads of 96 takes 24 KiB; one sequence of a 7B model is 128 blocks.
        assert_eq!(
            [1, 2, 3, 4, 8, 256].map(|seqs| stages(seqs, 32, 32)),
            [Some(4), Some(3), Some(2), Some(1), Some(1), Some(1)]
        );
        assert_eq!([1, 8, 16, 64].map(|seqs| stages(seqs, 32, 8)), [Some(4), Some(2), Some(1), Some(1)]);
        for (heads, kv_heads, max_smem) in [(24, 2, 101_376), (32, 32, 101_376), (8, 1, 166_912)] {
            let smem = op(1, heads, kv_heads).geometry(&gpu((8, 6), max_smem)).smem;
            assert!(smem <= max_smem, "{heads}/{kv_heads}: {smem} bytes of {max_smem}");
        }
    }
}
