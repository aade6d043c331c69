//! `ocelli kernels`: the kernels of the ops by themselves, over the table of [`crate::workbench::cases`].

#[cfg(feature = "cuda")]
mod bench;
#[cfg(feature = "cuda")]
mod check;
#[cfg(feature = "cuda")]
mod compile;
#[cfg(feature = "cuda")]
mod disassemble;
mod dump;
mod list;
#[cfg(feature = "cuda")]
mod watch;

#[cfg(feature = "cuda")]
#[cfg(feature = "cuda")]
use anyhow::Context;
use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use std::io::{self, Write};
use std::path::PathBuf;

#[cfg(feature = "cuda")]
use crate::backend::cuda::{folder::Folder, kernels::Kernels};
#[cfg(feature = "cuda")]
use crate::mem::DType;
use crate::ops::Op;
#[cfg(feature = "cuda")]
use crate::workbench::{Case, Size, cases};

#[derive(Args)]
pub(crate) struct KernelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ops, their cases, and the kernels in this build; with a GPU what they take of it
    List(ListArgs),
    /// Run kernels and references on the same bytes and compare what they write
    Check(CheckArgs),
    /// Time kernels, beside what this GPU reads and multiplies at best
    Bench(BenchArgs),
    /// Print the code of an op's kernels
    Dump(dump::DumpArgs),
    /// Compile, check and time a kernel whenever its source is saved
    Watch(WatchArgs),
}

#[derive(Args)]
struct ListArgs {
    /// One op; all when left out
    #[arg(value_parser = PossibleValuesParser::new(Op::NAMES), hide_possible_values = true)]
    name: Option<String>,
    #[command(flatten)]
    choice: Choice,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Which cases.
#[derive(Args)]
struct Selection {
    /// One op; all when left out
    #[arg(value_parser = PossibleValuesParser::new(Op::NAMES), hide_possible_values = true)]
    name: Option<String>,
    /// Only cases whose name contains this; or any matrix product of gemm and gemv: MxNxK, or MxNxK,swiglu and so on
    #[arg(long, value_name = "FILTER|MxNxK")]
    shape: Option<String>,
}

/// Which images.
#[derive(Args)]
struct Images {
    /// A folder of kernels (KERNEL.ARCH.cubin or .ptx) to load instead of the program's own
    #[arg(long, env = "OCELLI_KERNEL_DIR", value_name = "DIR")]
    kernel_dir: Option<PathBuf>,
}

/// Which images a GPU runs.
#[derive(Args)]
struct Choice {
    #[command(flatten)]
    images: Images,
    /// Load the kernels for this architecture, whatever the GPU has better ones for: compute_80 is PTX for any GPU
    #[arg(long, env = "OCELLI_KERNEL_ARCH", value_name = "ARCH")]
    kernel_arch: Option<String>,
}

#[cfg(feature = "cuda")]
impl Choice {
    /// Says on stderr what is not as the build has it.
    fn kernels(&self) -> Result<Kernels> {
        let kernels = Kernels::of(self.images.kernel_dir.as_deref(), self.kernel_arch.as_deref())?;
        for sentence in kernels.describe() {
            super::tell(format_args!("warning: {sentence}"));
        }
        Ok(kernels)
    }
}

#[cfg(feature = "cuda")]
impl Images {
    /// The folder, if there is one. Says on stderr what it replaces.
    fn folder(&self) -> Result<Option<Folder>> {
        let folder = self.kernel_dir.as_deref().map(Folder::read).transpose()?;
        if let Some(folder) = &folder {
            super::tell(format_args!("warning: {}", folder.describe()));
        }
        Ok(folder)
    }
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    choice: Choice,
    /// Only the edges, which are quick even under a tool that slows the GPU down
    #[arg(long)]
    small: bool,
    /// One float type; both when left out
    #[arg(long)]
    dtype: Option<Float>,
    /// What device memory holds where nothing was written
    #[arg(long, default_value = "nan")]
    fill: Fill,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BenchArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    choice: Choice,
    /// The float type
    #[arg(long, default_value = "bf16")]
    dtype: Float,
    /// Time the same product by a library, too, where the build and the machine have it
    #[arg(long)]
    against: Option<Library>,
    /// Samples of each case
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    repeat: u32,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct WatchArgs {
    /// The kernel's source: FILE.cu, named as its op; headers are looked for beside it, then in cuda/
    #[arg(value_name = "FILE.cu")]
    file: PathBuf,
    /// Check and time only cases whose name contains this (edges are checked, all of them); or any matrix product: MxNxK
    #[arg(long, value_name = "FILTER|MxNxK")]
    shape: Option<String>,
    /// The float type to time; both are checked
    #[arg(long, default_value = "bf16")]
    dtype: Float,
    /// Samples of each case
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    repeat: u32,
    /// Architecture to compile for; the GPU's when left out, or sm_90a without one
    #[arg(long, value_name = "sm_NN|compute_NN")]
    arch: Option<String>,
    /// Once, now; fails if the kernel does not compile or is wrong
    #[arg(long)]
    once: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Float {
    #[value(alias = "float16", alias = "half")]
    F16,
    #[value(alias = "bfloat16")]
    Bf16,
}

#[cfg(feature = "cuda")]
impl Float {
    fn dtype(self) -> DType {
        match self {
            Float::F16 => DType::F16,
            Float::Bf16 => DType::Bf16,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fill {
    /// Every byte 0xff: a NaN in each float type, -1 as an integer
    Nan,
    /// Every byte 0
    Zeros,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Library {
    Cublaslt,
}

pub(super) fn run(args: &KernelsArgs) -> Result<()> {
    match &args.command {
        Command::List(args) => list::run(args),
        Command::Dump(args) => dump::run(args),
        #[cfg(feature = "cuda")]
        Command::Check(args) => check::run(args),
        #[cfg(feature = "cuda")]
        Command::Bench(args) => bench::run(args),
        #[cfg(feature = "cuda")]
        Command::Watch(args) => watch::run(args),
        #[cfg(not(feature = "cuda"))]
        _ => anyhow::bail!("this needs a GPU, and this build leaves CUDA out: build with --features cuda"),
    }
}

#[cfg(feature = "cuda")]
impl Selection {
    fn cases(&self, wanted: impl Fn(Size) -> bool) -> Result<Vec<Case>> {
        select(self.name.as_deref(), self.shape.as_deref(), wanted)
    }
}

/// Cases of an op, or of all, by their name or, where it takes any, their size.
#[cfg(feature = "cuda")]
fn select(op: Option<&str>, shape: Option<&str>, wanted: impl Fn(Size) -> bool) -> Result<Vec<Case>> {
    let mut cases = cases::select(op, shape);
    cases.retain(|case| wanted(case.size));
    if let (true, Some(op), Some(shape)) = (cases.is_empty(), op, shape)
        && shape.starts_with(|c: char| c.is_ascii_digit())
    {
        return Ok(vec![cases::product(op, shape).with_context(|| format!("--shape {shape}"))?]);
    }
    let (op, shape) = (op.unwrap_or("any op"), shape.unwrap_or(""));
    anyhow::ensure!(!cases.is_empty(), "no case of {op} matches --shape \"{shape}\": see ocelli kernels list");
    Ok(cases)
}

/// Print a line now: cases take a while, and somebody may be watching.
fn say(line: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
