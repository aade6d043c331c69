//! Answers are those of the engine, whole or in pieces, alone or beside others.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli::engine::{Engine, Options, Prompt, Request, Sampling};
use ocelli::text::{Message, Part, Role};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::client::get;
use super::process::Server;
use super::{MODEL, body, chat, picture, with};

/// The texts of the chunks of one answer.
fn text(events: &[Value], index: u64) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    choices.filter(|c| c["index"] == index).filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn whole_and_in_pieces_it_is_what_the_engine_says() {
    let server = Server::start(&[]);
    let names = ["wide.png", "tall.png"];
    let url = |name: &&str| {
        let data = BASE64_STANDARD.encode(picture(name));
        json!({ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } })
    };
    let parts: Vec<_> = names.iter().map(url).chain([json!({ "type": "text", "text": "compare" })]).collect();
    let asked = with(body("", 12), json!({ "messages": [{ "role": "user", "content": parts }] }));

    let engine = Engine::open(Path::new(MODEL), &Options::default(), |_, _| ()).unwrap();
    let message = Message { role: Role::User, parts: vec![Part::Image, Part::Image, Part::Text("compare".into())] };
    let sampling =
        Sampling { temperature: 0.8, seed: Some(5), max_tokens: Some(12), ignore_eos: true, ..Sampling::default() };
    let request = Request {
        prompt: Prompt::Chat(vec![message]),
        images: names.iter().map(|name| picture(name).into()).collect(),
        sampling,
        ..Request::default()
    };
    let expected = engine.answer(&request, |_| ControlFlow::Continue(())).unwrap();

    let whole = chat(&server, &asked);
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    assert_eq!(whole["choices"][0]["message"]["content"], expected.outputs[0].text);
    assert_eq!(whole["usage"]["prompt_tokens"], expected.prompt_token_ids.len());
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!(MODEL)));

    let streamed = with(asked, json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let events = chat(&server, &streamed).events();
    assert_eq!(text(&events, 0), expected.outputs[0].text);
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let [.., last, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e["id"] == events[0]["id"]));
}

#[test]
fn several_answers_and_their_logprobs_are_streamed_as_they_are_whole() {
    let server = Server::start(&[]);
    let asked = with(body("hello", 6), json!({ "n": 3, "logprobs": true, "top_logprobs": 2 }));
    let whole = chat(&server, &asked).json();
    let events = chat(&server, &with(asked, json!({ "stream": true }))).events();
    for index in 0..3 {
        let expected = &whole["choices"][index];
        assert_eq!(text(&events, index as u64), expected["message"]["content"]);
        let choices: Vec<_> = events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == index).collect();
        let logprobs = choices.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten();
        assert_eq!(
            logprobs.collect::<Vec<_>>(),
            expected["logprobs"]["content"].as_array().unwrap().iter().collect::<Vec<_>>()
        );
        assert_eq!(choices.iter().filter(|c| !c["finish_reason"].is_null()).count(), 1);
    }
}

#[test]
fn many_clients_get_each_its_own_answer() {
    let server = Server::start(&[]);
    let ask = |i: usize| {
        let asked = with(body(&format!("tell me of {i}"), 8), json!({ "stream": i.is_multiple_of(2) }));
        let reply = chat(&server, &asked);
        if i.is_multiple_of(2) {
            text(&reply.events(), 0)
        } else {
            reply.json()["choices"][0]["message"]["content"].as_str().unwrap().into()
        }
    };
    let together: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..32).map(|i| scope.spawn(move || ask(i))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let alone: Vec<String> = (0..32).map(ask).collect();
    assert_eq!(together, alone);
    // The engine counts an answer once it is given.
    server.until("request_success_total", 64.0);
    server.until("num_requests_in_server", 0.0);
}

#[test]
fn there_is_a_word_on_everything() {
    let server = Server::start(&["--served-model-name", "tiny,small"]);
    for path in ["/health", "/ready", "/ping"] {
        let reply = get(server.port, path);
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(get(server.port, "/version").json(), json!({ "version": env!("CARGO_PKG_VERSION") }));
    assert_eq!(get(server.port, "/load").json(), json!({ "server_load": 0 }));
    let models = get(server.port, "/v1/models").json();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().filter_map(|card| card["id"].as_str()).collect();
    assert_eq!((ids, &models["object"]), (vec!["tiny", "small"], &json!("list")));
    assert!(models["data"][0]["max_model_len"].as_u64().is_some_and(|n| n > 0));
    assert_eq!(get(server.port, "/v1/models/small").json(), models["data"][1]);
    get(server.port, "/v1/models/org/other").error(404, "model_not_found");
    assert_eq!(chat(&server, &with(body("hello", 2), json!({ "model": "small" }))).json()["model"], "small");
    // An answer is there a moment before its step is counted.
    server.until("generation_tokens_total", 2.0);
    assert!(
        get(server.port, "/metrics").body.contains("ocelli:http_requests_total{model_name=\"tiny\",status=\"200\"} ")
    );
    assert!(server.metric("http_requests_total") >= 9.0);
}

#[test]
fn the_last_text_comes_with_the_reason_and_every_chunk_with_the_usage() {
    let server = Server::start(&[]);
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let more = json!({ "n": 3, "return_token_ids": true, "return_timings": true });
    let asked = with(body("hello", 6), more);
    let whole = chat(&server, &asked).json();
    let mut events = chat(&server, &with(asked, json!({ "stream": true, "stream_options": options }))).events();
    let last = events.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    for timings in [&last["timings"], &whole["timings"]] {
        let [prepare, queue, prefill, first, decode, rate] =
            ["prepare_ms", "queue_ms", "prefill_ms", "ttft_ms", "decode_ms", "tokens_per_s"]
                .map(|name| timings[name].as_f64().unwrap_or_else(|| panic!("no {name} in {timings}")));
        assert!(prepare > 0.0 && queue > 0.0 && prefill > 0.0 && decode > 0.0 && rate > 0.0, "{timings}");
        assert!((prepare + queue + prefill - first).abs() < 1e-6, "{timings}");
    }
    let mut tokens = 0;
    for event in &events {
        let choice = &event["choices"][0];
        tokens += choice["token_ids"].as_array().map_or(0, Vec::len);
        let prompt = &whole["usage"]["prompt_tokens"];
        let total = prompt.as_u64().unwrap() as usize + tokens;
        let usage = json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": total });
        assert_eq!(event["usage"], usage);
        // Nothing but the first chunk, which says the role, comes without a token.
        let first = !choice["delta"]["role"].is_null();
        assert_eq!(choice["token_ids"].is_null(), first, "{event}");
    }
    assert_eq!(tokens, 18);
    for index in 0..3 {
        assert_eq!(text(&events, index), whole["choices"][index as usize]["message"]["content"]);
        let choices: Vec<_> = events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == index).collect();
        let (last, before) = choices.split_last().unwrap();
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("length"), &Value::Null));
        assert!(before.iter().all(|choice| choice["finish_reason"].is_null()));
    }
    let plain = chat(&server, &with(body("hello", 2), json!({ "stream": true }))).events();
    assert!(plain.iter().all(|event| event.get("usage").is_none() && event.get("timings").is_none()));
}

/// A checkpoint in which one token is NaN: what follows it has no logits.
#[test]
fn an_error_amid_an_answer_ends_the_stream_without_its_end() {
    const TOKEN: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(MODEL).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let embedding = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = embedding.tensor("language_model.model.embed_tokens.weight").unwrap();
    let row = embedding.shape()[1] * 4;
    let at = embedding.data().as_ptr() as usize - bytes.as_ptr() as usize + TOKEN * row;
    bytes[at..at + row].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
    fs::write(&file, bytes).unwrap();

    let server = Server::of(dir.path().to_str().unwrap(), &[]);
    let asked = with(body("hello", 4), json!({ "allowed_token_ids": [TOKEN] }));
    let streamed = chat(&server, &with(asked.clone(), json!({ "stream": true })));
    assert_eq!(streamed.status, 200);
    let lines: Vec<_> = streamed.body.split_terminator("\n\n").collect();
    let (error, before) = lines.split_last().unwrap();
    let error: Value = serde_json::from_str(error.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(before.len() == 2 && before.iter().all(|line| line.contains("\"choices\"")), "{}", streamed.body);
    assert!(!streamed.body.contains("[DONE]"));
    let whole = chat(&server, &asked);
    assert_eq!((whole.status, whole.json()["error"]["type"].as_str()), (500, Some("server_error")));
    // Nobody else is harmed.
    assert_eq!(chat(&server, &with(body("hello", 4), json!({ "logit_bias": { "300": -100 } }))).status, 200);
}
