//! `ocelli batch`: a file of requests to a file of answers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::media_args::MediaArgs;
use super::{EngineArgs, ModelArgs, progress, run, tell};
use crate::engine::Device;
use crate::server::batch::{self, BatchOptions, Progress};
use crate::server::media::Media;

/// The files behind it leave no room for a default.
const MODEL_HELP: &str = "A directory, or org/name in the local Hugging Face cache";

#[derive(Args)]
#[command(mut_arg("model", |model| model.required(true).index(1).help(MODEL_HELP)))]
pub(crate) struct BatchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The requests: lines of OpenAI's Batch API for /v1/chat/completions
    #[arg(index = 2, value_name = "IN.jsonl")]
    input: PathBuf,
    /// The answers, one line each, as they come; what is in it already is kept and not asked again
    #[arg(index = 3, value_name = "OUT.jsonl")]
    output: PathBuf,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    /// A name that requests may have for the model; MODEL and the name of its directory when left out
    #[arg(long, env = "OCELLI_SERVED_MODEL_NAME", value_name = "NAME,...", value_delimiter = ',')]
    served_model_name: Vec<String>,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &BatchArgs) -> Result<()> {
    // Before the model is loaded: nobody should wait for a wrong name.
    let media = args.media.options();
    Media::new(media.clone())?;
    batch::check(&args.input, &args.output)?;
    let engine = run::load(&args.model, args.engine.apply(args.model.options(), args.device))?;
    let names = args.model.served_names(&args.served_model_name, &engine);
    let options = BatchOptions { served_model_names: names, media };
    let (bar, start) = (progress::lines(), Instant::now());
    let done = batch::run(&engine, &args.input, &args.output, &options, |p| {
        bar.set_length(p.total_bytes);
        bar.set_position(p.bytes);
        bar.set_message(rates(p, start.elapsed()));
    });
    bar.finish_and_clear();
    let done = done?;
    tell(format_args!("[{}]", summary(&done, start.elapsed())));
    let failed = done.failed + done.kept_failed;
    ensure!(failed == 0, "{failed} of {} lines have an error in {}", done.lines(), args.output.display());
    Ok(())
}

fn rates(p: &Progress, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(1e-9);
    let (lines, tokens) = ((p.answered + p.failed) as f64 / seconds, p.completion_tokens as f64 / seconds);
    format!("{} lines, {} with errors, {lines:.1} lines/s, {tokens:.0} tokens/s", p.lines(), p.failed + p.kept_failed)
}

fn summary(p: &Progress, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    format!(
        "{} lines: {} answered, {} with errors, {} already there; {} prompt and {} answer tokens in {seconds:.2} s, {:.1} \
         lines/s",
        p.lines(),
        p.answered,
        p.failed,
        p.kept,
        p.prompt_tokens,
        p.completion_tokens,
        (p.answered + p.failed) as f64 / seconds.max(1e-9)
    )
}
