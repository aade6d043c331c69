//! Many requests at once.

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use super::cost::RequestCost;
use super::machine::Setup;
use super::pictures::Bytes;
use super::record::Better::Higher;
use super::record::{Bench, Better, Figure, Figures, Input};
use super::work::{PARTS, WorkArgs, sizes, tpot};
use crate::engine::{Engine, ImageInput, Output, Request, Stats};

#[derive(Args)]
pub(crate) struct ThroughputArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Requests that are asked at once; of several --image, they take one each in turn
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    num_prompts: u32,
    /// Times that all of them are asked and measured
    #[arg(long, visible_alias = "num-iters", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
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
    /// Operations of all of them.
    flops: f64,
}

impl Pass {
    fn measure(engine: &Engine, requests: &[Request]) -> Result<Pass> {
        let (before, start) = (engine.stats(), Instant::now());
        let outputs = engine.generate(requests);
        let seconds = start.elapsed().as_secs_f64();
        let outputs = outputs.into_iter().collect::<crate::Result<Vec<_>>>()?;
        Ok(Pass { seconds, outputs, stats: [before, engine.stats()], flops: 0.0 })
    }

    fn rate(&self, tokens: impl Fn(&Output) -> usize) -> f64 {
        self.outputs.iter().map(tokens).sum::<usize>() as f64 / self.seconds
    }

    /// What a counter grew by.
    fn grown(&self, counter: impl Fn(&Stats) -> f64) -> f64 {
        counter(&self.stats[1]) - counter(&self.stats[0])
    }

    /// The same for every step of the model.
    fn per_step(&self, counter: impl Fn(&Stats) -> f64) -> f64 {
        self.grown(counter) / self.grown(|s| s.steps as f64)
    }
}

/// A number of a pass: its name, in words, its unit, which way is better, and what it is.
type OfPass = (&'static str, &'static str, &'static str, Option<Better>, fn(&Pass) -> f64);

const RATES: [OfPass; 4] = [
    ("request_throughput", "requests", "req/s", Some(Higher), |p| p.rate(|_| 1)),
    ("output_throughput", "tokens of answers", "tok/s", Some(Higher), |p| p.rate(|o| o.outputs[0].token_ids.len())),
    ("total_token_throughput", "tokens of prompts and answers", "tok/s", Some(Higher), |p| {
        p.rate(|o| o.prompt_token_ids.len() + o.outputs[0].token_ids.len())
    }),
    ("compute_tflop_s", "all of it computes", "TFLOP/s", Some(Higher), |p| p.flops / p.seconds / 1e12),
];

const STEPS: [OfPass; 7] = [
    ("duration_s", "all requests", "s", None, |p| p.seconds),
    ("step_ms", "a step of the model", "ms", None, |p| 1e3 * p.seconds / p.grown(|s| s.steps as f64)),
    ("schedule_ms", "  to plan it", "ms", None, |p| p.per_step(|s| s.schedule_ms)),
    ("enqueue_ms", "  to write and enqueue it", "ms", None, |p| p.per_step(|s| s.enqueue_ms)),
    ("wait_ms", "  to wait for the device", "ms", None, |p| p.per_step(|s| s.wait_ms)),
    ("deliver_ms", "  to hand out tokens", "ms", None, |p| p.per_step(|s| s.deliver_ms)),
    ("preemptions", "sequences that gave way", "a pass", None, |p| p.grown(|s| s.scheduler.preemptions as f64)),
];

pub(super) fn run(args: &ThroughputArgs) -> Result<()> {
    let work = &args.work;
    let outcome = work.outcome.open(Bench::Throughput)?;
    let trace = work.profile.trace()?;
    let prompts = pictures(args)?;
    let setup = Setup::measured(&work.model, &work.options())?;
    let engine = work.open()?;
    let kinds = kinds(&prompts, work.pictures.image.len());
    let requests = requests(&engine, work, &prompts, kinds)?;
    for _ in 0..args.num_iters_warmup {
        Pass::measure(&engine, &requests)?;
    }
    engine.profile(work.profile.profile());
    let passes = (0..args.repeats).map(|_| Pass::measure(&engine, &requests)).collect::<Result<Vec<_>>>()?;
    engine.profile(false);
    if let Some(trace) = trace {
        trace.record(&engine, &setup.machine, || Pass::measure(&engine, &requests).map(drop))?;
    }

    let outputs = &passes[0].outputs;
    let tokens = outputs[0].outputs[0].token_ids.len();
    let flops = |output: &Output, pictures: &[Bytes]| {
        RequestCost::of(&setup.checkpoint, pictures, output.prompt_token_ids.len(), tokens).map(|c| c.flops(tokens))
    };
    let flops_of_kinds = outputs.iter().zip(&prompts).take(kinds).map(|(output, pictures)| flops(output, pictures));
    let flops_of_kinds = flops_of_kinds.collect::<Result<Vec<_>>>()?;
    let flops = (0..requests.len()).map(|i| flops_of_kinds[i % kinds] as f64).sum();
    let passes: Vec<_> = passes.into_iter().map(|pass| Pass { flops, ..pass }).collect();
    let input = input(args, &passes[0].outputs, sizes(&prompts[..kinds].concat())?);
    outcome.tell(&setup.record(Bench::Throughput, input, figures(&setup, &passes)))
}

/// The pictures of every prompt: a file for each in turn, or some that no other has.
fn pictures(args: &ThroughputArgs) -> Result<Vec<Vec<Bytes>>> {
    let (work, count) = (&args.work, args.num_prompts as usize);
    if work.pictures.image.is_empty() {
        return work.pictures.of_prompts(work.seed, count as u64);
    }
    let files = work.pictures.of_prompt(work.seed, 0)?;
    Ok((0..count).map(|i| vec![files[i % files.len()].clone()]).collect())
}

/// Prompts that may need another text than those before them: the pictures of a file may take another number of tokens;
/// those of the seed have one size.
fn kinds(prompts: &[Vec<Bytes>], files: usize) -> usize {
    files.clamp(1, prompts.len())
}

fn requests(engine: &Engine, work: &WorkArgs, prompts: &[Vec<Bytes>], kinds: usize) -> Result<Vec<Request>> {
    let kinds = prompts[..kinds].iter().map(|pictures| work.request(engine, pictures.clone()));
    let kinds = kinds.collect::<Result<Vec<_>>>()?;
    let request = |(i, pictures): (usize, &Vec<Bytes>)| Request {
        images: pictures.iter().cloned().map(ImageInput::Bytes).collect(),
        ..kinds[i % kinds.len()].clone()
    };
    Ok(prompts.iter().enumerate().map(request).collect())
}

fn input(args: &ThroughputArgs, outputs: &[Output], pictures: Vec<String>) -> Input {
    let mean = |of: &dyn Fn(&Output) -> usize| (outputs.iter().map(of).sum::<usize>() / outputs.len()) as u64;
    Input {
        prompt_tokens: mean(&|o| o.prompt_token_ids.len()),
        image_tokens: Some(mean(&|o| o.image_tokens.iter().sum())),
        output_tokens: mean(&|o| o.outputs[0].token_ids.len()),
        pictures,
        requests: outputs.len() as u64,
        concurrency: None,
        request_rate: None,
        seed: args.work.seed,
        repeats: args.repeats.into(),
        warmup: args.num_iters_warmup.into(),
    }
}

fn figures(setup: &Setup, passes: &[Pass]) -> Figures {
    let mut figures = Figures::default();
    let mut push_all = |table: &[OfPass]| {
        for (name, what, unit, better, of) in table {
            let repeats: Vec<_> = passes.iter().map(|pass| vec![of(pass)]).collect();
            let ceiling = setup.matrix_ceiling().filter(|_| *unit == "TFLOP/s");
            let figure = Figure::of(what, unit, *better, &repeats);
            figures.push(*name, figure.map(|figure| figure.beside(ceiling)));
        }
    };
    push_all(&RATES);
    push_all(&STEPS);
    // When everything is asked at once, these say how it was queued, and the rates how good that was.
    let mut times = |name: &str, what: &str, of: &dyn Fn(&Output) -> f64| {
        let repeats: Vec<_> = passes.iter().map(|pass| pass.outputs.iter().map(of).collect()).collect();
        figures.push(name, Figure::of(what, "ms", None, &repeats));
    };
    let e2el = |o: &Output| o.timings.ttft_ms + o.timings.decode_ms;
    times("ttft_ms", "first token of a request", &|o| o.timings.ttft_ms);
    for (name, what, part) in PARTS {
        times(name, what, &part);
    }
    times("tpot_ms", "every token after it", &|o| tpot(o.timings.ttft_ms, e2el(o), o.outputs[0].token_ids.len()));
    times("e2el_ms", "the whole answer", &e2el);
    figures
}
