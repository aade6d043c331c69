//! `ocelli kernels list`: what there is.

use anyhow::Result;
use serde_json::json;

use super::{ListArgs, say};
use crate::ops::Op;
use crate::workbench::{Size, cases};

/// A compiled kernel: its name, and on a GPU its registers and the bytes that a thread spills.
pub struct Entry {
    pub name: &'static str,
    pub registers_and_spills: Option<(u32, u32)>,
}

/// What the build holds for an op: the architectures with the sizes of their images, and the kernels.
#[derive(Default)]
pub struct Compiled {
    pub images: Vec<(&'static str, usize)>,
    pub entries: Vec<Entry>,
}

pub(super) fn run(args: &ListArgs) -> Result<()> {
    let gpu = gpu::open();
    for op in Op::NAMES {
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
    let kernels = compiled.entries.iter().map(|e| {
        let (registers, spills) = e.registers_and_spills.unzip();
        json!({"symbol": e.name, "registers": registers, "spilled_bytes": spills})
    });
    let (images, kernels) = (images.collect::<Vec<_>>(), kernels.collect::<Vec<_>>());
    json!({"op": op, "edges": edges, "cases": cases, "images": images, "kernels": kernels}).to_string()
}

fn as_text(op: &str, edges: usize, cases: usize, compiled: &Compiled) -> String {
    let images: Vec<_> = compiled.images.iter().map(|(arch, bytes)| format!("{arch} {} kB", bytes / 1000)).collect();
    let images = if images.is_empty() { "not compiled".to_owned() } else { images.join(", ") };
    let mut text = format!("{op:<16} {cases} cases, {edges} of them edges; {images}");
    for Entry { name, registers_and_spills } in &compiled.entries {
        let resources = registers_and_spills.map_or_else(String::new, |(registers, spills)| {
            let spills = if spills == 0 { String::new() } else { format!(", {spills} bytes spilled") };
            format!("{registers:>4} registers{spills}")
        });
        text.push_str(&format!("\n    {name:<36}{resources}"));
        text.truncate(text.trim_end().len());
    }
    text
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use anyhow::Result;

    use super::Compiled;
    use crate::workbench::Case;

    pub fn open() -> Option<()> {
        None
    }

    pub fn compiled(_: &[Case], _: Option<&()>) -> Result<Compiled> {
        Ok(Compiled::default())
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use anyhow::Result;

    use super::{Compiled, Entry};
    use crate::backend::cuda::driver::Device;
    use crate::backend::cuda::image::{self, Image};
    use crate::mem::{Bases, DType};
    use crate::workbench::{Bed, Case, Numbers};

    /// The first GPU, if there is one: a list needs none.
    pub fn open() -> Option<Device> {
        Device::open(0).ok()
    }

    /// What the build holds for the op of `cases`, with what `device` says about the image that it would run.
    pub fn compiled(cases: &[Case], device: Option<&Device>) -> Result<Compiled> {
        let Some(case) = cases.first() else { return Ok(Compiled::default()) };
        let images: Vec<&Image> = image::embedded().iter().filter(|image| image.kernel == case.op).collect();
        let picked = device.and_then(|device| {
            let image = image::pick(image::embedded(), case.op, device.properties().gpu.compute_capability).ok()?;
            Some((device, image))
        });
        let entries = match picked {
            Some((device, image)) => {
                let op = case.build(&mut Bed::new(DType::Bf16, Numbers::Exact));
                let params = op.launched(&Bases::new([0; 4]), &device.properties().gpu).params().len();
                let module = device.load_image(image, params)?;
                let entry = |name| -> Result<Entry> {
                    let function = module.function(name, 0)?;
                    Ok(Entry { name, registers_and_spills: Some(function.registers_and_spills()?) })
                };
                image.entries().into_iter().map(entry).collect::<Result<_>>()?
            }
            None => {
                let mut names: Vec<_> = images.iter().flat_map(|image| image.entries()).collect();
                names.sort_unstable();
                names.dedup();
                names.into_iter().map(|name| Entry { name, registers_and_spills: None }).collect()
            }
        };
        Ok(Compiled { images: images.iter().map(|image| (image.arch, image.bytes.len())).collect(), entries })
    }
}
