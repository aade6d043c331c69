//! Pictures that are made to fill the memory, 64 at once.

use std::thread;
use std::time::Instant;

use serde_json::json;

use super::bombs::{claims, profile_bomb, url};
use super::gauges::{at_rest, forget_peak, peak, resident, settled};
use super::process::Server;
use super::table::texts;
use super::{about, alone, body, chat};

const TOGETHER: usize = 64;
/// For pictures that claim much, in KiB: less than one of the smaller ones, of 5000x5000, would take.
const CLAIMED: i64 = 64 << 10;
/// What a colour profile would hold, were it looked at.
const PROFILE: usize = 64 << 20;
/// Requests that are made ready at once, at most.
const LOADERS: usize = 16;
/// For connections, threads and what the allocator keeps of them, in KiB.
const SLACK: i64 = 16 << 10;

/// Ask about all pictures, so many at once, `rounds` times; the statuses, and how far memory went up, in KiB.
fn ask(server: &Server, urls: &[String], rounds: usize) -> (Vec<u16>, i64) {
    forget_peak(server);
    let before = resident(server);
    let asked = |i: usize| chat(server, &body(about(&[&urls[i % urls.len()]], "what is it?"), 2)).status;
    let mut statuses = Vec::new();
    for round in 0..rounds {
        thread::scope(|scope| {
            let asked = &asked;
            let clients: Vec<_> = (0..TOGETHER).map(|i| scope.spawn(move || asked(round * TOGETHER + i))).collect();
            statuses.extend(clients.into_iter().map(|client| client.join().unwrap()));
        });
    }
    (statuses, peak(server) - before)
}

#[test]
fn a_picture_that_claims_much_gets_nothing() {
    let _alone = alone();
    let server = Server::start(&[]);
    let expected = texts(&chat(&server, &body(json!("hello"), 20)), false, 1);
    let files = settled(&server);
    let claims = claims();
    for (name, bytes) in &claims {
        let reply = chat(&server, &body(about(&[&url(bytes)], "what is it?"), 2));
        assert_eq!(reply.status, 400, "{name}: {}", reply.body);
        assert!(reply.json()["error"]["message"].is_string(), "{name}");
    }
    let urls: Vec<_> = claims.iter().map(|(_, bytes)| url(bytes)).collect();
    let start = Instant::now();
    let (statuses, grown) = ask(&server, &urls, claims.len());
    println!("{} pictures that claim much in {:?}: {grown} KiB at the peak", statuses.len(), start.elapsed());
    assert!(statuses.iter().all(|&status| status == 400), "{statuses:?}");
    assert_eq!(texts(&chat(&server, &body(json!("hello"), 20)), false, 1), expected);
    assert!(grown < CLAIMED, "{grown} KiB of {CLAIMED}");
    at_rest(&server, files);
}

#[test]
fn a_profile_is_not_unpacked() {
    let _alone = alone();
    let server = Server::start(&[]);
    let url = url(&profile_bomb(PROFILE));
    let bytes = url.len() as i64 >> 10;
    let (statuses, grown) = ask(&server, &[url], 2);
    println!("{} pictures of {bytes} KiB with profiles of {PROFILE} bytes: {grown} KiB at the peak", statuses.len());
    assert!(statuses.iter().all(|&status| status == 200), "the picture is a good one: {statuses:?}");
    // Every body once while it waits, doubled where it was being read, and three times more where it is understood and decoded.
    let bound = 2 * TOGETHER as i64 * bytes + 3 * LOADERS as i64 * bytes + SLACK;
    assert!(bound < ((LOADERS * PROFILE) >> 10) as i64, "unpacked profiles would not fit");
    assert!(grown < bound, "{grown} KiB of {bound}");
}
