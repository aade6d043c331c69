//! Causal attention of prompt chunks over the paged cache.

use super::attention::{KV_BLOCK, PagedKv, Queries, attend_sequence};
use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

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
