//! NVIDIA GPUs: a device's memory for the four regions, and plans as lists of kernel launches.
//!
//! [`image`] picks the code that a device can run and needs no GPU to do it; [`driver`] is the only place that talks
//! to the CUDA driver, and loads it when it is first used, so a binary with this module starts on any machine.

#[cfg(feature = "cublaslt")]
pub mod cublaslt;
pub mod driver;
pub mod event;
mod fault;
pub mod folder;
mod graph;
pub mod image;
pub mod kernels;
pub mod nvcc;
pub mod tma;
mod transfer;
mod upload;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytemuck::Pod;

use crate::kernel::{GpuInfo, Launched};
use crate::mem::{Bases, Buf, Region, Span};
use crate::plan::{Backend, Fill, Plan, Step};
use crate::range;

use driver::{Device, Function, Memory, Module};
use event::Event;
use graph::Graph;
use tma::EncodedMaps;

pub use transfer::Pending;

/// A GPU with its four regions.
pub struct Cuda {
    device: Device,
    regions: [Memory; 4],
    bases: Bases,
    /// Loaded images by the name of their kernel; an image is loaded when a plan first needs it.
    modules: RefCell<HashMap<&'static str, Arc<Module>>>,
    /// Entry points by name, with the dynamic shared memory that they were made ready for.
    functions: RefCell<HashMap<&'static str, (Function, u32)>>,
}

/// A step with everything resolved.
struct Launch {
    step: Step,
    function: Function,
    launched: Launched,
    maps: Option<Box<EncodedMaps>>,
}

/// A plan bound to a device: one entry a launch, and perhaps all of them recorded.
pub struct Exec {
    graph: Option<Graph>,
    launches: Vec<Launch>,
}

impl Cuda {
    /// Open GPU `ordinal` and allocate regions of the given sizes in bytes, in the order of [`Region::ALL`]; every byte
    /// is `fill` at first, which a test sets to see that nothing unwritten is read.
    ///
    /// # Errors
    /// Those of [`Device::open`]; out of memory.
    pub fn new(ordinal: usize, bytes: [usize; 4], fill: u8) -> Result<Cuda> {
        Cuda::on(Device::open(ordinal)?, bytes, fill)
    }

    /// [`Cuda::new`] on a device that is open already.
    ///
    /// # Errors
    /// Out of memory.
    pub fn on(device: Device, bytes: [usize; 4], fill: u8) -> Result<Cuda> {
        let region = |r: Region| {
            let memory = device.alloc(bytes[r as usize], fill);
            memory.with_context(|| format!("allocating the {} region", r.name()))
        };
        let regions = [region(Region::Weights)?, region(Region::Kv)?, region(Region::Scratch)?, region(Region::Io)?];
        let bases = Bases::new([0, 1, 2, 3].map(|i| regions[i].address()));
        Ok(Cuda { device, regions, bases, modules: RefCell::default(), functions: RefCell::default() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where the regions lie.
    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    fn function(&self, launched: &Launched) -> Result<Function> {
        let (symbol, smem) = (launched.geometry.symbol, launched.geometry.smem);
        let mut functions = self.functions.borrow_mut();
        if let Some((function, room)) = functions.get(symbol)
            && *room >= smem
        {
            return Ok(function.clone());
        }
        let mut modules = self.modules.borrow_mut();
        let module = match modules.get(launched.kernel) {
            Some(module) => module.clone(),
            None => {
                let module = self.device.load(launched.kernel, launched.params().len())?;
                modules.insert(launched.kernel, module.clone());
                module
            }
        };
        let function = module.function(symbol, smem)?;
        functions.insert(symbol, (function.clone(), smem));
        Ok(function)
    }

    /// [`Backend::link`] with the kernels for a device that is described otherwise, for example without
    /// [`GpuInfo::sm_90a`]: what this device runs besides its own can be compared with it.
    ///
    /// # Errors
    /// As there.
    pub fn link_for(&self, plan: &Plan, gpu: &GpuInfo) -> Result<Exec> {
        let mut launches = Vec::with_capacity(plan.steps().len());
        for (i, step) in plan.steps().iter().enumerate() {
            let mut launched = step.op.launched(&self.bases, gpu);
            // A plan starts after all that was enqueued before it: a kernel may read what the host wrote for this step,
            // and the cache of earlier steps, before it waits for its predecessor.
            launched.geometry.pdl &= i > 0;
            let function = self.function(&launched).with_context(|| step.label.to_string())?;
            let maps = tma::encode(&launched.maps).with_context(|| step.label.to_string())?;
            launches.push(Launch { step: step.clone(), function, launched, maps });
        }
        Ok(Exec { graph: None, launches })
    }

    fn memory(&self, region: Region) -> &Memory {
        &self.regions[region as usize]
    }
}

impl Exec {
    /// Enqueue every launch.
    fn launch(&self, device: &Device) -> Result<()> {
        self.launches.iter().try_for_each(|l| l.enqueue(device))
    }

    /// Enqueue one launch after the other, with a point between any two: none begins before the one before it has ended,
    /// because what may overlap is the launch right behind another.
    fn apart(&self, device: &Device, marks: &mut Vec<Event>) -> Result<()> {
        marks.push(device.point()?);
        for l in &self.launches {
            l.enqueue(device)?;
            marks.push(device.point()?);
        }
        Ok(())
    }
}

impl Launch {
    fn enqueue(&self, device: &Device) -> Result<()> {
        let Launch { function, launched, maps, step } = self;
        let _range = range::open(step.label.as_str());
        let launch = device.launch_with(function, &launched.geometry, launched.params(), maps.as_deref());
        launch.with_context(|| step.label.to_string())
    }
}

impl Backend for Cuda {
    type Exec = Exec;
    type Pending = Pending;
    type Mark = Event;

    fn link(&self, plan: &Plan) -> Result<Exec> {
        self.link_for(plan, &self.device.properties().gpu)
    }

    fn capture(&self, exec: &mut Exec) -> Result<()> {
        if exec.graph.is_none() && !exec.launches.is_empty() {
            exec.graph = Some(self.device.capture(|| exec.launch(&self.device))?);
        }
        Ok(())
    }

    fn run(&self, exec: &mut Exec, marks: Option<&mut Vec<Event>>) -> Result<()> {
        match (marks, &exec.graph) {
            (Some(marks), _) => exec.apart(&self.device, marks),
            (None, Some(graph)) => self.device.replay(graph),
            (None, None) => exec.launch(&self.device),
        }
    }

    fn mark(&self) -> Result<Event> {
        self.device.point()
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<Duration>> {
        Ok(if to.is_reached()? { Some(to.since(from)?) } else { None })
    }

    fn profile(&self, on: bool) -> Result<()> {
        self.device.profile(on)
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

    fn enqueue_read(&self, src: Buf<u8>) -> Result<Pending> {
        let at = src.span();
        self.device.enqueue_read(self.memory(at.region), at.byte as usize, src.len())
    }

    fn wait(&self, pending: Pending) -> Result<Vec<u8>> {
        pending.wait()
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

    fn upload(&self, fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.device.upload(&self.regions, fills, progress)
    }
}
