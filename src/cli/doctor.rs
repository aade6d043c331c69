//! `ocelli doctor`: what this build holds and what this machine offers.

use std::io::{self, Write};
use std::thread::available_parallelism;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{human_bytes, locate};
use crate::engine::available_memory;
use crate::models::REGISTRY;

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// A thing looked at: its name, what was found, and what to do if it is not well.
struct Finding {
    name: &'static str,
    found: Value,
    text: String,
    remedy: Option<String>,
}

impl Finding {
    fn new(name: &'static str, found: Value, text: impl Into<String>) -> Finding {
        Finding { name, found, text: text.into(), remedy: None }
    }

    fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding { remedy: Some(remedy.into()), ..self }
    }
}

pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let mut findings = vec![build(), families(), cpu(), demo()];
    findings.extend(gpu::findings());
    let text = if args.json {
        let object: serde_json::Map<_, _> =
            findings.iter().map(|f| (f.name.to_owned(), json!({"found": f.found, "remedy": f.remedy}))).collect();
        format!("{:#}\n", Value::Object(object))
    } else {
        let line = |f: &Finding| {
            let remedy = f.remedy.as_ref().map_or_else(String::new, |r| format!("\n{:10}-> {r}", ""));
            format!("{:9} {}{remedy}\n", f.name, f.text)
        };
        findings.iter().map(line).collect()
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn build() -> Finding {
    let features: Vec<&str> =
        [("cuda", cfg!(feature = "cuda"))].iter().filter_map(|&(name, on)| on.then_some(name)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let text =
        format!("ocelli {version}, features {}", if features.is_empty() { "none".into() } else { features.join(", ") });
    Finding::new("build", json!({"version": version, "features": features}), text)
}

fn families() -> Finding {
    let names: Vec<&str> = REGISTRY.iter().map(|r| r.architecture).collect();
    Finding::new("models", json!(names), names.join(", "))
}

fn cpu() -> Finding {
    let cores = available_parallelism().map_or(1, usize::from);
    let memory = available_memory();
    let text = format!("{cores} cores, {} of memory available", human_bytes(memory));
    Finding::new("cpu", json!({"cores": cores, "available_memory_bytes": memory}), text)
}

fn demo() -> Finding {
    match locate::model(None) {
        Ok(path) => Finding::new("demo", json!(path), path.display().to_string()),
        Err(error) => Finding::new("demo", Value::Null, "none").remedy(format!("{error:#}")),
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::{Finding, Value};

    pub fn findings() -> Vec<Finding> {
        let finding = Finding::new("cuda", Value::Null, "left out of this build");
        vec![finding.remedy("build with --features cuda")]
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{Finding, Value, human_bytes, json};
    use crate::backend::cuda::{driver, image};

    pub fn findings() -> Vec<Finding> {
        vec![kernels(), driver_version(), devices()]
    }

    fn kernels() -> Finding {
        let images = image::embedded();
        let Some(nvcc) = image::nvcc_version().filter(|_| !images.is_empty()) else {
            let finding = Finding::new("kernels", json!([]), "none: this build runs on the CPU alone");
            return finding.remedy("run tools/install-nvcc, then build again");
        };
        let list: Vec<String> = images.iter().map(|i| format!("{} ({})", i.kernel, i.arch)).collect();
        let found = images.iter().map(|i| json!({"kernel": i.kernel, "arch": i.arch, "bytes": i.bytes.len()}));
        let text = format!("{}, by nvcc {nvcc}", list.join(", "));
        Finding::new("kernels", json!({"nvcc": nvcc, "images": found.collect::<Vec<_>>()}), text)
    }

    fn driver_version() -> Finding {
        if !driver::present() {
            return Finding::new("driver", Value::Null, "no CUDA driver")
                .remedy("install the NVIDIA driver to use a GPU");
        }
        match driver::version() {
            Ok((major, minor)) => {
                let version = format!("{major}.{minor}");
                Finding::new("driver", json!(version), format!("CUDA {version}"))
            }
            Err(error) => Finding::new("driver", Value::Null, "not usable").remedy(format!("{error:#}")),
        }
    }

    fn devices() -> Finding {
        if !driver::present() {
            return Finding::new("gpus", json!([]), "none");
        }
        let opened = driver::count().and_then(|n| (0..n).map(driver::Device::open).collect::<anyhow::Result<Vec<_>>>());
        let devices = match opened {
            Ok(devices) if !devices.is_empty() => devices,
            Ok(_) => return Finding::new("gpus", json!([]), "none visible").remedy("look at CUDA_VISIBLE_DEVICES"),
            Err(error) => return Finding::new("gpus", Value::Null, "not usable").remedy(format!("{error:#}")),
        };
        let describe = |d: &driver::Device| {
            let p = d.properties();
            let (major, minor) = p.gpu.compute_capability;
            format!("{}: {}, sm_{major}{minor}, {} SMs, {}", p.ordinal, p.name, p.gpu.sms, human_bytes(p.memory as u64))
        };
        let found = |d: &driver::Device| {
            let p = d.properties();
            let (major, minor) = p.gpu.compute_capability;
            json!({"ordinal": p.ordinal, "name": p.name, "compute_capability": format!("{major}.{minor}"), "sms": p.gpu.sms, "memory_bytes": p.memory})
        };
        let text = devices.iter().map(describe).collect::<Vec<_>>().join("; ");
        Finding::new("gpus", devices.iter().map(found).collect(), text)
    }
}
