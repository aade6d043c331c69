//! The server as its clients meet it: the binary as a process, spoken to over sockets.
#![cfg(feature = "server")]

mod answers;
mod bench;
mod client;
mod completions;
mod end;
mod guards;
mod limits;
mod openapi;
mod process;
mod stages;
mod tokenize;

use std::fs;

use serde_json::{Value, json};

use client::Reply;
use process::Server;

const MODEL: &str = "tests/goldens/llava-tiny-mha";

/// A body that is answered with `tokens` tokens, the same at every time.
fn body(text: &str, tokens: usize) -> Value {
    json!({
        "messages": [{ "role": "user", "content": text }],
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
    client::post(server.port, "/v1/chat/completions", &body.to_string())
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(format!("tests/goldens/pictures/{name}")).unwrap()
}
