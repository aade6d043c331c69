//! What a figure must name: the machine, and the best that it does.

use std::time::SystemTime;

use anyhow::Result;
use serde_json::Map;

use super::super::ModelArgs;
use super::outcome::command;
use super::record::{Bench, Ceilings, Figures, Input, Record};
use crate::cli::date::utc;
use crate::engine::{Checkpoint, LoadFormat, Options};

/// A model's checkpoint, opened but not loaded, and the machine that will run it.
pub(super) struct Setup {
    pub checkpoint: Checkpoint,
    load_format: LoadFormat,
    backend: &'static str,
    gpu: String,
    driver: Option<String>,
    pub ceilings: Option<Ceilings>,
}

impl Setup {
    /// Open the checkpoint. On a GPU, also measure its ceilings, which must happen before an engine takes its memory.
    ///
    /// # Errors
    /// A bad checkpoint, or no such device.
    pub fn measured(model: &ModelArgs, options: &Options) -> Result<Setup> {
        Setup::new(model, options, true)
    }

    /// Open the checkpoint, for a bench that has no ceiling.
    ///
    /// # Errors
    /// As [`Setup::measured`].
    pub fn named(model: &ModelArgs, options: &Options) -> Result<Setup> {
        Setup::new(model, options, false)
    }

    fn new(model: &ModelArgs, options: &Options, ceilings: bool) -> Result<Setup> {
        let checkpoint = Checkpoint::open(&model.directory()?, options)?;
        let device = options.device.choose(checkpoint.dtype)?;
        let load_format = options.load_format;
        let host = Setup { checkpoint, load_format, backend: "cpu", gpu: "host".into(), driver: None, ceilings: None };
        #[cfg(feature = "cuda")]
        if let crate::engine::Device::Cuda(ordinal) = device {
            return host.on_gpu(ordinal, ceilings);
        }
        let _ = (device, ceilings);
        Ok(host)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(self, ordinal: usize, ceilings: bool) -> Result<Setup> {
        use crate::backend::cuda::driver;
        use crate::workbench::{bench, cases};
        let (properties, ceilings) = if ceilings {
            let bench = bench::Bench::new(ordinal, self.checkpoint.dtype, false)?;
            let ceilings = Ceilings {
                read_gb_s: bench.ceilings.read / 1e9,
                matrix_tflop_s: bench.ceilings.best_matrix() / 1e12,
                matrix_shape: cases::gemm::CEILING.into(),
            };
            (bench.properties().clone(), Some(ceilings))
        } else {
            (driver::Device::open(ordinal)?.properties().clone(), None)
        };
        let (major, minor) = properties.driver;
        // The kernel module's own number; a container may hide it.
        let number = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
        let driver = format!("{} (CUDA {major}.{minor})", number.trim()).trim_start().to_owned();
        Ok(Setup { backend: "cuda", gpu: properties.name, driver: Some(driver), ceilings, ..self })
    }

    /// The record of what was measured here.
    pub fn record(&self, bench: Bench, input: Input, figures: Figures) -> Record {
        Record {
            bench,
            version: env!("CARGO_PKG_VERSION").into(),
            date: utc(SystemTime::now()),
            command: command(),
            gpu: self.gpu.clone(),
            driver: self.driver.clone(),
            backend: self.backend.into(),
            model: self.checkpoint.name.clone(),
            dtype: self.checkpoint.dtype.name().into(),
            load_format: match self.load_format {
                LoadFormat::Auto => "safetensors".into(),
                LoadFormat::Dummy => "dummy".into(),
            },
            ceilings: self.ceilings.clone(),
            input,
            figures,
            more: Map::new(),
        }
    }

    /// 10^9 bytes a second.
    pub fn read_ceiling(&self) -> Option<f64> {
        self.ceilings.as_ref().map(|ceilings| ceilings.read_gb_s)
    }

    /// 10^12 operations a second.
    pub fn matrix_ceiling(&self) -> Option<f64> {
        self.ceilings.as_ref().map(|ceilings| ceilings.matrix_tflop_s)
    }
}
