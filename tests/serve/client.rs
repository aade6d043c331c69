//! A client without a library between it and the socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The error's message, after a look at its status, code and shape.
    pub fn error(&self, status: u16, code: &str) -> String {
        let error = &self.json()["error"];
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert!(error["type"].is_string() && error.get("param").is_some(), "{}", self.body);
        error["message"].as_str().unwrap().to_owned()
    }

    /// The objects of a stream that ended as it should.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let events = self.body.strip_suffix("data: [DONE]\n\n").expect("the stream ends in [DONE]");
        let event = |text: &str| serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap();
        events.split_terminator("\n\n").map(event).collect()
    }
}

pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// A request with its own head lines, on a connection of its own.
pub fn send(port: u16, method: &str, path: &str, head: &str, body: &str) -> TcpStream {
    let mut stream = connect(port);
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
    );
    // A server that has heard enough may close before all is written.
    let _ = stream.write_all(text.as_bytes());
    stream
}

pub fn read(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // What came before a reset is what there is.
    let _ = stream.read_to_end(&mut bytes);
    parse(bytes)
}

/// What came over a connection, as the one answer that it should be.
pub fn parse(bytes: Vec<u8>) -> Reply {
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let head = head.to_owned();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let status = head[9..12].parse().unwrap();
    Reply { status, body: if chunked { unchunked(body) } else { body.to_owned() }, head }
}

pub fn get(port: u16, path: &str) -> Reply {
    read(send(port, "GET", path, "", ""))
}

pub fn post(port: u16, path: &str, body: &str) -> Reply {
    read(send(port, "POST", path, "Content-Type: application/json\r\n", body))
}

fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        text = &rest[size + 2..];
    }
    whole
}
