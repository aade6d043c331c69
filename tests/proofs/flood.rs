//! Thousands of connections that ask nothing.

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::gauges::{at_rest, descriptors, health, quantile, settled};
use super::process::Server;
use super::table::texts;
use super::{alone, body, chat};

const FLOOD: usize = 5000;
/// Connections that the server keeps: fewer than come.
const KEPT: usize = 4000;
/// Of `/health` at the 99th percentile, meanwhile.
const HEALTH: Duration = Duration::from_millis(100);

/// Files that this process may open, after asking for as many as it can have. The server inherits it.
fn open_files() -> usize {
    let limits = || {
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<usize>().ok());
        (numbers.next().unwrap(), numbers.next().unwrap_or(1 << 20))
    };
    let (_, hard) = limits();
    let id = std::process::id().to_string();
    // Where there is no prlimit, what there is has to do.
    let _ =
        Command::new("prlimit").args(["--pid", &id, &format!("--nofile={hard}:{hard}")]).stderr(Stdio::null()).status();
    limits().0
}

#[test]
fn an_idle_flood_keeps_nobody_else_out() {
    let _alone = alone();
    let flood = FLOOD.min(open_files() - 200);
    let kept = KEPT.min(flood * 4 / 5);
    let server = Server::start(&["--max-connections", &kept.to_string(), "--header-timeout", "60"]);
    let asked = body(json!("hello"), 20);
    let expected = texts(&chat(&server, &asked), false, 1);
    let files = settled(&server);
    let start = Instant::now();
    let idle: Vec<_> = (0..flood).map(|_| TcpStream::connect(("127.0.0.1", server.port)).unwrap()).collect();
    let opened = start.elapsed();
    let times = health(&server, 200);
    let (median, tail) = (quantile(&times, 0.5), quantile(&times, 0.99));
    let held = descriptors(&server) - files;
    println!("{flood} idle connections in {opened:?}, {held} held; /health: median {median:?}, p99 {tail:?}");
    assert!((kept - 1..=kept).contains(&held), "{held} connections are held of {kept}");
    assert!(tail < HEALTH, "{tail:?}");
    assert_eq!(texts(&chat(&server, &asked), false, 1), expected);
    drop(idle);
    at_rest(&server, files);
    assert_eq!(texts(&chat(&server, &asked), false, 1), expected);
}
