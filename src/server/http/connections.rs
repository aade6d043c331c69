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
    use_: Mutex<Use>,
    evicted: Notify,
}

/// What a connection is busy with.
#[derive(Clone, Copy)]
struct Use {
    /// Requests that are answered, and writes that wait for the client.
    busy: usize,
    /// When that last changed.
    since: Instant,
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
            if !evict_longest_idle(&mut open) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        let number = self.accepted.fetch_add(1, Ordering::Relaxed);
        let state =
            Arc::new(State { use_: Mutex::new(Use { busy: 0, since: Instant::now() }), evicted: Notify::new() });
        open.insert(number, state.clone());
        Some(Place { connections: self.clone(), number, state })
    }

    /// How many are busy.
    pub fn busy(&self) -> usize {
        self.open().values().filter(|state| state.used().busy > 0).count()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Close the connection that has been idle longest; false if none is idle.
fn evict_longest_idle(open: &mut HashMap<u64, Arc<State>>) -> bool {
    loop {
        let used = open.iter().map(|(&number, state)| (*state.used(), number));
        let idle = used.filter(|(used, _)| used.busy == 0).map(|(used, number)| (used.since, number));
        let Some(state) = idle.min().and_then(|(_, longest)| open.remove_entry(&longest)) else { return false };
        let (number, state) = state;
        // It may have got a request meanwhile, and then it stays.
        if state.used().busy == 0 {
            state.evicted.notify_one();
            return true;
        }
        open.insert(number, state);
    }
}

impl State {
    fn used(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Wait until the connection has to go.
    pub async fn evicted(&self) {
        self.state.evicted.notified().await;
    }

    /// The connection has a request to answer, until what this returns is dropped.
    pub fn busy(&self) -> Busy {
        self.mark().busy()
    }

    /// For whoever else knows when the connection is busy.
    pub fn mark(&self) -> Mark {
        Mark(self.state.clone())
    }
}

/// Says when a connection is busy.
pub(super) struct Mark(Arc<State>);

impl Mark {
    /// It is, until what this returns is dropped.
    pub fn busy(&self) -> Busy {
        self.0.used().busy += 1;
        Busy(self.0.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
    }
}

/// A request that is being answered, or a write that waits.
pub(super) struct Busy(Arc<State>);

impl Busy {
    /// Until the body of its answer has been read. What waits to be written then is the socket's to say.
    pub fn until_read(self, body: Body) -> Body {
        Body::new(Answer { body, _busy: self })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut used = self.0.used();
        *used = Use { busy: used.busy - 1, since: Instant::now() };
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
