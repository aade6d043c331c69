//! Which connections are open, and which of them has to go when there are too many.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;

/// The open connections.
pub(super) struct Connections {
    max: usize,
    open: Mutex<HashMap<u64, Arc<State>>>,
    accepted: AtomicU64,
    /// Connections that were closed to make room.
    pub evicted: AtomicU64,
    /// Connections for which there was no room.
    pub refused: AtomicU64,
    /// Connections that could not be accepted: no file was left for them.
    pub failed: AtomicU64,
}

/// One of them.
struct State {
    /// When it last began to wait for a request; none while it answers one.
    idle: Mutex<Option<Instant>>,
    evicted: Notify,
}

/// A place among the open connections, given back when dropped.
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
    state: Arc<State>,
}

impl Connections {
    /// At most `max` of them.
    pub fn new(max: usize) -> Connections {
        Connections {
            max,
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open().len()
    }

    /// A place for one more. If there is none, the connection that has been idle longest is closed; if all are busy, there is
    /// no place.
    pub fn enter(self: &Arc<Connections>) -> Option<Place> {
        let mut open = self.open();
        if open.len() >= self.max {
            let idle = open.iter().filter_map(|(&number, state)| Some(((*state.idle())?, number)));
            let Some((_, longest)) = idle.min() else {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            };
            if let Some(state) = open.remove(&longest) {
                state.evicted.notify_one();
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
        let number = self.accepted.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(State { idle: Mutex::new(Some(Instant::now())), evicted: Notify::new() });
        open.insert(number, state.clone());
        Some(Place { connections: self.clone(), number, state })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn idle(&self) -> MutexGuard<'_, Option<Instant>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Wait until the connection has to go.
    pub async fn evicted(&self) {
        self.state.evicted.notified().await;
    }

    /// The connection has a request to answer, until what this returns is dropped.
    pub fn busy(&self) -> Busy {
        *self.state.idle() = None;
        Busy(self.state.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
    }
}

/// A request that is being answered.
pub(super) struct Busy(Arc<State>);

impl Busy {
    /// The body of its answer, which is the last of it.
    pub fn until_sent(self, body: Body) -> Body {
        Body::new(Answer { body, _busy: self })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle() = Some(Instant::now());
    }
}

struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_goes_and_the_busy_stay() {
        let connections = Arc::new(Connections::new(3));
        let first = connections.enter().unwrap();
        let second = connections.enter().unwrap();
        let third = connections.enter().unwrap();
        let busy = first.busy();
        let fourth = connections.enter().unwrap();
        let open = |place: &Place| connections.open().contains_key(&place.number);
        assert_eq!([&first, &second, &third, &fourth].map(open), [true, false, true, true]);
        // What waits for a request since later stays longer.
        drop(third.busy());
        let all = [first.busy(), third.busy()];
        let fifth = connections.enter().unwrap();
        assert!(!open(&fourth) && open(&fifth));
        let last = fifth.busy();
        assert!(connections.enter().is_none());
        drop((busy, all, last));
        drop((second, fourth));
        assert_eq!((connections.count(), connections.evicted.load(Ordering::Relaxed)), (3, 2));
        assert_eq!(connections.refused.load(Ordering::Relaxed), 1);
        drop((first, third, fifth));
        assert_eq!(connections.count(), 0);
    }
}
