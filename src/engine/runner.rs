//! Owns the backend: uploads the weights, and runs encodings and steps.

use std::borrow::Borrow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::step_inputs::{Inputs, LogitRows, SequenceLists, SequenceStep};
use super::step_outputs::{Outputs, Sampled};
use crate::mem::{Buf, Source};
use crate::models::{
    Content, Picture, Placement, RowMove, Stage, StepIo, StepShape, TileInput, Tiles, Vlm, random_fills,
};
use crate::ops::{IN_PROMPT, Resize};
use crate::plan::{Backend, Fill, Plan};
use crate::range;
use crate::trace::{Detail, Kind, Run, Work, encode_name, step_name};

/// A step that was enqueued, and what it will have sampled.
pub struct InFlight<B: Backend> {
    pending: B::Pending,
    io: StepIo,
}

/// What a watched runner has enqueued.
struct Watch<M> {
    detail: Detail,
    /// A point on the device's clock, and the same moment on the host's.
    anchor: (M, Instant),
    /// Plans with their marks, the earliest first.
    runs: VecDeque<(Work, Vec<M>)>,
}

/// A model on a backend.
pub struct Runner<B: Backend> {
    backend: B,
    model: Arc<dyn Vlm>,
    /// Recorded plans of pure decode steps, which recur; a step with a prompt in it has a shape of its own.
    decode: HashMap<StepShape, B::Exec>,
    /// Recorded plans that encode so many tiles from a stage on.
    encode: HashMap<(Stage, usize), B::Exec>,
    inputs: Inputs,
    /// The buffers of the last step.
    last: Option<StepIo>,
    watch: Option<Watch<B::Mark>>,
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
        let setup = model.setup_plan();
        if !setup.steps().is_empty() {
            backend.run(&mut backend.link(&setup)?, None)?;
        }
        Ok(Runner {
            backend,
            model,
            decode: HashMap::new(),
            encode: HashMap::new(),
            inputs: Inputs::default(),
            last: None,
            watch: None,
        })
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
    pub fn encode(&mut self, pictures: &[impl Borrow<Tiles>]) -> Result<()> {
        let Some(first) = pictures.first() else { return Ok(()) };
        let stage = first.borrow().content.stage().context("there is nothing to encode in a picture's embeddings")?;
        let pictures: Vec<&Tiles> = pictures.iter().map(Borrow::borrow).collect();
        ensure!(
            pictures.iter().all(|p| p.content.stage() == Some(stage)),
            "pictures that begin at different stages are not encoded together"
        );
        match stage {
            Stage::Tower => self.write_tiles(&pictures)?,
            Stage::Projector => self.write_features(&pictures)?,
        }
        let tiles = pictures.iter().map(|p| p.tiles).sum();
        let exec =
            recorded(&self.backend, &mut self.encode, (stage, tiles), || encode_plan(&*self.model, stage, tiles))?;
        run(&self.backend, &mut self.watch, Kind::Encode, exec, || Work {
            kind: Kind::Encode,
            name: encode_name(stage == Stage::Tower, tiles),
            plan: encode_plan(&*self.model, stage, tiles),
        })
    }

    /// Write the tiles of pictures, one behind the other, and which of them are bytes and which values.
    fn write_tiles(&mut self, pictures: &[&Tiles]) -> Result<()> {
        let TileInput { pixels, values, source } = self.model.areas().tiles;
        let (mut bytes, mut floats) = (Room { of: pixels, used: 0 }, Room { of: values, used: 0 });
        let (mut sources, mut byte_tiles, mut value_tiles) = (Vec::new(), 0, 0);
        let tile_len = self.model.areas().tile_len;
        for Tiles { content, tiles, .. } in pictures {
            let (overviews, others) = match content {
                Content::Pixels(tiles) => {
                    self.backend.write(bytes.take(tiles.len())?, tiles)?;
                    (0, tiles.len())
                }
                Content::Picture(picture) => {
                    let tile = bytes.take(picture.resize.y.len())?;
                    self.resize(picture, tile)?;
                    (0, tile.len())
                }
                Content::Views { overview, pixels } => {
                    self.backend.write(floats.take(overview.len())?, overview)?;
                    self.backend.write(bytes.take(pixels.len())?, pixels)?;
                    (overview.len(), pixels.len())
                }
                Content::Features(_) | Content::Embeddings(_) => bail!("there are no pixels in a picture's rows"),
            };
            // Or the next picture's tiles would be taken for this one's.
            ensure!(
                overviews % tile_len == 0 && others % tile_len == 0 && overviews + others == tiles * tile_len,
                "a picture of {tiles} tiles has {others} bytes and {overviews} values; a tile has {tile_len}"
            );
            let (overviews, others) = ((overviews / tile_len) as i32, (others / tile_len) as i32);
            sources.extend((value_tiles..value_tiles + overviews).map(|n| -1 - n));
            sources.extend(byte_tiles..byte_tiles + others);
            (byte_tiles, value_tiles) = (byte_tiles + others, value_tiles + overviews);
        }
        ensure!(
            sources.len() <= source.len(),
            "{} tiles are encoded; {} were planned for",
            sources.len(),
            source.len()
        );
        // Where all tiles are bytes, which is which is known from the start.
        if values.is_empty() { Ok(()) } else { self.backend.write(source.slice(0..sources.len()), &sources) }
    }

    /// Write the features of pictures, one behind the other.
    fn write_features(&self, pictures: &[&Tiles]) -> Result<()> {
        let mut room = Room { of: self.model.areas().features.bytes(), used: 0 };
        for picture in pictures {
            if let Content::Features(rows) = &picture.content {
                self.backend.write(room.take(rows.bytes().len())?, rows.bytes())?;
            }
        }
        Ok(())
    }

    /// Write image rows from row `first` on: embeddings that a caller brought, in the model's type.
    ///
    /// # Errors
    /// If they go beyond the image rows, or the backend fails.
    pub fn write_rows(&self, first: usize, rows: &Source) -> Result<()> {
        let areas = self.model.areas();
        let (all, start) = (areas.image_rows, first * areas.hidden);
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
    pub fn keep(&mut self, moves: &[RowMove]) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        let plan = self.model.areas().keep_plan(moves);
        let mut exec = self.backend.link(&plan)?;
        let name = format!("keeping {} rows", moves.iter().map(|m| m.rows).sum::<usize>());
        run(&self.backend, &mut self.watch, Kind::Keep, &mut exec, || Work { kind: Kind::Keep, name, plan })
    }

    /// Let the device make the tile of a picture. Every size of a picture is a plan of its own, of one launch.
    fn resize(&mut self, picture: &Picture, tile: Buf<u8>) -> Result<()> {
        self.backend.write(picture.resize.x, picture.rgb.data())?;
        self.backend.write(self.model.areas().picture.tables, &picture.tables)?;
        let mut plan = Plan::new(tile.dtype());
        plan.scope("vision", |p| p.push(Resize { y: tile, ..picture.resize }));
        let mut exec = self.backend.link(&plan)?;
        let name = format!("resizing of {}x{}", picture.rgb.width(), picture.rgb.height());
        run(&self.backend, &mut self.watch, Kind::Resize, &mut exec, || Work { kind: Kind::Resize, name, plan })
    }

    /// Run one step; sequences that bring one token come before those that bring several. Returns the shape that ran: a
    /// batch of decode sequences alone is filled up with rows of nobody to a number that has a plan.
    ///
    /// # Errors
    /// If the step is larger than was planned for, or the backend fails.
    pub fn step(&mut self, sequences: &[SequenceStep<'_>], rows: LogitRows) -> Result<StepShape> {
        self.step_with(sequences, rows, &[])
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
    ) -> Result<StepShape> {
        let (shape, io) = self.inputs.write(&self.backend, self.model.io(), sequences, rows, lists)?;
        self.last = Some(io);
        let work = || work(&*self.model, shape, sequences);
        if shape.prefill_seqs > 0 {
            let mut exec = self.backend.link(&self.model.step_plan(shape))?;
            run(&self.backend, &mut self.watch, Kind::Prefill, &mut exec, work)?;
            return Ok(shape);
        }
        let exec = recorded(&self.backend, &mut self.decode, shape, || self.model.step_plan(shape))?;
        run(&self.backend, &mut self.watch, Kind::Decode, exec, work)?;
        Ok(shape)
    }

    /// [`Runner::step_with`] for the last row of each sequence and those that are reported, without waiting for it.
    ///
    /// # Errors
    /// As those of [`Runner::step_with`].
    pub fn enqueue(&mut self, sequences: &[SequenceStep<'_>], lists: &[SequenceLists<'_>]) -> Result<InFlight<B>> {
        self.step_with(sequences, LogitRows::Last, lists)?;
        let io = *self.last()?;
        Ok(InFlight { pending: self.backend.enqueue_read(io.outputs)?, io })
    }

    /// What a step sampled. Waits for it, and for no later one.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn wait(&self, step: InFlight<B>) -> Result<Outputs> {
        let InFlight { pending, io } = step;
        Ok(Outputs { bytes: self.backend.wait(pending)?, io })
    }

    /// Time what runs from now on, or no longer. What was enqueued and not [watched](Runner::watched) is forgotten.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn watch(&mut self, detail: Option<Detail>) -> Result<()> {
        self.watch = None;
        let Some(detail) = detail else { return Ok(()) };
        let mark = self.backend.mark()?;
        while self.backend.elapsed(&mark, &mark)?.is_none() {
            std::hint::spin_loop();
        }
        self.watch = Some(Watch { detail, anchor: (mark, Instant::now()), runs: VecDeque::new() });
        Ok(())
    }

    /// What has ended of that which runs since [`Runner::watch`], each once, in order. Times count from `start`; what is
    /// still running comes later.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn watched(&mut self, start: Instant) -> Result<Vec<Run>> {
        let Some(Watch { anchor: (zero, host), runs, .. }) = &mut self.watch else { return Ok(Vec::new()) };
        let mut ended = Vec::new();
        while let Some((work, marks)) = runs.pop_front() {
            let times = marks.windows(2).map(|pair| self.backend.elapsed(&pair[0], &pair[1]));
            let times = times.collect::<Result<Option<Vec<_>>>>()?;
            match (times, marks.first().map(|first| self.backend.elapsed(zero, first)).transpose()?.flatten()) {
                (Some(times), Some(first)) => {
                    ended.push(Run::new(work, host.duration_since(start) + first, &times));
                }
                _ => {
                    runs.push_front((work, marks));
                    break;
                }
            }
        }
        Ok(ended)
    }

    /// Record the plans of decode steps, and of encodings of up to so many tiles from a stage on, the smaller ones first,
    /// until `enough` says so. Those that are left are recorded when they are first asked for.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn record(
        &mut self,
        max_seqs: usize,
        encodings: Option<(Stage, usize)>,
        enough: impl Fn() -> bool,
    ) -> Result<()> {
        let io = self.model.io();
        let mut seqs = 1;
        while seqs <= max_seqs && !enough() {
            let shape = io.decode_shape(seqs);
            recorded(&self.backend, &mut self.decode, shape, || self.model.step_plan(shape))?;
            seqs = shape.decode + 1;
        }
        let Some((stage, max_tiles)) = encodings else { return Ok(()) };
        for tiles in (1..=max_tiles).take_while(|_| !enough()) {
            recorded(&self.backend, &mut self.encode, (stage, tiles), || encode_plan(&*self.model, stage, tiles))?;
        }
        Ok(())
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

    /// What the last step sampled, a row each, with `top_logprobs` alternatives.
    ///
    /// # Errors
    /// If the backend fails, or the step had fewer rows.
    pub fn sampled(&self, rows: usize, top_logprobs: usize) -> Result<Vec<Sampled>> {
        let io = *self.last()?;
        ensure!(rows <= io.token.len(), "{rows} rows were asked for, and the last step sampled {}", io.token.len());
        let outputs = self.wait(InFlight { pending: self.backend.enqueue_read(io.outputs)?, io })?;
        Ok((0..rows).map(|row| outputs.sampled(row, top_logprobs)).collect())
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

/// Run a plan, with marks if somebody watches.
fn run<B: Backend>(
    backend: &B,
    watch: &mut Option<Watch<B::Mark>>,
    kind: Kind,
    exec: &mut B::Exec,
    work: impl FnOnce() -> Work,
) -> Result<()> {
    let _range = range::open(kind.name());
    let Some(watch) = watch else { return backend.run(exec, None) };
    let mut marks = Vec::new();
    match watch.detail {
        Detail::Launches => backend.run(exec, Some(&mut marks))?,
        Detail::Plans => {
            marks.push(backend.mark()?);
            backend.run(exec, None)?;
            marks.push(backend.mark()?);
        }
    }
    watch.runs.push_back((work(), marks));
    Ok(())
}

/// A step in words, and its plan with the costs of the lengths that its sequences have.
fn work(model: &dyn Vlm, shape: StepShape, sequences: &[SequenceStep<'_>]) -> Work {
    let lengths: usize = sequences.iter().map(|s| s.cached + s.ids.len()).sum();
    let shape = StepShape { context: lengths.div_ceil(sequences.len().max(1)), ..shape };
    let kind = if shape.prefill_tokens == 0 { Kind::Decode } else { Kind::Prefill };
    Work { kind, name: step_name(shape.decode, shape.prefill_tokens), plan: model.step_plan(shape) }
}

/// A buffer that is filled from its start.
struct Room<T> {
    of: Buf<T>,
    used: usize,
}

impl<T> Room<T> {
    /// The next `len` elements.
    fn take(&mut self, len: usize) -> Result<Buf<T>> {
        let all = self.of.len();
        ensure!(len <= all - self.used, "the pictures do not fit the {all} elements that were planned for");
        self.used += len;
        Ok(self.of.slice(self.used - len..self.used))
    }
}

fn encode_plan(model: &dyn Vlm, stage: Stage, tiles: usize) -> Plan {
    match stage {
        Stage::Tower => model.encode_plan(tiles),
        Stage::Projector => model.project_plan(tiles),
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
