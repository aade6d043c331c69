//! What becomes of every request, when 64 clients of all kinds come at once.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::canary::Canary;
use super::client::{self, Reply, connect, send};
use super::gauges::{at_rest, settled};
use super::process::Server;
use super::table::{Known, Refused, refused, requests, sequences, texts};
use super::{CHAT, JSON, LONG, alone, body, chat, slow_server, with};

/// `OCELLI_PROOF_SECONDS` lengthens it.
const SECONDS: u64 = 120;
const CLIENTS: u64 = 64;
const MAX_BODY: usize = 100_000;

/// What became of a request, as its client saw it.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// Answered with what it is answered with when it is alone: the id of the answer, and how many sequences it was.
    Completed { id: String, sequences: usize },
    /// Refused with this status, which is that of its class.
    Refused(u16),
    /// The client went away.
    Cancelled(Cut),
    /// Anything else.
    Failed(String),
}

/// When a client went away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// Amid the head: there is no request.
    InHead,
    /// Amid the body.
    InBody,
    /// With everything sent and nothing read: in the queue, amid the prompt or amid the answer.
    Unread,
    /// Amid the events.
    MidStream,
}

/// What all clients do.
struct Plan {
    port: u16,
    known: Vec<Known>,
    refused: Vec<Refused>,
}

/// Steele's SplitMix64.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

impl Plan {
    /// Send one request and see what becomes of it.
    fn once(&self, dice: &mut Dice) -> Outcome {
        match dice.roll(10) {
            0..6 => self.complete(&self.known[dice.roll(self.known.len())], dice),
            6 | 7 => self.refuse(&self.refused[dice.roll(self.refused.len())]),
            _ => self.cut(dice),
        }
    }

    fn complete(&self, known: &Known, dice: &mut Dice) -> Outcome {
        let stream = dice.roll(2) == 0;
        let n = sequences(&known.body);
        let asked = with(known.body.clone(), json!({ "stream": stream })).to_string();
        let socket = send(self.port, "POST", CHAT, JSON, &asked);
        let reply = match dice.roll(4) {
            0 if stream => until_done(socket),
            1 => slowly(socket),
            _ => client::read(socket),
        };
        let found = texts(&reply, stream, n);
        if found != known.answers {
            return Outcome::Failed(format!("{asked} is answered with {found:?}; alone with {:?}", known.answers));
        }
        let id = if stream { reply.events()[0]["id"].clone() } else { reply.json()["id"].clone() };
        Outcome::Completed { id: id.as_str().unwrap().into(), sequences: n }
    }

    fn refuse(&self, bad: &Refused) -> Outcome {
        let reply = client::read(send(self.port, bad.method, bad.path, bad.head, &bad.body));
        reply.error(bad.status, bad.code);
        Outcome::Refused(bad.status)
    }

    fn cut(&self, dice: &mut Dice) -> Outcome {
        let asked = with(body(json!("go on"), LONG), json!({ "stream": true }));
        match dice.roll(4) {
            0 => {
                connect(self.port).write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local").unwrap();
                Outcome::Cancelled(Cut::InHead)
            }
            1 => {
                let head =
                    format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 1000\r\n\r\n{{\"mess");
                connect(self.port).write_all(head.as_bytes()).unwrap();
                Outcome::Cancelled(Cut::InBody)
            }
            2 => {
                // Whole, so that there is no status before the end that it never comes to.
                let asked = with(asked, json!({ "stream": false }));
                let socket = send(self.port, "POST", CHAT, JSON, &asked.to_string());
                thread::sleep(Duration::from_millis(dice.roll(100) as u64));
                drop(socket);
                Outcome::Cancelled(Cut::Unread)
            }
            _ => {
                let mut socket = send(self.port, "POST", CHAT, JSON, &asked.to_string());
                read_events(&mut socket, 1 + dice.roll(8));
                Outcome::Cancelled(Cut::MidStream)
            }
        }
    }
}

/// Read until so many events have come.
pub fn read_events(socket: &mut TcpStream, count: usize) {
    let mut bytes = Vec::new();
    let mut some = [0; 256];
    while bytes.windows(6).filter(|w| w == b"data: ").count() < count {
        let n = socket.read(&mut some).unwrap();
        assert!(n > 0, "the stream ended after {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&some[..n]);
    }
}

/// Read until the last event and go: the end of the body and of the connection are not waited for.
fn until_done(mut socket: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut some = [0; 4096];
    const LAST: &[u8] = b"data: [DONE]\n\n\r\n";
    loop {
        let n = socket.read(&mut some).unwrap();
        assert!(n > 0, "no end: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&some[..n]);
        if let Some(at) = bytes.windows(LAST.len()).position(|w| w == LAST) {
            bytes.truncate(at + LAST.len());
            return client::parse(bytes);
        }
    }
}

/// Read a little at a time.
fn slowly(mut socket: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut some = [0; 128];
    loop {
        let n = socket.read(&mut some).unwrap();
        if n == 0 {
            return client::parse(bytes);
        }
        bytes.extend_from_slice(&some[..n]);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Counters of `/metrics` that say what became of requests.
fn counters(server: &Server) -> BTreeMap<String, u64> {
    let text = client::get(server.port, "/metrics").body;
    let names = ["request_success_total", "request_cancelled_total", "request_failed_total", "http_requests_total"];
    let value = |line: &str| {
        let (name, value) = line.strip_prefix("ocelli:")?.rsplit_once(' ')?;
        let (name, labels) = name.split_once('{')?;
        let status = labels.split_once("status=\"").map_or("", |(_, rest)| &rest[..3]);
        names.contains(&name).then(|| (format!("{name}{status}"), value.parse::<u64>().unwrap()))
    };
    let mut counters = BTreeMap::new();
    for (name, value) in text.lines().filter_map(value) {
        *counters.entry(name).or_default() += value;
    }
    counters
}

/// All outcomes by the number of their request.
fn run(plan: &Plan, seconds: u64) -> Vec<(u64, Outcome)> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let next = AtomicU64::new(0);
    let client = |seed| {
        let mut dice = Dice(seed);
        let mut outcomes = Vec::new();
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| plan.once(&mut dice)))
                .unwrap_or_else(|_| Outcome::Failed("a client was not answered as it should".into()));
            outcomes.push((number, outcome));
        }
        outcomes
    };
    let mut outcomes: Vec<_> = thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..CLIENTS).map(|seed| scope.spawn(move || client(seed))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    outcomes.sort_by_key(|(number, _)| *number);
    assert!(outcomes.iter().map(|(number, _)| *number).eq(0..next.into_inner()), "a request is lost or doubled");
    outcomes
}

/// The statuses of [`refused`].
const STATUSES: [u16; 5] = [400, 404, 405, 413, 415];

/// How many outcomes are of a kind.
fn count(outcomes: &[(u64, Outcome)], is: impl Fn(&Outcome) -> bool) -> i64 {
    outcomes.iter().filter(|(_, outcome)| is(outcome)).count() as i64
}

fn show(outcomes: &[(u64, Outcome)], grown: &BTreeMap<String, i64>) -> String {
    let cut = |cut| count(outcomes, |o| *o == Outcome::Cancelled(cut));
    let refused = STATUSES.map(|status| (status, count(outcomes, |o| *o == Outcome::Refused(status))));
    format!(
        "{} sent = {} completed + {} refused {refused:?} + {} cancelled (in the head {}, in the body {}, unread {}, \
         mid-stream {}) + {} failed; the server: {grown:?}",
        outcomes.len(),
        count(outcomes, |o| matches!(o, Outcome::Completed { .. })),
        count(outcomes, |o| matches!(o, Outcome::Refused(_))),
        count(outcomes, |o| matches!(o, Outcome::Cancelled(_))),
        cut(Cut::InHead),
        cut(Cut::InBody),
        cut(Cut::Unread),
        cut(Cut::MidStream),
        count(outcomes, |o| matches!(o, Outcome::Failed(_))),
    )
}

/// Where the server's counters have not grown by what the clients saw. Of requests that were cut without a word from the server,
/// nobody knows whether the engine had them yet: as many cancellations may be missing.
fn disagreements(outcomes: &[(u64, Outcome)], grown: &BTreeMap<String, i64>) -> Vec<String> {
    let cut = |cut| count(outcomes, |o| *o == Outcome::Cancelled(cut));
    let of = |name: &str| grown.get(name).copied().unwrap_or(0);
    let mut wrong = Vec::new();
    let mut ids = HashSet::new();
    let (mut completed, mut sequences) = (0, 0);
    for (number, outcome) in outcomes {
        match outcome {
            Outcome::Failed(why) => wrong.push(format!("request {number} failed: {why}")),
            Outcome::Completed { id, sequences: n } => {
                if !ids.insert(id) {
                    wrong.push(format!("two answers have the id {id}"));
                }
                completed += 1;
                sequences += *n as i64;
            }
            _ => {}
        }
    }
    let mut expect = |name: &str, low: i64, high: i64| {
        if !(low..=high).contains(&of(name)) {
            wrong.push(format!("{name} has grown by {}; the clients saw {low} to {high}", of(name)));
        }
    };
    let (unread, mid) = (cut(Cut::Unread), cut(Cut::MidStream));
    expect("request_success_total", sequences, sequences);
    expect("request_failed_total", 0, 0);
    expect("request_cancelled_total", mid, mid + unread);
    expect("http_requests_total200", completed + mid, completed + mid);
    for status in STATUSES {
        let refused = count(outcomes, |o| *o == Outcome::Refused(status));
        // A body that ends early is a request that is refused, even if nobody hears it.
        let unheard = if status == 400 { cut(Cut::InBody) } else { 0 };
        expect(&format!("http_requests_total{status}"), refused + unheard, refused + unheard);
    }
    let known = ["200", "400", "404", "405", "413", "415"];
    let statuses =
        grown.iter().filter(|(_, n)| **n != 0).filter_map(|(name, _)| name.strip_prefix("http_requests_total"));
    wrong.extend(statuses.filter(|s| !known.contains(s)).map(|s| format!("answers of {s}, which nobody asked for")));
    wrong
}

#[test]
fn every_request_is_accounted_for() {
    let _alone = alone();
    let canary = Canary::start();
    let folder = "tests/goldens/pictures";
    let max_body = MAX_BODY.to_string();
    let server = slow_server(&[
        "--allow-private-media-addresses",
        "--allowed-local-media-path",
        folder,
        "--max-body-bytes",
        &max_body,
    ]);
    let answer = |body: Value| {
        let answers = texts(&chat(&server, &body), false, sequences(&body));
        Known { body, answers }
    };
    let known: Vec<_> = requests(&canary).into_iter().map(answer).collect();
    let answers: HashSet<_> = known.iter().map(|known| &known.answers).collect();
    assert_eq!(answers.len(), known.len(), "answers differ, so that one taken for another is seen");
    server.until("num_requests_in_server", 0.0);
    let files = settled(&server);
    let before = counters(&server);

    let seconds = std::env::var("OCELLI_PROOF_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    let plan = Plan { port: server.port, known, refused: refused(MAX_BODY) };
    let outcomes = run(&plan, seconds);
    // What was cut has been noticed when nothing is under way; each look is an answer, too.
    let mut looks = 1;
    let start = Instant::now();
    while client::get(server.port, "/load").json()["server_load"] != 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "requests stay in the server");
        looks += 1;
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    let after = counters(&server);
    let mut grown: BTreeMap<_, _> =
        after.iter().map(|(name, n)| (name.clone(), *n as i64 - before.get(name).map_or(0, |&n| n as i64))).collect();
    *grown.get_mut("http_requests_total200").unwrap() -= looks + 1;
    println!("{}", show(&outcomes, &grown));
    assert_eq!(disagreements(&outcomes, &grown), [""; 0]);
    let cuts = [Cut::InHead, Cut::InBody, Cut::Unread, Cut::MidStream].map(Outcome::Cancelled);
    let all = STATUSES.map(Outcome::Refused).into_iter().chain(cuts);
    all.for_each(|class| assert!(count(&outcomes, |o| *o == class) > 0, "{class:?} does not occur"));
    at_rest(&server, files);
}

/// The books are closed only if they agree: one request more or less on either side is seen.
#[test]
fn a_request_that_is_missing_anywhere_is_seen() {
    let classes = STATUSES.map(|status| (0, Outcome::Refused(status)));
    let cuts = [Cut::Unread, Cut::MidStream, Cut::InBody].map(|cut| (0, Outcome::Cancelled(cut)));
    let outcomes = [&classes[..], &cuts[..], &[(0, Outcome::Completed { id: "a".into(), sequences: 3 })]].concat();
    let grown: BTreeMap<String, i64> = [("request_success_total", 3), ("request_cancelled_total", 2)]
        .into_iter()
        .chain([("http_requests_total200", 2), ("http_requests_total400", 2), ("http_requests_total404", 1)])
        .chain([("http_requests_total405", 1), ("http_requests_total413", 1), ("http_requests_total415", 1)])
        .map(|(name, n)| (name.to_owned(), n))
        .collect();
    let seen = |outcomes: &[(u64, Outcome)], grown: &BTreeMap<String, i64>| !disagreements(outcomes, grown).is_empty();
    assert!(!seen(&outcomes, &grown));
    for i in 0..outcomes.len() {
        let (mut fewer, mut more) = (outcomes.clone(), outcomes.clone());
        more.push(outcomes[i].clone());
        fewer.remove(i);
        // What was cut unread has room for one more.
        let unread = outcomes[i].1 == Outcome::Cancelled(Cut::Unread);
        assert!(seen(&fewer, &grown) && seen(&more, &grown) != unread, "{:?}", outcomes[i]);
    }
    assert!(seen(&[&outcomes[..], &[(0, Outcome::Failed("so".into()))]].concat(), &grown));
    for name in grown.keys() {
        for by in [-2, 1] {
            let mut wrong = grown.clone();
            *wrong.get_mut(name).unwrap() += by;
            assert!(seen(&outcomes, &wrong), "{name} {by}");
        }
    }
    let other = grown.into_iter().chain([("http_requests_total500".to_owned(), 1)]).collect();
    assert!(seen(&outcomes, &other));
}
