//! Recorded launches: a list that is enqueued by one call instead of one each.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUstreamCaptureMode};

use super::driver::Device;
use super::fault::Gate;

/// A recorded list of launches, ready to run again and again. It holds the addresses of what it launches, so whoever
/// keeps it keeps the modules too.
pub(super) struct Graph {
    exec: sys::CUgraphExec,
    gate: Arc<Gate>,
}

// SAFETY: the handle belongs to the context and not to a thread, it is used by one thread at a time, and every use binds
// the context.
unsafe impl Send for Graph {}

impl Device {
    /// Record what `enqueue` puts on the stream instead of running it.
    ///
    /// # Errors
    /// Those of `enqueue`, which must only launch; the driver fails.
    pub(super) fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let gate = &self.gate;
        gate.enter()?;
        let stream = gate.stream.cu_stream();
        // SAFETY: the stream is this device's and nothing records on it yet. Only calls of this thread are recorded.
        let begun =
            unsafe { result::stream::begin_capture(stream, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) };
        gate.check(begun).context("beginning to record a graph")?;
        let enqueued = enqueue();
        let mut graph = ptr::null_mut();
        // SAFETY: recording began above. An error of `enqueue` ends it too, or the stream would stay unusable.
        let ended =
            gate.enter().and_then(|()| gate.check(unsafe { sys::cuStreamEndCapture(stream, &mut graph) }.result()));
        let mut exec = ptr::null_mut();
        let made = enqueued.and(ended).and_then(|()| {
            // SAFETY: the graph was recorded above.
            gate.check(unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) }.result())
        });
        if !graph.is_null() && gate.may_free() {
            // SAFETY: the executable form is a copy, and nobody else has this handle.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        made.context("recording a graph")?;
        let graph = Graph { exec, gate: gate.clone() };
        // SAFETY: the handle was made above. Without this the first run would pay for it.
        gate.check(unsafe { sys::cuGraphUpload(graph.exec, stream) }.result())?;
        Ok(graph)
    }

    /// Enqueue a recorded list.
    ///
    /// # Errors
    /// The driver fails.
    pub(super) fn replay(&self, graph: &Graph) -> Result<()> {
        self.gate.enter()?;
        // SAFETY: the graph was recorded on this stream, and what it launches is held by whoever holds it.
        let code = unsafe { sys::cuGraphLaunch(graph.exec, self.gate.stream.cu_stream()) };
        self.gate.check(code.result()).context("launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gate.may_free() {
            // SAFETY: made by `Device::capture` and destroyed once. The driver waits for a run in flight.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
