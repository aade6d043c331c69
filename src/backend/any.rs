//! The backend that a caller chose at run time.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytemuck::Pod;

use super::Cpu;
#[cfg(feature = "cuda")]
use super::cuda::{self, Cuda};
use crate::mem::{Buf, Span};
use crate::plan::{Backend, Fill, Plan, Step};

/// One of the backends.
pub enum Any {
    /// The references on the host.
    Cpu(Cpu),
    /// The kernels on a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

/// A plan linked to the backend of the same name.
pub enum Exec {
    /// See [`Cpu`].
    Cpu(Vec<Step>),
    /// See [`Cuda`].
    #[cfg(feature = "cuda")]
    Cuda(cuda::Exec),
}

/// Bytes on their way from the backend of the same name.
pub enum Pending {
    /// See [`Cpu`].
    Cpu(Vec<u8>),
    /// See [`Cuda`].
    #[cfg(feature = "cuda")]
    Cuda(cuda::Pending),
}

/// A point in the work of the backend of the same name.
pub enum Mark {
    /// See [`Cpu`].
    Cpu(Instant),
    /// See [`Cuda`].
    #[cfg(feature = "cuda")]
    Cuda(cuda::event::Event),
}

impl Any {
    /// Whether plans run as kernels on a device, which takes work off the host.
    pub fn runs_kernels(&self) -> bool {
        !matches!(self, Any::Cpu(_))
    }

    /// `cpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self {
            Any::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Any::Cuda(_) => "cuda",
        }
    }

    /// The maker's name of the device; `host` for the CPU.
    pub fn hardware(&self) -> &str {
        match self {
            Any::Cpu(_) => "host",
            #[cfg(feature = "cuda")]
            Any::Cuda(b) => &b.device().properties().name,
        }
    }

    /// What of the kernels is not as the build has it, a sentence each.
    pub fn other_kernels(&self) -> Vec<String> {
        match self {
            Any::Cpu(_) => Vec::new(),
            #[cfg(feature = "cuda")]
            Any::Cuda(b) => b.device().kernels().describe(),
        }
    }

    #[cfg(feature = "cuda")]
    fn stranger(&self) -> anyhow::Error {
        anyhow::anyhow!("what another backend made was given to {}", self.name())
    }
}

/// Hand a call on to the backend inside.
macro_rules! inner {
    ($self:ident, $backend:ident => $call:expr) => {
        match $self {
            Any::Cpu($backend) => $call,
            #[cfg(feature = "cuda")]
            Any::Cuda($backend) => $call,
        }
    };
}

/// Run a plan on one of the backends, whose marks become those of any.
fn run<B: Backend>(
    backend: &B,
    exec: &mut B::Exec,
    marks: Option<&mut Vec<Mark>>,
    any: fn(B::Mark) -> Mark,
) -> Result<()> {
    let Some(marks) = marks else { return backend.run(exec, None) };
    let mut own = Vec::new();
    backend.run(exec, Some(&mut own))?;
    marks.extend(own.into_iter().map(any));
    Ok(())
}

impl Backend for Any {
    type Exec = Exec;
    type Pending = Pending;
    type Mark = Mark;

    fn link(&self, plan: &Plan) -> Result<Exec> {
        Ok(match self {
            Any::Cpu(b) => Exec::Cpu(b.link(plan)?),
            #[cfg(feature = "cuda")]
            Any::Cuda(b) => Exec::Cuda(b.link(plan)?),
        })
    }

    fn capture(&self, exec: &mut Exec) -> Result<()> {
        match (self, exec) {
            (Any::Cpu(b), Exec::Cpu(exec)) => b.capture(exec),
            #[cfg(feature = "cuda")]
            (Any::Cuda(b), Exec::Cuda(exec)) => b.capture(exec),
            #[cfg(feature = "cuda")]
            _ => Err(self.stranger()),
        }
    }

    fn run(&self, exec: &mut Exec, marks: Option<&mut Vec<Mark>>) -> Result<()> {
        match (self, exec) {
            (Any::Cpu(b), Exec::Cpu(exec)) => run(b, exec, marks, Mark::Cpu),
            #[cfg(feature = "cuda")]
            (Any::Cuda(b), Exec::Cuda(exec)) => run(&**b, exec, marks, Mark::Cuda),
            #[cfg(feature = "cuda")]
            _ => Err(self.stranger()),
        }
    }

    fn mark(&self) -> Result<Mark> {
        Ok(match self {
            Any::Cpu(b) => Mark::Cpu(b.mark()?),
            #[cfg(feature = "cuda")]
            Any::Cuda(b) => Mark::Cuda(b.mark()?),
        })
    }

    fn elapsed(&self, from: &Mark, to: &Mark) -> Result<Option<Duration>> {
        match (self, from, to) {
            (Any::Cpu(b), Mark::Cpu(from), Mark::Cpu(to)) => b.elapsed(from, to),
            #[cfg(feature = "cuda")]
            (Any::Cuda(b), Mark::Cuda(from), Mark::Cuda(to)) => b.elapsed(from, to),
            #[cfg(feature = "cuda")]
            _ => Err(self.stranger()),
        }
    }

    fn profile(&self, on: bool) -> Result<()> {
        inner!(self, b => b.profile(on))
    }

    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()> {
        inner!(self, b => b.write(dst, src))
    }

    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()> {
        inner!(self, b => b.read(src, dst))
    }

    fn enqueue_read(&self, src: Buf<u8>) -> Result<Pending> {
        Ok(match self {
            Any::Cpu(b) => Pending::Cpu(b.enqueue_read(src)?),
            #[cfg(feature = "cuda")]
            Any::Cuda(b) => Pending::Cuda(b.enqueue_read(src)?),
        })
    }

    fn wait(&self, pending: Pending) -> Result<Vec<u8>> {
        match (self, pending) {
            (Any::Cpu(b), Pending::Cpu(bytes)) => b.wait(bytes),
            #[cfg(feature = "cuda")]
            (Any::Cuda(b), Pending::Cuda(pending)) => b.wait(pending),
            #[cfg(feature = "cuda")]
            _ => Err(self.stranger()),
        }
    }

    fn snapshot(&self, span: Span) -> Result<Vec<u8>> {
        inner!(self, b => b.snapshot(span))
    }

    fn restore(&self, span: Span, bytes: &[u8]) -> Result<()> {
        inner!(self, b => b.restore(span, bytes))
    }

    fn upload(&self, fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()> {
        inner!(self, b => b.upload(fills, progress))
    }
}
