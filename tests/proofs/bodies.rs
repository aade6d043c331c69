//! Bodies and heads that are made to hurt, and bytes that are no HTTP.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;

use serde_json::json;

use super::client::{Reply, connect, get, parse, read, send};
use super::gauges::{at_rest, resident, settled};
use super::process::Server;
use super::table::texts;
use super::{CHAT, JSON, alone, body, chat, growth};

const CHUNKS: usize = 1_000_000;
const ROUNDS: usize = 5;
/// How often growth is looked for until there is none.
const TIMES: usize = 3;
/// What memory may grow by over all rounds, in KiB. Triton's own test of the same has this bound.
const GROWTH: i64 = 1024;

/// Send bytes, say that there will be no more if `end` is set, and hear everything until the server closes.
fn exchange(server: &Server, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut socket = connect(server.port);
    // A server that has heard enough may close before all is written.
    let _ = socket.write_all(bytes);
    if end {
        let _ = socket.shutdown(Shutdown::Write);
    }
    let mut heard = Vec::new();
    let _ = socket.read_to_end(&mut heard);
    heard
}

/// A chat's body in chunks of one byte.
fn many_chunks() -> Vec<u8> {
    let asked = body(json!("hello"), 2).to_string();
    let text = asked.clone() + &" ".repeat(CHUNKS - asked.len());
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n");
    let chunks = text.bytes().flat_map(|byte| [b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    head.bytes().chain(chunks).chain(*b"0\r\n\r\n").collect()
}

/// What memory grew by over [`ROUNDS`] rounds, in KiB, several times, up to the first below [`GROWTH`]. What leaks, does so every
/// time; a freed body that stays with the allocator from then on is counted once.
fn growth(server: &Server, round: impl Fn()) -> Vec<i64> {
    // Whether a body is with the allocator as memory is read, differs from one round to the next: what is common to them is held.
    let least = || {
        let after = |()| {
            round();
            resident(server)
        };
        [(); ROUNDS].map(after).into_iter().min().unwrap_or_default()
    };
    (0..3).for_each(|_| round());
    let mut before = least();
    let mut grown = Vec::new();
    while grown.len() < TIMES && grown.last().is_none_or(|grown| *grown >= GROWTH) {
        let now = least();
        grown.push(now - before);
        before = now;
    }
    grown
}

#[test]
fn a_million_chunks_leave_nothing_behind() {
    let _alone = alone();
    let server = growth::server(&[]);
    let request = many_chunks();
    let expected = texts(&chat(&server, &body(json!("hello"), 2)), false, 1);
    let grown = growth(&server, || assert_eq!(texts(&parse(exchange(&server, &request, false)), false, 1), expected));
    println!("{ROUNDS} bodies of {CHUNKS} chunks: grown by {grown:?} KiB");
    assert!(grown.iter().any(|grown| *grown < GROWTH), "{grown:?} KiB");
}

/// Each round leaves the beginning of a body behind, all of them a third more than may stay: what the server holds of it is a leak as long as
/// the connection is open, and is seen every time.
#[test]
fn a_quarter_of_a_megabyte_a_body_is_seen() {
    let _alone = alone();
    let server = growth::server(&["--body-timeout", "600"]);
    let left: Mutex<Vec<TcpStream>> = Mutex::default();
    let size = GROWTH as usize * 1024 * 4 / 3 / ROUNDS;
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {}\r\n\r\n", size + 1);
    let begun = head + &" ".repeat(size);
    let grown = growth(&server, || {
        let mut socket = connect(server.port);
        socket.write_all(begun.as_bytes()).unwrap();
        left.lock().unwrap().push(socket);
        // Answered behind it, when all of it was read.
        chat(&server, &body(json!("hello"), 2));
    });
    println!("{ROUNDS} bodies of {size} bytes that stay: grown by {grown:?} KiB");
    assert!(grown.iter().all(|grown| *grown > GROWTH), "{grown:?} KiB");
}

/// Statuses of all answers in what was heard.
fn statuses(heard: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(heard);
    let heads = text.split("HTTP/1.1 ").skip(1).chain(text.split("HTTP/1.0 ").skip(1));
    heads.map(|head| head[..3].to_owned()).collect()
}

fn refused(reply: &Reply, codes: &[(u16, &str)]) {
    let code = reply.json()["error"]["code"].clone();
    assert!(codes.iter().any(|(s, c)| reply.status == *s && code == *c), "{} {code}", reply.status);
}

#[test]
fn what_is_no_json_is_refused_however_deep_it_is() {
    let _alone = alone();
    let server = Server::start(&[]);
    let port = server.port;
    let post = |body: &str| read(send(port, "POST", CHAT, JSON, body));
    let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
    for depth in [200, 250_000] {
        let either = [(400, "invalid_json"), (413, "body_too_large")];
        refused(&post(&deep(depth)), &either);
        refused(&post(&format!("{{\"messages\":{}}}", deep(depth))), &either);
        refused(&post(&"{\"a\":".repeat(depth)), &either);
    }
    refused(&post("{\"messages\":[],\"model\":\"\\ud800\"}"), &[(400, "invalid_json")]);
    refused(&post("{\"messages\":[{\"role\":\"user\",\"content\":NaN}]}"), &[(400, "invalid_json")]);
    let packed = format!("{JSON}Content-Encoding: gzip\r\n");
    let reply = read(send(port, "POST", CHAT, &packed, &body(json!("hello"), 2).to_string()));
    refused(&reply, &[(415, "unsupported_media_type"), (415, "unsupported_content_encoding")]);
    assert_eq!(chat(&server, &body(json!("hello"), 2)).status, 200);
}

#[test]
fn one_request_has_one_answer_or_none() {
    let _alone = alone();
    let server = Server::start(&["--header-timeout", "1", "--body-timeout", "1"]);
    assert_eq!(get(server.port, "/health").status, 200);
    let files = settled(&server);
    let post = |head: &str, body: &str| format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\n{JSON}{head}\r\n{body}");
    let inner = "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
    let chunked = format!("0\r\n\r\n{inner}");
    let length = chunked.len();
    let many = "X-A: b\r\n".repeat(150);
    let tls = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3];
    // Bytes, whether the client says that there will be no more, and the statuses that they may be answered with.
    let cases: Vec<(&str, Vec<u8>, bool, &[&str])> = vec![
        (
            "a length and chunks",
            post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &chunked).into(),
            false,
            &["400"],
        ),
        (
            "chunks and a length",
            post(&format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &chunked).into(),
            false,
            &["400"],
        ),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n", "{}x").into(), false, &["400"]),
        ("a negative length", post("Content-Length: -1\r\n", "{}").into(), false, &["400"]),
        ("a length with a sign", post("Content-Length: +2\r\n", "{}").into(), false, &["400"]),
        ("an endless length", post("Content-Length: 99999999999999999999\r\n", "{}").into(), false, &["400"]),
        ("an unknown encoding", post("Transfer-Encoding: xchunked\r\n", &chunked).into(), false, &["400"]),
        ("an endless chunk", post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\na").into(), false, &["400"]),
        ("a chunk of no size", post("Transfer-Encoding: chunked\r\n", "zz\r\na").into(), false, &["400"]),
        (
            "a chunk that goes on",
            post("Transfer-Encoding: chunked\r\n", "2\r\n{}x\r\n0\r\n\r\n").into(),
            false,
            &["400"],
        ),
        (
            "a space before the colon",
            format!("GET /health HTTP/1.1\r\nHost : x\r\n\r\n{inner}").into(),
            false,
            &["400"],
        ),
        ("a folded line", "GET /health HTTP/1.1\r\nHost: x\r\n y: z\r\n\r\n".into(), false, &["400"]),
        ("a NUL", "GET /health HTTP/1.1\r\nHost: x\0y\r\n\r\n".into(), false, &["400"]),
        ("150 lines", format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n").into(), false, &["431"]),
        (
            "a line of a megabyte",
            format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(1 << 20)).into(),
            false,
            &["431"],
        ),
        (
            "a path of a megabyte",
            format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)).into(),
            false,
            &["414", "431", "400"],
        ),
        ("TLS", tls.to_vec(), false, &["400"]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), false, &["400", "505"]),
        ("HTTP/1.0", b"GET /health HTTP/1.0\r\n\r\n".to_vec(), false, &["200"]),
        ("HTTP/0.9", b"GET /health\r\n".to_vec(), false, &["400"]),
        (
            "garbage",
            (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
            false,
            &["400", "431"],
        ),
        ("a half-close", post("Content-Length: 2\r\n", "{}").into(), true, &["400"]),
        ("nothing", Vec::new(), true, &[]),
        (
            "an expectation",
            post("Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n", "{}").into(),
            false,
            &["100", "400"],
        ),
    ];
    for (name, bytes, end, allowed) in cases {
        let found = statuses(&exchange(&server, &bytes, end));
        println!("{name}: {found:?}");
        assert!(found.iter().filter(|status| *status != "100").count() <= 1, "{name}: {found:?}");
        assert!(found.iter().all(|status| allowed.contains(&status.as_str())), "{name}: {found:?}");
        assert_eq!(get(server.port, "/health").status, 200, "after {name}");
    }
    // Two requests have two answers, in their order.
    let last = "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(statuses(&exchange(&server, format!("{inner}{last}").as_bytes(), false)), ["200", "404"]);
    at_rest(&server, files);
}
