//! Legacy completions: prompts as they are, many at once.

use std::ops::ControlFlow;
use std::path::Path;

use ocelli::engine::{Engine, Options, Output, Prompt, Request, Sampling};
use ocelli::text::Special;
use serde_json::{Value, json};

use super::client::{Reply, post};
use super::process::Server;
use super::{MODEL, with};

const PROMPTS: [&str; 2] = ["is the picture of a moon?", "USER: caf\u{e9}</s>ASSISTANT:"];

fn complete(server: &Server, body: &Value) -> Reply {
    post(server.port, "/v1/completions", &body.to_string())
}

/// A body that is answered with `tokens` tokens, the same at every time.
fn body(prompt: Value, tokens: usize) -> Value {
    json!({ "prompt": prompt, "temperature": 0.8, "seed": 5, "max_tokens": tokens, "ignore_eos": true })
}

fn sampling(tokens: usize) -> Sampling {
    Sampling { temperature: 0.8, seed: Some(5), max_tokens: Some(tokens), ignore_eos: true, ..Sampling::default() }
}

fn engine() -> Engine {
    Engine::open(Path::new(MODEL), &Options::default(), |_, _| ()).unwrap()
}

fn answer(engine: &Engine, prompt: Prompt, sampling: Sampling) -> Output {
    let request = Request { prompt, sampling, ..Request::default() };
    engine.answer(&request, |_| ControlFlow::Continue(())).unwrap()
}

/// The texts of the choices, which come in the order of their indices.
fn texts(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let body = reply.json();
    let choices = body["choices"].as_array().unwrap();
    assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn texts_and_ids_are_answered_as_the_engine_does() {
    let (server, engine) = (Server::start(&[]), engine());
    let outputs = PROMPTS.map(|text| answer(&engine, Prompt::Raw(text.into()), Sampling { n: 2, ..sampling(6) }));
    let expected: Vec<_> = outputs.iter().flat_map(|o| &o.outputs).map(|o| o.text.clone()).collect();
    let ids = PROMPTS.map(|text| engine.tokenizer().encode(text, Special::Parse, true).unwrap());
    let two = json!({ "n": 2, "best_of": 2, "suffix": null, "user": "somebody", "echo": false });

    let reply = complete(&server, &with(body(json!(PROMPTS), 6), two.clone()));
    assert_eq!(texts(&reply), expected);
    assert_eq!(texts(&complete(&server, &with(body(json!(ids), 6), two.clone()))), expected);
    assert_eq!(texts(&complete(&server, &with(body(json!(PROMPTS[0]), 6), two.clone()))), expected[..2]);
    assert_eq!(texts(&complete(&server, &with(body(json!(ids[1]), 6), two.clone()))), expected[2..]);
    assert_eq!(texts(&complete(&server, &with(body(json!([PROMPTS[1]]), 6), two.clone()))), expected[2..]);
    let bare = with(two.clone(), json!({ "add_special_tokens": false }));
    assert_eq!(texts(&complete(&server, &with(body(json!(format!("<s>{}", PROMPTS[1])), 6), bare))), expected[2..]);

    let whole = reply.json();
    let prompt = ids.iter().map(Vec::len).sum::<usize>();
    assert_eq!(outputs.iter().map(|o| o.prompt_token_ids.len()).sum::<usize>(), prompt);
    assert_eq!((&whole["object"], &whole["model"]), (&json!("text_completion"), &json!(MODEL)));
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(whole["choices"][3]["finish_reason"], "length");
    assert_eq!(whole["usage"]["prompt_tokens"], prompt);
    assert_eq!(
        (&whole["usage"]["completion_tokens"], &whole["usage"]["total_tokens"]),
        (&json!(24), &json!(prompt + 24))
    );

    let usage = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let mut events = complete(&server, &with(with(body(json!(PROMPTS), 6), two), usage)).events();
    assert_eq!(events.pop().unwrap()["usage"]["total_tokens"], prompt + 24);
    let mut streamed = vec![String::new(); 4];
    let mut ends = vec![0; 4];
    for event in &events {
        assert_eq!((&event["object"], &event["id"]), (&json!("text_completion"), &events[0]["id"]));
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        assert_eq!(ends[index], 0, "something came behind the end of answer {index}");
        streamed[index] += choice["text"].as_str().unwrap();
        ends[index] += usize::from(choice["finish_reason"] == "length");
    }
    assert_eq!((streamed, ends), (expected, vec![1; 4]));
}

#[test]
fn what_is_not_said_is_what_it_is_elsewhere() {
    let server = Server::start(&[]);
    let said = |more| complete(&server, &with(json!({ "prompt": "a", "ignore_eos": true }), more)).json();
    assert_eq!(said(json!({}))["usage"]["completion_tokens"], 16);
    assert_eq!(said(json!({ "min_tokens": 20 }))["usage"]["completion_tokens"], 20);
    let choice = &said(json!({ "max_tokens": 2 }))["choices"][0];
    assert!(choice["logprobs"].is_null() && choice["token_ids"].is_null() && choice["prompt_logprobs"].is_null());
    let timed = said(json!({ "max_tokens": 2, "return_timings": true, "return_token_ids": true }));
    assert!(timed["timings"]["ttft_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(timed["choices"][0]["token_ids"].as_array().unwrap().len(), 2);
    assert_eq!(said(json!({ "max_tokens": 2, "stop": ["zzz"], "prompt": "" }))["usage"]["prompt_tokens"], 1);
}

/// The engine says the log-probabilities; where a token begins in the text, the text itself.
#[test]
fn logprobs_are_those_of_the_prompt_and_the_answer() {
    let (server, engine) = (Server::start(&[]), engine());
    // Without tokens that stand for single bytes, of which few add up to text.
    let is_text = |id: &u32| engine.tokenizer().id_to_token(*id).is_some_and(|token| !token.starts_with('<'));
    let allowed: Vec<u32> = (0..331).filter(is_text).collect();
    let body = |prompt, tokens| with(body(prompt, tokens), json!({ "allowed_token_ids": allowed }));
    for prompt in PROMPTS {
        let asked = Sampling { top_logprobs: 2, prompt_logprobs: Some(2), ..sampling(12) };
        let asked = Sampling { allowed_token_ids: Some(allowed.clone()), ..asked };
        let output = answer(&engine, Prompt::Raw(prompt.into()), asked);
        let ids = [&output.prompt_token_ids[..], &output.outputs[0].token_ids].concat();
        let known = output.prompt_logprobs.iter().map(|sampled| sampled.as_ref().map(|s| s.logprob));
        let expected: Vec<_> = known.chain(output.outputs[0].logprobs.iter().copied().map(Some)).collect();

        let echo = with(body(json!(prompt), 12), json!({ "echo": true, "logprobs": 2 }));
        let choice = complete(&server, &echo).json()["choices"][0].take();
        let text = choice["text"].as_str().unwrap();
        assert_eq!(text, format!("{prompt}{}", output.outputs[0].text));
        let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
        let [tokens, logprobs, top, offsets] = lists.map(|name| choice["logprobs"][name].as_array().unwrap().clone());
        assert!([tokens.len(), logprobs.len(), top.len(), offsets.len()].iter().all(|len| *len == ids.len()));
        let found: Vec<_> = logprobs.iter().map(|l| l.as_f64().map(|l| l as f32)).collect();
        assert_eq!(found, expected);
        assert!(top[0].is_null());
        for (top, (token, logprob)) in top.iter().zip(tokens.iter().zip(&logprobs)).skip(1) {
            let top = top.as_object().unwrap();
            assert!((1..=3).contains(&top.len()) && top[token.as_str().unwrap()] == *logprob, "{top:?}");
        }
        let mut checked = 0;
        let mut latest = 0;
        for (token, offset) in tokens.iter().zip(&offsets) {
            let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
            assert!(offset >= latest, "{offsets:?}");
            latest = offset;
            // BOS stands in front of the text and not in it.
            let written = offset > 0 || token != "<s>";
            if written && !token.contains(char::REPLACEMENT_CHARACTER) && !token.is_empty() {
                let rest: String = text.chars().skip(offset).collect();
                // The tokenizer puts a space in front of a text, and behind a control token.
                let spaced = offset <= prompt.chars().count() && rest.starts_with(token.trim_start());
                let shown = rest.starts_with(token) || spaced;
                assert!(shown, "{token:?} does not begin {rest:?}");
                checked += 1;
            }
        }
        assert!(checked > 8, "{checked} tokens are text");

        // The prompt alone.
        let alone = complete(&server, &with(echo.clone(), json!({ "max_tokens": 0 }))).json();
        let (own, prompt_tokens) = (&alone["choices"][0], output.prompt_token_ids.len());
        assert_eq!((&own["text"], &own["finish_reason"]), (&json!(prompt), &json!("length")));
        assert_eq!(own["logprobs"]["token_logprobs"], json!(logprobs[..prompt_tokens]));
        assert_eq!(alone["usage"]["completion_tokens"], 0);

        // Streamed without the prompt as whole without it.
        let plain = with(body(json!(prompt), 12), json!({ "logprobs": 0 }));
        let whole = complete(&server, &plain).json()["choices"][0].take();
        let events = complete(&server, &with(plain, json!({ "stream": true }))).events();
        for name in lists {
            let streamed = events.iter().filter_map(|e| e["choices"][0]["logprobs"][name].as_array()).flatten();
            assert_eq!(Some(&streamed.cloned().collect()), whole["logprobs"][name].as_array(), "{name}");
        }
        // And what is repeated comes first.
        let events =
            complete(&server, &with(body(json!([prompt, prompt]), 3), json!({ "stream": true, "echo": true })));
        for index in 0..2 {
            let events = events.events();
            let first = events.iter().map(|e| &e["choices"][0]).find(|choice| choice["index"] == index).unwrap();
            assert_eq!(first["text"], prompt);
        }
    }
}

#[test]
fn what_is_wrong_with_a_completion_is_named() {
    let server = Server::start(&[]);
    let many: Vec<_> = (0..65).map(|_| "a").collect();
    for (asked, code, param, part) in [
        (json!({}), "missing_required_parameter", "prompt", "a list of texts, token ids"),
        (json!({ "prompt": [] }), "invalid_value", "prompt", "1 to 64"),
        (json!({ "prompt": many }), "invalid_value", "prompt", "a list of 65; 1 to 64"),
        (json!({ "prompt": 5 }), "invalid_value", "prompt", "prompt is 5"),
        (json!({ "prompt": ["a", 5] }), "invalid_value", "prompt[1]", "prompt[1] is 5"),
        (json!({ "prompt": [1, "a"] }), "invalid_value", "prompt[0]", "prompt[0] is 1"),
        (json!({ "prompt": [1.5] }), "invalid_value", "prompt", "a list of token ids"),
        (json!({ "prompt": [[-1]] }), "invalid_value", "prompt[0]", "a list of token ids"),
        (json!({ "prompt": vec!["a".repeat(1 << 20); 3] }), "invalid_value", "prompt", "3145728 bytes of text"),
        (json!({ "prompt": many[..20], "n": 10 }), "invalid_value", "prompt", "200 answers; at most 128"),
        (json!({ "prompt": [[1], [400]] }), "invalid_request", "prompt[1]", "400; the vocabulary has 331"),
        (json!({ "prompt": [[]] }), "invalid_request", "prompt", "no tokens"),
        (json!({ "prompt": "<image> what?" }), "invalid_request", "prompt", "picture"),
        (json!({ "prompt": "hello ".repeat(700) }), "context_length_exceeded", "prompt", "--max-model-len"),
        (json!({ "prompt": "a", "suffix": "b" }), "unsupported_parameter", "suffix", "leave it out"),
        (json!({ "prompt": "a", "best_of": 3, "n": 2 }), "unsupported_parameter", "best_of", "set it to n"),
        (json!({ "prompt": "a", "logprobs": 21 }), "invalid_value", "logprobs", "logprobs is 21; at most 20"),
        (json!({ "prompt": "a", "logprobs": true }), "invalid_value", "logprobs", "logprobs is true"),
        (json!({ "prompt": "a", "max_tokens": 0 }), "invalid_value", "max_tokens", "max_tokens is 0"),
        (json!({ "prompt": "a", "n": 2, "temperature": 0 }), "invalid_value", "n", "temperature 0"),
        (json!({ "prompt": "a", "stream_options": {} }), "invalid_value", "stream_options", "stream"),
        (json!({ "prompt": "a", "guided_regex": "(a+)+" }), "unsupported_parameter", "guided_regex", "no grammar"),
        (json!({ "prompt": ["a", "b"], "return_timings": true }), "invalid_value", "return_timings", "one at a time"),
        (
            json!({ "prompt": "a", "stream": true, "echo": true, "logprobs": 1 }),
            "invalid_value",
            "echo",
            "are not streamed",
        ),
        (
            json!({ "prompt": "a", "stream": true, "echo": true, "max_tokens": 0 }),
            "invalid_value",
            "max_tokens",
            "alone",
        ),
    ] {
        let reply = complete(&server, &asked);
        let message = reply.error(400, code);
        assert!(message.contains(part), "{asked}: {message}");
        assert_eq!(reply.json()["error"]["param"], param, "{asked}: {message}");
    }
    assert_eq!(server.metric("generation_tokens_total"), 0.0, "nobody is answered beside one that is wrong");
    complete(&server, &json!({ "prompt": "a", "model": "other" })).error(404, "model_not_found");
}
