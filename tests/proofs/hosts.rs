//! Hosts of pictures that do not give one.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::canary::Canary;
use super::client::send;
use super::gauges::{at_rest, forget_peak, peak, resident, settled, within};
use super::process::Server;
use super::table::texts;
use super::{CHAT, JSON, about, alone, body, chat};

/// Of a fetch.
const DEADLINE: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_secs(2);
/// What is read of a picture at most, in KiB: [`Limits::max_bytes`](ocelli::image::Limits::max_bytes).
const CAP: i64 = 64 << 10;

fn server() -> Server {
    Server::start(&["--allow-private-media-addresses", "--image-fetch-timeout", &DEADLINE.as_secs().to_string()])
}

/// Where, the error's code, a part of its message, and whether it takes as long as the deadline.
const HOSTS: [(&str, &str, &str, bool); 9] = [
    ("/huge", "image_too_large", "bytes", false),
    ("/endless", "image_too_large", "bytes", false),
    ("/drip", "image_fetch_timeout", "within 2 s", true),
    ("/endless-head", "image_fetch_timeout", "within 2 s", true),
    ("/short", "image_fetch_failed", "", false),
    ("/status/404", "image_fetch_failed", "answered 404", false),
    ("/status/500", "image_fetch_failed", "answered 500", false),
    ("/status/204", "image_fetch_failed", "answered 204", false),
    ("/gzip", "invalid_request", "", false),
];

#[test]
fn a_bad_host_costs_its_own_request_and_no_longer_than_the_deadline() {
    let _alone = alone();
    let (canary, server) = (Canary::start(), server());
    assert_eq!(chat(&server, &body(about(&[&canary.url("/wide.png")], "what is it?"), 2)).status, 200);
    let files = settled(&server);
    for (path, code, part, late) in HOSTS {
        forget_peak(&server);
        let before = resident(&server);
        let start = Instant::now();
        let reply = chat(&server, &body(about(&[&canary.url(path)], "what is it?"), 2));
        let (took, grown) = (start.elapsed(), peak(&server) - before);
        let message = reply.error(400, code);
        println!("{path}: {code} after {took:?}, {grown} KiB at the peak");
        assert!(message.contains(part) && !message.contains("secret"), "{path}: {message}");
        assert!(took < DEADLINE + MARGIN && (took >= DEADLINE) == late, "{path}: {took:?}");
        // A buffer that doubles, and half of it once more while it is copied.
        assert!(grown < CAP * 2, "{path}: {grown} KiB");
    }
    within(DEADLINE, "no host is held", || canary.open() == 0);
    at_rest(&server, files);
}

/// More requests than pictures are fetched at once, all at a host that takes as long as it may.
#[test]
fn slow_hosts_keep_nobody_who_asks_for_none() {
    let _alone = alone();
    let (canary, server) = (Canary::start(), server());
    let asked = body(json!("no picture"), 4);
    let expected = texts(&chat(&server, &asked), false, 1);
    let slow = body(about(&[&canary.url("/drip")], "what is it?"), 2).to_string();
    let waiting: Vec<_> = (0..40).map(|_| send(server.port, "POST", CHAT, JSON, &slow)).collect();
    within(DEADLINE, "pictures are being fetched", || canary.open() >= 8);
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    assert_eq!(texts(&chat(&server, &asked), false, 1), expected);
    let took = start.elapsed();
    println!("an answer in {took:?} beside 40 slow pictures");
    assert!(took < DEADLINE / 2, "{took:?}");
    drop(waiting);
}
