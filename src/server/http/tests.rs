//! A server whose engine fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::{Bound, EngineFailed, HttpOptions};
use crate::engine::{Device, Engine, Options};
use crate::server::media::{Media, MediaOptions};

fn options() -> HttpOptions {
    HttpOptions {
        served_model_names: vec!["tiny".into()],
        api_key: None,
        allowed_origins: Vec::new(),
        max_body_bytes: 1 << 20,
        max_waiting: 4,
        max_connections: 16,
        header_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(5),
        write_timeout: Duration::from_secs(5),
        step_timeout: Duration::from_secs(60),
        drain: Duration::from_secs(5),
    }
}

/// The answer to a question, head and body.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
}

#[test]
fn a_lost_device_is_no_secret_and_ends_the_server() {
    const BODY: &str = r#"{"messages":[{"role":"user","content":"hello"}],"max_tokens":2}"#;
    let engine = Engine::open(
        Path::new("tests/goldens/llava-tiny-mha"),
        &Options { device: Device::Cpu, ..Options::default() },
        |_, _| (),
    )
    .unwrap();
    let runtime = Runtime::new().unwrap();
    let served: Result<()> = runtime.block_on(async {
        let media = Media::new(MediaOptions::default()).unwrap();
        let bound = Bound::new("127.0.0.1", 0).unwrap();
        let (tell, told) = oneshot::channel();
        let handle = engine.clone();
        let server = tokio::spawn(bound.serve(engine, media, options(), |address| tell.send(address).unwrap()));
        let address = told.await.unwrap();
        spawn_blocking(move || {
            let chat = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{BODY}",
                BODY.len()
            );
            assert!(ask(address, &chat).starts_with("HTTP/1.1 200"));
            assert!(get(address, "/health").starts_with("HTTP/1.1 200"));
            handle.lose();
            let answer = ask(address, &chat);
            assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("its log says why"), "{answer}");
            assert!(!answer.contains("a test said so"), "a client learns of the device: {answer}");
            assert!(get(address, "/health").starts_with("HTTP/1.1 503"));
            assert!(get(address, "/ready").starts_with("HTTP/1.1 503"));
        })
        .await
        .unwrap();
        server.await.unwrap()
    });
    assert!(served.unwrap_err().is::<EngineFailed>());
}

#[test]
fn a_panic_is_an_error_that_says_nothing() {
    let response = super::failure::panicked(Box::new(String::from("index 7 of a secret")));
    assert_eq!(response.status(), 500);
    let body = Runtime::new().unwrap().block_on(axum::body::to_bytes(response.into_body(), 4096)).unwrap();
    let text = String::from_utf8(body.into()).unwrap();
    assert!(text.contains("server_error") && !text.contains("secret"), "{text}");
}
