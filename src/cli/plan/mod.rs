//! `ocelli plan`: the launch list that would run, with the bytes and operations of every step.

mod measured;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use measured::Measured;

use super::{ModelArgs, human_bytes, locate};
use crate::config::ProcessorKwargs;
use crate::engine::{Checkpoint, MAX_NUM_SEQS};
use crate::models::{ImageInputType, Limits, StepShape};
use crate::plan::{Plan, Step};
use crate::trace::{encode_name, step_name};

/// Tokens of the largest step that is planned: beyond any memory, and costs still fit 64 bits.
const MAX_STEP_TOKENS: usize = 1 << 22;

#[derive(Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Which plan; decode when left out
    kind: Option<Kind>,
    /// Sequences of a decode or prefill step
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_NUM_SEQS as i64))]
    batch: u32,
    /// Prompt tokens a sequence of a prefill step; those of one picture and 64 of text by default, if so many fit
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: Option<u32>,
    /// Pictures of an encode plan
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    images: u32,
    /// Tokens in the cache that the cost of attention is stated for; those of one picture and 64 of text by default, if so many fit
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Only the totals by op
    #[arg(long, conflicts_with_all = ["dot", "json"])]
    cost: bool,
    /// What each launch took in a trace of this model (`--trace` of run and bench), beside the least that it can take on that machine
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dot", "json"])]
    measured: Option<PathBuf>,
    /// Graphviz
    #[arg(long, conflicts_with = "json")]
    dot: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// One token a sequence
    Decode,
    /// The vision tower and the projector, or the projector alone with --image-input-type image_features
    Encode,
    /// Prompts
    Prefill,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let (plan, name) = build(args)?;
    let measured = args.measured.as_ref().map(|path| Measured::read(path, &name)).transpose()?;
    let text = match (args.dot, args.json, args.cost, measured) {
        (true, ..) => plan.to_dot(),
        (_, true, ..) => as_json(&plan),
        (_, _, true, None) => totals(&plan),
        (_, _, true, Some(measured)) => measured.totals(&plan),
        (_, _, false, None) => table(&plan),
        (_, _, false, Some(measured)) => measured.table(&plan),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

impl PlanArgs {
    /// The model may be left out, so a lone word that names a kind is the kind; the model is then what the environment
    /// says, whose place that word took.
    fn model_and_kind(&self) -> (Option<String>, Kind) {
        let model = self.model.model.clone();
        match (model.as_deref().and_then(|word| Kind::from_str(word, false).ok()), self.kind) {
            (Some(kind), None) => (env::var("OCELLI_MODEL").ok().filter(|m| Some(m) != model.as_ref()), kind),
            (_, kind) => (model, kind.unwrap_or(Kind::Decode)),
        }
    }
}

/// The plan, and what a trace calls it.
fn build(args: &PlanArgs) -> Result<(Plan, String)> {
    let (model, kind) = args.model_and_kind();
    let checkpoint = Checkpoint::open(&locate::model(model.as_deref())?, &args.model.options())?;
    let usual = checkpoint.facts().pictures.tokens.most() + 64;
    let (batch, images) = (args.batch as usize, args.images as usize);
    let usual = usual.min(checkpoint.max_model_len);
    let tokens = args.tokens.map_or(usual, |n| n as usize);
    let context = args.context.map_or(usual, |n| n as usize);
    let max_model_len = checkpoint.max_model_len;
    for (flag, value) in [("--tokens", tokens), ("--context", context)] {
        ensure!(value <= max_model_len, "{flag} is {value}; a sequence has at most {max_model_len} (--max-model-len)");
    }
    ensure!(
        batch * tokens <= MAX_STEP_TOKENS,
        "{batch} sequences of {tokens} tokens are {} a step; at most {MAX_STEP_TOKENS} can be planned (--batch, --tokens)",
        batch * tokens
    );
    let model = checkpoint.build(Limits {
        max_model_len,
        max_num_seqs: batch,
        max_num_batched_tokens: batch * tokens,
        max_logit_rows: batch,
        max_tiles: images * checkpoint.facts().pictures.max_tiles,
        kept_tiles: 0,
        kv_blocks: 0,
    })?;
    let shape = StepShape { decode: 0, prefill_seqs: 0, prefill_tokens: 0, logit_rows: batch, context };
    Ok(match kind {
        Kind::Encode => match checkpoint.image_input_type {
            ImageInputType::PixelValues => {
                let picture = model.processor(&ProcessorKwargs::new())?.prepare(&model.dummy_image()?)?;
                let tiles = images * picture.tiles;
                (model.encode_plan(tiles), encode_name(true, tiles))
            }
            ImageInputType::ImageFeatures => (model.project_plan(images), encode_name(false, images)),
        },
        Kind::Decode => (model.step_plan(StepShape { decode: batch, ..shape }), step_name(batch, 0)),
        Kind::Prefill => {
            let shape = StepShape { prefill_seqs: batch, prefill_tokens: batch * tokens, context: tokens, ..shape };
            (model.step_plan(shape), step_name(0, batch * tokens))
        }
    })
}

fn table(plan: &Plan) -> String {
    let width = plan.steps().iter().map(|s| s.label.as_str().len()).max().unwrap_or(0).max(5);
    let mut out = format!("{:>4}  {:width$}  {:>12}  {:>15}  {:>9}\n", "step", "label", "bytes", "flop", "flop/byte");
    for (i, Step { op, label }) in plan.steps().iter().enumerate() {
        let cost = op.cost();
        let intensity = cost.flops as f64 / cost.bytes as f64;
        out += &format!("{i:>4}  {label:width$}  {:>12}  {:>15}  {intensity:>9.2}\n", cost.bytes, cost.flops);
    }
    let total = plan.cost();
    out += &format!(
        "{} launches in {}, {} moved, {:.3} Gflop\n",
        plan.steps().len(),
        plan.dtype(),
        human_bytes(total.bytes),
        total.flops as f64 / 1e9
    );
    out
}

/// Launches, bytes and operations by op, the most bytes first.
fn totals(plan: &Plan) -> String {
    let mut by_op: Vec<(&str, u64, crate::kernel::Cost)> = Vec::new();
    for step in plan.steps() {
        match by_op.iter_mut().find(|(name, ..)| *name == step.op.name()) {
            Some((_, launches, cost)) => {
                *launches += 1;
                *cost += step.op.cost();
            }
            None => by_op.push((step.op.name(), 1, step.op.cost())),
        }
    }
    by_op.sort_by_key(|(_, _, cost)| std::cmp::Reverse(cost.bytes));
    let mut out = format!("{:<16}  {:>8}  {:>14}  {:>16}\n", "op", "launches", "bytes", "flop");
    for (name, launches, cost) in by_op {
        out += &format!("{name:<16}  {launches:>8}  {:>14}  {:>16}\n", cost.bytes, cost.flops);
    }
    let total = plan.cost();
    out += &format!("{:<16}  {:>8}  {:>14}  {:>16}\n", "total", plan.steps().len(), total.bytes, total.flops);
    out
}

fn as_json(plan: &Plan) -> String {
    let step = |(i, Step { op, label }): (usize, &Step)| {
        let cost = op.cost();
        let writes = op.writes();
        let writes: Vec<_> = writes
            .iter()
            .map(|s| json!({"region": s.region.name(), "byte": s.byte, "elements": s.len, "dtype": s.dtype.name()}))
            .collect();
        json!({"step": i, "label": label.as_str(), "op": op.name(), "bytes": cost.bytes, "flops": cost.flops, "writes": writes})
    };
    let steps: Vec<_> = plan.steps().iter().enumerate().map(step).collect();
    let total = plan.cost();
    let plan = json!({"dtype": plan.dtype().name(), "launches": steps.len(), "bytes": total.bytes, "flops": total.flops, "steps": steps});
    format!("{plan:#}\n")
}
