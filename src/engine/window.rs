//! How many requests of a long list are under way at once: their decoded pictures take memory.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// So many places, and somebody who waits until one is free. For whoever asks more than may be under way.
pub struct Window {
    free: Mutex<usize>,
    left: Condvar,
}

/// A place in a [`Window`], free again when this is dropped.
pub struct Ticket(Arc<Window>);

impl Window {
    /// With so many places.
    pub fn new(places: usize) -> Arc<Window> {
        Arc::new(Window { free: Mutex::new(places), left: Condvar::new() })
    }

    /// Take a place, and wait for it if there is none.
    pub fn enter(self: &Arc<Window>) -> Ticket {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.left.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Ticket(self.clone())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_are_inside_than_there_are_places() {
        let (window, inside) = (Window::new(3), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let ticket = window.enter();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(ticket);
                });
            }
        });
        assert_eq!(*window.free.lock().unwrap(), 3);
    }
}
