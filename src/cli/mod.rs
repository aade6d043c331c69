//! The command line: one file a subcommand.
//!
//! Data goes to stdout and everything else to stderr; bars and colour only to a terminal. Exit codes: 0 is success, 1
//! a failure of the model or the request, 2 wrong usage, 70 and 71 a server whose engine has failed for good or hangs. A reader that closes the pipe early is no failure.

#[cfg(feature = "server")]
mod batch;
mod bench;
mod chat;
mod date;
mod doctor;
mod image_args;
mod inspect;
mod kernels;
mod locate;
mod machine;
#[cfg(feature = "server")]
mod media_args;
mod plan;
mod profile_args;
mod progress;
mod run;
#[cfg(feature = "server")]
mod serve;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

#[cfg(feature = "server")]
use crate::engine::Engine;
use crate::engine::{Device, LoadFormat, MAX_KV_BLOCKS, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, Options};
use crate::mem::DType;
use image_args::ImageArgs;

/// A vision-language inference runtime in Rust and hand-written CUDA.
#[derive(Parser)]
#[command(name = "ocelli", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer one prompt, streamed; a chat when no prompt is given
    Run(Box<run::RunArgs>),
    /// Answer a file of requests into a file of answers; start it again to go on after a kill
    #[cfg(feature = "server")]
    Batch(Box<batch::BatchArgs>),
    /// Answer OpenAI's chat completions over HTTP
    #[cfg(feature = "server")]
    Serve(Box<serve::ServeArgs>),
    /// Measure what a user waits for
    #[command(subcommand)]
    Bench(Box<bench::BenchCommand>),
    /// Show a checkpoint: config, tensors, memory, and the KV pool that would fit
    Inspect(inspect::InspectArgs),
    /// Print the launch list of a model with bytes and operations
    Plan(plan::PlanArgs),
    /// Every op's kernel by itself: what there is, whether it is right, what it takes
    Kernels(kernels::KernelsArgs),
    /// Say what this machine and this build can run
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page in roff
    Man,
}

/// Which model, on what, how: flags that several subcommands share.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// A directory, or org/name in the local Hugging Face cache; the bundled demo when left out
    #[arg(env = "OCELLI_MODEL")]
    model: Option<String>,
    /// Where the weights come from; auto is safetensors, dummy is random numbers, which need no file
    #[arg(long, env = "OCELLI_LOAD_FORMAT", default_value = "auto", value_name = "auto|safetensors|dummy")]
    load_format: LoadFormat,
    /// Type of the activations and weights; auto is the checkpoint's own
    #[arg(long, env = "OCELLI_DTYPE", default_value = "auto")]
    dtype: DTypeArg,
    /// Longest sequence in tokens, prompt and answer together
    #[arg(long, env = "OCELLI_MAX_MODEL_LEN", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_model_len: Option<u32>,
    /// A Jinja chat template, as a file or as text, instead of the checkpoint's
    #[arg(long, env = "OCELLI_CHAT_TEMPLATE", value_name = "FILE|TEXT")]
    chat_template: Option<String>,
    /// Pictures a prompt may hold, however they are given
    #[arg(long, env = "OCELLI_LIMIT_MM_PER_PROMPT", default_value = "image=4", value_name = "image=N", value_parser = image_args::limit)]
    limit_mm_per_prompt: u32,
    #[command(flatten)]
    images: ImageArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DTypeArg {
    Auto,
    F32,
    #[value(alias = "float16", alias = "half")]
    F16,
    #[value(alias = "bfloat16")]
    Bf16,
}

impl ModelArgs {
    fn directory(&self) -> anyhow::Result<PathBuf> {
        locate::model(self.model.as_deref())
    }

    /// Names that requests may have for the model: those that were `given`, or what it is called.
    #[cfg(feature = "server")]
    fn served_names(&self, given: &[String], engine: &Engine) -> Vec<String> {
        let mut names = given.to_vec();
        if names.is_empty() {
            names.extend(self.model.clone());
            names.push(engine.model_name().to_owned());
            names.dedup();
        }
        names
    }

    fn options(&self) -> Options {
        let options = Options {
            device: Device::Auto,
            load_format: self.load_format,
            dtype: match self.dtype {
                DTypeArg::Auto => None,
                DTypeArg::F32 => Some(DType::F32),
                DTypeArg::F16 => Some(DType::F16),
                DTypeArg::Bf16 => Some(DType::Bf16),
            },
            max_model_len: self.max_model_len.map(|n| n as usize),
            chat_template: self.chat_template.clone(),
            max_images: self.limit_mm_per_prompt as usize,
            ..Options::default()
        };
        self.images.apply(options)
    }
}

/// How many requests at once, and in how much memory: flags of the subcommands that answer.
#[derive(Args)]
pub(crate) struct EngineArgs {
    /// Sequences that run at once; 256 on a GPU and 16 on the host when left out
    #[arg(long, env = "OCELLI_MAX_NUM_SEQS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_NUM_SEQS as i64))]
    max_num_seqs: Option<u32>,
    /// Tokens of a step; 8192 on a GPU and 2048 on the host when left out
    #[arg(long, env = "OCELLI_MAX_NUM_BATCHED_TOKENS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_NUM_BATCHED_TOKENS as i64))]
    max_num_batched_tokens: Option<u32>,
    /// Share of a GPU's memory that weights, activations and cache may take together
    #[arg(long, env = "OCELLI_GPU_MEMORY_UTILIZATION", default_value_t = 0.9, value_name = "SHARE")]
    gpu_memory_utilization: f64,
    /// Blocks of 16 tokens in the cache, instead of as many as memory allows
    #[arg(long, env = "OCELLI_NUM_GPU_BLOCKS_OVERRIDE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_KV_BLOCKS as i64))]
    num_gpu_blocks_override: Option<u32>,
    /// Compute every prompt from its start, whatever earlier ones left in the cache
    #[arg(long, env = "OCELLI_NO_ENABLE_PREFIX_CACHING", value_parser = FalseyValueParser::new())]
    no_enable_prefix_caching: bool,
    /// Encode every picture, whether or not an earlier request had the same
    #[arg(long, env = "OCELLI_NO_ENCODER_CACHE", value_parser = FalseyValueParser::new())]
    no_encoder_cache: bool,
    /// A folder of kernels (KERNEL.ARCH.cubin or .ptx) to load instead of the program's own
    #[arg(long, env = "OCELLI_KERNEL_DIR", value_name = "DIR")]
    kernel_dir: Option<PathBuf>,
    /// Load the kernels for this architecture, whatever the GPU has better ones for: compute_80 is PTX for any GPU
    #[arg(long, env = "OCELLI_KERNEL_ARCH", value_name = "ARCH")]
    kernel_arch: Option<String>,
    /// Read the tokens of every step before the next one is enqueued
    #[arg(long, env = "OCELLI_NO_ASYNC_SCHEDULING", value_parser = FalseyValueParser::new())]
    no_async_scheduling: bool,
}

impl EngineArgs {
    fn apply(&self, options: Options, device: Device) -> Options {
        Options {
            device,
            max_num_seqs: self.max_num_seqs.map(|n| n as usize),
            max_num_batched_tokens: self.max_num_batched_tokens.map(|n| n as usize),
            gpu_memory_utilization: self.gpu_memory_utilization,
            num_kv_blocks: self.num_gpu_blocks_override.map(|n| n as usize),
            prefix_caching: !self.no_enable_prefix_caching,
            encoder_caching: !self.no_encoder_cache,
            async_scheduling: self.no_async_scheduling.then_some(false),
            kernel_dir: self.kernel_dir.clone(),
            kernel_arch: self.kernel_arch.clone(),
            ..options
        }
    }
}

/// Parse the arguments, run the subcommand, report its failure.
pub fn main() -> ExitCode {
    main_from(std::env::args_os())
}

/// [`main`] with these arguments, the first of which is the program's name.
pub fn main_from(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = match Cli::parse_from(arguments).command {
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "server")]
        Command::Batch(args) => batch::run(&args),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => completions(shell),
        Command::Man => man(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("error: {error:#}"));
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    #[cfg(feature = "server")]
    if let Some(code) = serve::exit_code(error) {
        return code.into();
    }
    let _ = error;
    ExitCode::FAILURE
}

/// A line to stderr. That nobody reads it changes nothing: the output and the exit code say what matters.
fn tell(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ocelli", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// The main page and one for each subcommand, one after another.
fn man() -> anyhow::Result<()> {
    let mut pages = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut pages)?;
    for sub in command.get_subcommands() {
        let name = format!("ocelli-{}", sub.get_name());
        clap_mangen::Man::new(sub.clone().display_name(&name)).title(name).render(&mut pages)?;
    }
    Ok(io::stdout().write_all(&pages)?)
}

/// `1234567` as `1.2 MB`: decimal units, three digits.
fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let decimals = if unit == "B" || value >= 99.5 { 0 } else { 1 };
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (7_612_345, "7.6 MB"),
            (14_126_854_144, "14.1 GB"),
            (123_456_789, "123 MB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
