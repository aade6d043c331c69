//! Nobody waits for somebody else's slow host.

use std::net::TcpListener;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::client::send;
use super::process::Server;
use super::{body, chat, picture, with};

/// More than are fetched at the same time.
const SLOW: usize = 40;

fn showing(url: &str) -> Value {
    let parts = json!([{ "type": "image_url", "image_url": { "url": url } }, { "type": "text", "text": "what?" }]);
    with(body("", 2), json!({ "messages": [{ "role": "user", "content": parts }] }))
}

#[test]
fn a_slow_host_keeps_only_those_waiting_who_ask_for_it() {
    let server = Server::start(&["--allow-private-media-addresses"]);
    // Connections are taken by the system, and nobody says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.png", silent.local_addr().unwrap());
    let asked = showing(&url).to_string();
    let json = "Content-Type: application/json\r\n";
    let waiting: Vec<_> = (0..SLOW).map(|_| send(server.port, "POST", "/v1/chat/completions", json, &asked)).collect();
    server.until("num_requests_in_server", SLOW as f64);
    let data = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(picture("wide.png")));
    thread::scope(|scope| {
        for asked in [body("hello", 2), showing(&data)] {
            let server = &server;
            scope.spawn(move || assert_eq!(chat(server, &asked).status, 200));
        }
    });
    assert_eq!(server.metric("num_requests_in_server"), SLOW as f64, "they waited for the slow host");
    drop(waiting);
    server.until("num_requests_in_server", 0.0);
}
