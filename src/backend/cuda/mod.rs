//! NVIDIA GPUs: a device's memory for the four regions, and plans as lists of kernel launches.
//!
//! [`image`] picks the code that a device can run and needs no GPU to do it; [`driver`] is the only place that talks
//! to the CUDA driver, and loads it when it is first used, so a binary with this module starts on any machine.

pub mod driver;
pub mod image;
pub mod tma;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytemuck::Pod;

use crate::host::convert;
use crate::kernel::{GpuInfo, Launched};
use crate::mem::{Bases, Buf, Region, Source, Span};
use crate::plan::{Backend, Plan, Probe, Step};

use driver::{Device, Function, Memory, Module};
use tma::EncodedMaps;

/// A GPU with its four regions.
pub struct Cuda {
    device: Device,
    regions: [Memory; 4],
    bases: Bases,
    /// Loaded images by the name of their kernel; an image is loaded when a plan first needs it.
    modules: RefCell<HashMap<&'static str, Arc<Module>>>,
}

/// A plan bound to a device: one entry a launch.
pub struct Exec {
    launches: Vec<(Function, Launched, Option<Box<EncodedMaps>>)>,
    steps: Vec<Step>,
}

impl Cuda {
    /// Open GPU `ordinal` and allocate regions of the given sizes in bytes, in the order of [`Region::ALL`]; every byte
    /// is `fill` at first, which a test sets to see that nothing unwritten is read.
    ///
    /// # Errors
    /// Those of [`Device::open`]; out of memory.
    pub fn new(ordinal: usize, bytes: [usize; 4], fill: u8) -> Result<Cuda> {
        let device = Device::open(ordinal)?;
        let region = |r: Region| {
            let memory = device.alloc(bytes[r as usize], fill);
            memory.with_context(|| format!("allocating the {} region", r.name()))
        };
        let regions = [region(Region::Weights)?, region(Region::Kv)?, region(Region::Scratch)?, region(Region::Io)?];
        let bases = Bases::new([0, 1, 2, 3].map(|i| regions[i].address()));
        Ok(Cuda { device, regions, bases, modules: RefCell::default() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn function(&self, launched: &Launched) -> Result<Function> {
        let mut modules = self.modules.borrow_mut();
        let module = match modules.get(launched.kernel) {
            Some(module) => module.clone(),
            None => {
                let module = self.device.load(launched.kernel, launched.params().len())?;
                modules.insert(launched.kernel, module.clone());
                module
            }
        };
        module.function(launched.geometry.symbol, launched.geometry.smem)
    }

    /// [`Backend::link`] with the kernels for a device that is described otherwise, for example without
    /// [`GpuInfo::sm_90a`]: what this device runs besides its own can be compared with it.
    ///
    /// # Errors
    /// As there.
    pub fn link_for(&self, plan: &Plan, gpu: &GpuInfo) -> Result<Exec> {
        let mut launches = Vec::with_capacity(plan.steps().len());
        for step in plan.steps() {
            let launched = step.op.launched(&self.bases, gpu);
            let function = self.function(&launched).with_context(|| step.label.to_string())?;
            let maps = tma::encode(&launched.maps).with_context(|| step.label.to_string())?;
            launches.push((function, launched, maps));
        }
        Ok(Exec { launches, steps: plan.steps().to_vec() })
    }

    fn memory(&self, region: Region) -> &Memory {
        &self.regions[region as usize]
    }
}

impl Backend for Cuda {
    type Exec = Exec;

    fn link(&self, plan: &Plan) -> Result<Exec> {
        self.link_for(plan, &self.device.properties().gpu)
    }

    /// With a probe, each launch is waited for, so its time includes what a launch costs.
    fn run(&self, exec: &mut Exec, mut probe: Option<&mut dyn Probe>) -> Result<()> {
        for (i, (function, launched, maps)) in exec.launches.iter().enumerate() {
            let start = Instant::now();
            let label = || exec.steps[i].label.to_string();
            let maps = maps.as_deref();
            self.device.launch_with(function, &launched.geometry, launched.params(), maps).with_context(label)?;
            if let Some(probe) = &mut probe {
                self.device.synchronize().with_context(label)?;
                probe.step(i, &exec.steps[i], start.elapsed());
            }
        }
        Ok(())
    }

    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()> {
        ensure!(src.len() <= dst.len(), "{} elements do not fit {dst:?}", src.len());
        let at = dst.span();
        self.device.write(self.memory(at.region), at.byte as usize, bytemuck::cast_slice(src))
    }

    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()> {
        ensure!(dst.len() <= src.len(), "{src:?} has fewer than {} elements", dst.len());
        let at = src.span();
        self.device.read(self.memory(at.region), at.byte as usize, bytemuck::cast_slice_mut(dst))
    }

    fn snapshot(&self, span: Span) -> Result<Vec<u8>> {
        let mut bytes = vec![0; span.bytes() as usize];
        self.device.read(self.memory(span.region), span.byte as usize, &mut bytes)?;
        Ok(bytes)
    }

    fn restore(&self, span: Span, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() as u64 == span.bytes(), "{} bytes do not fill {span:?}", bytes.len());
        self.device.write(self.memory(span.region), span.byte as usize, bytes)
    }

    fn fill(&self, dst: Span, src: &Source, _in_place: bool) -> Result<()> {
        ensure!(src.len() as u64 == dst.len, "{dst:?} takes {} elements and the source is {src:?}", dst.len);
        if src.dtype() == dst.dtype {
            return self.restore(dst, src.bytes());
        }
        self.restore(dst, &convert(src, dst.dtype)?)
    }
}
