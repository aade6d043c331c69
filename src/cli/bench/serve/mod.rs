//! `ocelli bench serve`: a server as its clients meet it, measured as `vllm bench serve` does.
//!
//! | module | job |
//! |---|---|
//! | `prompts` | what is asked: texts and pictures that no cache has seen |
//! | `client` | connections that stay open, and a request over one of them |
//! | `answer` | the events of an answer, and when they came |
//! | `report` | the record, with the fields of vLLM's |

mod answer;
mod client;
mod prompts;
mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::super::{progress, tell};
use super::outcome::OutcomeArgs;
use super::pictures::Size;
use super::record::Bench;
use answer::Answer;
use client::{BaseUrl, Client};
use prompts::Prompts;

/// Threads of the client: it reads some hundred thousand events a second on one, and the server needs the rest.
const THREADS: usize = 4;
/// Requests, and words of a prompt.
const MOST: i64 = 1_000_000;
/// Fewest requests a second.
const SLOWEST: f64 = 1e-6;

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// The server, ocelli's or any that speaks OpenAI's interface
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    base_url: BaseUrl,
    /// The model that is asked; the first of /v1/models when left out
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What requests bring as Authorization: Bearer KEY
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Requests of a repeat
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    num_prompts: u32,
    /// Requests before those
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=MOST))]
    num_warmups: u32,
    /// Times that so many are measured, none of them asked twice; their medians are the spread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// Requests that are under way at once; as many as there are when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_concurrency: Option<u32>,
    /// Requests a second, at the times of a Poisson process; inf is all of them at once
    #[arg(long, default_value = "inf", value_parser = rate)]
    request_rate: f64,
    /// Words of a prompt, about as many tokens
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    input_len: u32,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    output_len: u32,
    /// Pictures of a prompt, each another one
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=64))]
    images: u32,
    /// Width and height of the pictures
    #[arg(long, alias = "image", default_value = "640x480", value_name = "WxH")]
    image_size: Size,
    /// Another one makes other prompts, pictures and times
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    outcome: OutcomeArgs,
    /// Put times, lengths and errors of every request into the JSON, too
    #[arg(long)]
    save_detailed: bool,
}

/// A request that was measured.
#[derive(Clone)]
struct Measured {
    /// When it was sent, from the beginning.
    start: Duration,
    /// How long it had waited for others to end, which the client owes.
    queued: Duration,
    /// The answer, or why there is none.
    answer: Result<Answer, String>,
}

/// The requests of a repeat, measured.
struct Pass {
    duration: Duration,
    /// In the order in which they were made.
    requests: Vec<Measured>,
}

/// All requests, measured.
struct Run {
    /// The name of the model.
    model: String,
    passes: Vec<Pass>,
    /// Bytes of a request's body, on average.
    body_bytes: f64,
}

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    let outcome = args.outcome.open(Bench::Serve)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(THREADS);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let run = runtime.context("starting the client's threads")?.block_on(measure(args))?;
    let failures = report::failures(&run);
    for (message, count) in failures.iter().take(10) {
        tell(format_args!("[{count} failed: {message}]"));
    }
    match report::record(&run, args) {
        Some(record) => outcome.tell(&record),
        None => bail!("no request succeeded; the last failed with: {}", failures[failures.len() - 1].0),
    }
}

async fn measure(args: &ServeArgs) -> Result<Run> {
    let client = Arc::new(Client::new(&args.base_url, args.api_key.as_deref())?);
    let model = match &args.model {
        Some(name) => name.clone(),
        None => client.first_model().await?,
    };
    let prompts = Prompts {
        model: &model,
        words: args.input_len,
        tokens: args.output_len,
        pictures: args.images,
        size: args.image_size,
        seed: args.seed,
    };
    // The first one shows whether the server answers at all. None of them is asked twice.
    let (each, warmups) = (args.num_prompts as usize, args.num_warmups as usize);
    let mut measured = prompts.bodies(each * args.repeats as usize + warmups + 1)?;
    let first = measured.split_off(measured.len() - warmups - 1);
    if let Err(message) = client.chat(first[0].clone()).await {
        bail!("the first request failed: {message}");
    }
    let bar = progress::requests(measured.len() as u64);
    let mut flow = Flow { client, places: places(args.max_concurrency), bar: ProgressBar::hidden() };
    flow.send(&first[1..], &vec![Duration::ZERO; warmups]).await?;
    flow.bar = bar.clone();
    let mut passes = Vec::new();
    for (i, bodies) in measured.chunks(each).enumerate() {
        let times = prompts::arrivals(each, args.request_rate, args.seed.wrapping_add(i as u64));
        passes.push(flow.send(bodies, &times).await?);
    }
    bar.finish_and_clear();
    let body_bytes = measured.iter().map(|body| body.len() as f64).sum::<f64>() / measured.len() as f64;
    Ok(Run { model, passes, body_bytes })
}

/// How requests go out.
struct Flow {
    client: Arc<Client>,
    /// Of requests that are under way.
    places: Arc<Semaphore>,
    bar: ProgressBar,
}

impl Flow {
    /// Send each body at its time, and wait for the answers.
    async fn send(&self, bodies: &[Bytes], times: &[Duration]) -> Result<Pass> {
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for (i, (body, &time)) in bodies.iter().zip(times).enumerate() {
            if !time.is_zero() {
                sleep_until((begin + time).into()).await;
            }
            let (client, places, body) = (self.client.clone(), self.places.clone(), body.clone());
            let (bar, arrived) = (self.bar.clone(), Instant::now());
            tasks.spawn(async move {
                let place = places.acquire_owned().await;
                let sent = Instant::now();
                let answer = client.chat(body).await;
                drop(place);
                bar.inc(1);
                (i, Measured { start: sent - begin, queued: sent - arrived, answer })
            });
        }
        let mut requests = tasks.join_all().await;
        let duration = begin.elapsed();
        requests.sort_by_key(|(i, _)| *i);
        Ok(Pass { duration, requests: requests.into_iter().map(|(_, measured)| measured).collect() })
    }
}

fn places(max_concurrency: Option<u32>) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(max_concurrency.map_or(Semaphore::MAX_PERMITS, |n| n as usize)))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| *rate >= SLOWEST);
    rate.ok_or_else(|| format!("must be a number of requests a second, from {SLOWEST} on, or inf"))
}
