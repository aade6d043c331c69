//! Memory over thousands of requests.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::client::{connect, post, read, send};
use super::gauges::resident;
use super::process::{Server, command};
use super::table::{refused, texts};
use super::{CHAT, about, alone, body, data_url, picture, with};

/// Rounds before memory is looked at.
const WARM: usize = 2;
const ROUNDS: usize = 3;
const CLIENTS: usize = 8;
/// What memory may grow by a round, in KiB.
const SLOPE: i64 = 1024;

/// A server whose C allocator keeps what was freed in two heaps and not in one for every thread that was ever busy: those fill up
/// for a dozen rounds, by one MiB or two each.
pub fn server(args: &[&str]) -> Server {
    let mut command = command(&[&["--port", "0"], args].concat());
    command.env("MALLOC_ARENA_MAX", "2");
    Server::run(command)
}

/// Memory of the server after each round of requests, in KiB: when it is warm, and after each round behind that.
fn memory(server: &Server, requests: usize, ask: &(impl Fn(usize) + Sync)) -> Vec<i64> {
    let next = AtomicUsize::new(0);
    let round = || {
        let end = next.load(Ordering::Relaxed) + requests / CLIENTS * CLIENTS;
        let share = || (0..requests / CLIENTS).for_each(|_| ask(next.fetch_add(1, Ordering::Relaxed)));
        thread::scope(|scope| {
            (0..CLIENTS).for_each(|_| drop(scope.spawn(share)));
        });
        assert_eq!(next.load(Ordering::Relaxed), end);
        server.until("num_requests_in_server", 0.0);
        resident(server)
    };
    (0..WARM + ROUNDS).map(|_| round()).skip(WARM - 1).collect()
}

/// What a round adds.
fn slope(memory: &[i64]) -> i64 {
    (memory[ROUNDS] - memory[0]) / ROUNDS as i64
}

/// Requests of all kinds, each different from the one before.
fn mixed(port: u16) -> impl Fn(usize) + Sync {
    let url = data_url(&picture("tiny.png"));
    let bad = refused(1 << 20);
    let refusals: Vec<_> =
        bad.into_iter().filter(|bad| bad.status != 413 && bad.code != "image_url_not_allowed").collect();
    move |i| {
        let content: Value = if i.is_multiple_of(4) { about(&[&url], "this") } else { json!(format!("number {i}")) };
        let stream = i.is_multiple_of(3);
        let asked = with(body(content, 1 + i % 3), json!({ "stream": stream })).to_string();
        match i % 10 {
            0 => {
                let bad = &refusals[i / 10 % refusals.len()];
                read(send(port, bad.method, bad.path, bad.head, &bad.body)).error(bad.status, bad.code);
            }
            1 => drop(send(port, "POST", CHAT, super::JSON, &asked)),
            _ => assert!(!texts(&post(port, CHAT, &asked), stream, 1)[0].is_empty() || i > 0),
        }
    }
}

#[test]
fn memory_does_not_grow_with_requests() {
    let _alone = alone();
    let server = server(&[]);
    let memory = memory(&server, 2000, &mixed(server.port));
    let slope = slope(&memory);
    println!("after 2000 requests each {memory:?} KiB: {slope} KiB a round");
    assert!(slope < SLOPE, "{slope} KiB a round");
}

/// The same requests, each leaving 4 KiB of a head behind that does not end: what the server holds of it is a leak as long as the
/// connection is open, and is seen.
#[test]
fn four_kilobytes_a_request_are_seen() {
    let _alone = alone();
    let server = server(&["--max-connections", "10000", "--header-timeout", "600"]);
    let left: Mutex<Vec<TcpStream>> = Mutex::default();
    let mixed = mixed(server.port);
    let head = format!("GET / HTTP/1.1\r\nX-Left: {}", "a".repeat(4096));
    let memory = memory(&server, 800, &|i| {
        mixed(i);
        let mut socket = connect(server.port);
        socket.write_all(head.as_bytes()).unwrap();
        left.lock().unwrap().push(socket);
    });
    let slope = slope(&memory);
    println!("after 800 requests each {memory:?} KiB: {slope} KiB a round");
    assert!(slope > SLOPE, "{slope} KiB a round");
}
