//! Requests that nobody wants any more, many at once and at every point of one.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{read, send};
use super::gauges::{at_rest, settled};
use super::ledger::read_events;
use super::process::Server;
use super::table::texts;
use super::{CHAT, JSON, LONG, alone, body, chat, slow_server, with};

const STORM: usize = 200;
/// A fresh request's time after a storm: vLLM's own test of the same has this bound.
const RECOVERY: Duration = Duration::from_secs(5);
/// Events after which a request is cut, at most.
const STEPS: usize = 24;

#[test]
fn a_storm_of_cancellations_leaves_nothing_behind() {
    let _alone = alone();
    let server = slow_server(&[]);
    let fresh = body(json!("hello"), 8);
    let expected = texts(&chat(&server, &fresh), false, 1);
    let files = settled(&server);
    let ask = |i: usize| {
        let asked = with(body(json!(format!("tell me of {i}")), LONG), json!({ "stream": i.is_multiple_of(2) }));
        send(server.port, "POST", CHAT, JSON, &asked.to_string())
    };
    let clients: Vec<_> = (0..STORM).map(ask).collect();
    // All of them are the engine's, so that each is a cancellation.
    all_under_way(&server, STORM);
    thread::sleep(Duration::from_millis(500));
    drop(clients);
    let start = Instant::now();
    assert_eq!(texts(&chat(&server, &fresh), false, 1), expected);
    let took = start.elapsed();
    println!("an answer {took:?} after {STORM} requests were cut");
    assert!(took < RECOVERY, "{took:?}");
    at_rest(&server, files);
    assert_eq!(server.metric("request_cancelled_total"), STORM as f64);
    assert_eq!((server.metric("request_success_total"), server.metric("request_failed_total")), (2.0, 0.0));
}

/// Wait until the engine has so many requests.
fn all_under_way(server: &Server, count: usize) {
    let start = Instant::now();
    while server.metric("num_requests_running") + server.metric("num_requests_waiting") != count as f64 {
        assert!(start.elapsed() < Duration::from_secs(20), "the requests do not arrive");
    }
}

#[test]
fn neighbours_of_a_request_that_is_cut_anywhere_are_answered_the_same() {
    let _alone = alone();
    let server = slow_server(&[]);
    let neighbours: Vec<_> = ["one", "two", "three"].map(|text| body(json!(text), STEPS)).into();
    let expected: Vec<_> = neighbours.iter().map(|body| texts(&chat(&server, body), false, 1)).collect();
    let files = settled(&server);
    for events in 0..=STEPS {
        let sent: Vec<_> =
            neighbours.iter().map(|body| send(server.port, "POST", CHAT, JSON, &body.to_string())).collect();
        let asked = with(body(json!("the fourth"), LONG), json!({ "stream": true })).to_string();
        let mut victim = send(server.port, "POST", CHAT, JSON, &asked);
        // The head comes with the first token.
        victim.read_exact(&mut [0; 16]).unwrap();
        read_events(&mut victim, events);
        drop(victim);
        let found: Vec<_> = sent.into_iter().map(|socket| texts(&read(socket), false, 1)).collect();
        assert_eq!(found, expected, "beside a request that was cut after {events} events");
        server.until("request_cancelled_total", (events + 1) as f64);
        at_rest(&server, files);
    }
    assert_eq!(server.metric("request_success_total"), (3 * (STEPS + 2)) as f64);
}
