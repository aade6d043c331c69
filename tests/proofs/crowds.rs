//! More clients than there are places, all with the same request, or with much to say.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::connect;
use super::gauges::{at_rest, settled};
use super::process::Server;
use super::table::texts;
use super::{CHAT, JSON, about, alone, body, chat, data_url, picture};

const CROWD: usize = 64;
const OVERLOAD: Duration = Duration::from_secs(5);
const DUPLICATES: usize = 1000;

/// Eight times as many as run and wait: who is let in has the whole answer, and who is not is told at once.
#[test]
fn an_overload_costs_nobody_an_answer_that_was_begun() {
    let _alone = alone();
    let server = Server::start(&["--max-num-seqs", "2", "--max-waiting-requests", "6"]);
    let asked = body(json!("hello"), 30);
    let expected = texts(&chat(&server, &asked), false, 1);
    let files = settled(&server);
    let before = server.metric("request_success_total");
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let end = Instant::now() + OVERLOAD;
    let client = || {
        while Instant::now() < end {
            let reply = chat(&server, &asked);
            if reply.status == 200 {
                assert_eq!(texts(&reply, false, 1), expected);
                answered.fetch_add(1, Ordering::Relaxed);
            } else {
                reply.error(429, "queue_full");
                assert!(reply.head.contains("retry-after: "), "{}", reply.head);
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| (0..CROWD).for_each(|_| drop(scope.spawn(client))));
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    println!("{answered} answered and {refused} told to try again, of {}", answered + refused);
    assert!(answered > 0 && refused > 0);
    at_rest(&server, files);
    assert_eq!(server.metric("request_success_total") - before, answered as f64);
    assert_eq!((server.metric("request_cancelled_total"), server.metric("request_failed_total")), (0.0, 0.0));
}

#[test]
fn a_thousand_duplicates_have_one_answer() {
    let _alone = alone();
    let server = Server::start(&[]);
    let asked = body(about(&[&data_url(&picture("photo.png"))], "what is it?"), 8);
    let expected = texts(&chat(&server, &asked), false, 1);
    let files = settled(&server);
    thread::scope(|scope| {
        let share = || (0..DUPLICATES / 20).for_each(|_| assert_eq!(texts(&chat(&server, &asked), false, 1), expected));
        (0..20).for_each(|_| drop(scope.spawn(share)));
    });
    let encoded = server.metric("mm_cache_queries_total") - server.metric("mm_cache_hits_total");
    assert_eq!(encoded, 1.0, "the picture was encoded once");
    at_rest(&server, files);
}

/// Clients that announce the longest bodies there may be, and send next to nothing of them.
#[test]
fn who_only_announces_a_body_keeps_nobody_out() {
    let _alone = alone();
    let server = Server::start(&[]);
    let asked = body(json!("hello"), 4);
    let expected = texts(&chat(&server, &asked), false, 1);
    let files = settled(&server);
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n\r\n{{", 32 << 20);
    let announce = |_| {
        let mut socket = connect(server.port);
        socket.write_all(head.as_bytes()).unwrap();
        socket
    };
    let announced: Vec<_> = (0..CROWD).map(announce).collect();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(texts(&chat(&server, &asked), false, 1), expected);
    drop(announced);
    at_rest(&server, files);
}
