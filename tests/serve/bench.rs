//! `ocelli bench serve` against servers whose answers are known: ours, and one that keeps to a clock.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Server;

fn bench(port: u16, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.env_remove("OPENAI_API_KEY");
    command.args(["bench", "serve", "--base-url", &format!("http://127.0.0.1:{port}")]).args(args).output().unwrap()
}

/// The table and the report of a run that succeeded, with an entry for every request.
fn measure(port: u16, args: &[&str]) -> (String, Value) {
    saved(port, &[args, &["--save-detailed"]].concat())
}

/// The table and the report of a run that succeeded.
fn saved(port: u16, args: &[&str]) -> (String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("result.json");
    let output = bench(port, &[args, &["--save", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    (String::from_utf8(output.stdout).unwrap(), report)
}

fn numbers(report: &Value, name: &str) -> Vec<f64> {
    report[name].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn totals_are_those_of_the_server() {
    let server = Server::start(&["--api-key", "sesame", "--served-model-name", "tiny"]);
    let work = ["--api-key", "sesame", "--num-prompts", "6", "--num-warmups", "2", "--max-concurrency", "3"];
    let prompts = ["--input-len", "5", "--output-len", "7", "--images", "2", "--image", "40x30", "--seed", "4"];
    let (table, report) = measure(server.port, &[&work[..], &prompts].concat());
    assert_eq!((&report["completed"], &report["failed"], &report["num_prompts"]), (&json!(6), &json!(0), &json!(6)));
    assert_eq!((&report["model_id"], &report["max_concurrency"]), (&json!("tiny"), &json!(3)));
    assert_eq!((&report["request_rate"], &report["total_output_tokens"]), (&json!("inf"), &json!(42)));
    assert_eq!(numbers(&report, "output_lens"), [7.0; 6]);
    let inputs: f64 = numbers(&report, "input_lens").iter().sum();
    assert!(inputs > 6.0 * 5.0 && report["total_input_tokens"] == json!(inputs as u64), "{inputs}");
    assert_eq!(report["errors"], json!(["", "", "", "", "", ""]));
    let at_once = report["max_concurrent_requests"].as_u64().unwrap();
    assert!((1..=3).contains(&at_once), "{at_once}");
    let rate = report["completed"].as_f64().unwrap() / report["duration"].as_f64().unwrap();
    assert!((rate / report["request_throughput"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    // One request more shows that the server answers. None was asked twice, and no picture is in two of them.
    let asked = 6.0 + 2.0 + 1.0;
    assert_eq!(
        (server.metric("generation_tokens_total"), server.metric("request_success_total")),
        (7.0 * asked, asked)
    );
    assert_eq!((server.metric("mm_cache_queries_total"), server.metric("mm_cache_hits_total")), (2.0 * asked, 0.0));
    let input = &report["input"];
    assert_eq!((&input["requests"], &input["concurrency"], &input["repeats"]), (&json!(6), &json!(3), &json!(1)));
    assert_eq!((&input["pictures"], &input["output_tokens"]), (&json!(["40x30", "40x30"]), &json!(7)));
    assert_eq!(
        (&report["bench"], &report["model"], &report["gpu"]),
        (&json!("serve"), &json!("tiny"), &json!("unknown"))
    );
    assert!(!report["command"].as_str().unwrap().contains("sesame"), "a key is nobody's to read");
    assert!(table.contains(", 7 of answer, 3 at once; 6 a repeat, repeats: 1, warm-up: 2, seed: 4"), "{table}");
}

#[test]
fn the_report_has_the_fields_of_vllm() {
    let server = Server::start(&[]);
    let (_, report) = measure(server.port, &["--num-prompts", "3", "--output-len", "4", "--request-rate", "100"]);
    let mut fields: BTreeSet<String> = [
        "date",
        "backend",
        "bench",
        "figures",
        "endpoint_type",
        "model_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "input_lens",
        "output_lens",
        "ttfts",
        "itls",
        "latencies",
        "start_times",
        "queue_times",
        "errors",
    ]
    .map(str::to_owned)
    .into();
    for time in ["ttft", "tpot", "itl", "e2el"] {
        fields.extend(["mean", "median", "std", "p50", "p90", "p99"].map(|what| format!("{what}_{time}_ms")));
    }
    let (_, short) = saved(server.port, &["--num-prompts", "1", "--output-len", "2"]);
    assert!(short["itls"].is_null() && short["median_itl_ms"].is_number(), "lists are for who asks");
    let found: BTreeSet<String> = report.as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields.difference(&found).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!((&report["request_rate"], &report["max_concurrency"]), (&json!(100.0), &json!(null)));
    // The last of three requests at 100 a second is sent after 30 ms.
    assert!(numbers(&report, "start_times")[2] >= 0.03, "{}", report["start_times"]);
}

#[test]
fn refused_requests_are_counted() {
    let server = Server::start(&["--max-num-seqs", "1", "--max-waiting-requests", "1"]);
    let (table, report) = measure(server.port, &["--num-prompts", "20", "--input-len", "4", "--output-len", "100"]);
    let (completed, failed) = (report["completed"].as_u64().unwrap(), report["failed"].as_u64().unwrap());
    assert!(completed >= 2 && failed >= 1 && completed + failed == 20, "{table}");
    assert_eq!(report["total_output_tokens"], 100 * completed);
    let errors = report["errors"].as_array().unwrap().iter().filter_map(Value::as_str).filter(|e| !e.is_empty());
    let errors: Vec<_> = errors.collect();
    assert_eq!(errors.len() as u64, failed);
    assert!(
        errors.iter().all(|error| error.starts_with("429 Too Many Requests: 2 requests run or wait")),
        "{errors:?}"
    );
    assert_eq!(report["figures"]["failed"]["median"], json!(failed as f64));
    let line = table.lines().find(|line| line.starts_with("requests without an answer")).unwrap();
    assert!(line.contains(&format!(" {failed}.")), "{table}");
}

#[test]
fn what_is_wrong_is_said() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&["--api-key", "sesame"]);
    for (port, args, code, message) in [
        (closed, &[][..], 1, format!("connecting to 127.0.0.1:{closed} (--base-url)")),
        (server.port, &[], 1, "401 Unauthorized: the key is missing or wrong".into()),
        (server.port, &["--api-key", "sesame", "--model", "x"], 1, "the first request failed: 404 Not Found".into()),
        (server.port, &["--save", "/nowhere/x.json"], 1, "/nowhere/x.json (--save)".into()),
        (server.port, &["--request-rate", "0"], 2, "requests a second".into()),
        (server.port, &["--image", "640"], 2, "WxH".into()),
    ] {
        let output = bench(port, args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(&message), "{args:?}: {error}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .args(["bench", "serve", "--base-url", "https://127.0.0.1"])
        .output()
        .unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("https is not spoken here"));
}

#[test]
fn repeats_ask_nothing_twice_and_are_a_spread() {
    let server = Server::start(&[]);
    let work = ["--num-prompts", "4", "--repeats", "3", "--num-warmups", "1", "--output-len", "3", "--images", "1"];
    let (_, report) = measure(server.port, &[&work[..], &["--image-size", "30x20"]].concat());
    // The first request, the one to warm up, and three times four.
    assert_eq!((server.metric("mm_cache_queries_total"), server.metric("mm_cache_hits_total")), (14.0, 0.0));
    assert_eq!((&report["num_prompts"], &report["completed"]), (&json!(12), &json!(12)));
    for name in ["ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "request_throughput"] {
        let figure = &report["figures"][name];
        assert_eq!(figure["repeats"].as_array().unwrap().len(), 3, "{name}: {figure}");
    }
    assert_eq!(report["figures"]["ttft_ms"]["samples"], 12);
    for name in ["ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"] {
        for what in ["mean", "median", "std", "p90", "p99"] {
            assert_eq!(report[format!("{what}_{name}")], report["figures"][name][what], "{what} {name}");
        }
    }
    let starts = numbers(&report, "start_times");
    assert!(starts[3] <= starts[4] && starts[7] <= starts[8], "one repeat after another: {starts:?}");
}

/// Before the first token and before each of the three others.
const FIRST: Duration = Duration::from_millis(200);
const NEXT: Duration = Duration::from_millis(50);

/// A server that says who speaks at once and what at its times. It closes connections after an answer if it is told to,
/// and counts them.
fn clockwork(close: bool) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.unwrap());
                while answer(&mut reader).is_some() && !close {}
            });
        }
    });
    (port, connections)
}

fn answer(reader: &mut BufReader<TcpStream>) -> Option<()> {
    let (mut length, mut line) = (0, String::new());
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
    let stream = reader.get_mut();
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let mut send = |pause: Duration, data: &str| {
        thread::sleep(pause);
        let event = format!("data: {data}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).unwrap();
    };
    let text = r#"{"choices":[{"delta":{"content":"a"}}]}"#;
    send(Duration::ZERO, r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#);
    send(FIRST, text);
    for _ in 0..3 {
        send(NEXT, text);
    }
    send(Duration::ZERO, r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#);
    send(Duration::ZERO, "[DONE]");
    stream.write_all(b"0\r\n\r\n").unwrap();
    Some(())
}

#[test]
fn times_are_those_of_the_clock() {
    let (port, connections) = clockwork(false);
    let work = ["--model", "clock", "--num-prompts", "3", "--max-concurrency", "1"];
    let (_, report) = measure(port, &work);
    // The first request and the measured ones, one after another.
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let (ttfts, latencies) = (numbers(&report, "ttfts"), numbers(&report, "latencies"));
    for i in 0..3 {
        let itls: Vec<f64> = report["itls"][i].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        let (first, whole) = (FIRST.as_secs_f64(), (FIRST + 3 * NEXT).as_secs_f64());
        // Nothing comes early. How late it may be is the machine's affair, and the client's 100 ms.
        assert!((first..first + 0.1).contains(&ttfts[i]), "{ttfts:?}");
        assert!((whole..whole + 0.1).contains(&latencies[i]), "{latencies:?}");
        assert!(itls.len() == 3 && (ttfts[i] + itls.iter().sum::<f64>() - latencies[i]).abs() < 1e-6, "{itls:?}");
    }
    let tpot: f64 = latencies.iter().zip(&ttfts).map(|(latency, ttft)| (latency - ttft) / 3.0).sum::<f64>() / 3.0;
    assert!((report["mean_tpot_ms"].as_f64().unwrap() - 1e3 * tpot).abs() < 1e-3, "{tpot}");
    assert_eq!((&report["total_input_tokens"], &report["total_output_tokens"]), (&json!(27), &json!(12)));
    // Those that wait for a place do so before their time is taken.
    let queued = numbers(&report, "queue_times");
    assert!(queued.iter().copied().fold(0.0, f64::max) >= 0.7, "{queued:?}");
}

#[test]
fn a_server_may_close_what_is_idle() {
    let (port, connections) = clockwork(true);
    // Half a second lies between the first request and the one that is measured.
    let (_, report) = measure(port, &["--model", "clock", "--num-prompts", "1", "--request-rate", "2"]);
    assert_eq!((&report["completed"], connections.load(Ordering::Relaxed)), (&json!(1), 2));
}
