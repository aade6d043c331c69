//! `ocelli batch`: a file of requests to a file of answers.

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;

use super::{EngineArgs, ModelArgs, progress, run, tell};
use crate::engine::Device;
use crate::server::batch::{self, BatchOptions, Progress};
use crate::server::media::{Media, MediaOptions};

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

/// What pictures may be fetched.
#[derive(Args)]
struct MediaArgs {
    /// The directory whose files file: URLs may name; without it, none
    #[arg(long, env = "OCELLI_ALLOWED_LOCAL_MEDIA_PATH", value_name = "DIR")]
    allowed_local_media_path: Option<PathBuf>,
    /// The only hosts that http: and https: URLs may name
    #[arg(long, env = "OCELLI_ALLOWED_MEDIA_DOMAINS", value_name = "HOST,...", value_delimiter = ',')]
    allowed_media_domains: Vec<String>,
    /// Let http: and https: URLs reach this machine and its networks
    #[arg(long, env = "OCELLI_ALLOW_PRIVATE_MEDIA_ADDRESSES", value_parser = FalseyValueParser::new())]
    allow_private_media_addresses: bool,
    /// Seconds until a picture must be there; 5 when left out, or what VLLM_IMAGE_FETCH_TIMEOUT says
    #[arg(long, env = "OCELLI_IMAGE_FETCH_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    image_fetch_timeout: Option<Duration>,
}

/// A positive number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse().ok().filter(|s| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.ok_or_else(|| "write a number of seconds above 0".into())
}

impl MediaArgs {
    fn options(&self) -> MediaOptions {
        let base = MediaOptions::default();
        let vllms = || env::var("VLLM_IMAGE_FETCH_TIMEOUT").ok().and_then(|text| seconds(&text).ok());
        MediaOptions {
            allowed_media_domains: self.allowed_media_domains.clone(),
            allow_private_addresses: self.allow_private_media_addresses,
            allowed_local_media_path: self.allowed_local_media_path.clone(),
            timeout: self.image_fetch_timeout.or_else(vllms).unwrap_or(base.timeout),
            ..base
        }
    }
}

pub(super) fn run(args: &BatchArgs) -> Result<()> {
    // Before the model is loaded: nobody should wait for a wrong name.
    let media = args.media.options();
    Media::new(media.clone())?;
    batch::check(&args.input, &args.output)?;
    let engine = run::load(&args.model, args.engine.apply(args.model.options(), args.device))?;
    let mut names = args.served_model_name.clone();
    if names.is_empty() {
        names.extend(args.model.model.clone());
        names.push(engine.model_name().to_owned());
        names.dedup();
    }
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
