//! Weights from files to the device, as fast as the link goes.
//!
//! The link takes memory that is pinned, and pinning is slow (1 to 2 GB/s), so not the files are pinned but a few small
//! slots. Threads read pieces of tensors into them, with `pread`, which needs no page table entry per 4 KiB of a mapped
//! file and reports a file that became shorter as an error instead of ending the process; the device copies a slot while
//! its thread fills the next one. Where a tensor goes is a matter of addresses: parts of one buffer need no
//! rearrangement.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags};

use super::driver::{Device, Memory};
use super::fault::Gate;
use super::transfer::Pinned;
use crate::host::convert;
use crate::mem::{DType, Source};
use crate::plan::Fill;

/// Bytes of a slot. Smaller ones do not fill the link (512 KiB: 30 GB/s instead of 44), and larger ones take longer to pin
/// than they save (4 MiB: 40 GB/s).
const SLOT_BYTES: usize = 1 << 20;
/// Slots of a thread: one is copied while the other is filled.
const SLOTS: usize = 2;
/// One thread reads 5 GB/s from the page cache and the link takes 55, both from the same memory: 12 threads reach 44 GB/s,
/// 8 reach 33 and 16 reach 41 (16 cores, H200, 2026-11-22). All copies go through one stream; one each is slower (38).
const MAX_THREADS: usize = 12;

/// How often the caller hears how far it is.
const TICK: Duration = Duration::from_millis(2);

/// A part of a tensor that fits a slot.
struct Piece<'a> {
    src: &'a Source,
    first: usize,
    elements: usize,
    to: DType,
    address: sys::CUdeviceptr,
}

impl Device {
    /// Copy tensors to `memory`, converting float types where they differ. `progress` hears of bytes that are in place.
    ///
    /// # Errors
    /// A tensor does not fit its place or cannot be converted, its file cannot be read, or the driver fails.
    pub(super) fn upload(&self, memory: &[Memory; 4], fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut pieces = Vec::new();
        for fill in fills {
            let dst = fill.dst;
            let start = memory[dst.region as usize].range(dst.byte as usize, dst.bytes() as usize)?;
            ensure!(
                fill.src.len() as u64 == dst.len,
                "{dst:?} takes {} elements and the source is {:?}",
                dst.len,
                fill.src
            );
            let whole = SLOT_BYTES / dst.dtype.size();
            for first in (0..fill.src.len()).step_by(whole) {
                pieces.push(Piece {
                    src: &fill.src,
                    first,
                    elements: whole.min(fill.src.len() - first),
                    to: dst.dtype,
                    address: start + (first * dst.dtype.size()) as u64,
                });
            }
        }
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(pieces.len().max(1));
        let shared = Shared {
            gate: &self.gate,
            pieces: &pieces,
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| shared.work())).collect();
            let mut told = 0;
            while !workers.iter().all(|w| w.is_finished()) {
                thread::sleep(TICK);
                let done = shared.done.load(Ordering::Relaxed);
                progress(done - told);
                told = done;
            }
            let results: Vec<Result<()>> = workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|_| Err(anyhow!("a thread that uploads weights panicked"))))
                .collect();
            progress(shared.done.load(Ordering::Relaxed) - told);
            results.into_iter().collect()
        })
    }
}

/// What the threads share.
struct Shared<'a> {
    gate: &'a Arc<Gate>,
    pieces: &'a [Piece<'a>],
    next: AtomicUsize,
    done: AtomicU64,
    failed: AtomicBool,
}

impl Shared<'_> {
    /// Upload pieces until there are no more, or another thread failed.
    fn work(&self) -> Result<()> {
        let result = Lane::open(self.gate).and_then(|mut lane| {
            while !self.failed.load(Ordering::Relaxed) {
                let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else { break };
                lane.send(piece)?;
                self.done.fetch_add((piece.elements * piece.to.size()) as u64, Ordering::Relaxed);
            }
            lane.finish()
        });
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// A thread's slots.
struct Lane {
    slots: [(Pinned, Event); SLOTS],
    turn: usize,
    gate: Arc<Gate>,
}

impl Lane {
    fn open(gate: &Arc<Gate>) -> Result<Lane> {
        let slot = || -> Result<_> { Ok((Pinned::new(gate, SLOT_BYTES)?, Event::new(gate)?)) };
        Ok(Lane { slots: [slot()?, slot()?], turn: 0, gate: gate.clone() })
    }

    /// Fill the next slot with a piece, and enqueue its copy.
    fn send(&mut self, piece: &Piece<'_>) -> Result<()> {
        let (slot, copied) = &mut self.slots[self.turn];
        self.turn = (self.turn + 1) % SLOTS;
        copied.wait()?;
        let bytes = &mut slot.bytes_mut()[..piece.elements * piece.to.size()];
        if piece.src.dtype() == piece.to {
            piece.src.read(piece.first, bytes)?;
        } else {
            let from = piece.src.dtype();
            let mut stored = vec![0; piece.elements * from.size()];
            piece.src.read(piece.first, &mut stored)?;
            bytes.copy_from_slice(&convert(&stored, from, piece.to)?);
        }
        // SAFETY: the address and the length lie in a device allocation, which the caller holds. The slot is not written
        // before the event behind the copy has passed, and is not freed before the stream has ended.
        self.gate.check(unsafe { result::memcpy_htod_async(piece.address, bytes, self.gate.stream.cu_stream()) })?;
        copied.record()
    }

    /// Wait for every copy of this thread.
    fn finish(&mut self) -> Result<()> {
        self.slots.iter().try_for_each(|(_, copied)| copied.wait()).context("uploading weights")
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // A failed thread may have copies in flight, from slots that are freed next.
        let _ = self.finish();
    }
}

/// A place in the stream that can be waited for.
struct Event {
    raw: sys::CUevent,
    gate: Arc<Gate>,
}

impl Event {
    fn new(gate: &Arc<Gate>) -> Result<Event> {
        gate.enter()?;
        let raw = gate.check(result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        Ok(Event { raw, gate: gate.clone() })
    }

    fn record(&self) -> Result<()> {
        // SAFETY: both handles are open, and of the same context.
        self.gate.check(unsafe { result::event::record(self.raw, self.gate.stream.cu_stream()) })
    }

    /// An event that was never recorded has passed.
    fn wait(&self) -> Result<()> {
        self.gate.enter()?;
        // SAFETY: the handle is open.
        self.gate.check(unsafe { result::event::synchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gate.may_free() {
            // SAFETY: made by `Event::new` and destroyed once.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
