//! Names, origins, logs, metrics and timers: what an operator sees and a stranger does not get past.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Reply, connect, get, read, send};
use super::process::Server;
use super::{body, chat, with};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json\r\n";

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    reply.head.lines().find_map(line)
}

fn asked(server: &Server, path: &str, head: &str) -> Reply {
    read(send(server.port, "GET", path, head, ""))
}

#[test]
fn every_answer_has_a_name_that_the_log_knows() {
    let server = Server::start(&["--log-format", "json", "--api-key", "sesame"]);
    let named = |id: &str| asked(&server, "/v1/models", &format!("X-Request-Id: {id}\r\n"));
    assert_eq!(header(&named("client-7.a"), "x-request-id"), Some("client-7.a"));
    for strange in ["a b", "\"}", &"x".repeat(200)] {
        assert!(header(&named(strange), "x-request-id").unwrap().starts_with("req-"), "{strange:?}");
    }
    assert_ne!(header(&get(server.port, "/health"), "x-request-id"), header(&get(server.port, "/x"), "x-request-id"));
    let key = format!("{JSON}Authorization: Bearer sesame\r\nX-Request-Id: the-one\r\n");
    let stream = with(body("hello", 3), json!({ "stream": true })).to_string();
    assert!(read(send(server.port, "POST", CHAT, &key, &stream)).events().len() > 1);
    asked(&server, "/v1/%0aforged%1b%5b31m", "");
    let start = Instant::now();
    let lines: Vec<Value> = loop {
        let log = server.log();
        if log.contains("forged") {
            break log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{log}");
    };
    let generated = lines.iter().find(|line| line["message"] == "generated").unwrap();
    assert_eq!((&generated["span"]["id"], &generated["tokens"]), (&json!("the-one"), &json!(3)));
    assert_eq!(generated["outcome"], "complete");
    let answered: Vec<_> = lines.iter().filter(|line| line["message"] == "answered").collect();
    assert!(answered.iter().any(|line| line["span"]["id"] == "the-one" && line["status"] == 200));
    assert!(answered.iter().all(|line| line["path"] != "\"/health\""), "health checks are for level debug");
}

#[test]
fn no_page_of_another_site_gets_an_answer_unless_it_is_allowed() {
    let server = Server::start(&[]);
    for origin in ["http://evil.example", "http://evil.example:8000", "null", "http://localhost.evil.example"] {
        let reply = asked(&server, "/v1/models", &format!("Origin: {origin}\r\n"));
        assert!(reply.error(403, "origin_not_allowed").contains("--allowed-origins"), "{origin}");
    }
    for origin in ["http://localhost:8000", "http://127.0.0.1:3000", "http://[::1]:8000", "http://x.localhost"] {
        let reply = asked(&server, "/v1/models", &format!("Origin: {origin}\r\n"));
        assert_eq!((reply.status, header(&reply, "access-control-allow-origin")), (200, None), "{origin}");
    }

    let server = Server::start(&["--allowed-origins", "https://good.example", "--api-key", "sesame"]);
    let preflight = |origin: &str| {
        let head = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n"
        );
        read(send(server.port, "OPTIONS", CHAT, &head, ""))
    };
    let reply = preflight("https://good.example");
    assert_eq!(header(&reply, "access-control-allow-origin"), Some("https://good.example"));
    assert_eq!(header(&reply, "access-control-allow-headers"), Some("authorization"));
    assert_eq!(header(&preflight("https://evil.example"), "access-control-allow-origin"), None);
    let reply = asked(&server, "/v1/models", "Origin: https://good.example\r\nAuthorization: Bearer sesame\r\n");
    assert_eq!((reply.status, header(&reply, "access-control-allow-origin")), (200, Some("https://good.example")));
    asked(&server, "/v1/models", "Origin: https://evil.example\r\n").error(403, "origin_not_allowed");
}

#[test]
fn what_is_compressed_or_has_no_end_is_not_read() {
    let server = Server::start(&["--body-timeout", "0.2", "--header-timeout", "0.3"]);
    let zipped = send(server.port, "POST", CHAT, &format!("{JSON}Content-Encoding: gzip\r\n"), "{}");
    assert!(read(zipped).error(415, "unsupported_content_encoding").contains("Content-Encoding"));
    assert_eq!(get(server.port, &format!("/{}", "x".repeat(70_000))).status, 431);
    let large = format!("X-Large: {}\r\n", "x".repeat(70_000));
    assert_eq!(asked(&server, "/health", &large).status, 431);

    let mut slow = connect(server.port);
    slow.write_all(format!("POST {CHAT} HTTP/1.1\r\nHost: a\r\n{JSON}Content-Length: 9\r\n\r\n{{").as_bytes()).unwrap();
    assert!(read(slow).error(408, "body_timeout").contains("--body-timeout"));
    let mut slow = connect(server.port);
    slow.write_all(b"GET /health HT").unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_refusal_waits_for_who_is_still_sending() {
    let server = Server::start(&["--api-key", "sesame", "--max-body-bytes", "5000000"]);
    let key = format!("{JSON}Authorization: Bearer sesame\r\n");
    // More than the system holds between the two.
    let body = " ".repeat(20_000_000);
    for (head, status, code) in
        [(JSON, 401, "invalid_api_key"), (&key, 413, "body_too_large"), ("", 401, "invalid_api_key")]
    {
        let mut client = connect(server.port);
        let length = body.len();
        let head =
            format!("POST {CHAT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n");
        client.write_all(head.as_bytes()).unwrap();
        client.write_all(body.as_bytes()).expect("it closes under its client");
        read(client).error(status, code);
    }
}

#[test]
fn a_connection_too_many_takes_the_place_of_an_idle_one() {
    let server = Server::start(&["--max-connections", "2"]);
    let [mut longest, _later] = [(); 2].map(|()| {
        let mut idle = connect(server.port);
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        idle
    });
    assert_eq!(server.metric("connections_evicted_total"), 1.0);
    let mut rest = Vec::new();
    longest.read_to_end(&mut rest).unwrap();
    let half = format!("POST {CHAT} HTTP/1.1\r\nHost: a\r\n{JSON}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n");
    let busy = [(); 2].map(|()| {
        let mut client = connect(server.port);
        client.write_all(half.as_bytes()).unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100", "its body is waited for");
        client
    });
    let start = Instant::now();
    let refused = loop {
        let reply = get(server.port, "/health");
        if reply.status != 200 {
            break reply;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    };
    assert!(refused.error(503, "too_many_connections").contains("--max-connections"));
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    drop(busy);
    while get(server.port, "/health").status != 200 {
        assert!(start.elapsed() < Duration::from_secs(40));
    }
}

#[test]
fn who_reads_nothing_loses_its_answer() {
    let server = Server::start(&["--write-timeout", "0.5"]);
    let asked = with(body("hello", 480), json!({ "stream": true, "n": 16, "logprobs": true, "top_logprobs": 20 }));
    // Some 25 MB of events, more than the system holds for both sides.
    let client = send(server.port, "POST", CHAT, JSON, &asked.to_string());
    server.until("num_requests_in_server", 1.0);
    server.until("num_requests_in_server", 0.0);
    server.until("kv_cache_usage_perc", 0.0);
    drop(client);
    assert!(server.log().contains("outcome=\"cancelled\""), "{}", server.log());
}

#[test]
fn a_step_that_does_not_end_ends_the_process() {
    let mut server = Server::start(&["--step-timeout", "0.000001"]);
    let long = with(body("hello", 400), json!({ "n": 8 })).to_string();
    let clients: Vec<_> = (0..16).map(|_| send(server.port, "POST", CHAT, JSON, &long)).collect();
    assert_eq!(server.wait().code(), Some(71));
    drop(clients);
}

#[test]
fn histograms_count_every_answer() {
    let server = Server::start(&[]);
    for stream in [false, true] {
        assert_eq!(chat(&server, &with(body("hello", 4), json!({ "stream": stream, "n": 2 }))).status, 200);
    }
    // An answer may be read before it is counted.
    server.until("request_success_total", 4.0);
    let text = get(server.port, "/metrics").body;
    for (name, count) in [
        ("time_to_first_token_seconds", 2.0),
        ("inter_token_latency_seconds", 12.0),
        ("e2e_request_latency_seconds", 2.0),
        ("request_queue_time_seconds", 2.0),
        ("request_prompt_tokens", 2.0),
        ("request_generation_tokens", 4.0),
    ] {
        assert_eq!(server.metric(&format!("{name}_count")), count, "{name}");
        let lines = text.lines().filter(|line| line.starts_with(&format!("ocelli:{name}_bucket{{")));
        let buckets: Vec<f64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(buckets.is_sorted() && buckets.last() == Some(&count), "{name}: {buckets:?}");
        assert!(
            text.contains(&format!("ocelli:{name}_bucket{{model_name=\"tests/goldens/llava-tiny-mha\",le=\"+Inf\"}}"))
        );
    }
    assert_eq!(server.metric("request_generation_tokens_sum"), 16.0);
    assert_eq!(server.metric("request_success_total"), 4.0);
    assert!(text.contains("finished_reason=\"length\"} 4\n"), "{text}");
}
