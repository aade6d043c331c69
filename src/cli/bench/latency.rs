//! One request after another.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use super::cost::RequestCost;
use super::machine::Setup;
use super::record::Better::{Higher, Lower};
use super::record::{Bench, Figure, Figures, Input};
use super::work::{PARTS, WorkArgs, sizes, tpot};
use crate::engine::{Engine, Event, Output, Request};

#[derive(Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Requests of a repeat
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Requests before those
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters_warmup: u32,
    /// Times that so many are measured; their medians are the spread
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
}

pub(super) fn run(args: &LatencyArgs) -> Result<()> {
    let work = &args.work;
    let outcome = work.outcome.open(Bench::Latency)?;
    let trace = work.profile.trace()?;
    let pictures = work.pictures.of_prompt(work.seed, 0)?;
    let setup = Setup::measured(&work.model, &work.options())?;
    let engine = work.open()?;
    let request = work.request(&engine, pictures.clone())?;
    for _ in 0..args.num_iters_warmup {
        Answer::measure(&engine, &request)?;
    }
    engine.profile(work.profile.profile());
    let repeat = || (0..args.num_iters).map(|_| Answer::measure(&engine, &request)).collect::<Result<Vec<_>>>();
    let repeats = (0..args.repeats).map(|_| repeat()).collect::<Result<Vec<_>>>()?;
    engine.profile(false);
    if let Some(trace) = trace {
        trace.record(&engine, &setup.machine, || Answer::measure(&engine, &request).map(drop))?;
    }

    let output = &repeats[0][0].output;
    let (prompt, tokens) = (output.prompt_token_ids.len(), output.outputs[0].token_ids.len());
    let cost = RequestCost::of(&setup.checkpoint, &pictures, prompt, tokens)?;
    let input = Input {
        prompt_tokens: prompt as u64,
        image_tokens: Some(output.image_tokens.iter().sum::<usize>() as u64),
        output_tokens: tokens as u64,
        pictures: sizes(&pictures)?,
        requests: args.num_iters.into(),
        concurrency: Some(1),
        request_rate: None,
        seed: work.seed,
        repeats: args.repeats.into(),
        warmup: args.num_iters_warmup.into(),
    };
    outcome.tell(&setup.record(Bench::Latency, input, figures(&setup, &cost, &repeats)))
}

/// An answer, and when its tokens came, in milliseconds from when it was asked for.
struct Answer {
    ttft: f64,
    /// From each token to the next.
    itl: Vec<f64>,
    /// Until the last token.
    e2el: f64,
    output: Output,
}

impl Answer {
    fn measure(engine: &Engine, request: &Request) -> Result<Answer> {
        let request = request.clone();
        let begin = Instant::now();
        let mut times = Vec::new();
        for event in engine.submit(request) {
            match event {
                Event::Piece(_) => times.push(1e3 * begin.elapsed().as_secs_f64()),
                Event::Done(output) => {
                    let (&[ttft, ..], &[.., e2el]) = (times.as_slice(), times.as_slice()) else { break };
                    let itl = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
                    return Ok(Answer { ttft, itl, e2el, output: *output });
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
        bail!("an answer ended without a token")
    }

    fn tpot(&self) -> f64 {
        tpot(self.ttft, self.e2el, self.output.outputs[0].token_ids.len())
    }
}

fn figures(setup: &Setup, cost: &RequestCost, repeats: &[Vec<Answer>]) -> Figures {
    let each = |of: &dyn Fn(&Answer) -> f64| repeats.iter().map(|r| r.iter().map(of).collect()).collect::<Vec<_>>();
    let mut figures = Figures::default();
    figures.push("ttft_ms", Figure::of("first token", "ms", Some(Lower), &each(&|a| a.ttft)));
    for (name, what, part) in PARTS {
        figures.push(name, Figure::of(what, "ms", None, &each(&|a| part(&a.output))));
    }
    figures.push("tpot_ms", Figure::of("every token after it", "ms", Some(Lower), &each(&Answer::tpot)));
    let gaps: Vec<_> = repeats.iter().map(|r| r.iter().flat_map(|a| a.itl.iter().copied()).collect()).collect();
    figures.push("itl_ms", Figure::of("between two tokens", "ms", Some(Lower), &gaps));
    figures.push("e2el_ms", Figure::of("the whole answer", "ms", Some(Lower), &each(&|a| a.e2el)));
    // Bytes a millisecond are 10^-6 GB/s, operations a millisecond 10^-9 TFLOP/s.
    let read = each(&|a| cost.decode_bytes as f64 / a.tpot() / 1e6);
    let read = Figure::of("a decode step moves", "GB/s", Some(Higher), &read);
    figures.push("decode_gb_s", read.map(|figure| figure.beside(setup.read_ceiling())));
    let multiplied = each(&|a| cost.prefill_flops as f64 / a.output.timings.prefill_ms / 1e9);
    let multiplied = Figure::of("pictures and prompt compute", "TFLOP/s", Some(Higher), &multiplied);
    figures.push("prefill_tflop_s", multiplied.map(|figure| figure.beside(setup.matrix_ceiling())));
    figures
}
