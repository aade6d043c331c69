//! What is refused, and how.

use serde_json::json;

use super::client::{connect, get, post, read, send};
use super::process::Server;
use super::{body, chat, with};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn every_failure_is_an_error_object() {
    let server = Server::start(&["--max-body-bytes", "5000"]);
    let port = server.port;
    let refused = |more| chat(&server, &with(body("hello", 2), more));
    assert_eq!(get(port, "/v1/nothing").error(404, "not_found"), "there is no \"/v1/nothing\"");
    assert!(get(port, CHAT).error(405, "method_not_allowed").contains("does not take \"GET\""));
    assert!(read(send(port, "POST", CHAT, "", "{}")).error(415, "unsupported_media_type").contains("application/json"));
    assert!(post(port, CHAT, "{\"messages\"").error(400, "invalid_json").contains("EOF"));
    assert!(post(port, CHAT, "[]").error(400, "invalid_value").contains("must be an object"));
    assert!(post(port, CHAT, "{}").error(400, "missing_required_parameter").contains("messages"));
    assert!(post(port, CHAT, &" ".repeat(5001)).error(413, "body_too_large").contains("--max-body-bytes"));
    assert!(refused(json!({ "messages": "hi" })).error(400, "invalid_value").contains("messages is \"hi\""));
    assert!(refused(json!({ "model": "other" })).error(404, "model_not_found").contains("other"));
    assert!(refused(json!({ "temperature": 9 })).error(400, "invalid_value").contains("temperature"));
    assert!(refused(json!({ "tools": [1] })).error(400, "unsupported_parameter").contains("tools"));
    assert!(refused(json!({ "stream_options": {} })).error(400, "invalid_value").contains("stream"));
    let far = json!([{ "role": "user", "content": [{ "image_url": "http://127.0.0.1:9/a.png" }] }]);
    let reply = refused(json!({ "messages": far }));
    reply.error(400, "image_url_not_allowed");
    assert_eq!(reply.json()["error"]["param"], "messages[0].content[0].image_url");
    let long = json!([{ "role": "user", "content": "hello ".repeat(700) }]);
    assert!(
        refused(json!({ "messages": long, "stream": true }))
            .error(400, "context_length_exceeded")
            .contains("--max-model-len")
    );
    assert_eq!(chat(&server, &body("hello", 2)).status, 200);
}

#[test]
fn a_body_of_many_values_is_not_read() {
    let server = Server::start(&[]);
    let many = format!("{{\"messages\":[{}0]}}", "0,".repeat(100_000));
    assert!(post(server.port, CHAT, &many).error(413, "body_too_large").contains("100000"));
}

#[test]
fn the_key_opens_what_is_below_v1() {
    let server = Server::start(&["--api-key", "sesame"]);
    let port = server.port;
    let with_key = |key: &str| read(send(port, "GET", "/v1/models", &format!("Authorization: {key}\r\n"), ""));
    for wrong in ["Bearer sesam", "Bearer sesame2", "Bearer", "Basic sesame", "sesame"] {
        assert!(with_key(wrong).error(401, "invalid_api_key").contains("Bearer KEY"), "{wrong}");
    }
    for path in ["/v1/models", CHAT, "/v1/nothing"] {
        get(port, path).error(401, "invalid_api_key");
    }
    assert_eq!((with_key("Bearer sesame").status, with_key("bearer sesame").status), (200, 200));
    assert_eq!((get(port, "/health").status, get(port, "/metrics").status), (200, 200));
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    let server = Server::start(&["--max-num-seqs", "1", "--max-waiting-requests", "1"]);
    let long = with(body("hello", 400), json!({ "stream": true })).to_string();
    let under_way: Vec<_> = (0..2).map(|_| send(server.port, "POST", CHAT, JSON, &long)).collect();
    server.until("num_requests_in_server", 2.0);
    let reply = chat(&server, &body("hello", 2));
    assert!(reply.error(429, "queue_full").contains("2 requests run or wait"));
    assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
    drop(under_way);
    server.until("num_requests_in_server", 0.0);
    assert_eq!(chat(&server, &body("hello", 2)).status, 200);
}

#[test]
fn who_goes_away_frees_what_it_held() {
    let server = Server::start(&[]);
    for (cancelled, stream) in [(1.0, true), (2.0, false)] {
        let asked = with(body("hello", 400), json!({ "stream": stream })).to_string();
        let client = send(server.port, "POST", CHAT, JSON, &asked);
        server.until("num_requests_running", 1.0);
        drop(client);
        server.until("request_cancelled_total", cancelled);
        server.until("num_requests_running", 0.0);
        server.until("num_requests_in_server", 0.0);
    }
    assert_eq!((server.metric("kv_cache_usage_perc"), server.metric("request_success_total")), (0.0, 0.0));
    // A client that says nothing keeps nobody else from being heard.
    let _silent = connect(server.port);
    assert_eq!(chat(&server, &body("hello", 2)).status, 200);
}
