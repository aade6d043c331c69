//! What the host writes before a step and reads after it, and the sizes that decide the regions.

use crate::mem::{Buf, DType, Layout, Region};
use crate::ops::{KV_BLOCK, MAX_TOP_LOGPROBS, SamplingRow};

/// What a process must be able to hold at once. Decides the size of every region, once, at start-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence in tokens, prompt and answer together.
    pub max_model_len: usize,
    /// Sequences of a step.
    pub max_num_seqs: usize,
    /// Tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Rows of logits of a step.
    pub max_logit_rows: usize,
    /// Tiles whose rows are held.
    pub max_tiles: usize,
    /// Blocks of the paged cache.
    pub kv_blocks: usize,
}

impl Limits {
    /// Blocks of a sequence of the greatest length.
    pub fn max_blocks(&self) -> usize {
        self.max_model_len.div_ceil(KV_BLOCK)
    }
}

/// The rows of one step of the language model: decode rows first, then the chunks of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Sequences that bring one token.
    pub decode: usize,
    /// Sequences that bring several.
    pub prefill_seqs: usize,
    /// Tokens that those bring together.
    pub prefill_tokens: usize,
    /// Rows whose logits are computed and sampled.
    pub logit_rows: usize,
    /// Tokens in a sequence's cache that costs are stated for; changes nothing that is computed.
    pub context: usize,
}

impl StepShape {
    /// Tokens of the step.
    pub fn tokens(&self) -> usize {
        self.decode + self.prefill_tokens
    }
}

/// Buffers in [`Region::Io`]. Sequences are numbered as their rows are: decode sequences first.
#[derive(Clone, Copy, Debug)]
pub struct StepIo {
    /// `[tokens]`: an id of the vocabulary, or `-1 - row` of the image rows.
    pub ids: Buf<i32>,
    /// `[tokens]`: place in the sequence.
    pub positions: Buf<i32>,
    /// `[tokens]`: slot in the cache, -1 for a row that is only there to fill the batch.
    pub slot_mapping: Buf<i32>,
    /// `[seqs, max_blocks]`
    pub block_table: Buf<i32>,
    /// `[seqs]`: tokens in the cache after this step.
    pub seq_lens: Buf<i32>,
    /// `[seqs + 1]`: first row of each sequence, and the number of rows.
    pub query_start: Buf<i32>,
    /// `[logit_rows]`: rows of the step.
    pub logit_index: Buf<i32>,
    /// `[logit_rows]` of [`SamplingRow`].
    pub sampling: Buf<u8>,
    /// `[seqs, vocab]`: tokens of the prompt and the answer, for penalties.
    pub counts: Buf<i32>,
    /// `[logit_rows, vocab]`
    pub logits: Buf<f32>,
    /// `[logit_rows]`: chosen tokens.
    pub token: Buf<i32>,
    /// `[logit_rows, 1 + 20]`
    pub logprobs: Buf<f32>,
    /// `[logit_rows, 20]`
    pub top: Buf<i32>,
    /// Blocks of a row of `block_table`.
    pub max_blocks: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

impl StepIo {
    /// Take the buffers from the layout of [`Region::Io`].
    pub fn new(io: &mut Layout, limits: &Limits, vocab: usize) -> StepIo {
        let (tokens, seqs, rows) = (limits.max_num_batched_tokens, limits.max_num_seqs, limits.max_logit_rows);
        let max_blocks = limits.max_blocks();
        StepIo {
            ids: io.take(tokens),
            positions: io.take(tokens),
            slot_mapping: io.take(tokens),
            block_table: io.take(seqs * max_blocks),
            seq_lens: io.take(seqs),
            query_start: io.take(seqs + 1),
            logit_index: io.take(rows),
            sampling: io.take(rows * size_of::<SamplingRow>()),
            counts: io.take(seqs * vocab),
            logits: io.take(rows * vocab),
            token: io.take(rows),
            logprobs: io.take(rows * (1 + MAX_TOP_LOGPROBS)),
            top: io.take(rows * MAX_TOP_LOGPROBS),
            max_blocks,
            vocab,
        }
    }
}

/// An empty layout of each region, in the order of [`Region::ALL`].
pub(super) fn layouts(dtype: DType) -> [Layout; 4] {
    Region::ALL.map(|region| Layout::new(region, dtype))
}
