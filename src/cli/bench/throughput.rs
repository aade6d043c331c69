//! Many requests at once.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Spread, TIMES, WorkArgs, headline, read, report, spread};
use crate::engine::{Engine, Output, Request, Stats};

#[derive(Args)]
pub(crate) struct ThroughputArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// A picture file for a prompt; of several, the prompts take one each in turn
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Requests that are asked at once
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    num_prompts: u32,
    /// Times that all of them are asked and measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Times before those
    #[arg(long, default_value_t = 1)]
    num_iters_warmup: u32,
}

/// All requests, once.
struct Pass {
    seconds: f64,
    outputs: Vec<Output>,
    /// The engine's counters when it began and when it ended.
    stats: [Stats; 2],
}

impl Pass {
    fn measure(engine: &Engine, requests: &[Request]) -> Result<Pass> {
        let (before, start) = (engine.stats(), Instant::now());
        let outputs = engine.generate(requests);
        let seconds = start.elapsed().as_secs_f64();
        let outputs = outputs.into_iter().collect::<crate::Result<Vec<_>>>()?;
        Ok(Pass { seconds, outputs, stats: [before, engine.stats()] })
    }

    fn rate(&self, tokens: impl Fn(&Output) -> usize) -> f64 {
        self.outputs.iter().map(tokens).sum::<usize>() as f64 / self.seconds
    }

    /// What a counter of milliseconds grew by, for every step of the model.
    fn per_step(&self, counter: impl Fn(&Stats) -> f64) -> f64 {
        (counter(&self.stats[1]) - counter(&self.stats[0])) / self.steps()
    }

    fn steps(&self) -> f64 {
        (self.stats[1].steps - self.stats[0].steps) as f64
    }
}

/// A number of a pass, by its name in the report and in words.
type Figure = (&'static str, &'static str, fn(&Pass) -> f64);

const FIGURES: [Figure; 9] = [
    ("elapsed_time", "seconds", |p| p.seconds),
    ("requests_per_second", "requests a second", |p| p.rate(|_| 1)),
    ("output_tokens_per_second", "tokens of answers a second", |p| p.rate(|o| o.outputs[0].token_ids.len())),
    ("tokens_per_second", "tokens a second", |p| p.rate(|o| o.prompt_token_ids.len() + o.outputs[0].token_ids.len())),
    ("step_ms", "milliseconds a step", |p| 1e3 * p.seconds / p.steps()),
    ("schedule_ms", "of them to plan it", |p| p.per_step(|s| s.schedule_ms)),
    ("enqueue_ms", "to write and enqueue it", |p| p.per_step(|s| s.enqueue_ms)),
    ("wait_ms", "to wait for the device", |p| p.per_step(|s| s.wait_ms)),
    ("deliver_ms", "and to hand out tokens", |p| p.per_step(|s| s.deliver_ms)),
];

pub(super) fn run(args: &ThroughputArgs) -> Result<()> {
    let pictures = read(&args.image)?;
    let engine = args.work.open()?;
    let picture = |i: usize| if pictures.is_empty() { vec![] } else { vec![pictures[i % pictures.len()].clone()] };
    // Every picture may take another number of tokens, and so need another prompt.
    let kinds = (0..pictures.len().max(1)).map(|i| args.work.request(&engine, picture(i)));
    let kinds = kinds.collect::<Result<Vec<_>>>()?;
    let requests: Vec<_> = (0..args.num_prompts as usize).map(|i| kinds[i % kinds.len()].clone()).collect();
    for _ in 0..args.num_iters_warmup {
        Pass::measure(&engine, &requests)?;
    }
    let passes = (0..args.num_iters).map(|_| Pass::measure(&engine, &requests)).collect::<Result<Vec<_>>>()?;
    let text = if args.work.json { as_json(&engine, &passes) } else { table(&engine, &passes) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn figure(passes: &[Pass], of: fn(&Pass) -> f64) -> Spread {
    Spread::of(passes.iter().map(of))
}

fn outputs(passes: &[Pass]) -> impl Iterator<Item = &Output> {
    passes.iter().flat_map(|p| &p.outputs)
}

fn table(engine: &Engine, passes: &[Pass]) -> String {
    let Pass { outputs: first, stats, .. } = &passes[0];
    let mut text =
        format!("{}, {} requests at once, {} times\n", headline(engine, &first[0]), first.len(), passes.len());
    text += &format!("{:<28}{:>10}{:>10}{:>10}\n", "of the times", "median", "min", "max");
    for (_, what, of) in FIGURES {
        text += &format!("{what:<28}{}\n", figure(passes, of).columns());
    }
    text += &format!("{:<28}{:>10}{:>10}{:>10}\n", "milliseconds of a request", "median", "min", "max");
    for (_, what, time) in TIMES {
        text += &format!("{what:<28}{}\n", spread(outputs(passes), time).columns());
    }
    let preemptions = passes[passes.len() - 1].stats[1].scheduler.preemptions - stats[0].scheduler.preemptions;
    text += &format!("{preemptions} preemptions; loaded in {:.0} ms\n", first[0].timings.load_ms);
    text
}

fn as_json(engine: &Engine, passes: &[Pass]) -> String {
    let mut report = report("throughput", engine, &passes[0].outputs[0]);
    report.insert("num_requests".into(), json!(passes[0].outputs.len()));
    report.insert("passes".into(), json!(passes.len()));
    for (name, _, of) in FIGURES {
        report.insert(name.into(), figure(passes, of).json());
    }
    let times = TIMES.iter().map(|(name, _, time)| (name.to_string(), spread(outputs(passes), *time).json()));
    report.insert("times".into(), json!(times.collect::<Map<String, Value>>()));
    format!("{:#}\n", Value::Object(report))
}
