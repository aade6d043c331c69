//! One request after another.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{TIMES, WorkArgs, headline, read, report, spread};
use crate::engine::{Engine, Output};

#[derive(Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// A picture file of the prompt; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Requests that are measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Requests before those
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters_warmup: u32,
}

pub(super) fn run(args: &LatencyArgs) -> Result<()> {
    let pictures = read(&args.image)?;
    let engine = args.work.open()?;
    let request = args.work.request(&engine, pictures)?;
    let answer = || engine.answer(&request, |_| ControlFlow::Continue(()));
    for _ in 0..args.num_iters_warmup {
        answer()?;
    }
    let outputs = (0..args.num_iters).map(|_| answer()).collect::<crate::Result<Vec<_>>>()?;
    let text = if args.work.json { as_json(&engine, &outputs) } else { table(&engine, &outputs) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn table(engine: &Engine, outputs: &[Output]) -> String {
    let first = &outputs[0];
    let mut text = format!("{}, {} requests\n", headline(engine, first), outputs.len());
    text += &format!("{:<28}{:>10}{:>10}{:>10}\n", "milliseconds", "median", "min", "max");
    for (_, what, time) in TIMES {
        text += &format!("{what:<28}{}\n", spread(outputs, time).columns());
    }
    text += &format!("loaded in {:.0} ms", first.timings.load_ms);
    if let Some(upload) = engine.upload() {
        let gb = upload.bytes as f64 / 1e9;
        text += &format!(", of which {:.0} for {gb:.2} GB of weights ({:.1} GB/s)", upload.ms, upload.gb_per_s());
    }
    text.push('\n');
    text
}

fn as_json(engine: &Engine, outputs: &[Output]) -> String {
    let times = TIMES.iter().map(|(name, _, time)| (name.to_string(), spread(outputs, *time).json()));
    let mut report = report("latency", engine, &outputs[0]);
    report.insert("requests".into(), json!(outputs.len()));
    report.insert("times".into(), json!(times.collect::<Map<String, Value>>()));
    format!("{:#}\n", Value::Object(report))
}
