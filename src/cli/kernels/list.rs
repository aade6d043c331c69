//! `ocelli kernels list`: what there is.

use anyhow::Result;
use serde_json::json;

use super::{ListArgs, say};
use crate::ops::Op;
use crate::workbench::{Size, cases};

/// What a kernel takes of a GPU.
pub struct Taken {
    pub registers: u32,
    /// Bytes of a thread.
    pub spilled: u32,
    /// Bytes of a block.
    pub static_smem: u32,
}

/// How a case launches a kernel, and how much of a multiprocessor its blocks fill.
#[derive(PartialEq)]
pub struct Shape {
    pub threads: u32,
    /// Bytes of a block.
    pub smem: u32,
    pub cluster: u32,
    pub blocks_per_sm: u32,
    /// Threads that are there at once, in percent of those that may be.
    pub occupancy: f64,
}

/// A compiled kernel: its name, and on a GPU what it takes and how the cases launch it.
pub struct Entry {
    pub name: String,
    pub taken: Option<Taken>,
    pub shapes: Vec<Shape>,
}

/// What the build holds for an op: the architectures with the sizes of their images, and the kernels.
#[derive(Default)]
pub struct Compiled {
    pub images: Vec<(&'static str, usize)>,
    pub entries: Vec<Entry>,
}

pub(super) fn run(args: &ListArgs) -> Result<()> {
    let gpu = gpu::open(&args.choice)?;
    for op in Op::NAMES.iter().filter(|op| args.name.as_ref().is_none_or(|name| name == *op)) {
        let cases = cases::select(Some(op), None);
        let edges = cases.iter().filter(|case| case.size == Size::Edge).count();
        let compiled = gpu::compiled(&cases, gpu.as_ref())?;
        say(&if args.json {
            as_json(op, edges, cases.len(), &compiled)
        } else {
            as_text(op, edges, cases.len(), &compiled)
        })?;
    }
    Ok(())
}

fn as_json(op: &str, edges: usize, cases: usize, compiled: &Compiled) -> String {
    let images = compiled.images.iter().map(|(arch, bytes)| json!({"arch": arch, "bytes": bytes}));
    let shape = |s: &Shape| {
        json!({
            "threads": s.threads,
            "dynamic_smem_bytes": s.smem,
            "cluster": s.cluster,
            "blocks_per_sm": s.blocks_per_sm,
            "occupancy_percent": s.occupancy,
        })
    };
    let kernels = compiled.entries.iter().map(|Entry { name, taken, shapes }| {
        json!({
            "symbol": name,
            "registers": taken.as_ref().map(|t| t.registers),
            "spilled_bytes": taken.as_ref().map(|t| t.spilled),
            "static_smem_bytes": taken.as_ref().map(|t| t.static_smem),
            "launches": shapes.iter().map(shape).collect::<Vec<_>>(),
        })
    });
    let (images, kernels) = (images.collect::<Vec<_>>(), kernels.collect::<Vec<_>>());
    json!({"op": op, "edges": edges, "cases": cases, "images": images, "kernels": kernels}).to_string()
}

fn as_text(op: &str, edges: usize, cases: usize, compiled: &Compiled) -> String {
    let images: Vec<_> = compiled.images.iter().map(|(arch, bytes)| format!("{arch} {} kB", bytes / 1000)).collect();
    let images = if images.is_empty() { "not compiled".to_owned() } else { images.join(", ") };
    let mut text = format!("{op:<16} {cases} cases, {edges} of them edges; {images}");
    for Entry { name, taken, shapes } in &compiled.entries {
        let taken = taken.as_ref().map_or_else(String::new, |Taken { registers, spilled, static_smem }| {
            let spilled = if *spilled == 0 { String::new() } else { format!(", {spilled} bytes spilled") };
            let smem = if *static_smem == 0 { String::new() } else { format!(", {static_smem} bytes shared") };
            format!("{registers:>4} registers{spilled}{smem}")
        });
        text.push_str(&format!("\n    {name:<36}{taken}"));
        text.truncate(text.trim_end().len());
        for Shape { threads, smem, cluster, blocks_per_sm, occupancy } in shapes {
            let smem = if *smem == 0 { String::new() } else { format!(", {smem} bytes shared") };
            let cluster = if *cluster == 1 { String::new() } else { format!(", clusters of {cluster}") };
            text.push_str(&format!(
                "\n        {threads:>4} threads{smem}{cluster}: {blocks_per_sm} a multiprocessor, {occupancy:.0} % of its threads"
            ));
        }
    }
    text
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use anyhow::{Result, bail};

    use super::super::Choice;
    use super::Compiled;
    use crate::workbench::Case;

    pub fn open(choice: &Choice) -> Result<Option<()>> {
        if let Some(dir) = &choice.images.kernel_dir {
            bail!("--kernel-dir {}: this build leaves CUDA out", dir.display());
        }
        if let Some(arch) = &choice.kernel_arch {
            bail!("--kernel-arch {arch}: this build leaves CUDA out");
        }
        Ok(None)
    }

    pub fn compiled(_: &[Case], _: Option<&()>) -> Result<Compiled> {
        Ok(Compiled::default())
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::sync::Arc;

    use anyhow::{Result, ensure};

    use super::super::Choice;
    use super::{Compiled, Entry, Shape, Taken};
    use crate::backend::cuda::driver::{Device, Module, Resources};
    use crate::backend::cuda::image::{self, Image};
    use crate::kernel::{Geometry, Launched};
    use crate::mem::{Bases, DType};
    use crate::workbench::{Bed, Case, Numbers};

    /// The first GPU, if there is one: a list needs none.
    pub fn open(choice: &Choice) -> Result<Option<Device>> {
        let kernels = choice.kernels()?;
        let are_own = kernels.are_own();
        let device = Device::open_with(0, kernels);
        ensure!(
            are_own || device.is_ok(),
            "--kernel-dir, --kernel-arch: what other kernels take of a GPU is known where there is one"
        );
        Ok(device.ok())
    }

    /// What the build holds for the op of `cases`, with what `device` says about the image that it would run.
    pub fn compiled(cases: &[Case], device: Option<&Device>) -> Result<Compiled> {
        let Some(op) = cases.first().map(|case| case.op) else { return Ok(Compiled::default()) };
        let images: Vec<&Image<'_>> = image::embedded().iter().filter(|image| image.kernel == op).collect();
        let entries = match device.and_then(|device| Some((device, device.image(op).ok()?))) {
            Some((device, image)) => on_device(cases, device, &image)?,
            None => {
                let mut names: Vec<_> = images.iter().flat_map(|image| image.entries()).collect();
                names.sort_unstable();
                names.dedup();
                let entry = |name: &str| Entry { name: name.into(), taken: None, shapes: Vec::new() };
                names.into_iter().map(entry).collect()
            }
        };
        Ok(Compiled { images: images.iter().map(|image| (image.arch, image.bytes.len())).collect(), entries })
    }

    fn on_device(cases: &[Case], device: &Device, image: &Image<'_>) -> Result<Vec<Entry>> {
        let launched = |case: &Case, dtype| {
            let op = case.build(&mut Bed::new(dtype, Numbers::Exact));
            op.launched(&Bases::new([0; 4]), &device.properties().gpu)
        };
        let launches: Vec<Launched> =
            cases.iter().flat_map(|case| [DType::F16, DType::Bf16].map(|dtype| launched(case, dtype))).collect();
        let module = device.load_image(image, launches[0].params().len())?;
        let entry = |name: &str| -> Result<Entry> {
            let Resources { registers, spilled, static_smem } = module.function(name, 0)?.resources()?;
            let mut shapes = Vec::new();
            for geometry in launches.iter().map(|l| &l.geometry).filter(|g| g.symbol == name) {
                let shape = shape(device, &module, geometry)?;
                if !shapes.contains(&shape) {
                    shapes.push(shape);
                }
            }
            Ok(Entry { name: name.into(), taken: Some(Taken { registers, spilled, static_smem }), shapes })
        };
        image.entries().into_iter().map(entry).collect()
    }

    fn shape(device: &Device, module: &Arc<Module>, geometry: &Geometry) -> Result<Shape> {
        let Geometry { symbol, block, smem, cluster, .. } = *geometry;
        let threads = block.iter().product();
        let blocks_per_sm = module.function(symbol, smem)?.blocks_per_sm(threads, smem)?;
        let occupancy = 100.0 * f64::from(blocks_per_sm * threads) / f64::from(device.threads_per_sm()?);
        Ok(Shape { threads, smem, cluster, blocks_per_sm, occupancy })
    }
}
