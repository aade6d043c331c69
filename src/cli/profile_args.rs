//! Looking at an engine while it works: a trace, and the window of an attached profiler.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, json};

use super::date::utc;
use super::machine::Machine;
use super::tell;
use crate::engine::Engine;
use crate::trace::{Detail, Trace};

#[derive(Args)]
pub(super) struct ProfileArgs {
    /// Write what host and device did when, launch by launch, for Perfetto (ui.perfetto.dev), `plan --measured` and `bench report`.
    /// Launches that are timed do not overlap: what is traced is slower than what is not
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Let an attached profiler look at the work alone, without loading and warming up: `ncu --profile-from-start off`,
    /// `nsys profile -c cudaProfilerApi`
    #[arg(long)]
    profile: bool,
}

impl ProfileArgs {
    /// Whether a profiler should look.
    pub fn profile(&self) -> bool {
        self.profile
    }

    /// The file of the trace, if one is wanted. It is made before a model is loaded: nobody should wait for a wrong path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn trace(&self) -> Result<Option<TraceFile>> {
        let Some(path) = &self.trace else { return Ok(None) };
        let file = File::create(path).with_context(|| format!("--trace {}", path.display()))?;
        Ok(Some(TraceFile { path: path.clone(), file }))
    }
}

/// Where a trace goes.
pub(super) struct TraceFile {
    path: PathBuf,
    file: File,
}

impl TraceFile {
    /// Record `work` twice, once as it runs and once launch by launch, and write the file.
    ///
    /// # Errors
    /// Those of `work` and of the file.
    pub fn record(self, engine: &Engine, machine: &Machine, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        for detail in [Detail::Plans, Detail::Launches] {
            engine.start_trace(detail);
            work()?;
        }
        self.write(&engine.take_trace(), engine, machine)
    }

    /// Write what was recorded of `engine` on `machine`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(self, trace: &Trace, engine: &Engine, machine: &Machine) -> Result<()> {
        let about = [
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("date", json!(utc(SystemTime::now()))),
            ("gpu", json!(machine.gpu)),
            ("driver", json!(machine.driver)),
            ("backend", json!(machine.backend)),
            ("model", json!(engine.model_name())),
            ("dtype", json!(engine.dtype().name())),
        ];
        let about: Map<_, _> = about.map(|(name, value)| (name.to_string(), value)).into_iter().collect();
        let mut out = BufWriter::new(self.file);
        let written = trace.write(about, machine.ceilings, &mut out).and_then(|()| out.flush());
        written.with_context(|| format!("--trace {}", self.path.display()))?;
        if trace.dropped > 0 {
            tell(format_args!("warning: the trace was full; {} plans that ran later are not in it", trace.dropped));
        }
        Ok(())
    }
}
