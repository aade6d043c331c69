//! `ocelli bench`: what a user waits for, measured.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{EngineArgs, ModelArgs, run};
use crate::engine::{Device, Engine, Options, Output, Prompt, Request, Sampling};

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// One request after another: first token, time per token
    Latency(LatencyArgs),
}

#[derive(Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    /// A picture file of the prompt; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Tokens of the prompt, those of its pictures among them
    #[arg(long, default_value_t = 645, value_parser = clap::value_parser!(u32).range(1..))]
    input_len: u32,
    /// Tokens of the answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    output_len: u32,
    /// Requests that are measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Requests before those
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters_warmup: u32,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(command: &BenchCommand) -> Result<()> {
    let BenchCommand::Latency(args) = command;
    let pictures = args.image.iter().map(|path| run::read_picture(path)).collect::<Result<Vec<_>>>()?;
    // Every request is the same: with caches, all but the first would have next to nothing to do.
    let options = args.engine.apply(args.model.options(), args.device);
    let options = Options { prefix_caching: false, encoder_caching: false, ..options };
    let engine = run::load(&args.model, options)?;
    let request = request(&engine, pictures, args)?;
    let answer = || engine.answer(&request, |_| ControlFlow::Continue(()));
    for _ in 0..args.num_iters_warmup {
        answer()?;
    }
    let outputs = (0..args.num_iters).map(|_| answer()).collect::<crate::Result<Vec<_>>>()?;
    let text = if args.json { as_json(&engine, &outputs) } else { table(&engine, &outputs) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// A greedy request whose prompt has exactly the length that was asked for: pictures, and a word over and over.
fn request(engine: &Engine, pictures: Vec<Vec<u8>>, args: &LatencyArgs) -> Result<Request> {
    let head = "<image>\n".repeat(pictures.len());
    let sampling = Sampling { temperature: 0.0, max_tokens: Some(1), ignore_eos: true, ..Sampling::default() };
    let mut request = Request { prompt: Prompt::Raw(String::new()), images: pictures, sampling, cache_salt: None };
    let wanted = args.input_len as usize;
    let mut words = 1;
    loop {
        request.prompt = Prompt::Raw(head.clone() + "word" + &" a".repeat(words - 1));
        let tokens = engine.answer(&request, |_| ControlFlow::Continue(()))?.prompt_token_ids.len();
        if tokens == wanted {
            break;
        }
        ensure!(
            tokens < wanted && words == 1,
            "--input-len {wanted} cannot be met: {words} words and the pictures make {tokens} tokens"
        );
        words += wanted - tokens;
    }
    request.sampling.max_tokens = Some(args.output_len as usize);
    Ok(request)
}

/// Milliseconds that an answer spent on something.
type Time = fn(&Output) -> f64;

/// Every time by its name in the report and in words.
const TIMES: [(&str, &str, Time); 5] = [
    ("prepare_ms", "pictures and tokens ready", |o| o.timings.prepare_ms),
    ("prefill_ms", "then to the first token", |o| o.timings.prefill_ms),
    ("ttft_ms", "first token", |o| o.timings.ttft_ms),
    ("tpot_ms", "every token after it", |o| o.timings.decode_ms / (o.outputs[0].token_ids.len() as f64 - 1.0).max(1.0)),
    ("e2el_ms", "the whole answer", |o| o.timings.ttft_ms + o.timings.decode_ms),
];

/// Median, smallest and largest.
fn spread(outputs: &[Output], time: Time) -> (f64, f64, f64) {
    let mut all: Vec<f64> = outputs.iter().map(time).collect();
    all.sort_by(f64::total_cmp);
    let [first, .., last] = all[..] else { return (all[0], all[0], all[0]) };
    ((all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0, first, last)
}

fn table(engine: &Engine, outputs: &[Output]) -> String {
    let o = &outputs[0];
    let mut text = format!(
        "{} in {} on {}: {} prompt tokens ({} of pictures), {} tokens of answer, {} requests\n{:<28}{:>10}{:>10}{:>10}\n",
        engine.model_name(),
        engine.dtype(),
        engine.hardware(),
        o.prompt_token_ids.len(),
        o.image_tokens.iter().sum::<usize>(),
        o.outputs[0].token_ids.len(),
        outputs.len(),
        "milliseconds",
        "median",
        "min",
        "max"
    );
    for (_, what, time) in TIMES {
        let (median, min, max) = spread(outputs, time);
        text += &format!("{what:<28}{median:>10.3}{min:>10.3}{max:>10.3}\n");
    }
    text += &format!("loaded in {:.0} ms", o.timings.load_ms);
    if let Some(upload) = engine.upload() {
        let gb = upload.bytes as f64 / 1e9;
        text += &format!(", of which {:.0} for {gb:.2} GB of weights ({:.1} GB/s)", upload.ms, upload.gb_per_s());
    }
    text.push('\n');
    text
}

fn as_json(engine: &Engine, outputs: &[Output]) -> String {
    let o = &outputs[0];
    let times = TIMES.iter().map(|(name, _, time)| {
        let (median, min, max) = spread(outputs, *time);
        (name.to_string(), json!({ "median": median, "min": min, "max": max }))
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let report = json!({
        "bench": "latency",
        "version": env!("CARGO_PKG_VERSION"),
        "unix_time": now,
        "model": engine.model_name(),
        "backend": engine.backend_name(),
        "hardware": engine.hardware(),
        "dtype": engine.dtype().name(),
        "prompt_tokens": o.prompt_token_ids.len(),
        "image_tokens": o.image_tokens,
        "output_tokens": o.outputs[0].token_ids.len(),
        "requests": outputs.len(),
        "load_ms": o.timings.load_ms,
        "upload": engine.upload().map(|u| json!({ "bytes": u.bytes, "ms": u.ms, "gb_per_s": u.gb_per_s() })),
        "times": times.collect::<serde_json::Map<String, Value>>(),
    });
    format!("{report:#}\n")
}
