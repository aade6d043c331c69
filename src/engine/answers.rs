//! What the answers to one request have in common: it has ended when all of them have, or one has failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::output::{Completion, Event, Output, Piece};
use super::stats::milliseconds;
use super::step_outputs::Sampled;
use super::window::Ticket;
use crate::Error;

/// Where the answers to one request come together. One lock, which only the engine's thread takes.
pub(super) struct Answers {
    events: UnboundedSender<Event>,
    cancelled: Arc<AtomicBool>,
    start: Instant,
    /// `None` once the last event is out.
    open: Mutex<Option<Open>>,
}

struct Open {
    output: Output,
    /// Answers that have not ended.
    left: usize,
    /// When the first token came.
    first: Option<Instant>,
    /// The request's place among those that are under way.
    _ticket: Option<Ticket>,
}

impl Answers {
    /// For a request that came at `start`; `output` has a place for each of its answers.
    pub fn new(
        output: Output,
        start: Instant,
        events: UnboundedSender<Event>,
        cancelled: Arc<AtomicBool>,
        ticket: Option<Ticket>,
    ) -> Answers {
        let left = output.outputs.len();
        let open = Mutex::new(Some(Open { output, left, first: None, _ticket: ticket }));
        Answers { events, cancelled, start, open }
    }

    /// Nobody waits for them, or one has failed.
    pub fn are_unwanted(&self) -> bool {
        self.events.is_closed() || self.cancelled.load(Ordering::Relaxed)
    }

    /// The request is served from now on; `cached` tokens of its prompt were found.
    pub fn begin(&self, cached: usize) {
        self.note(|output| {
            output.cached_tokens = cached;
            output.timings.queue_ms = milliseconds(self.start) - output.timings.prepare_ms;
        });
    }

    fn note(&self, change: impl FnOnce(&mut Output)) {
        self.with(|open| change(&mut open.output));
    }

    /// What is reported of the token at `position` of the prompt.
    pub fn report(&self, position: usize, sampled: Sampled) {
        self.note(|output| {
            if let Some(place) = output.prompt_logprobs.get_mut(position) {
                *place = Some(sampled);
            }
        });
    }

    /// One of them has a token more.
    pub fn push(&self, piece: Piece) {
        let open = self.with(|open| {
            if open.first.is_none() {
                open.first = Some(Instant::now());
                let timings = &mut open.output.timings;
                timings.ttft_ms = milliseconds(self.start);
                timings.prefill_ms = timings.ttft_ms - timings.prepare_ms - timings.queue_ms;
            }
        });
        if open.is_some() {
            // A receiver that went away is noticed before the next step.
            let _ = self.events.send(Event::Piece(piece));
        }
    }

    /// One of them has ended. With the last, the request has.
    pub fn end(&self, completion: Completion) {
        let done = self.with(|open| {
            let index = completion.index;
            open.output.outputs[index] = completion;
            open.left -= 1;
            open.left == 0
        });
        if done == Some(true)
            && let Some(Open { mut output, first, .. }) = self.close()
        {
            let tokens = output.outputs.iter().map(|o| o.token_ids.len()).sum();
            output.timings.end(first.unwrap_or_else(Instant::now), tokens);
            let _ = self.events.send(Event::Done(Box::new(output)));
        }
    }

    /// One of them has failed, and the request with it. The others are not wanted any more.
    pub fn fail(&self, error: Error) {
        self.cancelled.store(true, Ordering::Relaxed);
        if self.close().is_some() {
            let _ = self.events.send(Event::Failed(error));
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Open) -> T) -> Option<T> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
    }

    fn close(&self) -> Option<Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
