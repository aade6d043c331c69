//! Waiting for an engine to have nothing to do.

use std::thread;
use std::time::{Duration, Instant};

use ocelli::engine::{Engine, Stats};

/// The state of an engine that has nothing to do: what it counted, and nothing held.
pub fn settled(engine: &Engine) -> Stats {
    let start = Instant::now();
    loop {
        let stats = engine.stats();
        if stats.running == 0 && stats.waiting == 0 && stats.blocks.used == 0 {
            return stats;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "still at work: {stats:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
