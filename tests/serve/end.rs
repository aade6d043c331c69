//! How the server begins and ends.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

use serde_json::json;

use super::client::{read, send};
use super::process::{Server, command};
use super::{body, with};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn a_taken_port_is_found_before_the_model() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = command(&["--port", &port, "--load-format", "dummy"]).stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(&format!("127.0.0.1 port {port} (--host, --port)")), "{message}");
    assert!(!message.contains("cache of"), "a model was loaded: {message}");
}

#[test]
fn what_was_asked_is_answered_before_the_end() {
    let mut server = Server::start(&[]);
    let ask = |stream: bool| {
        let asked = with(body("hello", 200), json!({ "stream": stream })).to_string();
        send(server.port, "POST", CHAT, JSON, &asked)
    };
    let clients: Vec<_> = (0..8).map(|i| ask(i % 2 == 0)).collect();
    server.until("num_requests_in_server", 8.0);
    server.signal("TERM");
    for (i, client) in clients.into_iter().enumerate() {
        let reply = read(client);
        if i % 2 == 0 {
            assert!(reply.events().len() > 2);
        } else {
            assert_eq!(reply.json()["usage"]["completion_tokens"], 200);
        }
    }
    assert_eq!(server.wait().code(), Some(0));
    assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err(), "nobody listens any more");
}

#[test]
fn a_deadline_or_a_second_signal_ends_it_without_them() {
    let asked = with(body("hello", 400), json!({ "stream": true })).to_string();
    for (args, signals) in [(&["--shutdown-timeout", "0.05"][..], 1), (&[], 2)] {
        let mut server = Server::start(&[&["--max-num-seqs", "1"], args].concat());
        let mut clients: Vec<_> = (0..40).map(|_| send(server.port, "POST", CHAT, JSON, &asked)).collect();
        server.until("num_requests_in_server", 40.0);
        server.signal("TERM");
        if signals == 2 {
            // The first one is heard once nobody can connect any more.
            while TcpStream::connect(("127.0.0.1", server.port)).is_ok() {}
            server.signal("INT");
        }
        assert_eq!(server.wait().code(), Some(1));
        let mut rest = String::new();
        // Broken off, and not closed as if it were whole.
        let _ = clients[39].read_to_string(&mut rest);
        assert!(!rest.contains("[DONE]"));
    }
}
