//! The CPU backend: runs the references over host memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytemuck::Pod;

use crate::host::HostMem;
use crate::mem::{Buf, Span};
use crate::plan::{Backend, Fill, Plan, Step};

/// Host memory for the four regions, and the references.
pub struct Cpu {
    memory: HostMem,
}

impl Cpu {
    /// Regions of the given sizes in bytes, in the order of [`Region::ALL`](crate::mem::Region::ALL).
    ///
    /// # Errors
    /// If the memory cannot be reserved.
    pub fn new(bytes: [usize; 4]) -> Result<Cpu> {
        Ok(Cpu { memory: HostMem::new(bytes)? })
    }
}

impl Backend for Cpu {
    type Exec = Vec<Step>;
    type Pending = Vec<u8>;
    type Mark = Instant;

    fn link(&self, plan: &Plan) -> Result<Vec<Step>> {
        Ok(plan.steps().to_vec())
    }

    /// A reference costs nothing to call.
    fn capture(&self, _exec: &mut Vec<Step>) -> Result<()> {
        Ok(())
    }

    fn run(&self, exec: &mut Vec<Step>, mut marks: Option<&mut Vec<Instant>>) -> Result<()> {
        let mut mark = || marks.iter_mut().for_each(|marks| marks.push(Instant::now()));
        mark();
        for step in exec {
            step.op.reference(&self.memory);
            mark();
        }
        Ok(())
    }

    fn mark(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn elapsed(&self, from: &Instant, to: &Instant) -> Result<Option<Duration>> {
        Ok(Some(to.duration_since(*from)))
    }

    /// A sampling profiler sees all there is.
    fn profile(&self, _on: bool) -> Result<()> {
        Ok(())
    }

    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()> {
        ensure!(src.len() <= dst.len(), "{} elements do not fit {dst:?}", src.len());
        let bytes = bytemuck::cast_slice(src);
        self.memory.bytes_mut(dst.span())[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()> {
        ensure!(dst.len() <= src.len(), "{src:?} has fewer than {} elements", dst.len());
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(dst);
        bytes.copy_from_slice(&self.memory.bytes(src.span())[..bytes.len()]);
        Ok(())
    }

    /// Everything that was enqueued has run.
    fn enqueue_read(&self, src: Buf<u8>) -> Result<Vec<u8>> {
        self.snapshot(src.span())
    }

    fn wait(&self, pending: Vec<u8>) -> Result<Vec<u8>> {
        Ok(pending)
    }

    fn snapshot(&self, span: Span) -> Result<Vec<u8>> {
        Ok(self.memory.bytes(span).to_vec())
    }

    fn restore(&self, span: Span, bytes: &[u8]) -> Result<()> {
        self.memory.bytes_mut(span).copy_from_slice(bytes);
        Ok(())
    }

    fn upload(&self, fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()> {
        for Fill { dst, src, in_place } in fills {
            self.memory.fill(*dst, src, *in_place)?;
            progress(dst.bytes());
        }
        Ok(())
    }
}
