//! Points in the work of a device, and the time between them as the device saw it.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

use super::driver::Device;
use super::fault::Gate;

/// A point in the work of a device.
pub struct Event {
    /// There until it is dropped.
    event: Option<CudaEvent>,
    gate: Arc<Gate>,
}

impl Device {
    /// A point that has not been set.
    ///
    /// # Errors
    /// The driver fails.
    pub fn event(&self) -> Result<Event> {
        Event::new(&self.gate, CUevent_flags::CU_EVENT_DEFAULT)
    }
}

impl Device {
    /// A point behind everything that was enqueued.
    ///
    /// # Errors
    /// The driver fails.
    pub fn point(&self) -> Result<Event> {
        let event = self.event()?;
        event.record()?;
        Ok(event)
    }
}

impl Event {
    fn new(gate: &Arc<Gate>, flags: CUevent_flags) -> Result<Event> {
        gate.enter()?;
        let event = gate.check(gate.context.new_event(Some(flags)))?;
        Ok(Event { event: Some(event), gate: gate.clone() })
    }

    /// A point to wait for, which does not tell the time.
    pub(super) fn untimed(gate: &Arc<Gate>) -> Result<Event> {
        Event::new(gate, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn inner(&self) -> Result<&CudaEvent> {
        self.event.as_ref().context("the event was dropped")
    }

    /// Set it to after everything that was enqueued before, and before everything that will be.
    ///
    /// # Errors
    /// The driver fails.
    pub fn record(&self) -> Result<()> {
        self.gate.enter()?;
        self.gate.check(self.inner()?.record(&self.gate.stream))
    }

    /// Wait until the device has come this far. One that was never set has been reached.
    pub(super) fn wait(&self) -> Result<()> {
        self.gate.enter()?;
        self.gate.check(self.inner()?.synchronize())
    }

    /// Whether the device has come this far, without waiting for it.
    ///
    /// # Errors
    /// The driver fails, or an earlier launch did.
    pub fn is_reached(&self) -> Result<bool> {
        self.gate.enter()?;
        self.gate.check(self.inner()?.try_is_complete())
    }

    /// Time from `earlier` to here; waits until the device has reached both. A tick is about half a microsecond.
    ///
    /// # Errors
    /// The driver fails, or an earlier launch did.
    pub fn since(&self, earlier: &Event) -> Result<Duration> {
        self.gate.enter()?;
        let ms = self.gate.check(earlier.inner()?.elapsed_ms(self.inner()?))?;
        Ok(Duration::from_secs_f64(f64::from(ms) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.gate.may_free() {
            // Dropping it would call the driver.
            mem::forget(self.event.take());
        }
    }
}
