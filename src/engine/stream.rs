//! The answer to a request as it comes.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::output::{Event, Output};
use crate::{DeviceLost, EngineEnded, Error, Result};

/// Events of one request, of which [`Event::Done`] or [`Event::Failed`] is the last. Dropping it cancels the request.
///
/// As an iterator it blocks the thread; [`Stream::next`] waits in any async runtime.
pub struct Stream {
    events: UnboundedReceiver<Event>,
    cancelled: Arc<AtomicBool>,
    lost: Lost,
    prompt_tokens: usize,
    ended: bool,
}

/// What ended the engine's device, once something has.
#[derive(Clone, Default)]
pub(super) struct Lost(Arc<Mutex<Option<DeviceLost>>>);

impl Lost {
    pub fn set(&self, lost: &DeviceLost) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lost.clone());
    }

    /// The error of whoever still asks, if the device is lost.
    pub fn error(&self) -> Option<Error> {
        let lost = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lost.map(|lost| Error::Device(anyhow::Error::new(lost)))
    }

    /// The error of whoever finds the engine's thread gone.
    pub fn or_gone(&self) -> Error {
        self.error().unwrap_or_else(gone)
    }
}

impl Stream {
    /// A stream, and both ends that the engine holds.
    pub(super) fn new(lost: Lost, prompt_tokens: usize) -> (Stream, UnboundedSender<Event>, Arc<AtomicBool>) {
        let (sender, events) = unbounded_channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        (Stream { events, cancelled: cancelled.clone(), lost, prompt_tokens, ended: false }, sender, cancelled)
    }

    /// A stream of nothing but an error.
    pub(super) fn refused(error: Error) -> Stream {
        let (stream, sender, _) = Stream::new(Lost::default(), 0);
        // Its receiver is in the same function.
        let _ = sender.send(Event::Failed(error));
        stream
    }

    /// Tokens of the prompt, those of its pictures among them; 0 of a request that was refused.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Stream::next`] for whoever waits for several of them.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.events.poll_recv(cx));
        Poll::Ready(self.last(event))
    }

    /// Ask for no more tokens. What was computed until the engine notices, which is before its next step, still comes, and
    /// then [`Event::Done`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Wait for the whole answer, in any async runtime.
    ///
    /// # Errors
    /// That of [`Event::Failed`].
    pub async fn complete(&mut self) -> Result<Output> {
        while let Some(event) = Stream::next(self).await {
            if let Some(end) = event.end() {
                return end;
            }
        }
        Err(self.lost.or_gone())
    }

    /// Wait for the whole answer, blocking the thread.
    ///
    /// # Errors
    /// That of [`Event::Failed`].
    pub fn output(&mut self) -> Result<Output> {
        self.find_map(Event::end).unwrap_or_else(|| Err(self.lost.or_gone()))
    }

    /// The whole answer, if it is there already.
    pub(super) fn try_output(&mut self) -> Option<Result<Output>> {
        loop {
            match self.events.try_recv().map(Event::end) {
                Ok(None) => {}
                Ok(end) => return end,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Err(self.lost.or_gone())),
            }
        }
    }

    /// A channel that closes without a last event belonged to an engine that ended in the middle of its work.
    fn last(&mut self, event: Option<Event>) -> Option<Event> {
        let event = event.unwrap_or_else(|| Event::Failed(self.lost.or_gone()));
        self.ended = !matches!(event, Event::Piece(_));
        Some(event)
    }
}

/// The engine's thread is not there any more.
pub(super) fn gone() -> Error {
    Error::Device(anyhow::Error::new(EngineEnded))
}

/// Blocks the thread until there is an event; not for use inside an async runtime.
impl Iterator for Stream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        self.last(event)
    }
}
