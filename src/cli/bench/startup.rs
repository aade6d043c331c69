//! From the start of a process to its first token, in fresh processes.
//!
//! The program starts itself again with the same arguments and [`ONCE`]. That process loads the model as any would, asks,
//! and says at its first token where its time went; the clock that counts is that of the process which started it.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::super::{EngineArgs, ModelArgs, tell};
use super::machine::Setup;
use super::outcome::OutcomeArgs;
use super::pictures::{Bytes, Random, read, words};
use super::record::Better::{Higher, Lower};
use super::record::{Bench, Figure, Figures, Input};
use super::work::sizes;
use crate::engine::{Device, Engine, Event, ImageInput, Options, Prompt, Request, Sampling, Startup, Upload};
use crate::text::{Message, Role};

/// The flag of a process that is measured.
const ONCE: &str = "--once";

#[derive(Args)]
pub(crate) struct StartupArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    /// A picture file of the first request; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<std::path::PathBuf>,
    /// Words of the first request, about as many tokens
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    input_len: u32,
    /// Processes that are measured, one after another
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Processes before those, which leave the files in the page cache
    #[arg(long, default_value_t = 1)]
    num_iters_warmup: u32,
    /// Another one makes another prompt
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    outcome: OutcomeArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Start once, and say where the time went
    #[arg(long, hide = true)]
    once: bool,
}

pub(super) fn run(args: &StartupArgs) -> Result<()> {
    if args.once {
        return once(args);
    }
    let outcome = args.outcome.open(Bench::Startup)?;
    // Here, and not by every process that is started.
    let asked = options(args);
    if let Some(dir) = &asked.kernel_dir {
        tell(format_args!("warning: not the program's own kernels: those of {}", dir.display()));
    }
    if let Some(arch) = &asked.kernel_arch {
        tell(format_args!("warning: the kernels for {arch}, whatever this GPU is"));
    }
    let pictures: Vec<Bytes> = args.image.iter().map(|path| read(path)).collect::<Result<_>>()?;
    for _ in 0..args.num_iters_warmup {
        start()?;
    }
    let starts = (0..args.repeats).map(|_| start()).collect::<Result<Vec<_>>>()?;
    // Last, so that this process does not hold the GPU while others start on it.
    let setup = Setup::named(&args.model, &options(args))?;
    let first = &starts[0].report;
    let input = Input {
        prompt_tokens: first.prompt_tokens,
        image_tokens: Some(first.image_tokens),
        output_tokens: 1,
        pictures: sizes(&pictures)?,
        requests: 1,
        concurrency: Some(1),
        request_rate: None,
        seed: args.seed,
        repeats: args.repeats.into(),
        warmup: args.num_iters_warmup.into(),
    };
    outcome.tell(&setup.record(Bench::Startup, input, figures(&starts)))
}

/// A process from its start to its first token.
struct Start {
    /// Milliseconds, by the clock of the process that started it.
    total: f64,
    report: Report,
}

/// What a process says at its first token.
#[derive(Serialize, Deserialize)]
struct Report {
    parts: Parts,
    /// Of weights that were brought from files: bytes, and milliseconds.
    upload: Option<(u64, f64)>,
    prompt_tokens: u64,
    image_tokens: u64,
}

/// Milliseconds, in the order in which they pass. See [`Startup`].
#[derive(Serialize, Deserialize)]
struct Parts {
    open: f64,
    device: f64,
    plan: f64,
    weights: f64,
    warm: f64,
    record: f64,
    /// From the request to its first token.
    first_token: f64,
}

impl Start {
    /// What is left: the process itself, its arguments, its threads, and the way back of what it says.
    fn process(&self) -> f64 {
        let Parts { open, device, plan, weights, warm, record, first_token } = self.report.parts;
        self.total - (open + device + plan + weights + warm + record + first_token)
    }
}

/// Start a process, and wait for its first token and its end.
fn start() -> Result<Start> {
    let program = env::current_exe().context("finding this program, to start it again")?;
    let mut command = Command::new(program);
    command
        .args(["bench", Bench::Startup.name(), ONCE])
        .args(env::args_os().skip(3))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let begin = Instant::now();
    let mut process = command.spawn().context("starting this program again")?;
    let mut line = String::new();
    if let Some(stdout) = process.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("hearing from a process that was started")?;
    }
    let total = 1e3 * begin.elapsed().as_secs_f64();
    let status = process.wait().context("waiting for a process that was started")?;
    ensure!(status.success(), "a process that was started ended with {status}; it says why above");
    let report = serde_json::from_str(&line).context("reading what a process that was started says")?;
    Ok(Start { total, report })
}

/// In the process that is measured.
fn once(args: &StartupArgs) -> Result<()> {
    let engine = Engine::open(&args.model.directory()?, &options(args), |_, _| ())?;
    let text = words(args.input_len as usize, &mut Random::new(args.seed, 0)).join(" ");
    let request = Request {
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, args.image.len(), &text)]),
        images: args.image.iter().cloned().map(ImageInput::Path).collect(),
        sampling: Sampling { temperature: 0.0, max_tokens: Some(1), ignore_eos: true, ..Sampling::default() },
        ..Request::default()
    };
    let begin = Instant::now();
    let mut stream = engine.submit(request);
    let first_token = match Iterator::next(&mut stream) {
        Some(Event::Piece(_)) => 1e3 * begin.elapsed().as_secs_f64(),
        Some(Event::Failed(error)) => return Err(error.into()),
        Some(Event::Done(_)) | None => bail!("an answer ended without a token"),
    };
    let output = stream.output()?;
    let Startup { open_ms, device_ms, plan_ms, weights_ms, warm_ms, record_ms } = engine.startup();
    let report = Report {
        parts: Parts {
            open: open_ms,
            device: device_ms,
            plan: plan_ms,
            weights: weights_ms,
            warm: warm_ms,
            record: record_ms,
            first_token,
        },
        // The host reads weights where they lie.
        upload: engine.upload().filter(|_| engine.backend_name() != "cpu").map(|Upload { bytes, ms }| (bytes, ms)),
        prompt_tokens: output.prompt_token_ids.len() as u64,
        image_tokens: output.image_tokens.iter().sum::<usize>() as u64,
    };
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?)
}

fn options(args: &StartupArgs) -> Options {
    let options = args.engine.apply(args.model.options(), args.device);
    Options { max_images: options.max_images.max(args.image.len()), ..options }
}

fn figures(starts: &[Start]) -> Figures {
    let mut figures = Figures::default();
    // Every process is a repeat of its own.
    let each = |of: &dyn Fn(&Start) -> f64| starts.iter().map(|start| vec![of(start)]).collect::<Vec<_>>();
    let total = each(&|s| s.total);
    figures.push("startup_ms", Figure::of("process start to first token", "ms", Some(Lower), &total));
    let mut part = |name: &str, what: &str, of: &dyn Fn(&Start) -> f64| {
        figures.push(name, Figure::of(what, "ms", None, &each(of)));
    };
    part("process_ms", "  the process, its arguments", &Start::process);
    part("open_ms", "  checkpoint opened and checked", &|s| s.report.parts.open);
    part("device_ms", "  device opened, memory taken", &|s| s.report.parts.device);
    part("plan_ms", "  memory planned", &|s| s.report.parts.plan);
    part("weights_ms", "  weights in their places", &|s| s.report.parts.weights);
    part("warm_ms", "  everything run once", &|s| s.report.parts.warm);
    part("record_ms", "  plans recorded", &|s| s.report.parts.record);
    part("ttft_ms", "  a request to its first token", &|s| s.report.parts.first_token);
    // Bytes a millisecond are 10^-6 GB/s.
    let speed = |s: &Start| s.report.upload.map(|(bytes, ms)| bytes as f64 / ms / 1e6);
    let speeds: Vec<Vec<f64>> = starts.iter().map(|start| speed(start).into_iter().collect()).collect();
    figures.push("upload_gb_s", Figure::of("weights from their files", "GB/s", Some(Higher), &speeds));
    figures
}
