//! Text and messages to tokens, and tokens to text.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli::text::{Special, Tokenizer};
use serde_json::{Value, json};

use super::client::{Reply, post, read, send};
use super::process::Server;
use super::{MODEL, body, chat, picture, with};

fn tokenize(server: &Server, body: &Value) -> Reply {
    post(server.port, "/tokenize", &body.to_string())
}

fn detokenize(server: &Server, tokens: &Value) -> Reply {
    post(server.port, "/detokenize", &json!({ "tokens": tokens }).to_string())
}

#[test]
fn a_text_becomes_tokens_and_they_a_text() {
    let server = Server::start(&[]);
    let tokenizer = Tokenizer::open(MODEL.as_ref()).unwrap();
    let text = "what is the picture</s> of caf\u{e9}?";
    for add_special_tokens in [true, false] {
        let ids = tokenizer.encode(text, Special::Parse, add_special_tokens).unwrap();
        let strs: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id)).collect();
        let asked = json!({ "prompt": text, "add_special_tokens": add_special_tokens, "return_token_strs": true });
        let found = tokenize(&server, &asked).json();
        assert_eq!(found, json!({ "count": ids.len(), "max_model_len": 512, "tokens": ids, "token_strs": strs }));
        let back = detokenize(&server, &found["tokens"]).json();
        assert_eq!(back, json!({ "prompt": tokenizer.decode(&ids, false).unwrap() }));
    }
    let plain = "what is the picture of caf\u{e9}?";
    let found = tokenize(&server, &json!({ "prompt": plain, "add_special_tokens": false })).json();
    assert_eq!(detokenize(&server, &found["tokens"]).json(), json!({ "prompt": plain }));
    let plain = tokenize(&server, &json!({ "prompt": "a", "model": MODEL })).json();
    assert!(plain["token_strs"].is_null() && plain["tokens"][0] == 1, "{plain}");
    assert_eq!(detokenize(&server, &json!([])).json(), json!({ "prompt": "" }));
}

/// Messages with pictures have the tokens that a chat reads.
#[test]
fn messages_count_as_a_chat_reads_them() {
    let server = Server::start(&[]);
    let url = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(picture("wide.png")));
    let parts =
        json!([{ "type": "image_url", "image_url": { "url": url } }, { "type": "text", "text": "<image> what?" }]);
    let messages = json!({ "messages": [{ "role": "user", "content": parts }] });
    let answered =
        chat(&server, &with(with(body("", 1), messages.clone()), json!({ "return_token_ids": true }))).json();
    let found = tokenize(&server, &messages).json();
    assert_eq!(found["tokens"], answered["prompt_token_ids"]);
    assert_eq!(found["count"], answered["usage"]["prompt_tokens"]);

    // Where no answer begins.
    let without = json!({ "add_generation_prompt": false });
    let shorter = tokenize(&server, &with(messages.clone(), without.clone())).json();
    let (tokens, all) = (shorter["tokens"].as_array().unwrap(), found["tokens"].as_array().unwrap());
    let end = tokens.len() - 1;
    assert!(all[..end] == tokens[..end] && all[end..] != tokens[end..], "{tokens:?} {all:?}");
    let answered = chat(&server, &with(with(body("", 1), messages), without)).json();
    assert_eq!(answered["usage"]["prompt_tokens"], shorter["count"]);
    // What is too long for an answer is counted nevertheless.
    let long = json!({ "messages": [{ "role": "user", "content": "hello ".repeat(700) }] });
    assert!(tokenize(&server, &long).json()["count"].as_u64().unwrap() > 512);
}

#[test]
fn what_is_wrong_with_tokens_is_named() {
    let server = Server::start(&["--api-key", "sesame"]);
    let key = "Content-Type: application/json\r\nAuthorization: Bearer sesame\r\n";
    let ask = |path: &str, body: Value| read(send(server.port, "POST", path, key, &body.to_string()));
    let words = json!([{ "role": "user", "content": "a" }]);
    for (path, asked, status, code, part) in [
        ("/tokenize", json!({}), 400, "missing_required_parameter", "prompt is missing"),
        ("/tokenize", json!({ "prompt": ["a"] }), 400, "invalid_value", "must be a text"),
        ("/tokenize", json!({ "prompt": "a", "messages": words }), 400, "invalid_value", "leave out one"),
        ("/tokenize", json!({ "prompt": "a", "add_special_tokens": 1 }), 400, "invalid_value", "true or false"),
        ("/tokenize", json!({ "prompt": "<image>" }), 400, "invalid_request", "picture"),
        ("/tokenize", json!({ "messages": words, "chat_template": "x" }), 400, "unsupported_parameter", "template"),
        ("/tokenize", json!({ "messages": words, "add_special_tokens": true }), 400, "unsupported_parameter", "BOS"),
        ("/tokenize", json!({ "messages": [] }), 400, "invalid_value", "messages is empty"),
        ("/tokenize", json!({ "prompt": "a", "model": "other" }), 404, "model_not_found", "other"),
        ("/detokenize", json!({}), 400, "missing_required_parameter", "tokens is missing"),
        ("/detokenize", json!({ "tokens": "a" }), 400, "invalid_value", "a list of token ids"),
        ("/detokenize", json!({ "tokens": [1, -1] }), 400, "invalid_value", "a list of token ids"),
        ("/detokenize", json!({ "tokens": [1, 331] }), 400, "invalid_value", "tokens[1] is 331"),
    ] {
        let message = ask(path, asked.clone()).error(status, code);
        assert!(message.contains(part), "{path} {asked}: {message}");
    }
    // They are work, and pictures are fetched: the key guards them, too.
    for path in ["/tokenize", "/detokenize", "/v1/completions"] {
        post(server.port, path, "{}").error(401, "invalid_api_key");
    }
}
