//! Owns the backend: uploads the weights, turns a step into the buffers that the plan reads, and reads what it wrote.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::mem::{Buf, Source, Span};
use crate::models::{Content, Picture, Placement, RowMove, Stage, StepIo, StepShape, Tiles, Vlm, random_fills};
use crate::ops::{IN_PROMPT, KV_BLOCK, MAX_TOP_LOGPROBS, Resize, SamplingRow, TokenBias};
use crate::plan::{Backend, Fill, Plan, Probe};

/// The tokens that one sequence brings to a step.
#[derive(Clone, Debug)]
pub struct SequenceStep<'a> {
    /// Ids of the vocabulary, or `-1 - row` of the image rows.
    pub ids: &'a [i32],
    /// Tokens that the cache holds already: the position of the first id.
    pub cached: usize,
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

/// What was sampled for a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token; `None` if the row held a NaN or its largest score was not finite.
    pub token: Option<u32>,
    /// Log-probability of the token under the logits as they came.
    pub logprob: f32,
    /// The most likely tokens with theirs, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// A model on a backend.
pub struct Runner<B: Backend> {
    backend: B,
    model: Arc<dyn Vlm>,
    /// Recorded plans of pure decode steps, which recur; a step with a prompt in it has a shape of its own.
    decode: HashMap<StepShape, B::Exec>,
    /// Recorded plans that encode so many tiles from a stage on.
    encode: HashMap<(Stage, usize), B::Exec>,
    /// What the host wrote for the last step, and the step's buffers.
    inputs: Vec<u8>,
    last: Option<StepIo>,
}

impl<B: Backend> Runner<B> {
    /// Upload the weights, or fill them with random numbers. `progress` is called with the bytes of what is in its place.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn new(backend: B, model: impl Into<Arc<dyn Vlm>>, mut progress: impl FnMut(u64)) -> Result<Runner<B>> {
        let model = model.into();
        let fills: Vec<Fill> = model.placements().iter().filter_map(Placement::fill).collect();
        backend.upload(&fills, &mut progress)?;
        if let Some(plan) = random_fills(model.placements()) {
            backend.run(&mut backend.link(&plan)?, None)?;
            progress(plan.cost().bytes);
        }
        Ok(Runner { backend, model, decode: HashMap::new(), encode: HashMap::new(), inputs: Vec::new(), last: None })
    }

    /// The model.
    pub fn model(&self) -> &dyn Vlm {
        &*self.model
    }

    /// The model, for those who prepare pictures on other threads.
    pub fn shared_model(&self) -> Arc<dyn Vlm> {
        self.model.clone()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Encode pictures that begin at the same stage; their rows lie one after another from row 0 of the image rows.
    ///
    /// # Errors
    /// If there are more tiles than were planned for, pictures of different stages or ones with nothing left to do, or
    /// the backend fails.
    pub fn encode(&mut self, pictures: &[impl Borrow<Tiles>], probe: Option<&mut dyn Probe>) -> Result<()> {
        let Some(first) = pictures.first() else { return Ok(()) };
        let stage = first.borrow().content.stage().context("there is nothing to encode in a picture's embeddings")?;
        let room = match stage {
            Stage::Tower => self.model.pixels(),
            Stage::Projector => self.model.features().bytes(),
        };
        let mut free = room;
        for Tiles { content, .. } in pictures.iter().map(Borrow::borrow) {
            ensure!(content.stage() == Some(stage), "pictures that begin at different stages are not encoded together");
            let bytes = content.bytes();
            ensure!(bytes <= free.len(), "the pictures do not fit the {} bytes that were planned for", room.len());
            let place = free.slice(0..bytes);
            match content {
                Content::Pixels(tiles) => self.backend.write(place, tiles)?,
                Content::Picture(picture) => self.resize(picture, place)?,
                Content::Features(rows) | Content::Embeddings(rows) => self.backend.write(place, rows.bytes())?,
            }
            free = free.slice(bytes..free.len());
        }
        let tiles = pictures.iter().map(|p| p.borrow().tiles).sum();
        let plan = || match stage {
            Stage::Tower => self.model.encode_plan(tiles),
            Stage::Projector => self.model.project_plan(tiles),
        };
        let exec = recorded(&self.backend, &mut self.encode, (stage, tiles), plan)?;
        self.backend.run(exec, probe)
    }

    /// Write image rows from row `first` on: embeddings that a caller brought, in the model's type.
    ///
    /// # Errors
    /// If they go beyond the image rows, or the backend fails.
    pub fn write_rows(&self, first: usize, rows: &Source) -> Result<()> {
        let all = self.model.image_rows();
        let start = first * self.model.embedding_shape()[1];
        ensure!(
            rows.dtype() == all.dtype() && start + rows.len() <= all.len(),
            "{rows:?} from image row {first} on do not fit {all:?}"
        );
        self.backend.write(all.slice(start..start + rows.len()).bytes(), rows.bytes())
    }

    /// Copy image rows that [`Runner::encode`] left behind to where they are kept.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn keep(&self, moves: &[RowMove]) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        self.backend.run(&mut self.backend.link(&self.model.keep_plan(moves))?, None)
    }

    /// Let the device make the tile of a picture. Every size of a picture is a plan of its own, of one launch.
    fn resize(&self, picture: &Picture, tile: Buf<u8>) -> Result<()> {
        self.backend.write(picture.resize.x, picture.rgb.data())?;
        self.backend.write(self.model.picture_area().tables, &picture.tables)?;
        let mut plan = Plan::new(tile.dtype());
        plan.scope("vision", |p| p.push(Resize { y: tile, ..picture.resize }));
        self.backend.run(&mut self.backend.link(&plan)?, None)
    }

    /// Run one step; sequences that bring one token come before those that bring several. Returns the shape that ran: a
    /// batch of decode sequences alone is filled up with rows of nobody to a number that has a plan.
    ///
    /// # Errors
    /// If the step is larger than was planned for, or the backend fails.
    pub fn step(
        &mut self,
        sequences: &[SequenceStep<'_>],
        rows: LogitRows,
        probe: Option<&mut dyn Probe>,
    ) -> Result<StepShape> {
        self.step_with(sequences, rows, &[], probe)
    }

    /// [`Runner::step`] with what the sequences bring beside their tokens: one of `lists` for each, or none at all.
    ///
    /// # Errors
    /// As those of [`Runner::step`], or if the lists are longer than was planned for.
    pub fn step_with(
        &mut self,
        sequences: &[SequenceStep<'_>],
        rows: LogitRows,
        lists: &[SequenceLists<'_>],
        probe: Option<&mut dyn Probe>,
    ) -> Result<StepShape> {
        let shape = self.write_step(sequences, rows, lists)?;
        if shape.prefill_seqs > 0 {
            let plan = self.model.step_plan(shape);
            self.backend.run(&mut self.backend.link(&plan)?, probe)?;
            return Ok(shape);
        }
        let exec = recorded(&self.backend, &mut self.decode, shape, || self.model.step_plan(shape))?;
        self.backend.run(exec, probe)?;
        Ok(shape)
    }

    fn write_step(
        &mut self,
        sequences: &[SequenceStep<'_>],
        rows: LogitRows,
        lists: &[SequenceLists<'_>],
    ) -> Result<StepShape> {
        ensure!(
            lists.is_empty() || lists.len() == sequences.len(),
            "{} sequences have {} lists",
            sequences.len(),
            lists.len()
        );
        let area = self.model.io();
        let decode = sequences.iter().take_while(|s| s.ids.len() == 1).count();
        let (mut ids, mut positions, mut slots) = (vec![], vec![], vec![]);
        let (mut table, mut lens, mut start, mut logit_index) = (vec![], vec![], vec![0], vec![]);
        let (mut sampling, mut biases) = (vec![], vec![]);
        for (i, s) in sequences.iter().enumerate() {
            ensure!(!s.ids.is_empty() && (i < decode || s.ids.len() > 1), "sequence {i} is out of order in the step");
            let len = s.cached + s.ids.len();
            ensure!(
                len <= s.blocks.len() * KV_BLOCK && s.blocks.len() <= area.max_blocks,
                "sequence {i} has {len} tokens and {} blocks; the table has {}",
                s.blocks.len(),
                area.max_blocks
            );
            let first = ids.len();
            ids.extend_from_slice(s.ids);
            for position in s.cached..len {
                positions.push(position as i32);
                slots.push(s.blocks[position / KV_BLOCK] * KV_BLOCK as i32 + (position % KV_BLOCK) as i32);
            }
            table.extend_from_slice(s.blocks);
            table.resize((i + 1) * area.max_blocks, 0);
            lens.push(len as i32);
            start.push(ids.len() as i32);
            let lists = lists.get(i).copied().unwrap_or_default();
            let (first_bias, count) = (biases.len() as u32, lists.biases.len() as u32);
            biases.extend_from_slice(lists.biases);
            let own = SamplingRow { first_bias, biases: count, ..s.sampling };
            for row in first..ids.len() {
                let next = ids.get(row + 1).and_then(|&id| u32::try_from(id).ok());
                let record = match (lists.prompt_logprobs, next) {
                    _ if row + 1 == ids.len() => own,
                    (Some(n), Some(next)) => SamplingRow::report(next, n as u32),
                    (None, _) if rows == LogitRows::All => own,
                    _ => continue,
                };
                logit_index.push(row as i32);
                sampling.push(record);
            }
        }
        let padded = if decode == sequences.len() { area.bucket(decode) } else { decode };
        for row in decode..padded {
            ids.push(0);
            positions.push(0);
            slots.push(-1);
            table.resize((row + 1) * area.max_blocks, 0);
            lens.push(0);
            start.push(row as i32 + 1);
            logit_index.push(row as i32);
            sampling.push(SamplingRow::GREEDY);
        }
        let shape = StepShape {
            decode: padded,
            prefill_seqs: sequences.len() - decode,
            prefill_tokens: ids.len() - padded,
            logit_rows: logit_index.len(),
            context: area.max_blocks * KV_BLOCK,
        };
        let io = area.step(shape)?;
        let written = io.written(biases.len())?;
        self.inputs.clear();
        self.inputs.resize(written.len(), 0);
        let mut put = |dst: Span, src: &[u8]| {
            let at = (dst.byte - io.inputs.span().byte) as usize;
            self.inputs[at..at + src.len()].copy_from_slice(src);
        };
        put(io.ids.span(), bytemuck::cast_slice(&ids));
        put(io.positions.span(), bytemuck::cast_slice(&positions));
        put(io.slot_mapping.span(), bytemuck::cast_slice(&slots));
        put(io.block_table.span(), bytemuck::cast_slice(&table));
        put(io.seq_lens.span(), bytemuck::cast_slice(&lens));
        put(io.query_start.span(), bytemuck::cast_slice(&start));
        put(io.logit_index.span(), bytemuck::cast_slice(&logit_index));
        put(io.sampling.span(), bytemuck::cast_slice(&sampling));
        if !biases.is_empty() {
            put(io.biases.span(), bytemuck::cast_slice::<TokenBias, u8>(&biases));
        }
        self.backend.write(written, &self.inputs)?;
        self.last = Some(io);
        Ok(shape)
    }

    /// The buffers of the last step.
    fn last(&self) -> Result<&StepIo> {
        self.last.as_ref().context("no step has run")
    }

    /// Start the token counts of sequence state `state` from the ids of its prompt and of its answer so far.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn reset_counts(&self, state: usize, prompt: &[i32], answer: &[i32]) -> Result<()> {
        let io = self.model.io();
        let mut counts = vec![0; io.vocab];
        for &id in prompt {
            // Places of pictures are negative and count as no token.
            if let Some(count) = usize::try_from(id).ok().and_then(|id| counts.get_mut(id)) {
                *count = IN_PROMPT;
            }
        }
        for &id in answer {
            if let Some(count) = usize::try_from(id).ok().and_then(|id| counts.get_mut(id)) {
                *count += 1;
            }
        }
        self.backend.write(io.counts.slice(state * io.vocab..(state + 1) * io.vocab), &counts)
    }

    /// What the last step sampled, a row each.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn sampled(&self, rows: usize, top_logprobs: usize) -> Result<Vec<Sampled>> {
        let io = self.last()?;
        let mut outputs = vec![0; io.outputs.len()];
        self.backend.read(io.outputs, &mut outputs)?;
        let at = |b: Span| &outputs[(b.byte - io.outputs.span().byte) as usize..][..b.bytes() as usize];
        let tokens: Vec<i32> = bytemuck::pod_collect_to_vec(at(io.token.span()));
        let logprobs: Vec<f32> = bytemuck::pod_collect_to_vec(at(io.logprobs.span()));
        let top: Vec<i32> = bytemuck::pod_collect_to_vec(at(io.top.span()));
        ensure!(rows <= tokens.len(), "{rows} rows were asked for, and the last step sampled {}", tokens.len());
        let row = |i: usize| {
            let logprobs = &logprobs[i * (1 + MAX_TOP_LOGPROBS)..];
            let ids = top[i * MAX_TOP_LOGPROBS..].iter().take(top_logprobs);
            Sampled {
                token: u32::try_from(tokens[i]).ok(),
                logprob: logprobs[0],
                top: ids.zip(&logprobs[1..]).map(|(&id, &l)| (id as u32, l)).collect(),
            }
        };
        Ok((0..rows).map(row).collect())
    }

    /// Logits of row `row` of the last step.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn logits_of(&self, row: usize) -> Result<Vec<f32>> {
        let vocab = self.model.io().vocab;
        let mut logits = vec![0.0; vocab];
        self.backend.read(self.last()?.logits.slice(row * vocab..(row + 1) * vocab), &mut logits)?;
        Ok(logits)
    }

    /// Logits of the last step, `[rows, vocab]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn logits(&self, rows: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; rows * self.model.io().vocab];
        self.backend.read(self.last()?.logits, &mut logits)?;
        Ok(logits)
    }
}

/// The recorded plan of `key`, made when it is first asked for.
fn recorded<'a, B: Backend, K: Eq + Hash>(
    backend: &B,
    made: &'a mut HashMap<K, B::Exec>,
    key: K,
    plan: impl FnOnce() -> Plan,
) -> Result<&'a mut B::Exec> {
    match made.entry(key) {
        Entry::Occupied(found) => Ok(found.into_mut()),
        Entry::Vacant(place) => {
            let mut exec = backend.link(&plan())?;
            backend.capture(&mut exec)?;
            Ok(place.insert(exec))
        }
    }
}
