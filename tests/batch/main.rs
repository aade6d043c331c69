//! OpenAI's interface without a server: bodies, pictures behind URLs, and files of requests that survive a kill.
#![cfg(feature = "server")]

mod files;
mod host;
mod kill;
mod media;
mod openai;

use std::fs;
use std::path::{Path, PathBuf};

use ocelli::engine::{Engine, Options};
use serde_json::{Value, json};

const MODEL: &str = "tests/goldens/llava-tiny-mha";

fn engine() -> Engine {
    Engine::open(Path::new(MODEL), &Options::default(), |_, _| ()).unwrap()
}

fn picture(name: &str) -> PathBuf {
    Path::new("tests/goldens/pictures").join(name).canonicalize().unwrap()
}

/// A body that asks about pictures and is answered with `tokens` tokens.
fn body(text: &str, images: &[String], tokens: usize) -> Value {
    let image = |url: &String| json!({ "type": "image_url", "image_url": { "url": url } });
    let parts: Vec<_> = images.iter().map(image).chain([json!({ "type": "text", "text": text })]).collect();
    json!({
        "messages": [{ "role": "user", "content": parts }],
        "temperature": 0.8,
        "seed": 5,
        "max_tokens": tokens,
        "ignore_eos": true,
    })
}

fn line(custom_id: &str, body: &Value) -> String {
    json!({ "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body }).to_string()
}

/// The lines of an output, whole and in JSON.
fn answers(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
