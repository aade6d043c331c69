//! `ocelli inspect`: what a checkpoint holds, what it needs, and how much context would fit.

use std::io::{self, Write};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::{ModelArgs, human_bytes};
use crate::engine::{Checkpoint, GPU_STEP_TOKENS, MAX_NUM_SEQS, available_memory};
use crate::mem::Region;
use crate::models::{ImageInputType, ImageTokens, Limits, Parts, Vlm};
use crate::ops::KV_BLOCK;
use crate::weights::Weights;

#[derive(Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Memory to plan for, in GiB, for example a GPU's; by default what this host has available
    #[arg(long, value_name = "GIB", value_parser = memory)]
    memory: Option<f64>,
    /// Part of the memory that may be used
    #[arg(long, env = "OCELLI_GPU_MEMORY_UTILIZATION", default_value = "0.9", value_parser = fraction)]
    gpu_memory_utilization: f64,
    /// Sequences of a step
    #[arg(long, env = "OCELLI_MAX_NUM_SEQS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_NUM_SEQS as i64))]
    max_num_seqs: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

fn memory(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|g: &f64| (0.0..=1e6).contains(g)).ok_or_else(|| "write a number of GiB".into())
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|f: &f64| *f > 0.0 && *f <= 1.0).ok_or_else(|| "must lie above 0 and at most at 1".into())
}

/// Bytes of each region, and the cache that the rest of the memory would hold.
struct MemoryPlan {
    weights: u64,
    scratch: u64,
    io: u64,
    kv_block: u64,
    available: u64,
    budget: u64,
    kv_blocks: u64,
}

/// What is shown.
struct Report {
    checkpoint: Checkpoint,
    model: Box<dyn Vlm>,
    memory: MemoryPlan,
    warnings: Vec<String>,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.model.directory()?, &args.model.options())?;
    ensure!(
        checkpoint.weights.is_some() || !args.tensors,
        "--tensors lists what the files hold, and --load-format dummy reads none"
    );
    let seqs = args.max_num_seqs as usize;
    let model = checkpoint.build(Limits {
        max_model_len: checkpoint.max_model_len,
        max_num_seqs: seqs,
        max_num_batched_tokens: checkpoint.max_model_len.min(GPU_STEP_TOKENS).max(seqs),
        max_logit_rows: seqs,
        max_tiles: if checkpoint.max_images > 0 { checkpoint.facts().pictures.max_tiles } else { 0 },
        kept_tiles: 0,
        kv_blocks: 0,
    })?;
    let memory = memory_plan(args, &checkpoint, &*model)?;
    let warnings = [checkpoint.warnings(), &model.areas().warnings].concat();
    let report = Report { checkpoint, model, memory, warnings };
    let text = if args.json { format!("{:#}\n", as_json(args, &report)) } else { as_text(args, &report) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn memory_plan(args: &InspectArgs, c: &Checkpoint, model: &dyn Vlm) -> Result<MemoryPlan> {
    let bytes = |region: Region| model.regions()[region as usize] as u64;
    let (weights, scratch, io) = (bytes(Region::Weights), bytes(Region::Scratch), bytes(Region::Io));
    let available = match args.memory {
        Some(gib) => (gib * f64::from(1 << 30)) as u64,
        None => available_memory(),
    };
    ensure!(available > 0, "the memory of this system is not known; give it with --memory");
    let budget = (available as f64 * args.gpu_memory_utilization) as u64;
    let kv_block = c.kv_block_bytes() as u64;
    let kv_blocks = budget.saturating_sub(weights + scratch + io) / kv_block;
    Ok(MemoryPlan { weights, scratch, io, kv_block, available, budget, kv_blocks })
}

/// Parameters and tensors, in files or without.
fn contents(weights: Option<&Weights>, model: &dyn Vlm) -> String {
    if let Some(weights) = weights {
        let parameters: usize = weights.tensors().map(|(_, t)| t.shape.iter().product::<usize>()).sum();
        let (tensors, files) = (weights.tensors().count(), weights.files().count());
        let bytes = human_bytes(weights.bytes_total());
        let plural = if files == 1 { "" } else { "s" };
        return format!("{parameters} parameters in {tensors} tensors, {bytes} in {files} file{plural}");
    }
    let fills = || model.placements().iter().filter(|p| p.random().is_some());
    let (parameters, bytes): (u64, u64) =
        fills().fold((0, 0), |(elements, bytes), p| (elements + p.dst.len, bytes + p.dst.bytes()));
    format!("{parameters} parameters in {} tensors, {} of random numbers", fills().count(), human_bytes(bytes))
}

/// Blocks of the vision tower that a picture passes.
fn blocks_run(c: &Checkpoint, parts: &Parts) -> usize {
    match c.image_input_type {
        ImageInputType::PixelValues => parts.vision_blocks(),
        ImageInputType::ImageFeatures => 0,
    }
}

/// The sizes of a model that is CLIP in front of Llama.
fn parts_text(c: &Checkpoint, parts: &Parts) -> String {
    let (v, t, pictures) = (&parts.vision, &parts.text, &c.facts().pictures);
    let cost = match pictures.tokens {
        ImageTokens::Always(tokens) => format!("{tokens} tokens a picture"),
        ImageTokens::UpTo(tokens) => format!("up to {} tiles and {tokens} tokens a picture", pictures.max_tiles),
    };
    let vision = format!(
        "\nvision   hidden {}, {} of {} blocks run, {} heads of {}, mlp {}\n         {}x{} pixels in patches of {}: {cost}\n",
        v.hidden_size,
        blocks_run(c, parts),
        v.num_hidden_layers,
        v.num_attention_heads,
        v.head_dim,
        v.intermediate_size,
        v.image_size,
        v.image_size,
        v.patch_size,
    );
    let long = t.long_rope.as_ref().map_or_else(String::new, |long| {
        format!(", other angles beyond {} tokens", long.original_max_position_embeddings)
    });
    vision
        + &format!(
            "text     hidden {}, {} layers, {} heads and {} of keys and values, of {}, mlp {}\n         vocabulary {}, context {}, rope theta {}{long}\n",
            t.hidden_size,
            t.num_hidden_layers,
            t.num_attention_heads,
            t.num_key_value_heads,
            t.head_dim,
            t.intermediate_size,
            t.vocab_size,
            t.max_position_embeddings,
            t.rope_theta,
        )
}

fn as_text(args: &InspectArgs, report: &Report) -> String {
    let Report { checkpoint: c, model, memory: m, warnings } = report;
    let mut out = format!("{}\n  {}, {}\n", c.name, c.facts().architecture, contents(c.weights.as_ref(), &**model));
    out += &c.facts().parts.as_ref().map_or_else(String::new, |parts| parts_text(c, parts));
    let tokens = m.kv_blocks * KV_BLOCK as u64;
    out += &format!(
        "\nmemory in {}, {} sequence{} of {} tokens a step\n  weights  {:>9}\n  scratch  {:>9}\n  io       {:>9}\n",
        c.dtype,
        args.max_num_seqs,
        if args.max_num_seqs == 1 { "" } else { "s" },
        c.max_model_len,
        human_bytes(m.weights),
        human_bytes(m.scratch),
        human_bytes(m.io),
    );
    out += &format!(
        "  kv       {:>9} a block of {KV_BLOCK} tokens, {} a token\n",
        human_bytes(m.kv_block),
        human_bytes(m.kv_block / KV_BLOCK as u64)
    );
    out += &format!(
        "  {} of {} may be used: a pool of {} blocks fits, {tokens} tokens or {:.1} sequences of the greatest length\n",
        human_bytes(m.budget),
        human_bytes(m.available),
        m.kv_blocks,
        tokens as f64 / c.max_model_len as f64,
    );
    if args.tensors {
        out += "\ntensors\n";
        for (name, t) in c.weights.iter().flat_map(Weights::tensors) {
            out += &format!("  {:<80} {:>5?} {:?}\n", name.escape_debug().to_string(), t.stored, t.shape);
        }
    }
    for warning in warnings {
        out += &format!("warning: {warning}\n");
    }
    out
}

fn as_json(args: &InspectArgs, report: &Report) -> Value {
    let Report { checkpoint: c, memory: m, warnings, .. } = report;
    let pictures = &c.facts().pictures;
    let mut out = json!({
        "model": c.name,
        "architecture": c.facts().architecture,
        "dtype": c.dtype.name(),
        "max_model_len": c.max_model_len,
        "image_tokens": pictures.tokens.most(),
        "image_tiles": pictures.max_tiles,
        "files": c.weights.iter().flat_map(Weights::files).map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
        "memory": {
            "weights_bytes": m.weights, "scratch_bytes": m.scratch, "io_bytes": m.io, "kv_block_bytes": m.kv_block,
            "available_bytes": m.available, "budget_bytes": m.budget, "kv_blocks": m.kv_blocks,
            "kv_tokens": m.kv_blocks * KV_BLOCK as u64,
        },
        "warnings": warnings,
    });
    if let Some(parts) = &c.facts().parts {
        let (v, t) = (&parts.vision, &parts.text);
        out["vision"] = json!({
            "hidden_size": v.hidden_size, "intermediate_size": v.intermediate_size, "num_hidden_layers": v.num_hidden_layers,
            "num_attention_heads": v.num_attention_heads, "head_dim": v.head_dim, "image_size": v.image_size,
            "patch_size": v.patch_size, "feature_layers": parts.feature_layers, "blocks_run": blocks_run(c, parts),
        });
        out["text"] = json!({
            "hidden_size": t.hidden_size, "intermediate_size": t.intermediate_size, "num_hidden_layers": t.num_hidden_layers,
            "num_attention_heads": t.num_attention_heads, "num_key_value_heads": t.num_key_value_heads, "head_dim": t.head_dim,
            "vocab_size": t.vocab_size, "max_position_embeddings": t.max_position_embeddings, "rope_theta": t.rope_theta,
            "original_max_position_embeddings": t.long_rope.as_ref().map(|long| long.original_max_position_embeddings),
        });
    }
    if args.tensors {
        let tensor = |(name, t): (&str, &crate::weights::Tensor)| json!({"name": name, "dtype": format!("{:?}", t.stored), "shape": t.shape});
        out["tensors"] = c.weights.iter().flat_map(Weights::tensors).map(tensor).collect();
    }
    out
}
