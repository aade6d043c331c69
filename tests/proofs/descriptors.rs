//! A server without files to open, and one that was killed.

use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{connect, read, send};
use super::gauges::{at_rest, descriptors, processor_time, settled};
use super::process::{Server, command_of};
use super::table::texts;
use super::{CHAT, JSON, LONG, MODEL, SLOW_MODEL, alone, body, chat, with};

const FILES: usize = 64;

/// A server that may open no more than so many files.
fn with_files(files: usize) -> Server {
    let ocelli = command_of(MODEL, &["--port", "0"]);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\" \"$@\""));
    command.arg(ocelli.get_program()).args(ocelli.get_args());
    for (name, value) in ocelli.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Server::run(command)
}

#[test]
fn without_files_the_server_waits_until_there_are_some() {
    let _alone = alone();
    let server = with_files(FILES);
    let asked = body(json!("hello"), 20);
    let expected = texts(&chat(&server, &asked), false, 1);
    let files = settled(&server);
    let idle: Vec<_> = (0..2 * FILES).map(|_| TcpStream::connect(("127.0.0.1", server.port)).unwrap()).collect();
    thread::sleep(Duration::from_millis(300));
    // It may have inherited some with higher numbers.
    assert!(descriptors(&server) >= FILES, "all are taken");
    // A loop that tried again at once would take a processor for itself.
    let before = processor_time(&server);
    thread::sleep(Duration::from_secs(1));
    let busy = processor_time(&server) - before;
    println!("{busy:?} of processor time in a second without files");
    assert!(busy < Duration::from_millis(200), "{busy:?}");
    // Someone who waits already is answered once there is room.
    let waiting = send(server.port, "POST", CHAT, JSON, &asked.to_string());
    drop(idle);
    let start = Instant::now();
    assert_eq!(texts(&read(waiting), false, 1), expected);
    println!("answered {:?} after files were free", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    at_rest(&server, files);
}

#[test]
fn a_killed_server_starts_again_at_its_port() {
    let _alone = alone();
    let start_at = |port: u16| Server::run(command_of(SLOW_MODEL, &["--port", &port.to_string()]));
    let mut server = start_at(0);
    let port = server.port;
    let asked = body(json!("hello"), 8);
    let expected = texts(&chat(&server, &asked), false, 1);
    let long = with(body(json!("go on"), LONG), json!({ "stream": true })).to_string();
    let clients: Vec<_> = (0..20).map(|_| send(port, "POST", CHAT, JSON, &long)).collect();
    let _silent: Vec<_> = (0..20).map(|_| connect(port)).collect();
    server.until("num_requests_in_server", 20.0);
    server.signal("KILL");
    assert_eq!(server.wait().code(), None);
    let start = Instant::now();
    let again = start_at(port);
    assert_eq!(again.port, port);
    assert_eq!(texts(&chat(&again, &asked), false, 1), expected);
    println!("answers again after {:?}", start.elapsed());
    for mut client in clients {
        let mut heard = String::new();
        let _ = std::io::Read::read_to_string(&mut client, &mut heard);
        assert!(!heard.contains("[DONE]"), "broken off, and not as if it were whole");
    }
}
