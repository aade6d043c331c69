//! What the kernel says of a process, and what the server says of itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::client::get;
use super::process::Server;

/// A line of `/proc/PID/status`, in KiB.
fn status(server: &Server, name: &str) -> i64 {
    let text = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Memory that the process has now, in KiB.
pub fn resident(server: &Server) -> i64 {
    status(server, "VmRSS:")
}

/// The most that it had since [`forget_peak`], in KiB.
pub fn peak(server: &Server) -> i64 {
    status(server, "VmHWM:")
}

/// Let [`peak`] begin anew.
pub fn forget_peak(server: &Server) {
    fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
}

/// Open file descriptors.
pub fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

/// Open file descriptors once earlier connections are gone: as many for a while.
pub fn settled(server: &Server) -> usize {
    let mut latest = (descriptors(server), Instant::now());
    while latest.1.elapsed() < Duration::from_millis(200) {
        thread::sleep(Duration::from_millis(5));
        let now = descriptors(server);
        if now != latest.0 {
            latest = (now, Instant::now());
        }
    }
    latest.0
}

/// Processor time that the process has had; the kernel counts it in hundredths of a second.
pub fn processor_time(server: &Server) -> Duration {
    let text = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    // The name in parentheses may hold blanks.
    let fields: Vec<_> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Wait for something that should come true soon; how long it took.
pub fn within(limit: Duration, what: &str, mut is: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Nothing runs, waits or holds a block, and there are as many open files as before.
pub fn at_rest(server: &Server, files: usize) {
    for name in ["num_requests_in_server", "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"] {
        server.until(name, 0.0);
    }
    let limit = Duration::from_secs(10);
    // A request for a metric has a descriptor of its own, which is gone soon.
    within(limit, &format!("{files} open files, and not more"), || descriptors(server) == files);
}

/// Times of `count` answers of `/health`, in order.
pub fn health(server: &Server, count: usize) -> Vec<Duration> {
    let once = |_| {
        let start = Instant::now();
        assert_eq!(get(server.port, "/health").status, 200);
        thread::sleep(Duration::from_millis(5));
        start.elapsed() - Duration::from_millis(5)
    };
    let mut times: Vec<_> = (0..count).map(once).collect();
    times.sort();
    times
}

/// The value below which a share of sorted ones lies.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
