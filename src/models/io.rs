//! What the host writes before a step and reads after it, and the sizes that decide the regions.

use anyhow::{Result, ensure};

use crate::mem::{Buf, DType, Layout, Region};
use crate::ops::{KV_BLOCK, MAX_TOP_LOGPROBS, SamplingRow, TokenBias};

/// Entries that the token list of a sequence may have: its biases, the tokens it is held to and those it must not have.
/// Room for so many is taken for every sequence, and what is used of it travels.
pub const MAX_TOKEN_BIASES: usize = 2048;

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
    /// Tiles that are encoded together.
    pub max_tiles: usize,
    /// Tiles whose rows are kept beside those, for the prompts that hold them.
    pub kept_tiles: usize,
    /// Blocks of the paged cache.
    pub kv_blocks: usize,
}

impl Limits {
    /// The step that takes the most activations: prompts alone.
    pub fn largest_step(&self) -> StepShape {
        StepShape {
            decode: 0,
            prefill_seqs: 1,
            prefill_tokens: self.max_num_batched_tokens,
            logit_rows: self.max_logit_rows,
            context: self.max_model_len,
        }
    }

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

/// The part of [`Region::Io`] in which the host and the device exchange what a step needs.
///
/// What a step reads and writes is packed for its shape: one copy brings all of it, however small the step.
#[derive(Clone, Debug)]
pub struct StepArea {
    /// `[seqs, vocab]`: tokens of the prompt and the answer, for penalties. The one thing that outlives a step.
    pub counts: Buf<i32>,
    /// Blocks of a row of a block table.
    pub max_blocks: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// `[max_logit_rows]`: what the last step sampled. One place for every step, so that the next one can read there what
    /// the host does not know yet.
    sampled: Buf<i32>,
    limits: Limits,
    /// What the host reads begins here, at the sampled tokens, and behind it what it writes.
    outputs: Layout,
    inputs: Layout,
}

/// The buffers of a step. Sequences are numbered as their rows are: decode sequences first.
#[derive(Clone, Copy, Debug)]
pub struct StepIo {
    /// `[tokens]`: an id of the vocabulary, `-1 - row` of the image rows, or [`sampled_id`](crate::ops::sampled_id) of a row
    /// of the step before.
    pub ids: Buf<i32>,
    /// `[any]`: what the step before sampled, until this one samples.
    pub sampled: Buf<i32>,
    /// `[tokens]`: row of the table of rotary angles, which is all that it is for: the place in the sequence, behind
    /// [`LongAngles::first_row`](super::LongAngles::first_row) in a sequence that has the long angles.
    pub positions: Buf<i32>,
    /// `[tokens]`: slot in the cache, -1 for a row that is only there to fill the batch.
    pub slot_mapping: Buf<i32>,
    /// `[seqs, max_blocks]`
    pub block_table: Buf<i32>,
    /// `[seqs]`: tokens in the cache after this step.
    pub seq_lens: Buf<i32>,
    /// `[seqs + 1]`: first row of each sequence, and the number of rows.
    pub query_start: Buf<i32>,
    /// `[logit_rows]`: rows of the step; every one, in order, in a step of decode sequences alone, which does not read it if
    /// there are as many.
    pub logit_index: Buf<i32>,
    /// `[logit_rows]` of [`SamplingRow`].
    pub sampling: Buf<u8>,
    /// All of the above: what the host writes at every step.
    pub inputs: Buf<u8>,
    /// `[seqs * MAX_TOKEN_BIASES]` of [`TokenBias`]: the lists that records of `sampling` point into. They lie behind
    /// the inputs, so that both are one copy: see [`StepIo::written`].
    pub biases: Buf<u8>,
    /// See [`StepArea::counts`].
    pub counts: Buf<i32>,
    /// `[logit_rows, vocab]`
    pub logits: Buf<f32>,
    /// `[logit_rows]`: chosen tokens.
    pub token: Buf<i32>,
    /// `[logit_rows, 1 + 20]`
    pub logprobs: Buf<f32>,
    /// `[logit_rows, 20]`
    pub top: Buf<i32>,
    /// `[logit_rows]` of u64: hashes of the logits.
    pub hash: Buf<u8>,
    /// The last four: what the host reads.
    pub outputs: Buf<u8>,
    /// See [`StepArea::max_blocks`].
    pub max_blocks: usize,
    /// The inputs and the lists.
    host: Buf<u8>,
}

impl StepIo {
    /// What the host writes for a step with `biases` entries in its lists: the inputs, and as much of the lists.
    ///
    /// # Errors
    /// If there are more than there is room for.
    pub fn written(&self, biases: usize) -> Result<Buf<u8>> {
        let (inputs, lists) = (self.inputs.span(), self.biases.span());
        let used = biases * size_of::<TokenBias>();
        ensure!(
            used <= self.biases.len(),
            "the token lists of a step have {biases} entries together; there is room for {}",
            self.biases.len() / size_of::<TokenBias>()
        );
        let end = if biases == 0 { inputs.byte + inputs.bytes() } else { lists.byte + used as u64 };
        Ok(self.host.slice(0..(end - inputs.byte) as usize))
    }
}

impl StepArea {
    /// Take room for the largest step from the layout of [`Region::Io`].
    pub(super) fn new(io: &mut Layout, limits: Limits, vocab: usize) -> StepArea {
        let counts = io.take(limits.max_num_seqs * vocab);
        let outputs = io.clone();
        let Limits { max_num_seqs, max_num_batched_tokens, max_logit_rows, .. } = limits;
        let sampled = Outputs::take(io, max_logit_rows).token;
        let max_blocks = limits.max_blocks();
        let area = StepArea { counts, max_blocks, vocab, sampled, limits, outputs, inputs: io.clone() };
        area.take(io, max_num_batched_tokens, max_num_seqs, max_logit_rows);
        area
    }

    /// The smallest number of decode sequences that a step is built for, of at least `seqs`: the powers of two, so that a
    /// handful of plans serves every batch.
    pub fn bucket(&self, seqs: usize) -> usize {
        let Limits { max_num_seqs, max_num_batched_tokens, max_logit_rows, .. } = self.limits;
        seqs.next_power_of_two().min(max_num_seqs).min(max_num_batched_tokens).min(max_logit_rows).max(seqs)
    }

    /// The shape of a step of `seqs` decode sequences, filled up with rows of nobody to a number that a step is built for.
    pub fn decode_shape(&self, seqs: usize) -> StepShape {
        let rows = self.bucket(seqs);
        let context = self.max_blocks * KV_BLOCK;
        StepShape { decode: rows, prefill_seqs: 0, prefill_tokens: 0, logit_rows: rows, context }
    }

    /// The buffers of a step.
    ///
    /// # Errors
    /// If it is larger than what was planned for.
    pub fn step(&self, shape: StepShape) -> Result<StepIo> {
        let seqs = shape.decode + shape.prefill_seqs;
        let l = &self.limits;
        for (what, asked, limit) in [
            ("tokens", shape.tokens(), l.max_num_batched_tokens),
            ("sequences", seqs, l.max_num_seqs),
            ("rows of logits", shape.logit_rows, l.max_logit_rows),
        ] {
            ensure!(asked <= limit, "a step has {asked} {what}; {limit} were planned for");
        }
        Ok(self.packed(shape))
    }

    /// [`StepArea::step`] for a plan, which may be built to be looked at, for a shape that no region was sized for.
    pub(super) fn packed(&self, shape: StepShape) -> StepIo {
        let seqs = shape.decode + shape.prefill_seqs;
        self.take(&mut self.inputs.clone(), shape.tokens(), seqs, shape.logit_rows)
    }

    fn take(&self, io: &mut Layout, tokens: usize, seqs: usize, rows: usize) -> StepIo {
        let start = io.bytes();
        let ids = io.take(tokens);
        let positions = io.take(tokens);
        let slot_mapping = io.take(tokens);
        let block_table = io.take(seqs * self.max_blocks);
        let seq_lens = io.take(seqs);
        let query_start = io.take(seqs + 1);
        let logit_index = io.take(rows);
        let sampling = io.take(rows * size_of::<SamplingRow>());
        let inputs = io.since(start);
        let biases = io.take(seqs * MAX_TOKEN_BIASES * size_of::<TokenBias>());
        let host = io.since(start);
        let Outputs { token, logprobs, top, hash, all } = Outputs::take(&mut self.outputs.clone(), rows);
        StepIo {
            ids,
            sampled: self.sampled,
            positions,
            slot_mapping,
            block_table,
            seq_lens,
            query_start,
            logit_index,
            sampling,
            inputs,
            biases,
            counts: self.counts,
            logits: io.take(rows * self.vocab),
            token,
            logprobs,
            top,
            hash,
            outputs: all,
            max_blocks: self.max_blocks,
            host,
        }
    }
}

/// What the host reads after a step, packed for its rows.
struct Outputs {
    /// Comes first, so it begins at one place whatever the number of rows.
    token: Buf<i32>,
    logprobs: Buf<f32>,
    top: Buf<i32>,
    hash: Buf<u8>,
    all: Buf<u8>,
}

impl Outputs {
    fn take(io: &mut Layout, rows: usize) -> Outputs {
        let start = io.bytes();
        let token = io.take(rows);
        let logprobs = io.take(rows * (1 + MAX_TOP_LOGPROBS));
        let top = io.take(rows * MAX_TOP_LOGPROBS);
        let hash = io.take(rows * size_of::<u64>());
        Outputs { token, logprobs, top, hash, all: io.since(start) }
    }
}

/// An empty layout of each region, in the order of [`Region::ALL`].
pub(super) fn layouts(dtype: DType) -> [Layout; 4] {
    Region::ALL.map(|region| Layout::new(region, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> (StepArea, Layout) {
        let mut io = Layout::new(Region::Io, DType::F16);
        let limits = Limits {
            max_model_len: 64,
            max_num_seqs: 6,
            max_num_batched_tokens: 40,
            max_logit_rows: 6,
            max_tiles: 1,
            kept_tiles: 0,
            kv_blocks: 8,
        };
        let area = StepArea::new(&mut io, limits, 100);
        (area, io)
    }

    fn decode(n: usize) -> StepShape {
        StepShape { decode: n, prefill_seqs: 0, prefill_tokens: 0, logit_rows: n, context: 64 }
    }

    #[test]
    fn every_step_lies_in_what_was_taken_for_the_largest() {
        let (area, io) = area();
        for shape in [decode(1), decode(6), StepShape { prefill_seqs: 2, prefill_tokens: 36, ..decode(4) }] {
            let step = area.step(shape).unwrap();
            let end = |at: crate::mem::Span| (at.byte + at.bytes()) as usize;
            assert!(end(step.logits.span()) <= io.bytes());
            assert!(end(step.sampling.span()) == end(step.inputs.span()));
            assert!(end(step.outputs.span()) <= step.inputs.span().byte as usize, "the next step's inputs spare them");
            assert_eq!(step.token.span().byte, step.sampled.span().byte, "the next step finds them there");
        }
        let small = area.step(decode(1)).unwrap();
        assert!(small.inputs.len() <= 8 * 256, "{} bytes for one row", small.inputs.len());
    }

    #[test]
    fn a_step_that_is_too_large_is_refused_by_name() {
        let error = area().0.step(decode(7)).unwrap_err().to_string();
        assert_eq!(error, "a step has 7 sequences; 6 were planned for");
    }

    #[test]
    fn decode_batches_are_rounded_up_to_powers_of_two_as_far_as_there_is_room() {
        let (area, _) = area();
        assert_eq!([1, 2, 3, 4, 5, 6].map(|n| area.bucket(n)), [1, 2, 4, 4, 6, 6]);
    }
}
