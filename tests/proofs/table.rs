//! Requests with known answers, and requests that are refused.

use serde_json::{Value, json};

use super::canary::Canary;
use super::client::Reply;
use super::{CHAT, JSON, about, body, data_url, picture, with};

/// A request and what it is answered with when it is alone.
pub struct Known {
    pub body: Value,
    pub answers: Vec<String>,
}

/// Two dozen different requests: text and pictures, from everywhere where pictures come from, alone and in pairs; one answer
/// and several; with log-probabilities, penalties and bans.
pub fn requests(canary: &Canary) -> Vec<Value> {
    let names = ["wide.png", "tall.png", "square.png", "photo.png", "strip.png"];
    let folder = std::fs::canonicalize("tests/goldens/pictures").unwrap();
    let mut all: Vec<_> = (0..8).map(|i| body(json!("tell me of ".repeat(i + 1) + &i.to_string()), 5 + i)).collect();
    for name in &names[..4] {
        all.push(body(about(&[&data_url(&picture(name))], "what is it?"), 9));
        all.push(body(about(&[&format!("file://{}/{name}", folder.display())], "and what is this?"), 8));
        all.push(body(about(&[&canary.url(&format!("/{name}"))], "what is there?"), 7));
    }
    let pair = [data_url(&picture(names[0])), canary.url("/strip.png")];
    all.push(body(about(&[&pair[0], &pair[1]], "compare"), 6));
    all.push(with(body(json!("several"), 4), json!({ "n": 3 })));
    all.push(with(body(json!("likely"), 4), json!({ "logprobs": true, "top_logprobs": 3 })));
    all.push(with(body(json!("no repetition"), 8), json!({ "presence_penalty": 1.5, "bad_words": ["shape"] })));
    assert_eq!(all.len(), 24);
    all
}

/// The texts of an answer, whether it came whole or in pieces.
pub fn texts(reply: &Reply, stream: bool, n: usize) -> Vec<String> {
    let mut texts = vec![String::new(); n];
    if stream {
        for choice in reply.events().iter().flat_map(|event| event["choices"].as_array().unwrap()) {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        }
    } else {
        assert_eq!(reply.status, 200, "{}", reply.body);
        for (text, choice) in texts.iter_mut().zip(reply.json()["choices"].as_array().unwrap()) {
            *text = choice["message"]["content"].as_str().unwrap().into();
        }
    }
    texts
}

/// How many sequences a request is.
pub fn sequences(body: &Value) -> usize {
    body["n"].as_u64().unwrap_or(1) as usize
}

/// A request that is refused.
pub struct Refused {
    pub method: &'static str,
    pub path: &'static str,
    pub head: &'static str,
    pub body: String,
    pub status: u16,
    pub code: &'static str,
}

/// One of every class of what a client can do wrong. Longer bodies than `max_body` are refused.
pub fn refused(max_body: usize) -> Vec<Refused> {
    let asked = |more| with(body(json!("hello"), 2), more).to_string();
    let shows = |urls: &[&str]| body(about(urls, "what is it?"), 2).to_string();
    let of = |body: String, status, code| Refused { method: "POST", path: CHAT, head: JSON, body, status, code };
    vec![
        of("{\"messages\"".into(), 400, "invalid_json"),
        of("[]".into(), 400, "invalid_value"),
        of("{}".into(), 400, "missing_required_parameter"),
        of(asked(json!({ "temperature": 9 })), 400, "invalid_value"),
        of(asked(json!({ "tools": [1] })), 400, "unsupported_parameter"),
        of(asked(json!({ "min_tokens": 3, "stream": true })), 400, "invalid_value"),
        of(
            asked(json!({ "messages": [{ "role": "user", "content": "hello ".repeat(2000) }] })),
            400,
            "context_length_exceeded",
        ),
        of(shows(&["data:image/png;base64,$"]), 400, "invalid_image_url"),
        of(shows(&["data:image/png;base64,aGVsbG8="]), 400, "invalid_request"),
        of(shows(&["file:///etc/passwd"]), 400, "image_url_not_allowed"),
        of(shows(&["ftp://127.0.0.1/a.png"]), 400, "invalid_image_url"),
        of(shows(&["http://user@127.0.0.1/a.png"]), 400, "image_url_not_allowed"),
        of(shows(&["data:,"; 5]), 400, "too_many_images"),
        of(asked(json!({ "model": "other" })), 404, "model_not_found"),
        of(" ".repeat(max_body + 1), 413, "body_too_large"),
        Refused { head: "", ..of("{}".into(), 415, "unsupported_media_type") },
        Refused { path: "/v1/nothing", ..of("{}".into(), 404, "not_found") },
        Refused { method: "GET", ..of(String::new(), 405, "method_not_allowed") },
    ]
}
