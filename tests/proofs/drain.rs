//! The end of the server: for those who wait for an answer, and in spite of those who would keep it from ending.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{connect, get, read, send};
use super::gauges::{descriptors, settled, within};
use super::process::Server;
use super::table::texts;
use super::{CHAT, JSON, MODEL, about, alone, body, chat, data_url, picture, with};

const IN_FLIGHT: usize = 20;
const DEADLINE: Duration = Duration::from_secs(2);
/// For the process to end once it gives up, on a machine that does other things.
const MARGIN: Duration = Duration::from_secs(2);

#[test]
fn what_was_asked_is_answered_and_nothing_else() {
    let _alone = alone();
    // Most of them wait for their turn when the signal comes.
    let mut server = Server::start(&["--max-num-seqs", "4"]);
    let url = data_url(&picture("wide.png"));
    let asked = |i: usize| {
        let content = if i.is_multiple_of(4) { about(&[&url], "what is it?") } else { json!(format!("number {i}")) };
        with(body(content, 200), json!({ "stream": i.is_multiple_of(2) }))
    };
    let expected: Vec<_> = (0..IN_FLIGHT).map(|i| texts(&chat(&server, &asked(i)), i.is_multiple_of(2), 1)).collect();
    let port = server.port;
    let clients: Vec<_> = (0..IN_FLIGHT).map(|i| send(port, "POST", CHAT, JSON, &asked(i).to_string())).collect();
    server.until("num_requests_in_server", IN_FLIGHT as f64);
    server.signal("TERM");
    within(Duration::from_secs(2), "nobody listens", || TcpStream::connect(("127.0.0.1", port)).is_err());
    for (i, client) in clients.into_iter().enumerate() {
        assert_eq!(texts(&read(client), i.is_multiple_of(2), 1), expected[i], "request {i}");
    }
    assert_eq!(server.wait().code(), Some(0));
}

/// A connection after an answer, which could have another request.
fn idle(port: u16) -> TcpStream {
    let mut socket = connect(port);
    socket.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    socket.read_exact(&mut [0; 15]).unwrap();
    socket
}

/// Many answers that nobody reads.
pub fn never_reading(port: u16) -> TcpStream {
    let mut socket = connect(port);
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    socket.set_nonblocking(true).unwrap();
    // As many as the socket takes. Their answers have several times what both sockets hold.
    let _ = socket.write(request.repeat(10_000).as_bytes());
    socket
}

#[test]
fn who_only_waits_does_not_keep_the_server() {
    let _alone = alone();
    let mut server = Server::start(&["--shutdown-timeout", "20"]);
    let _idle: Vec<_> = (0..50).map(|_| idle(server.port)).collect();
    let _silent: Vec<_> = (0..50).map(|_| connect(server.port)).collect();
    assert_eq!(get(server.port, "/health").status, 200);
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    println!("ended {:?} after the signal, with 100 connections that asked nothing", start.elapsed());
    assert!(start.elapsed() < MARGIN, "{:?}", start.elapsed());
}

#[test]
fn hostile_connections_end_at_the_deadline() {
    let _alone = alone();
    let deadline = DEADLINE.as_secs().to_string();
    let mut server = Server::start(&["--shutdown-timeout", &deadline]);
    let port = server.port;
    let files = settled(&server);
    let part = |text: &str| {
        let mut socket = connect(port);
        socket.write_all(text.as_bytes()).unwrap();
        socket
    };
    let _heads: Vec<_> = (0..5).map(|_| part("POST /v1/chat/completions HTTP/1.1\r\nHo")).collect();
    let begun = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 99\r\n\r\n{{\"mes");
    let _bodies: Vec<_> = (0..5).map(|_| part(&begun)).collect();
    let _idle: Vec<_> = (0..5).map(|_| idle(port)).collect();
    let _readers: Vec<_> = (0..5).map(|_| never_reading(port)).collect();
    within(Duration::from_secs(2), "all are accepted", || descriptors(&server) >= files + 20);
    // Asked last and answered: hostile neighbours do not cost it its answer.
    let asked = body(json!("hello"), 100);
    let expected = texts(&chat(&server, &asked), false, 1);
    let last = send(port, "POST", CHAT, JSON, &asked.to_string());
    server.until("num_requests_running", 1.0);
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(texts(&read(last), false, 1), expected);
    assert_eq!(server.wait().code(), Some(1));
    let took = start.elapsed();
    println!("ended {took:?} after the signal, with a deadline of {DEADLINE:?} ({MODEL})");
    assert!((DEADLINE..DEADLINE + MARGIN).contains(&took), "{took:?}");
}
