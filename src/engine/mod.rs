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
pub use runner::{LogitRows, Runner, Sampled, SequenceStep};
pub use sampling::Sampling;

use std::path::Path;
use std::time::Instant;

use crate::backend::{Any, Cpu};
use crate::mem::{DType, Region};
use crate::models::{Limits, Vlm};
use crate::{Error, Result};

/// Allocate the regions of `model` on `device`.
fn backend(device: Device, model: &dyn Vlm, limits: &Limits) -> Result<Any> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let cuda = crate::backend::cuda::Cuda::new(ordinal, model.regions(), 0).map_err(Error::Device)?;
            Ok(Any::Cuda(Box::new(cuda)))
        }
        _ => {
            check_memory(model, limits).map_err(Error::Capacity)?;
            Ok(Any::Cpu(Cpu::new(model.regions()).map_err(Error::Device)?))
        }
    }
}

/// Refuse what would not fit the host, before anything is allocated. Tensors that are read in the mapped file take no memory of
/// their own.
fn check_memory(model: &dyn Vlm, limits: &Limits) -> anyhow::Result<()> {
    let available = available_memory();
    let bytes = |region: Region| model.regions()[region as usize] as u64;
    let mapped: u64 = model.placements().iter().filter(|p| p.is_mapped()).map(|p| p.dst.bytes()).sum();
    let weights = bytes(Region::Weights).saturating_sub(mapped);
    let needed = Region::ALL.map(bytes).iter().fold(0u64, |sum, b| sum.saturating_add(*b)).saturating_sub(mapped);
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    // 0 is a system that does not say.
    anyhow::ensure!(
        available == 0 || needed <= available,
        "the model needs {} MB of memory ({} of weights, {} of cache, {} of activations, {} of exchange buffers) and {} \
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

/// A loaded model, ready to answer one request after another.
pub struct Engine {
    checkpoint: Checkpoint,
    runner: Runner<Any>,
    blocks: BlockPool,
    warnings: Vec<String>,
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
            max_logit_rows: 1,
            max_tiles: checkpoint.max_images,
            kv_blocks: checkpoint.max_model_len.div_ceil(crate::ops::KV_BLOCK),
        };
        let model = checkpoint.build(limits)?;
        let warnings = [checkpoint.warnings(), model.warnings()].concat();
        let backend = backend(device, &*model, &limits)?;
        let (mut done, total) = (0, model.placements().iter().map(|p| p.dst.bytes()).sum());
        let runner = Runner::new(backend, model, |bytes| {
            done += bytes;
            progress(done, total);
        })
        .map_err(Error::Device)?;
        checkpoint.check_unchanged().map_err(Error::Model)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(Engine { checkpoint, runner, blocks: BlockPool::new(limits.kv_blocks), warnings, load_ms })
    }

    /// Name of the checkpoint's directory.
    pub fn model_name(&self) -> &str {
        &self.checkpoint.name
    }

    /// What runs the plans.
    pub fn backend_name(&self) -> &'static str {
        self.runner.backend().name()
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
