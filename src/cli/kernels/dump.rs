//! `ocelli kernels dump`: what does the code look like?

#[cfg(feature = "cuda")]
use std::path::Path;

use anyhow::Result;
#[cfg(feature = "cuda")]
use anyhow::{Context, bail, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;

#[cfg(feature = "cuda")]
use super::compile::{Compiler, TemporaryDir};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{folder::Folder, image::Image, nvcc::Arch};
use crate::ops::Op;

#[derive(Args)]
#[group(id = "form", required = true, multiple = false)]
struct Form {
    /// The text that newer GPUs compile for themselves
    #[arg(long)]
    ptx: bool,
    /// The instructions of a GPU, by nvdisasm of the CUDA toolkit
    #[arg(long)]
    sass: bool,
}

#[derive(Args)]
pub(super) struct DumpArgs {
    /// The op
    #[arg(value_parser = PossibleValuesParser::new(Op::NAMES), hide_possible_values = true)]
    name: String,
    #[command(flatten)]
    form: Form,
    /// One kernel of it; all when left out
    #[arg(long, value_name = "NAME")]
    symbol: Option<String>,
    /// Architecture: compute_NN for PTX, sm_NN for SASS; what the build has when left out, compiled if it has it not
    #[arg(long)]
    arch: Option<String>,
    #[command(flatten)]
    images: super::Images,
}

#[cfg(not(feature = "cuda"))]
pub(super) fn run(args: &DumpArgs) -> Result<()> {
    let DumpArgs { name, form: Form { ptx, sass }, symbol, arch, images } = args;
    let _ = (ptx, sass, symbol, arch, &images.kernel_dir);
    anyhow::bail!("this build leaves CUDA out and has no code of {name}: build with --features cuda")
}

#[cfg(feature = "cuda")]
pub(super) fn run(args: &DumpArgs) -> Result<()> {
    use std::io::{self, Write};

    use super::disassemble::{function_of_ptx, sass};
    use crate::backend::cuda::image::{self, Kind};

    let folder = args.images.folder()?;
    let others = folder.iter().flat_map(|folder| folder.images());
    let kind = if args.form.ptx { Kind::Ptx } else { Kind::Cubin };
    let images: Vec<Image<'_>> =
        others.chain(image::embedded().iter().copied()).filter(|i| i.kernel == args.name).collect();
    let wanted = |i: &&Image<'_>| i.kind == kind && args.arch.as_deref().is_none_or(|arch| i.arch == arch);
    let there = images.iter().find(wanted);
    let folder = if there.is_none() { Some(compiled(args, &images)?) } else { None };
    let fresh: Vec<Image<'_>> = folder.iter().flat_map(|folder| folder.images()).collect();
    let image = there.or(fresh.first()).with_context(|| format!("nvcc left no image of {}", args.name))?;
    if let Some(symbol) = &args.symbol {
        let entries = image.entries();
        ensure!(
            entries.contains(&symbol.as_str()),
            "{} has no kernel `{symbol}`; it has {} (--symbol)",
            args.name,
            entries.join(", ")
        );
    }
    let text = match (kind, &args.symbol) {
        (Kind::Cubin, symbol) => sass(image, symbol.as_deref())?,
        (Kind::Ptx, None) => String::from_utf8_lossy(image.bytes).into_owned(),
        (Kind::Ptx, Some(symbol)) => function_of_ptx(&String::from_utf8_lossy(image.bytes), symbol),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// What none of `images` is, compiled now from the source below this folder.
#[cfg(feature = "cuda")]
fn compiled(args: &DumpArgs, images: &[Image<'_>]) -> Result<Folder> {
    let DumpArgs { name, form: Form { ptx, .. }, arch, .. } = args;
    let source = Path::new("cuda").join(format!("{name}.cu"));
    let (Some(arch), true) = (arch, source.is_file()) else {
        let there: Vec<&str> = images.iter().map(|i| i.arch).collect();
        bail!(
            "there is no {} of {name}{}; the build has {}. Others are compiled for an --arch where the folder cuda/ is",
            if *ptx { "PTX" } else { "machine code" },
            arch.as_deref().map_or_else(String::new, |arch| format!(" for {arch}")),
            if there.is_empty() { "none: it was made without nvcc".into() } else { there.join(", ") }
        )
    };
    let target = Arch::parse(arch).filter(|target| target.ptx == *ptx);
    let target = target.with_context(|| format!("--arch {arch}: PTX is for compute_NN, SASS for sm_NN, NN >= 80"))?;
    let dir = TemporaryDir::new()?;
    Compiler::new(name, target, &source, dir.path())?.compile()?;
    Folder::read(dir.path())
}
