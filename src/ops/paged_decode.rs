//! Attention of one new token a sequence over the paged cache.

use super::attention::{KV_BLOCK, PagedKv, Queries, attend_sequence};
use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

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
