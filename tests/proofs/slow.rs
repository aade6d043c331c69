//! Clients that take their time: each is given up at its timer, and nobody else waits for them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{connect, parse, send};
use super::drain::never_reading;
use super::gauges::{at_rest, descriptors, health, quantile, settled, within};
use super::process::Server;
use super::table::texts;
use super::{CHAT, JSON, LONG, alone, body, chat, slow_server, with};

const OF_EACH: usize = 50;
/// Of a head, of a body, and of a write.
const TIMER: Duration = Duration::from_secs(3);
const TIMERS: [&str; 6] = ["--header-timeout", "3", "--body-timeout", "3", "--write-timeout", "3"];
/// For a timer to be seen, by a test that shares its processor.
const MARGIN: Duration = Duration::from_secs(2);
/// Of `/health` at the median, while all of them are at it.
const HEALTH: Duration = Duration::from_millis(100);

/// A client that sends a byte in a while.
struct Dripping {
    socket: TcpStream,
    opened: Instant,
    heard: Vec<u8>,
    /// When the server had enough.
    closed: Option<Duration>,
}

impl Dripping {
    fn new(port: u16, beginning: &str) -> Dripping {
        let mut socket = connect(port);
        socket.write_all(beginning.as_bytes()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Dripping { socket, opened: Instant::now(), heard: Vec::new(), closed: None }
    }

    /// A byte more, and a look at what the server says.
    fn drip(&mut self) {
        let mut some = [0; 1024];
        // A server that has closed says so when it is read from.
        let _ = self.socket.write(b"a");
        match self.socket.read(&mut some) {
            Ok(n) if n > 0 => self.heard.extend_from_slice(&some[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => self.closed = Some(self.opened.elapsed()),
        }
    }
}

/// Drip until all are closed.
fn drip(mut clients: Vec<Dripping>) -> Vec<Dripping> {
    let start = Instant::now();
    while clients.iter().any(|client| client.closed.is_none()) {
        assert!(start.elapsed() < TIMER + MARGIN * 2, "the server listens for ever");
        clients.iter_mut().filter(|client| client.closed.is_none()).for_each(Dripping::drip);
        thread::sleep(Duration::from_millis(50));
    }
    clients
}

#[test]
fn slow_clients_are_given_up_and_nobody_waits_for_them() {
    let _alone = alone();
    let server = Server::start(&TIMERS);
    let port = server.port;
    let asked = body(json!("hello"), 20);
    let expected = texts(&chat(&server, &asked), false, 1);
    let files = settled(&server);

    let readers: Vec<_> = (0..OF_EACH).map(|_| never_reading(port)).collect();
    let head = |_| Dripping::new(port, "GET /health HTTP/1.1\r\nX-Slow: ");
    let begun = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 9999\r\n\r\n{{\"a\":\"");
    let heads: Vec<_> = (0..OF_EACH).map(head).collect();
    let bodies: Vec<_> = (0..OF_EACH).map(|_| Dripping::new(port, &begun)).collect();
    let start = Instant::now();
    let (heads, bodies) = (thread::spawn(|| drip(heads)), thread::spawn(|| drip(bodies)));

    let times = health(&server, 100);
    assert!(start.elapsed() < TIMER, "the answers were timed while all were at it");
    let (median, worst) = (quantile(&times, 0.5), quantile(&times, 1.0));
    println!("/health beside {OF_EACH} slow heads, bodies and readers: median {median:?}, at worst {worst:?}");
    assert!(median < HEALTH, "{median:?}");
    for _ in 0..5 {
        assert_eq!(texts(&chat(&server, &asked), false, 1), expected);
    }

    let when = |clients: &[Dripping]| {
        let times = || clients.iter().map(|client| client.closed.unwrap());
        (times().min().unwrap(), times().max().unwrap())
    };
    let (heads, bodies) = (heads.join().unwrap(), bodies.join().unwrap());
    for client in &heads {
        let heard = String::from_utf8_lossy(&client.heard);
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 408 "), "{heard}");
    }
    let bodies_closed = when(&bodies);
    for client in bodies {
        parse(client.heard).error(408, "body_timeout");
    }
    let (first, last) = when(&heads);
    println!("heads were closed after {first:?} to {last:?}, bodies answered after {bodies_closed:?}");
    assert!(first > TIMER - Duration::from_millis(100) && last < TIMER + MARGIN, "{first:?} to {last:?}");
    let (first, last) = bodies_closed;
    assert!(first > TIMER - Duration::from_millis(100) && last < TIMER + MARGIN, "{first:?} to {last:?}");
    let left = within(MARGIN, "readers are aborted", || descriptors(&server) == files);
    println!("{left:?} later no reader was left");
    drop(readers);
    at_rest(&server, files);
}

/// An answer that is still being made when its reader is given up.
#[test]
fn an_answer_that_nobody_reads_is_cancelled() {
    let _alone = alone();
    let server = slow_server(&["--write-timeout", "1"]);
    let beside = body(json!("beside"), 20);
    let expected = texts(&chat(&server, &beside), false, 1);
    let files = settled(&server);
    // Each token with 21 log-probabilities: soon more than both sockets hold.
    let more = json!({ "stream": true, "n": 7, "logprobs": true, "top_logprobs": 20 });
    let asked = with(body(json!("at length"), LONG), more).to_string();
    let start = Instant::now();
    let unread: Vec<_> = (0..2).map(|_| send(server.port, "POST", CHAT, JSON, &asked)).collect();
    server.until("num_requests_running", 14.0);
    assert_eq!(texts(&chat(&server, &beside), false, 1), expected);
    within(Duration::from_secs(30), "they are given up", || server.metric("num_requests_in_server") == 0.0);
    println!("2 answers of 7 that nobody reads were broken off after {:?}", start.elapsed());
    at_rest(&server, files);
    assert_eq!((server.metric("request_cancelled_total"), server.metric("request_success_total")), (14.0, 2.0));
    for mut socket in unread {
        let mut heard = Vec::new();
        let _ = socket.read_to_end(&mut heard);
        assert!(!heard.ends_with(b"0\r\n\r\n"), "broken off, and not as if it were whole");
    }
}
