//! From a directory to an engine that runs. All that touches the device happens on the engine's own thread.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::memory::{self, Placed};
use super::pictures::Processing;
use super::runner::Runner;
use super::stats::{Stats, milliseconds};
use super::step_inputs::{LogitRows, SequenceStep};
use super::stream::{self, Lost};
use super::worker::{Arrival, Worker};
use super::{Checkpoint, Device, Memory, Options, Scheduler, Shared};
use crate::backend::Any;
use crate::config::ProcessorKwargs;
use crate::mem::Source;
use crate::models::{Content, ImageInputType, RowMap, RowMove, Stage, Tiles, Vlm};
use crate::ops::{KV_BLOCK, SamplingRow};
use crate::{Error, Result};

/// How long plans are recorded before the first request.
const RECORDING: Duration = Duration::from_secs(5);

/// What bringing the weights to the device took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upload {
    /// Bytes of weights on the device.
    pub bytes: u64,
    /// Wall-clock time in milliseconds.
    pub ms: f64,
}

impl Upload {
    /// 10^9 bytes a second.
    pub fn gb_per_s(&self) -> f64 {
        if self.ms > 0.0 { self.bytes as f64 / self.ms / 1e6 } else { 0.0 }
    }
}

/// Where the time of a start went, in milliseconds, in the order in which it did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Startup {
    /// Settings, tokenizer and chat template read and checked, the files of the weights mapped.
    pub open_ms: f64,
    /// The driver and the GPU opened, and all memory taken.
    pub device_ms: f64,
    /// Every tensor found, and decided how much there is of everything.
    pub plan_ms: f64,
    /// The weights brought to their places, or made there.
    pub weights_ms: f64,
    /// A picture, a prompt and an answer run once, on a GPU.
    pub warm_ms: f64,
    /// The plans of what recurs recorded, on a GPU.
    pub record_ms: f64,
}

/// What the new thread has to say until it is ready.
enum News {
    /// Bytes in place, and their total.
    Progress(u64, u64),
    Ready(Result<Arc<Shared>>),
}

type Started = (Arc<Shared>, Sender<Arrival>, JoinHandle<()>);

/// Start the thread, and wait until it has loaded the model.
pub(super) fn start(dir: &Path, options: &Options, mut progress: impl FnMut(u64, u64)) -> Result<Started> {
    let (arrivals, received) = channel();
    let (tell, news) = channel();
    let (dir, options) = (dir.to_path_buf(), options.clone());
    let handle = thread::Builder::new()
        .name("ocelli-engine".into())
        .spawn(move || serve(dir, &options, received, tell))
        .context("starting the engine's thread")
        .map_err(Error::Device)?;
    for message in news {
        match message {
            News::Progress(done, total) => progress(done, total),
            News::Ready(shared) => return Ok((shared?, arrivals, handle)),
        }
    }
    Err(stream::gone())
}

/// The thread: load, say so, work.
fn serve(dir: PathBuf, options: &Options, arrivals: Receiver<Arrival>, tell: Sender<News>) {
    let progress = |done, total| {
        // Nobody is left to be told only if the caller panicked.
        let _ = tell.send(News::Progress(done, total));
    };
    match load(&dir, options, progress) {
        Ok((shared, runner, scheduler)) => {
            let async_scheduling = options.async_scheduling.unwrap_or(shared.runs_kernels);
            let told = tell.send(News::Ready(Ok(shared.clone())));
            drop(tell);
            if told.is_ok() {
                Worker::new(shared, runner, scheduler, arrivals, async_scheduling).run();
            }
        }
        Err(error) => {
            let _ = tell.send(News::Ready(Err(error)));
        }
    }
}

/// A model in memory, and nothing that has run.
pub(crate) struct Loaded {
    pub checkpoint: Checkpoint,
    pub memory: Memory,
    pub runner: Runner<Any>,
    scheduler: Scheduler,
    on_gpu: bool,
    upload: Option<Upload>,
    pub warnings: Vec<String>,
    startup: Startup,
}

/// Open, check, plan the memory, and load the weights.
pub(crate) fn load_model(dir: &Path, options: &Options, mut progress: impl FnMut(u64, u64)) -> Result<Loaded> {
    let mut clock = Clock::start();
    let checkpoint = Checkpoint::open(dir, options)?;
    let open_ms = clock.lap();
    let device = options.device.choose(checkpoint.dtype).map_err(Error::Device)?;
    let chosen_ms = clock.lap();
    let limits = memory::limits(&checkpoint, options, device);
    let Placed { model, backend, memory, device_ms } = memory::place(&checkpoint, options, device, limits)?;
    let scheduler = Scheduler::new(memory.scheduler(options, &*model)).map_err(Error::Request)?;
    let warnings = [checkpoint.warnings(), &model.areas().warnings, &backend.other_kernels()].concat();
    let plan_ms = clock.lap() - device_ms;

    let (mut done, total) = (0, model.placements().iter().map(|p| p.dst.bytes()).sum());
    let began = Instant::now();
    let runner = Runner::new(backend, model, |bytes| {
        done += bytes;
        progress(done, total);
    });
    let runner = runner.map_err(Error::Device)?;
    let upload = checkpoint.weights.as_ref().map(|_| Upload { bytes: total, ms: milliseconds(began) });
    checkpoint.check_unchanged().map_err(Error::Model)?;
    let weights_ms = clock.lap();
    let startup = Startup { open_ms, device_ms: chosen_ms + device_ms, plan_ms, weights_ms, ..Startup::default() };
    let on_gpu = device != Device::Cpu;
    Ok(Loaded { checkpoint, memory, runner, scheduler, on_gpu, upload, warnings, startup })
}

/// Load the model, and on a GPU run everything once.
fn load(
    dir: &Path,
    options: &Options,
    progress: impl FnMut(u64, u64),
) -> Result<(Arc<Shared>, Runner<Any>, Scheduler)> {
    let start = Instant::now();
    let loaded = load_model(dir, options, progress)?;
    let Loaded { checkpoint, memory, mut runner, scheduler, on_gpu, upload, warnings, mut startup } = loaded;
    if on_gpu {
        let mut clock = Clock::start();
        let stage = warm(&mut runner, &checkpoint, &memory).map_err(Error::Device)?;
        startup.warm_ms = clock.lap();
        record(&mut runner, stage, &memory).map_err(Error::Device)?;
        startup.record_ms = clock.lap();
    }
    let processor = runner.model().processor(&ProcessorKwargs::new());
    let processing = Processing::new(processor.map_err(Error::Model)?);
    let shared = Shared {
        model: runner.shared_model(),
        processing,
        runs_kernels: runner.backend().runs_kernels(),
        backend: runner.backend().name(),
        hardware: runner.backend().hardware().to_owned(),
        checkpoint,
        warnings,
        upload,
        startup,
        memory,
        load_ms: milliseconds(start),
        stats: Mutex::new(Stats { blocks: scheduler.blocks(), ..Stats::default() }),
        step: Mutex::default(),
        instruments: Mutex::default(),
        lost: Lost::default(),
    };
    Ok((Arc::new(shared), runner, scheduler))
}

/// Tells how long something took since it last did.
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Milliseconds.
    fn lap(&mut self) -> f64 {
        let lap = milliseconds(self.0);
        self.0 = Instant::now();
        lap
    }
}

/// Run everything once, a picture, a prompt and answers, so that no request finds a kernel that is not loaded. Returns
/// where the encoding of pictures begins.
fn warm(runner: &mut Runner<Any>, checkpoint: &Checkpoint, memory: &Memory) -> anyhow::Result<Option<Stage>> {
    const TEXT: usize = 32;
    let model = runner.shared_model();
    let mut pictures: Vec<Tiles> = Vec::new();
    if checkpoint.max_images > 0 {
        pictures.push(dummy(&*model, checkpoint)?);
    }
    runner.encode(&pictures)?;
    let rows: usize = pictures.iter().map(|p| p.rows.encoded()).sum();
    if rows > 0 {
        let to = memory.max_tiles * model.tile_rows();
        runner.keep(&[RowMove { from: 0, to, rows: rows.min(model.tile_rows()) }])?;
    }
    let ids: Vec<i32> = (1..=rows as i32).map(|row| -row).chain([0; TEXT]).collect();
    // The last token is decoded by itself.
    let room = checkpoint.max_model_len.min(memory.kv_tokens);
    let length = ids.len().min(room - 1).min(memory.max_num_batched_tokens);
    let blocks: Vec<i32> = (0..(length + 1).div_ceil(KV_BLOCK) as i32).collect();
    for (ids, cached) in [(&ids[..length], 0), (&[0], length)] {
        if !ids.is_empty() {
            let sampling = SamplingRow::GREEDY;
            let step = SequenceStep { ids, cached, blocks: &blocks, first_angle: 0, sampling };
            runner.step(&[step], LogitRows::Last)?;
            runner.sampled(1, 0)?;
        }
    }
    Ok(pictures.first().and_then(|picture| picture.content.stage()))
}

/// Record decode steps and encodings of every number that recurs, so that no request finds a plan that is not recorded. What
/// would take longer than [`RECORDING`] is left for when it is needed.
fn record(runner: &mut Runner<Any>, stage: Option<Stage>, memory: &Memory) -> anyhow::Result<()> {
    let start = Instant::now();
    let encodings = stage.map(|stage| (stage, memory.max_tiles));
    runner.record(memory.max_num_seqs, encodings, || start.elapsed() > RECORDING)
}

/// A picture of the greatest cost, as this engine is given them.
fn dummy(model: &dyn Vlm, checkpoint: &Checkpoint) -> anyhow::Result<Tiles> {
    match checkpoint.image_input_type {
        ImageInputType::PixelValues => {
            model.processor(&ProcessorKwargs::new())?.prepare_for_device(model.dummy_image()?)
        }
        ImageInputType::ImageFeatures => {
            let facts = checkpoint.facts().pictures;
            let (rows, columns) = (facts.tile_rows, facts.feature_columns.unwrap_or(0));
            let zeros = vec![0u8; rows * columns * checkpoint.dtype.size()];
            let range = 0..zeros.len();
            let zeros = Source::new(Arc::new(zeros), range, checkpoint.dtype).context("features of zeros")?;
            Ok(Tiles { content: Content::Features(zeros), tiles: 1, rows: RowMap::straight(rows) })
        }
    }
}
