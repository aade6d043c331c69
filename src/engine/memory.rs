//! How much of everything there is: decided once, by arithmetic, before anything is allocated.

use std::time::Instant;

use anyhow::anyhow;

use super::stats::milliseconds;
use super::{Checkpoint, Device, Options, SchedulerLimits, available_memory};
use crate::backend::{Any, Cpu};
use crate::mem::Region;
use crate::models::{Limits, Vlm};
use crate::ops::KV_BLOCK;
use crate::{Error, Result};

/// Tokens of a step on a GPU, unless the options say otherwise.
pub const GPU_STEP_TOKENS: usize = 8192;
/// Most tiles that are encoded together: more of them fill no GPU any better, and cost activations.
const MAX_TILES: usize = 16;
/// Rows of logits of a step beyond one for every sequence: a prompt whose log-probabilities are asked for is read in steps
/// of so many tokens.
const MAX_REPORTS: usize = 64;
/// Tiles whose rows are kept on a GPU: 300 MB for LLaVA-1.5-7B.
const KEPT_ON_GPU: usize = 64;
/// Pictures of the largest kind whose rows are kept on a GPU in any case.
const KEPT_PICTURES: usize = 8;
/// Share of the host's available memory that the cache may take, if that is more than one sequence needs.
const SHARE_OF_HOST: u64 = 4;

/// What the engine may hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Blocks of the cache.
    pub kv_blocks: usize,
    /// Tokens that they hold.
    pub kv_tokens: usize,
    /// Bytes that they take.
    pub kv_bytes: u64,
    /// Bytes of weights; on the host, without those that are read in the mapped files.
    pub weight_bytes: u64,
    /// Bytes of activations and of what the host exchanges with the device.
    pub other_bytes: u64,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence in tokens.
    pub max_model_len: usize,
    /// Tiles that are encoded together.
    pub max_tiles: usize,
    /// Tiles whose rows are kept.
    pub kept_tiles: usize,
}

/// A model laid out for its limits, and memory for it.
pub(super) struct Placed {
    pub model: Box<dyn Vlm>,
    pub backend: Any,
    pub memory: Memory,
    /// What opening the device and allocating took, in milliseconds.
    pub device_ms: f64,
}

impl Memory {
    /// Image row of the first kept tile: those of the tiles that are being encoded stand before it.
    pub(super) fn first_kept_row(&self, tile_rows: usize) -> usize {
        self.max_tiles * tile_rows
    }

    /// What the scheduler must keep to.
    pub(super) fn scheduler(&self, options: &Options, model: &dyn Vlm) -> SchedulerLimits {
        let tile_rows = model.tile_rows();
        let first_row = self.first_kept_row(tile_rows);
        SchedulerLimits {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_reports: MAX_REPORTS,
            kv_blocks: self.kv_blocks,
            max_tiles: self.max_tiles,
            pages: self.kept_tiles,
            page_rows: tile_rows,
            first_row,
            constant_row: model.areas().constant_row,
            rope_switch: model.long_rope().map(|rope| rope.switch),
            prefix_caching: options.prefix_caching,
            encoder_caching: options.encoder_caching,
        }
    }
}

/// The limits that the options ask for, with a cache for one sequence of the greatest length.
pub(super) fn limits(checkpoint: &Checkpoint, options: &Options, device: Device) -> Limits {
    let on_gpu = device != Device::Cpu;
    let len = checkpoint.max_model_len;
    let seqs = options.max_num_seqs.unwrap_or(if on_gpu { 256 } else { 16 });
    // A step never has more tokens than all sequences together.
    let usual = if on_gpu { GPU_STEP_TOKENS } else { 2048 };
    let tokens = options.max_num_batched_tokens.unwrap_or_else(|| usual.min(seqs.saturating_mul(len)).max(seqs));
    let picture = checkpoint.facts().pictures;
    // As many pictures as a step may bring; a single one must fit in any case.
    let together = (tokens / picture.tokens.most()).max(1).saturating_mul(picture.max_tiles);
    let tiles = if checkpoint.max_images == 0 { 0 } else { together.min(MAX_TILES.max(picture.max_tiles)) };
    Limits {
        max_model_len: len,
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens,
        max_logit_rows: seqs + MAX_REPORTS,
        max_tiles: tiles,
        kept_tiles: if on_gpu && tiles > 0 {
            KEPT_ON_GPU.max(KEPT_PICTURES * picture.max_pages())
        } else {
            tiles.max(checkpoint.max_images * picture.max_pages())
        },
        kv_blocks: options.num_kv_blocks.unwrap_or_else(|| len.div_ceil(KV_BLOCK)),
    }
}

/// Lay out the model with as large a cache as there is room for, and allocate its memory.
pub(super) fn place(checkpoint: &Checkpoint, options: &Options, device: Device, limits: Limits) -> Result<Placed> {
    let model = checkpoint.build(limits)?;
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let start = Instant::now();
            let kernels = options.kernels().map_err(Error::Request)?;
            let gpu = crate::backend::cuda::driver::Device::open_with(ordinal, kernels).map_err(Error::Device)?;
            let opened = milliseconds(start);
            let free = gpu.free_memory().map_err(Error::Device)? as u64;
            let share = (gpu.properties().memory as f64 * options.gpu_memory_utilization) as u64;
            let what = format!("memory on cuda:{ordinal}");
            let room = free.min(share);
            check(&*model, &limits, &what, room, 0).map_err(Error::Capacity)?;
            let (model, memory) = grow(checkpoint, options, model, limits, room, 0)?;
            let start = Instant::now();
            let cuda = crate::backend::cuda::Cuda::on(gpu, model.regions(), 0).map_err(Error::Device)?;
            let device_ms = opened + milliseconds(start);
            Ok(Placed { model, backend: Any::Cuda(Box::new(cuda)), memory, device_ms })
        }
        _ => {
            if let Some(dir) = &options.kernel_dir {
                return Err(Error::Request(anyhow!(
                    "the kernels of {} are for a GPU, and this runs on the host: leave out --kernel-dir, or choose --device cuda",
                    dir.display()
                )));
            }
            if let Some(arch) = &options.kernel_arch {
                return Err(Error::Request(anyhow!(
                    "kernels for {arch} are for a GPU, and this runs on the host: leave out --kernel-arch, or choose --device cuda"
                )));
            }
            // Tensors that are read in the mapped file take no memory of their own.
            let mapped = model.placements().iter().filter(|p| p.is_mapped()).map(|p| p.dst.bytes()).sum();
            let available = available_memory();
            check(&*model, &limits, "memory", available, mapped).map_err(Error::Capacity)?;
            let wanted = limits.max_num_seqs.saturating_mul(limits.max_blocks());
            let most = wanted.saturating_mul(checkpoint.kv_block_bytes()) as u64;
            let others = needed(&*model, mapped) - region(&*model, Region::Kv);
            let (model, memory) =
                grow(checkpoint, options, model, limits, others + most.min(available / SHARE_OF_HOST), mapped)?;
            let start = Instant::now();
            let cpu = Cpu::new(model.regions()).map_err(Error::Device)?;
            Ok(Placed { model, backend: Any::Cpu(cpu), memory, device_ms: milliseconds(start) })
        }
    }
}

/// The model with as many blocks as `room` bytes hold beside everything else; never fewer than `limits` has.
fn grow(
    checkpoint: &Checkpoint,
    options: &Options,
    model: Box<dyn Vlm>,
    mut limits: Limits,
    room: u64,
    mapped: u64,
) -> Result<(Box<dyn Vlm>, Memory)> {
    let others = needed(&*model, mapped) - region(&*model, Region::Kv);
    let block = checkpoint.kv_block_bytes() as u64;
    let fit = room.saturating_sub(others) / block;
    // Slots are numbered by 32 bits with a sign.
    let fit = fit.min(i32::MAX as u64 / KV_BLOCK as u64 - 1) as usize;
    let model = if options.num_kv_blocks.is_none() && fit > limits.kv_blocks {
        limits.kv_blocks = fit;
        checkpoint.build(limits)?
    } else {
        model
    };
    let memory = Memory {
        kv_blocks: limits.kv_blocks,
        kv_tokens: limits.kv_blocks * KV_BLOCK,
        kv_bytes: region(&*model, Region::Kv),
        weight_bytes: region(&*model, Region::Weights).saturating_sub(mapped),
        other_bytes: region(&*model, Region::Scratch) + region(&*model, Region::Io),
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        max_model_len: limits.max_model_len,
        max_tiles: limits.max_tiles,
        kept_tiles: limits.kept_tiles,
    };
    Ok((model, memory))
}

fn region(model: &dyn Vlm, region: Region) -> u64 {
    model.regions()[region as usize] as u64
}

/// Bytes of all regions, without what is read in the mapped files.
fn needed(model: &dyn Vlm, mapped: u64) -> u64 {
    let all = Region::ALL.iter().fold(0u64, |sum, &r| sum.saturating_add(region(model, r)));
    all.saturating_sub(mapped)
}

/// Refuse what would not fit, before anything is allocated.
fn check(model: &dyn Vlm, limits: &Limits, what: &str, available: u64, mapped: u64) -> anyhow::Result<()> {
    let needed = needed(model, mapped);
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    // 0 is a system that does not say.
    anyhow::ensure!(
        available == 0 || needed <= available,
        "the model needs {} MB of {what} ({} of weights, {} of cache, {} of activations, {} of exchange buffers) and {} \
         are available; lower max_model_len, now {} tokens (--max-model-len), the sequences and tokens of a step, now {} \
         and {} (--max-num-seqs, --max-num-batched-tokens), the pictures of a prompt or their tiles \
         (--limit-mm-per-prompt, --mm-processor-kwargs), or raise the share of a GPU (--gpu-memory-utilization)",
        mb(needed),
        mb(region(model, Region::Weights).saturating_sub(mapped)),
        mb(region(model, Region::Kv)),
        mb(region(model, Region::Scratch)),
        mb(region(model, Region::Io)),
        mb(available),
        limits.max_model_len,
        limits.max_num_seqs,
        limits.max_num_batched_tokens
    );
    Ok(())
}
