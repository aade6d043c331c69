//! `ocelli bench`: what users wait for, measured.

mod latency;
pub(crate) mod record;
mod samples;
#[cfg(feature = "server")]
mod serve;
mod throughput;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{EngineArgs, ModelArgs, run};
use crate::engine::{Device, Engine, ImageInput, Options, Output, Prompt, Request, Sampling};

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// One request after another: first token, time per token
    Latency(latency::LatencyArgs),
    /// Many requests at once: requests and tokens a second
    Throughput(throughput::ThroughputArgs),
    /// A running server, over HTTP: first token, time per token, requests and tokens a second
    #[cfg(feature = "server")]
    Serve(serve::ServeArgs),
}

/// What is asked of which engine.
#[derive(Args)]
struct WorkArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    /// Tokens of a prompt, those of its pictures among them
    #[arg(long, default_value_t = 645, value_parser = clap::value_parser!(u32).range(1..))]
    input_len: u32,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    output_len: u32,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Latency(args) => latency::run(args),
        BenchCommand::Throughput(args) => throughput::run(args),
        #[cfg(feature = "server")]
        BenchCommand::Serve(args) => serve::run(args),
    }
}

impl WorkArgs {
    /// An engine without caches: with them, all requests but the first would have next to nothing to do.
    fn open(&self) -> Result<Engine> {
        let options = self.engine.apply(self.model.options(), self.device);
        run::load(&self.model, Options { prefix_caching: false, encoder_caching: false, ..options })
    }

    /// A greedy request whose prompt has exactly the length that was asked for: pictures, and a word over and over.
    fn request(&self, engine: &Engine, pictures: Vec<ImageInput>) -> Result<Request> {
        let head: String = (1..=pictures.len()).map(|number| engine.placeholder(number) + "\n").collect();
        let sampling = Sampling { temperature: 0.0, max_tokens: Some(1), ignore_eos: true, ..Sampling::default() };
        let mut request = Request { images: pictures, sampling, ..Request::default() };
        let wanted = self.input_len as usize;
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
        request.sampling.max_tokens = Some(self.output_len as usize);
        Ok(request)
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<ImageInput>> {
    paths.iter().map(|path| ImageInput::open(path)).collect()
}

/// Milliseconds that an answer spent on something.
type Time = fn(&Output) -> f64;

/// Every time by its name in the report and in words.
const TIMES: [(&str, &str, Time); 6] = [
    ("prepare_ms", "pictures and tokens ready", |o| o.timings.prepare_ms),
    ("queue_ms", "then until it is served", |o| o.timings.queue_ms),
    ("prefill_ms", "then to the first token", |o| o.timings.prefill_ms),
    ("ttft_ms", "first token", |o| o.timings.ttft_ms),
    ("tpot_ms", "every token after it", |o| o.timings.decode_ms / (o.outputs[0].token_ids.len() as f64 - 1.0).max(1.0)),
    ("e2el_ms", "the whole answer", |o| o.timings.ttft_ms + o.timings.decode_ms),
];

/// Numbers in ascending order.
struct Spread(Vec<f64>);

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Spread(values)
    }

    /// The value that a share of them does not exceed, between two neighbours as far as it lies between them.
    fn quantile(&self, share: f64) -> f64 {
        let at = share * (self.0.len() - 1) as f64;
        let (low, high) = (self.0[at.floor() as usize], self.0[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    fn json(&self) -> Value {
        json!({ "median": self.quantile(0.5), "min": self.quantile(0.0), "max": self.quantile(1.0) })
    }

    /// Median, smallest and largest in columns of ten.
    fn columns(&self) -> String {
        [0.5, 0.0, 1.0].map(|share| format!("{:>10.3}", self.quantile(share))).concat()
    }
}

fn spread<'a>(outputs: impl IntoIterator<Item = &'a Output>, time: Time) -> Spread {
    Spread::of(outputs.into_iter().map(time))
}

/// What ran where, the first words of every table.
fn headline(engine: &Engine, o: &Output) -> String {
    format!(
        "{} in {} on {}: {} prompt tokens ({} of pictures), {} tokens of answer",
        engine.model_name(),
        engine.dtype(),
        engine.hardware(),
        o.prompt_token_ids.len(),
        o.image_tokens.iter().sum::<usize>(),
        o.outputs[0].token_ids.len(),
    )
}

/// What ran where and when, the first fields of every report.
fn report(bench: &str, engine: &Engine, o: &Output) -> Map<String, Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let fields = [
        ("bench", json!(bench)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("unix_time", json!(now)),
        ("model", json!(engine.model_name())),
        ("backend", json!(engine.backend_name())),
        ("hardware", json!(engine.hardware())),
        ("dtype", json!(engine.dtype().name())),
        ("prompt_tokens", json!(o.prompt_token_ids.len())),
        ("image_tokens", json!(o.image_tokens)),
        ("output_tokens", json!(o.outputs[0].token_ids.len())),
        ("load_ms", json!(o.timings.load_ms)),
        ("upload", json!(engine.upload().map(|u| json!({ "bytes": u.bytes, "ms": u.ms, "gb_per_s": u.gb_per_s() })))),
    ];
    fields.map(|(name, value)| (name.to_string(), value)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let spread = Spread::of([3.0, 1.0, 2.0, 4.0].into_iter());
        assert_eq!([0.0, 0.5, 1.0].map(|share| spread.quantile(share)), [1.0, 2.5, 4.0]);
        assert_eq!(Spread::of([7.0].into_iter()).quantile(0.99), 7.0);
    }
}
