//! What the host writes for a step: the tokens of its sequences, where they stand, and how the next ones are sampled.

use anyhow::{Result, ensure};
use bytemuck::Pod;

use crate::mem::Buf;
use crate::models::{StepArea, StepIo, StepShape};
use crate::ops::{KV_BLOCK, SamplingRow, TokenBias};
use crate::plan::Backend;

/// The tokens that one sequence brings to a step.
#[derive(Clone, Debug)]
pub struct SequenceStep<'a> {
    /// Ids of the vocabulary, or `-1 - row` of the image rows.
    pub ids: &'a [i32],
    /// Tokens that the cache holds already: the position of the first id.
    pub cached: usize,
    /// Row of the table of rotary angles for position 0: see [`LongAngles`](crate::models::LongAngles).
    pub first_angle: usize,
    /// Blocks of the sequence, enough for `cached + ids.len()` tokens.
    pub blocks: &'a [i32],
    /// How the token after the last id is sampled.
    pub sampling: SamplingRow,
}

/// What a sequence brings to a step beside its tokens, where it brings anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceLists<'a> {
    /// The list of tokens of its record: see [`Sampler`](super::Sampler). In ascending order, each at most once, at most
    /// [`MAX_TOKEN_BIASES`](crate::models::MAX_TOKEN_BIASES).
    pub biases: &'a [TokenBias],
    /// Report the log-probability of every id of the step that follows another and is one of the vocabulary, with so
    /// many alternatives, whatever [`LogitRows`] says: a row each, before the sequence's last. Where the step ends amid
    /// a prompt, the sequence's own record may report the id that comes next: see [`SamplingRow::report`].
    pub prompt_logprobs: Option<usize>,
}

/// Rows of a step whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// The last of each sequence.
    Last,
    /// All of them.
    All,
}

/// Memory for the inputs of a step, kept from one step to the next.
#[derive(Default)]
pub(super) struct Inputs {
    /// What is copied to the device; of words, so that every type of the inputs lies well in it.
    words: Vec<u32>,
}

impl Inputs {
    /// Write the inputs of a step: see [`Runner::step_with`](super::Runner::step_with). Returns its shape and buffers.
    pub fn write(
        &mut self,
        backend: &impl Backend,
        area: &StepArea,
        sequences: &[SequenceStep<'_>],
        rows: LogitRows,
        lists: &[SequenceLists<'_>],
    ) -> Result<(StepShape, StepIo)> {
        ensure!(
            lists.is_empty() || lists.len() == sequences.len(),
            "{} sequences have {} lists",
            sequences.len(),
            lists.len()
        );
        let lists = |i: usize| lists.get(i).copied().unwrap_or_default();
        let shape = shape(area, sequences, rows, lists)?;
        let io = area.step(shape)?;
        let biases = (0..sequences.len()).map(|i| lists(i).biases.len()).sum();
        let written = io.written(biases)?;
        self.words.clear();
        self.words.resize(written.len().div_ceil(size_of::<u32>()), 0);
        self.put_tokens(&io, shape, sequences);
        self.put_records(&io, shape, sequences, rows, lists);
        backend.write(written, &bytemuck::cast_slice(&self.words)[..written.len()])?;
        Ok((shape, io))
    }

    /// The tokens, and where they stand in their sequences and in the cache.
    fn put_tokens(&mut self, io: &StepIo, shape: StepShape, sequences: &[SequenceStep<'_>]) {
        let mut row = 0;
        for (i, s) in sequences.iter().enumerate() {
            let end = row + s.ids.len();
            self.part(io, io.ids, row..end).copy_from_slice(s.ids);
            for (to, position) in self.part(io, io.positions, row..end).iter_mut().zip(s.first_angle + s.cached..) {
                *to = position as i32;
            }
            for (to, position) in self.part(io, io.slot_mapping, row..end).iter_mut().zip(s.cached..) {
                *to = s.blocks[position / KV_BLOCK] * KV_BLOCK as i32 + (position % KV_BLOCK) as i32;
            }
            let table = i * io.max_blocks;
            self.part(io, io.block_table, table..table + s.blocks.len()).copy_from_slice(s.blocks);
            self.part(io, io.seq_lens, i..i + 1)[0] = (s.cached + s.ids.len()) as i32;
            self.part(io, io.query_start, i + 1..i + 2)[0] = end as i32;
            row = end;
        }
        // Rows of nobody, which fill up a batch of decode sequences, write to no slot.
        let nobody = sequences.len()..shape.decode.max(sequences.len());
        self.part(io, io.slot_mapping, row..shape.tokens()).fill(-1);
        for i in nobody {
            self.part(io, io.query_start, i + 1..i + 2)[0] = i as i32 + 1;
        }
    }

    /// The rows whose logits are wanted, how they are sampled, and the lists that go with that.
    fn put_records<'a>(
        &mut self,
        io: &StepIo,
        shape: StepShape,
        sequences: &[SequenceStep<'_>],
        rows: LogitRows,
        lists: impl Fn(usize) -> SequenceLists<'a>,
    ) {
        let (mut first, mut logits, mut first_bias) = (0, 0, 0);
        let mut put = |inputs: &mut Inputs, row: usize, record: SamplingRow| {
            inputs.part(io, io.logit_index, logits..logits + 1)[0] = row as i32;
            let size = size_of::<SamplingRow>();
            inputs
                .part(io, io.sampling, logits * size..(logits + 1) * size)
                .copy_from_slice(bytemuck::bytes_of(&record));
            logits += 1;
        };
        for (i, s) in sequences.iter().enumerate() {
            let lists = lists(i);
            let own = SamplingRow { first_bias: first_bias as u32, biases: lists.biases.len() as u32, ..s.sampling };
            for row in 0..s.ids.len() {
                if let Some(record) = record(s, row, rows, &lists, own) {
                    put(self, first + row, record);
                }
            }
            if !lists.biases.is_empty() {
                let size = size_of::<TokenBias>();
                let end = first_bias + lists.biases.len();
                self.part(io, io.biases, first_bias * size..end * size)
                    .copy_from_slice(bytemuck::cast_slice(lists.biases));
                first_bias = end;
            }
            first += s.ids.len();
        }
        (first..shape.tokens()).for_each(|row| put(self, row, SamplingRow::GREEDY));
    }

    /// Elements of one of the step's inputs.
    fn part<T: Pod>(&mut self, io: &StepIo, of: Buf<T>, range: std::ops::Range<usize>) -> &mut [T] {
        let start = (of.slice(range.clone()).span().byte - io.inputs.span().byte) as usize;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        bytemuck::cast_slice_mut(&mut bytes[start..start + range.len() * size_of::<T>()])
    }
}

/// The shape of a step, checked against what a sequence may bring.
fn shape<'a>(
    area: &StepArea,
    sequences: &[SequenceStep<'_>],
    rows: LogitRows,
    lists: impl Fn(usize) -> SequenceLists<'a>,
) -> Result<StepShape> {
    let decode = sequences.iter().take_while(|s| s.ids.len() == 1).count();
    let (mut tokens, mut logit_rows) = (0, 0);
    for (i, s) in sequences.iter().enumerate() {
        ensure!(!s.ids.is_empty() && (i < decode || s.ids.len() > 1), "sequence {i} is out of order in the step");
        let len = s.cached + s.ids.len();
        ensure!(
            len <= s.blocks.len() * KV_BLOCK && s.blocks.len() <= area.max_blocks,
            "sequence {i} has {len} tokens and {} blocks; the table has {}",
            s.blocks.len(),
            area.max_blocks
        );
        let lists = lists(i);
        tokens += s.ids.len();
        logit_rows += (0..s.ids.len()).filter(|&row| record(s, row, rows, &lists, s.sampling).is_some()).count();
    }
    if decode == sequences.len() {
        return Ok(area.decode_shape(decode));
    }
    let (prefill_seqs, prefill_tokens) = (sequences.len() - decode, tokens - decode);
    Ok(StepShape { decode, prefill_seqs, prefill_tokens, logit_rows, context: area.max_blocks * KV_BLOCK })
}

/// How row `row` of a sequence is sampled, if its logits are wanted; its last with `own`.
fn record(
    s: &SequenceStep<'_>,
    row: usize,
    rows: LogitRows,
    lists: &SequenceLists<'_>,
    own: SamplingRow,
) -> Option<SamplingRow> {
    let next = s.ids.get(row + 1).and_then(|&id| u32::try_from(id).ok());
    match (lists.prompt_logprobs, next) {
        _ if row + 1 == s.ids.len() => Some(own),
        (Some(n), Some(next)) => Some(SamplingRow::report(next, n as u32)),
        (None, _) if rows == LogitRows::All => Some(own),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::memory::{self, Placed};
    use crate::engine::{Checkpoint, Device, Options};

    #[test]
    fn positions_are_rows_of_the_table_of_angles() {
        let options = Options { max_num_seqs: Some(2), ..Options::default() };
        let checkpoint = Checkpoint::open(Path::new("tests/goldens/llava-tiny-mha"), &options).unwrap();
        let limits = memory::limits(&checkpoint, &options, Device::Cpu);
        let Placed { model, backend, .. } = memory::place(&checkpoint, &options, Device::Cpu, limits).unwrap();
        let step = |ids, cached, first_angle, blocks| SequenceStep {
            ids,
            cached,
            first_angle,
            blocks,
            sampling: SamplingRow::GREEDY,
        };
        let steps = [step(&[5][..], 17, 100, &[4, 2][..]), step(&[6, 7, 8], 15, 0, &[3, 1])];
        let (_, io) = Inputs::default().write(&backend, model.io(), &steps, LogitRows::Last, &[]).unwrap();
        let read = |buffer| {
            let mut numbers = [0; 4];
            backend.read(buffer, &mut numbers).unwrap();
            numbers
        };
        assert_eq!(read(io.positions), [117, 15, 16, 17]);
        assert_eq!(read(io.slot_mapping), [2 * 16 + 1, 3 * 16 + 15, 16, 17], "those of the cache are not");
    }
}
