//! What docs/reliability.md promises, proved against the server as a process. They take minutes, and measure memory and times:
//! `tools/test` runs them alone and one at a time.
#![cfg(feature = "server")]

mod bodies;
mod bombs;
mod canary;
mod cancel;
#[path = "../serve/client.rs"]
#[allow(dead_code)] // Each test binary uses its own part.
mod client;
mod crowds;
mod descriptors;
mod drain;
mod flood;
mod gauges;
mod growth;
mod hosts;
#[path = "../image_fixtures/mod.rs"]
mod image_fixtures;
mod ledger;
mod pictures;
#[path = "../serve/process.rs"]
#[allow(dead_code)]
mod process;
mod slow;
mod ssrf;
mod table;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use client::Reply;
use process::Server;

/// Answers of up to 490 tokens in less than a second: what is measured is the server around it.
const MODEL: &str = "tests/goldens/llava-tiny-mha";
/// Takes seconds for its longest answers, so that one which is broken off was surely not complete.
const SLOW_MODEL: &str = "demo/llava-shapes";
/// Tokens of an answer of it that nobody waits for.
const LONG: usize = 1000;

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json\r\n";

/// One proof at a time, also where all run in one process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server of the slow model.
fn slow_server(args: &[&str]) -> Server {
    Server::of(SLOW_MODEL, args)
}

/// A body that is answered with `tokens` tokens, the same at every time.
fn body(content: Value, tokens: usize) -> Value {
    json!({
        "messages": [{ "role": "user", "content": content }],
        "temperature": 0.8,
        "seed": 5,
        "max_tokens": tokens,
        "ignore_eos": true,
    })
}

/// `body` with some fields more.
fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn chat(server: &Server, body: &Value) -> Reply {
    client::post(server.port, CHAT, &body.to_string())
}

/// A question about the pictures behind some URLs.
fn about(urls: &[&str], text: &str) -> Value {
    let picture = |url: &&str| json!({ "type": "image_url", "image_url": { "url": url } });
    Value::Array(urls.iter().map(picture).chain([json!({ "type": "text", "text": text })]).collect())
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(format!("tests/goldens/pictures/{name}")).unwrap()
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}
