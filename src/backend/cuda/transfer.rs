//! Copies between the host and the device by way of pinned memory, so that neither has to wait for the other.
//!
//! All of them go through the device's one stream, in the order in which they were asked for: a write does not overtake a
//! step that reads what was there before, and a read brings what the steps before it left.
#![allow(unsafe_code)]

use std::mem;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use cudarc::driver::result;

use super::driver::{Device, Memory};
use super::event::Event;
use super::fault::Gate;

/// Pinned memory for writes: so many slots of so many bytes. Together they hold the pictures of a step, so that the host
/// can enqueue them while an earlier step runs.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = 4 << 20;
/// Where each write begins.
const ALIGN: usize = 64;

/// Bytes of pinned memory for a read, unless it needs more.
const LANDING_BYTES: usize = 64 << 10;

/// Host memory that the device copies from and to by itself, freed when dropped.
pub(super) struct Pinned {
    start: NonNull<u8>,
    bytes: usize,
    gate: Arc<Gate>,
}

// SAFETY: owned memory, which any thread may use and any thread may free: every use binds the context.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(gate: &Arc<Gate>, bytes: usize) -> Result<Pinned> {
        gate.enter()?;
        // SAFETY: plain flags; what comes back is owned by the value below, which frees it once.
        let raw = gate.check(unsafe { result::malloc_host(bytes, 0) });
        let raw = raw.with_context(|| format!("allocating {} KiB of pinned host memory", bytes >> 10))?;
        let start = NonNull::new(raw.cast()).context("the driver gave no pinned host memory")?;
        // SAFETY: `bytes` bytes were allocated, and initialised memory is what a slice promises.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { start, bytes, gate: gate.clone() })
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised, and borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gate.may_free() {
            // SAFETY: allocated by `Pinned::new` and freed once; whoever started copies has waited for them.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}

/// What writes are copied from: slots in turn, each used again when the copies from it have been made.
pub(super) struct Staging {
    slots: Vec<(Pinned, Event)>,
    turn: usize,
    /// Bytes of the slot whose turn it is.
    used: usize,
}

impl Staging {
    pub fn new(gate: &Arc<Gate>) -> Result<Staging> {
        let slot = |_| Ok((Pinned::new(gate, SLOT_BYTES)?, Event::untimed(gate)?));
        Ok(Staging { slots: (0..SLOTS).map(slot).collect::<Result<_>>()?, turn: 0, used: 0 })
    }

    /// Room for a copy that is enqueued next. Waits if the device has yet to make the copies that were there before.
    fn room(&mut self, bytes: usize) -> Result<&mut [u8]> {
        if self.used + bytes > SLOT_BYTES {
            let next = (self.turn + 1) % SLOTS;
            self.slots[self.turn].1.record()?;
            // Before anything is changed: if it fails, the memory is still the device's.
            self.slots[next].1.wait()?;
            (self.turn, self.used) = (next, 0);
        }
        let start = self.used;
        self.used = (start + bytes).next_multiple_of(ALIGN);
        Ok(&mut self.slots[self.turn].0.bytes_mut()[start..start + bytes])
    }
}

/// What a read is copied to, and the point behind the copy.
struct Landing {
    memory: Pinned,
    landed: Event,
}

/// Landings that nothing is on its way to.
#[derive(Clone, Default)]
pub(super) struct Landings(Arc<Mutex<Vec<Landing>>>);

impl Landings {
    fn take(&self, gate: &Arc<Gate>, bytes: usize) -> Result<Landing> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = free.iter().position(|landing| landing.memory.bytes >= bytes) {
            return Ok(free.swap_remove(i));
        }
        Ok(Landing {
            memory: Pinned::new(gate, bytes.next_power_of_two().max(LANDING_BYTES))?,
            landed: Event::untimed(gate)?,
        })
    }

    fn give(&self, landing: Landing) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(landing);
    }
}

/// Bytes on their way to the host.
pub struct Pending {
    /// There until it was waited for.
    landing: Option<Landing>,
    bytes: usize,
    landings: Landings,
}

impl Pending {
    /// The bytes. Waits for what was enqueued before them, and for nothing after.
    ///
    /// # Errors
    /// The driver fails; also the errors of earlier launches.
    pub fn wait(mut self) -> Result<Vec<u8>> {
        self.arrive()
    }

    fn arrive(&mut self) -> Result<Vec<u8>> {
        let Some(mut landing) = self.landing.take() else { return Ok(Vec::new()) };
        if let Err(error) = landing.landed.wait() {
            // The copy may still come, so nobody else may have this memory.
            mem::forget(landing);
            return Err(error);
        }
        let bytes = landing.memory.bytes_mut()[..self.bytes].to_vec();
        self.landings.give(landing);
        Ok(bytes)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = self.arrive();
    }
}

impl Device {
    /// Copy `src` to `dst`, `offset` bytes from its start, after everything that was enqueued before. `src` may be reused
    /// at once.
    ///
    /// # Errors
    /// The range leaves the memory, or the driver fails.
    pub fn write(&self, dst: &Memory, offset: usize, src: &[u8]) -> Result<()> {
        let address = dst.range(offset, src.len())?;
        self.gate.enter()?;
        let mut staging = self.staging.borrow_mut();
        for (i, piece) in src.chunks(SLOT_BYTES).enumerate() {
            let staged = staging.room(piece.len())?;
            staged.copy_from_slice(piece);
            let address = address + (i * SLOT_BYTES) as u64;
            // SAFETY: the range is inside `dst`. Nobody writes to this part of the staging memory before the event behind
            // the copy has passed, and it lives as long as the device, whose drop waits for the stream.
            self.gate.check(unsafe { result::memcpy_htod_async(address, staged, self.gate.stream.cu_stream()) })?;
        }
        Ok(())
    }

    /// Copy from `src`, `offset` bytes from its start, to `dst`, after everything that was enqueued before.
    ///
    /// # Errors
    /// The range leaves the memory, or the driver fails; also the errors of earlier launches.
    pub fn read(&self, src: &Memory, offset: usize, dst: &mut [u8]) -> Result<()> {
        if dst.len() <= LANDING_BYTES {
            dst.copy_from_slice(&self.enqueue_read(src, offset, dst.len())?.wait()?);
            return Ok(());
        }
        let address = src.range(offset, dst.len())?;
        self.gate.enter()?;
        // SAFETY: the range is inside `src`, and `dst` is borrowed until the copy has ended.
        self.gate.check(unsafe { result::memcpy_dtoh_async(dst, address, self.gate.stream.cu_stream()) })?;
        self.synchronize()
    }

    /// Copy `bytes` bytes from `src`, `offset` bytes from its start, after everything that was enqueued before, without
    /// waiting for it.
    ///
    /// # Errors
    /// The range leaves the memory, or the driver fails.
    pub fn enqueue_read(&self, src: &Memory, offset: usize, bytes: usize) -> Result<Pending> {
        let address = src.range(offset, bytes)?;
        self.gate.enter()?;
        let mut landing = self.landings.take(&self.gate, bytes)?;
        let landed = &mut landing.memory.bytes_mut()[..bytes];
        // SAFETY: the range is inside `src`. Nobody reads, reuses or frees the landing before the event behind the copy
        // has passed.
        self.gate.check(unsafe { result::memcpy_dtoh_async(landed, address, self.gate.stream.cu_stream()) })?;
        if let Err(error) = landing.landed.record() {
            // Nobody can tell when the copy has ended.
            mem::forget(landing);
            return Err(error);
        }
        Ok(Pending { landing: Some(landing), bytes, landings: self.landings.clone() })
    }
}
