//! `ocelli kernels dump`: what does the code look like?

use anyhow::Result;
use clap::Args;
use clap::builder::PossibleValuesParser;

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
    /// Architecture: compute_NN or sm_NN; the first that the build has when left out
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

    use anyhow::{Context, ensure};

    use super::disassemble::{function_of_ptx, sass};
    use crate::backend::cuda::image::{self, Image, Kind};

    let folder = args.images.folder()?;
    let others = folder.iter().flat_map(|folder| folder.images());
    let kind = if args.form.ptx { Kind::Ptx } else { Kind::Cubin };
    let images: Vec<Image<'_>> =
        others.chain(image::embedded().iter().copied()).filter(|i| i.kernel == args.name).collect();
    let wanted = |i: &&Image<'_>| i.kind == kind && args.arch.as_deref().is_none_or(|arch| i.arch == arch);
    let image = images.iter().find(wanted).with_context(|| {
        let there: Vec<&str> = images.iter().map(|i| i.arch).collect();
        format!(
            "there is no {} of {}{}; the build has {} (OCELLI_CUDA_ARCHS chooses)",
            if args.form.ptx { "PTX" } else { "machine code" },
            args.name,
            args.arch.as_deref().map_or_else(String::new, |arch| format!(" for {arch}")),
            if there.is_empty() { "none: it was made without nvcc".into() } else { there.join(", ") }
        )
    })?;
    if let Some(symbol) = &args.symbol {
        let entries = image.entries();
        let known = entries.join(", ");
        ensure!(
            entries.contains(&symbol.as_str()),
            "{} has no kernel `{symbol}`; it has {known} (--symbol)",
            args.name
        );
    }
    let text = match (kind, &args.symbol) {
        (Kind::Cubin, symbol) => sass(image, symbol.as_deref())?,
        (Kind::Ptx, None) => String::from_utf8_lossy(image.bytes).into_owned(),
        (Kind::Ptx, Some(symbol)) => function_of_ptx(&String::from_utf8_lossy(image.bytes), symbol),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
