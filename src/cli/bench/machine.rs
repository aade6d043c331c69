//! What a figure must name: the machine, and the best that it does.

use std::time::SystemTime;

use anyhow::Result;
use serde_json::Map;

use super::super::ModelArgs;
use super::outcome::command;
use super::record::{Bench, Ceilings, Figures, Input, Record};
use crate::cli::date::utc;
use crate::cli::machine::Machine;
use crate::engine::{Checkpoint, LoadFormat, Options};
use crate::workbench::cases;

/// A model's checkpoint, opened but not loaded, and the machine that will run it.
pub(super) struct Setup {
    pub checkpoint: Checkpoint,
    load_format: LoadFormat,
    pub machine: Machine,
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
        let machine = Machine::of(device, checkpoint.dtype, ceilings)?;
        Ok(Setup { checkpoint, load_format: options.load_format, machine })
    }

    /// The record of what was measured here.
    pub fn record(&self, bench: Bench, input: Input, figures: Figures) -> Record {
        Record {
            bench,
            version: env!("CARGO_PKG_VERSION").into(),
            date: utc(SystemTime::now()),
            command: command(),
            gpu: self.machine.gpu.clone(),
            driver: self.machine.driver.clone(),
            backend: self.machine.backend.into(),
            model: self.checkpoint.name.clone(),
            dtype: self.checkpoint.dtype.name().into(),
            load_format: match self.load_format {
                LoadFormat::Auto => "safetensors".into(),
                LoadFormat::Dummy => "dummy".into(),
            },
            ceilings: self.machine.ceilings.map(|best| Ceilings {
                read_gb_s: best.read / 1e9,
                matrix_tflop_s: best.matrix / 1e12,
                matrix_shape: cases::gemm::CEILING.into(),
            }),
            input,
            figures,
            more: Map::new(),
        }
    }

    /// 10^9 bytes a second.
    pub fn read_ceiling(&self) -> Option<f64> {
        self.machine.ceilings.map(|best| best.read / 1e9)
    }

    /// 10^12 operations a second.
    pub fn matrix_ceiling(&self) -> Option<f64> {
        self.machine.ceilings.map(|best| best.matrix / 1e12)
    }
}
