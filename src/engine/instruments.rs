//! What users want to see of an engine at work: asked for on any thread, followed by the engine's own.

use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use super::Shared;
use crate::trace::{Detail, Recording, Run, Trace};

/// What is asked for, and what was recorded of it.
#[derive(Default)]
pub(super) struct Instruments {
    recording: Option<Recording>,
    /// Whether a profiler should look.
    pub profiled: bool,
}

impl Instruments {
    pub fn record(&mut self, detail: Detail) {
        self.recording.get_or_insert_with(|| Recording::new(detail)).detail = detail;
    }

    pub fn take(&mut self) -> Trace {
        self.recording.take().map(Recording::end).unwrap_or_default()
    }

    /// What is to be timed, and from when on.
    pub fn wanted(&self) -> Option<(Detail, Instant)> {
        self.recording.as_ref().map(|r| (r.detail, r.start))
    }

    /// Keep runs of the recording that began at `start`, if that is still the one.
    pub fn ran(&mut self, start: Instant, runs: Vec<Run>) {
        if let Some(recording) = self.recording.as_mut().filter(|r| r.start == start) {
            runs.into_iter().for_each(|run| recording.run(run));
        }
    }
}

impl Shared {
    pub(super) fn instruments(&self) -> MutexGuard<'_, Instruments> {
        self.instruments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Record what this thread has done since `start`, if that is recorded.
    pub(super) fn did(&self, name: &'static str, start: Instant, args: &[(&'static str, u64)]) {
        if let Some(recording) = &mut self.instruments().recording {
            recording.span(name, start, args);
        }
    }
}
