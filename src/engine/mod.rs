//! A request in, a stream of text out.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use ocelli::engine::{Engine, Options, Prompt, Request, Sampling};
//! use ocelli::text::{Message, Role};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut engine = Engine::open(Path::new("llava-1.5-7b-hf"), &Options::default(), |_, _| ())?;
//! let request = Request {
//!     prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "What is in this picture?")]),
//!     images: vec![std::fs::read("cat.jpg")?],
//!     sampling: Sampling { temperature: 0.0, ..Sampling::default() },
//! };
//! let output = engine.generate(&request, |_| ControlFlow::Continue(()))?;
//! assert_eq!(output.image_tokens, [576]);
//! # Ok(())
//! # }
//! ```

mod blocks;
mod checkpoint;
mod generate;
mod options;
mod runner;
mod sampling;

pub use blocks::BlockPool;
pub use checkpoint::Checkpoint;
pub use generate::{FinishReason, Output, Prompt, Request, Timings};
pub use options::{Device, LoadFormat, Options, available_memory};
pub use runner::{LogitRows, Runner, Sampled, SequenceLists, SequenceStep};
pub use sampling::{Sampler, Sampling};

use std::path::Path;
use std::time::Instant;

use crate::backend::{Any, Cpu};
use crate::image::Rgb;
use crate::mem::{DType, Region};
use crate::models::{Limits, Tiles, Vlm};
use crate::{Error, Result};

/// Allocate the regions of `model` on `device`.
fn backend(device: Device, model: &dyn Vlm, limits: &Limits) -> Result<Any> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let device = crate::backend::cuda::driver::Device::open(ordinal).map_err(Error::Device)?;
            let free = device.free_memory().map_err(Error::Device)? as u64;
            check_memory(model, limits, &format!("memory on cuda:{ordinal}"), free, 0).map_err(Error::Capacity)?;
            let cuda = crate::backend::cuda::Cuda::on(device, model.regions(), 0).map_err(Error::Device)?;
            Ok(Any::Cuda(Box::new(cuda)))
        }
        _ => {
            // Tensors that are read in the mapped file take no memory of their own.
            let mapped = model.placements().iter().filter(|p| p.is_mapped()).map(|p| p.dst.bytes()).sum();
            check_memory(model, limits, "memory", available_memory(), mapped).map_err(Error::Capacity)?;
            Ok(Any::Cpu(Cpu::new(model.regions()).map_err(Error::Device)?))
        }
    }
}

/// Refuse what would not fit, before anything is allocated.
fn check_memory(model: &dyn Vlm, limits: &Limits, what: &str, available: u64, mapped: u64) -> anyhow::Result<()> {
    let bytes = |region: Region| model.regions()[region as usize] as u64;
    let weights = bytes(Region::Weights).saturating_sub(mapped);
    let needed = Region::ALL.map(bytes).iter().fold(0u64, |sum, b| sum.saturating_add(*b)).saturating_sub(mapped);
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    // 0 is a system that does not say.
    anyhow::ensure!(
        available == 0 || needed <= available,
        "the model needs {} MB of {what} ({} of weights, {} of cache, {} of activations, {} of exchange buffers) and {} \
         are available; lower max_model_len, now {} tokens (--max-model-len), or the pictures a prompt may hold, now {} \
         (--limit-mm-per-prompt)",
        mb(needed),
        mb(weights),
        mb(bytes(Region::Kv)),
        mb(bytes(Region::Scratch)),
        mb(bytes(Region::Io)),
        mb(available),
        limits.max_model_len,
        limits.max_tiles
    );
    Ok(())
}

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

/// A loaded model, ready to answer one request after another.
pub struct Engine {
    checkpoint: Checkpoint,
    runner: Runner<Any>,
    blocks: BlockPool,
    warnings: Vec<String>,
    upload: Option<Upload>,
    load_ms: f64,
}

impl Engine {
    /// Open, check, plan the memory and load the weights, in this order: a bad checkpoint or too little memory is an
    /// error before a byte is copied. `progress` is called with the bytes in place and their total.
    ///
    /// # Errors
    /// [`Error::Model`] for a bad checkpoint, [`Error::Capacity`] if it does not fit, [`Error::Device`], or
    /// [`Error::Request`] for impossible options.
    pub fn open(dir: &Path, options: &Options, mut progress: impl FnMut(u64, u64)) -> Result<Engine> {
        let start = Instant::now();
        let checkpoint = Checkpoint::open(dir, options)?;
        let device = options.device.choose(checkpoint.dtype).map_err(Error::Device)?;
        let limits = Limits {
            max_model_len: checkpoint.max_model_len,
            max_num_seqs: 1,
            max_num_batched_tokens: checkpoint.max_model_len,
            max_logit_rows: generate::LOGIT_ROWS.min(checkpoint.max_model_len),
            max_tiles: checkpoint.max_images,
            kv_blocks: checkpoint.max_model_len.div_ceil(crate::ops::KV_BLOCK),
        };
        let model = checkpoint.build(limits)?;
        let warnings = [checkpoint.warnings(), model.warnings()].concat();
        let backend = backend(device, &*model, &limits)?;
        let (mut done, total) = (0, model.placements().iter().map(|p| p.dst.bytes()).sum());
        let began = Instant::now();
        let runner = Runner::new(backend, model, |bytes| {
            done += bytes;
            progress(done, total);
        })
        .map_err(Error::Device)?;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        let upload = checkpoint.weights.as_ref().map(|_| Upload { bytes: total, ms });
        checkpoint.check_unchanged().map_err(Error::Model)?;
        let blocks = BlockPool::new(limits.kv_blocks);
        let mut engine = Engine { checkpoint, runner, blocks, warnings, upload, load_ms: 0.0 };
        if device != Device::Cpu {
            engine.warm().map_err(Error::Device)?;
        }
        engine.load_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(engine)
    }

    /// Run everything once, a picture, a prompt and answers, so that the first request finds kernels loaded and decode
    /// steps recorded.
    fn warm(&mut self) -> anyhow::Result<()> {
        const TEXT: usize = 32;
        let model = self.runner.model();
        let mut pictures = Vec::new();
        if self.checkpoint.max_images > 0 {
            pictures.push(self.tiles(model.dummy_image()?)?);
        }
        self.runner.encode(&pictures, None)?;
        let rows = pictures.iter().map(|p| p.tokens as i32).sum();
        let ids: Vec<i32> = (1..=rows).map(|row| -row).chain([0; TEXT]).collect();
        // The last token is decoded by itself.
        let length = ids.len().min(self.checkpoint.max_model_len - 1);
        let blocks = self.blocks.take(length + 1)?;
        let greedy = crate::ops::SamplingRow::GREEDY;
        for (ids, cached) in [(&ids[..length], 0), (&[0], length)] {
            if !ids.is_empty() {
                self.runner.step(
                    &[SequenceStep { ids, cached, blocks: &blocks, sampling: greedy }],
                    LogitRows::Last,
                    None,
                )?;
                self.runner.sampled(1, 0)?;
            }
        }
        self.blocks.give(blocks);
        Ok(())
    }

    /// A picture made ready for the vision tower; a GPU resizes it itself.
    fn tiles(&self, picture: Rgb) -> anyhow::Result<Tiles> {
        let model = self.runner.model();
        if self.runner.backend().runs_kernels() { model.prepare_for_device(picture) } else { model.prepare(&picture) }
    }

    /// What bringing the weights to the device took; `None` if they are random numbers.
    pub fn upload(&self) -> Option<Upload> {
        self.upload
    }

    /// Name of the checkpoint's directory.
    pub fn model_name(&self) -> &str {
        &self.checkpoint.name
    }

    /// What runs the plans.
    pub fn backend_name(&self) -> &'static str {
        self.runner.backend().name()
    }

    /// The device it runs on, for example `NVIDIA H200`.
    pub fn hardware(&self) -> &str {
        self.runner.backend().hardware()
    }

    /// Type of the activations.
    pub fn dtype(&self) -> DType {
        self.checkpoint.dtype
    }

    /// What was odd about the checkpoint but does not change a result.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
