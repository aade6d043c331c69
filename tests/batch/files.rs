//! Files of requests: every line gets its one answer, whatever the others are.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ocelli::engine::{Engine, ImageInput, Options, Output, Prompt, Request, Sampling};
use ocelli::server::batch::{self, BatchOptions, MAX_LINE_BYTES, Progress};
use ocelli::server::media::MediaOptions;
use ocelli::text::{Message, Role};
use serde_json::{Value, json};

use super::host::Host;
use super::{MODEL, answers, body, engine, line, picture};

fn options() -> BatchOptions {
    BatchOptions {
        served_model_names: vec!["tiny".into(), "other".into()],
        media: MediaOptions {
            allow_private_addresses: true,
            allowed_local_media_path: Some("tests/goldens/pictures".into()),
            timeout: Duration::from_secs(2),
            max_bytes: 1 << 20,
            ..MediaOptions::default()
        },
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, &b| word << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

/// What the engine answers to a body of [`super::body`] that shows `images`.
fn direct(engine: &Engine, text: &str, images: &[&str], tokens: usize) -> Output {
    let request = Request {
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, images.len(), text)]),
        images: images.iter().map(|name| ImageInput::Path(picture(name))).collect(),
        sampling: Sampling {
            temperature: 0.8,
            seed: Some(5),
            max_tokens: Some(tokens),
            ignore_eos: true,
            ..Sampling::default()
        },
        ..Request::default()
    };
    engine.answer(&request, |_| ControlFlow::Continue(())).unwrap()
}

/// What is wrong, the field that is named, the code and a part of the message.
type Wrong = (&'static str, Option<&'static str>, &'static str, &'static str);

/// Every way in which a line can be wrong.
fn wrong(host: &Host) -> Vec<(Value, Wrong)> {
    let url = |path: &str| body("what?", &[host.url(path)], 3);
    let data = |text: &str| body("what?", &[format!("data:image/png;base64,{}", base64(text.as_bytes()))], 3);
    let with = |name: &str, value: Value| {
        let mut body = body("what?", &[], 3);
        body[name] = value;
        body
    };
    let at = Some("messages[0].content[0].image_url.url");
    vec![
        (url("missing"), ("404", at, "image_fetch_failed", "answered 404")),
        (url("drip"), ("drip", at, "image_fetch_timeout", "within 2 s")),
        (url("endless"), ("endless", at, "image_too_large", "1048576 bytes")),
        (url("text"), ("text", None, "invalid_request", "picture 1")),
        (data("no picture"), ("data", None, "invalid_request", "picture 1")),
        (body("a", &["file:///etc/passwd".into()], 3), ("file", at, "image_url_not_allowed", "names no file under")),
        (body("a", &["gopher://a".into()], 3), ("scheme", at, "invalid_image_url", "is no URL")),
        (body("a", &vec!["data:,".to_owned(); 5], 3), ("many", Some("messages"), "too_many_images", "show 5 pictures")),
        (with("temperature", json!(9)), ("hot", Some("temperature"), "invalid_value", "temperature is 9")),
        (with("stream", json!(true)), ("stream", Some("stream"), "unsupported_parameter", "whole answers")),
        (
            with("model", json!("gpt")),
            ("model", Some("model"), "model_not_found", "\"gpt\" does not exist here; tiny or"),
        ),
        (with("logit_bias", json!({ "9999": 1 })), ("bias", None, "invalid_request", "the vocabulary has 331")),
        (body(&"long ".repeat(5000), &[], 3), ("long", None, "context_length_exceeded", "fit (--max-model-len)")),
        (json!("text"), ("text body", None, "invalid_value", "the body is \"text\"")),
    ]
}

#[test]
fn two_hundred_lines_of_every_kind() {
    let bytes = fs::read(picture("wide.png")).unwrap();
    let host = Host::start(bytes.clone());
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let data = format!("data:image/png;base64,{}", base64(&bytes));
    let file = format!("file://{}", picture("tall.png").display());
    let good: [(&str, Vec<String>, Vec<&str>); 5] = [
        ("what is the moon?", vec![], vec![]),
        ("what is this?", vec![data.clone()], vec!["wide.png"]),
        ("what is here?", vec![host.url("picture")], vec!["wide.png"]),
        ("and there?", vec![file.clone()], vec!["tall.png"]),
        ("compare", vec![file, host.url("to//picture")], vec!["tall.png", "wide.png"]),
    ];
    let wrong = wrong(&host);
    let mut text = String::from("\u{feff}");
    let (mut expected, mut faults) = (HashMap::new(), HashMap::new());
    for i in 0..200 {
        let id = format!("request-{i}");
        let number = text.lines().count() + 1;
        match i % 4 {
            0 | 2 => {
                let kind = (i / 2) % good.len();
                text += &line(&id, &body(good[kind].0, &good[kind].1, 4 + i % 7));
                expected.insert(id, Ok((kind, 4 + i % 7)));
            }
            1 => {
                let (body, wrong) = &wrong[(i / 4) % wrong.len()];
                text += &line(&id, body);
                expected.insert(id, Err(*wrong));
            }
            _ => {
                // Lines that are nobody's.
                let (bad, part) = match (i / 4) % 5 {
                    0 => ("{\"custom_id\":\"cut".to_owned(), "is no JSON object"),
                    1 => (line("", &json!({})), "custom_id must be a text"),
                    2 => (line("request-0", &body("again", &[], 2)), "is that of line 1, too"),
                    3 => ("[]".to_owned(), "does not begin with a brace"),
                    _ => ("{\"method\":\"POST\"}".to_owned(), "custom_id is missing"),
                };
                text += &bad;
                faults.insert(number, part);
            }
        }
        text += if i % 3 == 0 { "\r\n" } else { "\n" };
        text += if i % 11 == 0 { "\n \n" } else { "" };
    }
    fs::write(&input, text.trim_end()).unwrap();

    let engine = Engine::open(Path::new(MODEL), &Options { max_num_seqs: Some(3), ..Options::default() }, |_, _| ());
    let engine = engine.unwrap();
    let (mut most, mut last) = (0, Progress::default());
    let done = batch::run(&engine, &input, &output, &options(), |progress| {
        let stats = engine.stats();
        most = most.max(stats.running + stats.waiting);
        assert!(progress.lines() == last.lines() + 1 && progress.bytes > last.bytes);
        last = *progress;
    });
    let done = done.unwrap();
    assert_eq!((done.answered, done.failed, done.kept, done.bytes), (100, 100, 0, done.total_bytes));
    assert!(most <= 6, "{most} were under way");

    let mut own = HashMap::new();
    for answer in answers(&output) {
        assert_eq!(answer["error"], answer["response"]["body"]["error"]);
        let (status, error) = (answer["response"]["status_code"].as_u64().unwrap(), &answer["error"]);
        let Some(id) = answer["custom_id"].as_str() else {
            let number: usize = answer["id"].as_str().unwrap().strip_prefix("batch_req_").unwrap().parse().unwrap();
            let (message, part) =
                (error["message"].as_str().unwrap(), faults.remove(&number).expect("one answer a line"));
            assert!(message.starts_with(&format!("line {number}")) && message.contains(part), "{message}");
            continue;
        };
        match expected.remove(id).expect("one answer a line") {
            Ok((kind, tokens)) => {
                assert_eq!((status, error), (200, &Value::Null), "{id}");
                let own =
                    own.entry((kind, tokens)).or_insert_with(|| direct(&engine, good[kind].0, &good[kind].2, tokens));
                let body = &answer["response"]["body"];
                assert_eq!(body["choices"][0]["message"]["content"], own.outputs[0].text, "{id}");
                assert_eq!(body["usage"]["prompt_tokens"], own.prompt_token_ids.len(), "{id}");
                assert_eq!((&body["usage"]["completion_tokens"], &body["model"]), (&json!(tokens), &json!("tiny")));
            }
            Err((what, param, code, part)) => {
                let message = error["message"].as_str().unwrap();
                assert!(message.starts_with("line ") && message.contains(part), "{what}: {message}");
                assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{what}");
                assert_eq!(status, if what == "model" { 404 } else { 400 });
            }
        }
    }
    assert!(expected.is_empty() && faults.is_empty(), "no answer: {expected:?} {faults:?}");

    // Nothing is asked again, and the file stays as it is.
    let before = fs::read(&output).unwrap();
    let again = batch::run(&engine, &input, &output, &options(), |_| ()).unwrap();
    assert_eq!((again.kept, again.kept_failed, again.answered, again.failed), (200, 100, 0, 0));
    assert_eq!(fs::read(&output).unwrap(), before);
}

#[test]
fn a_line_without_end_is_one_error_and_the_next_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let mut file = File::create(&input).unwrap();
    file.write_all(b"{\"custom_id\":\"a\",\"x\":\"").unwrap();
    file.write_all(&vec![b'x'; MAX_LINE_BYTES]).unwrap();
    writeln!(file, "\"}}\n{}", line("b", &body("a", &[], 2))).unwrap();
    let done = batch::run(&engine(), &input, &output, &options(), |_| ()).unwrap();
    assert_eq!((done.answered, done.failed), (1, 1));
    let error = answers(&output).into_iter().find(|answer| answer["custom_id"].is_null()).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("at most 67108864 are read"), "{error}");
}

#[test]
fn a_file_that_is_something_else_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    fs::write(&input, line("a", &body("a", &[], 2))).unwrap();
    let engine = engine();
    for other in [
        "a diary\n",
        "a diary",
        "{}\n",
        "{\"id\":\"x\",\"custom_id\":\"a\",\"response\":null,\"error\":null}\n",
        "[1]\n",
    ] {
        fs::write(&output, other).unwrap();
        let error = batch::run(&engine, &input, &output, &options(), |_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("is no answer of a batch; name another file"), "{error:#}");
        assert_eq!(fs::read_to_string(&output).unwrap(), other);
    }
    let refused = |input: &Path, output: &Path| batch::run(&engine, input, output, &options(), |_| ()).unwrap_err();
    assert!(refused(&input, &input).to_string().contains("is the input"));
    assert!(refused(dir.path(), &output).to_string().contains("is a directory"));
    assert!(refused(&input, dir.path()).to_string().contains("is a directory"));
    assert!(refused(&dir.path().join("none"), &output).to_string().contains("none"));
    fs::write(&output, "").unwrap();
    let held = File::open(&output).unwrap();
    held.lock().unwrap();
    assert!(refused(&input, &output).to_string().contains("is being written by another run"));
}

#[test]
fn the_command_says_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        let result = command.args(args).output().unwrap();
        assert!(result.stdout.is_empty(), "the answers go to their file");
        (result.status.code(), String::from_utf8(result.stderr).unwrap())
    };
    let (from, to) = (input.display().to_string(), output.display().to_string());
    let mut asked = body("a", &[], 2);
    asked["model"] = json!(MODEL);
    fs::write(&input, line("a", &asked) + "\n" + &line("b", &body("b", &[], 3))).unwrap();
    let (code, told) = run(&["batch", MODEL, &from, &to]);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("[2 lines: 2 answered, 0 with errors, 0 already there; ") && told.contains("5 answer tokens"),
        "{told}"
    );
    let found = answers(&output);
    let names: HashMap<_, _> = found.iter().map(|a| (&a["custom_id"], &a["response"]["body"]["model"])).collect();
    assert_eq!(names, [(&json!("a"), &json!(MODEL)), (&json!("b"), &json!(MODEL))].into());

    fs::write(&input, line("a", &asked) + "\n" + &line("c", &json!({})) + "\n").unwrap();
    let (code, told) = run(&["batch", MODEL, &from, &to]);
    assert!(code == Some(1) && told.contains("0 answered, 1 with errors, 1 already there"), "{told}");
    assert!(told.trim_end().ends_with(&format!("error: 1 of 2 lines have an error in {to}")), "{told}");
    for (args, code, part) in [
        (&["batch", MODEL, &from][..], 2, "OUT.jsonl"),
        (&["batch", MODEL, &from, &to, "--image-fetch-timeout", "0"], 2, "above 0"),
        (&["batch", MODEL, &from, &from], 1, "is the input"),
        (&["batch", MODEL, "/no/such.jsonl", &to], 1, "/no/such.jsonl"),
        (
            &["batch", MODEL, &from, &to, "--allowed-local-media-path", "/no/such"],
            1,
            "/no/such (--allowed-local-media-path)",
        ),
    ] {
        let (found, told) = run(args);
        assert!(found == Some(code) && told.contains(part), "{args:?}: {told}");
    }
}
