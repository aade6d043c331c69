//! `ocelli kernels`: the kernels of the ops by themselves, over the table of [`crate::workbench::cases`].

#[cfg(feature = "cuda")]
mod bench;
#[cfg(feature = "cuda")]
mod check;
mod list;

use std::io::{self, Write};

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};

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
    /// Ops, their cases, and the kernels in this build; with a GPU their registers and spills
    List(ListArgs),
    /// Run kernels and references on the same bytes and compare what they write
    Check(CheckArgs),
    /// Time kernels, beside what this GPU reads and multiplies at best
    Bench(BenchArgs),
}

#[derive(Args)]
struct ListArgs {
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
    /// Only cases whose name contains this
    #[arg(long, value_name = "FILTER")]
    shape: Option<String>,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    selection: Selection,
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
        #[cfg(feature = "cuda")]
        Command::Check(args) => check::run(args),
        #[cfg(feature = "cuda")]
        Command::Bench(args) => bench::run(args),
        #[cfg(not(feature = "cuda"))]
        _ => anyhow::bail!("this needs a GPU, and this build leaves CUDA out: build with --features cuda"),
    }
}

#[cfg(feature = "cuda")]
impl Selection {
    fn cases(&self, wanted: impl Fn(Size) -> bool) -> Result<Vec<Case>> {
        let mut cases = cases::select(self.name.as_deref(), self.shape.as_deref());
        cases.retain(|case| wanted(case.size));
        let (op, shape) = (self.name.as_deref().unwrap_or("any op"), self.shape.as_deref().unwrap_or(""));
        anyhow::ensure!(!cases.is_empty(), "no case of {op} matches --shape \"{shape}\": see ocelli kernels list");
        Ok(cases)
    }
}

/// Print a line now: cases take a while, and somebody may be watching.
fn say(line: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
