//! A body of `/v1/chat/completions` to a request, and an answer to a `chat.completion`.

use std::ops::ControlFlow;

use ocelli::engine::{Prompt, Request, Sampling};
use ocelli::server::openai::{ApiError, ChatRequest, Delivery, Report, chat_completion};
use ocelli::text::{Message, Part, Role};
use serde_json::{Value, json};

use super::engine;

fn parse(body: &Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(&body.to_string(), 2)
}

/// A body with one message and some fields more.
fn with(more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "hello" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn every_field_goes_where_it_belongs() {
    let body = json!({
        "model": "m",
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "user", "name": "x", "content": [
                { "type": "text", "text": "look" },
                { "type": "image_url", "image_url": { "url": "http://a.test/1", "detail": "high" } },
                "and",
                { "image_url": "data:,2" },
                { "text": "compare" },
            ]},
            { "role": "assistant", "content": null, "tool_calls": [] },
            { "role": "developer", "content": "go on" },
        ],
        "n": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 7.0, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": -0.3, "seed": -1, "max_tokens": 9, "max_completion_tokens": 8,
        "min_tokens": 2, "stop": ["a", "b"], "include_stop_str_in_output": true, "stop_token_ids": [4, 5],
        "ignore_eos": true, "logit_bias": { "6": 1.5 }, "allowed_token_ids": [1, 2, 6], "bad_words": ["c"],
        "logprobs": true, "top_logprobs": 4, "prompt_logprobs": 1, "return_token_ids": true, "cache_salt": "s",
        "user": "ignored", "metadata": { "also": "ignored" }, "stream": false, "tools": null,
        "response_format": { "type": "text" }, "skip_special_tokens": true,
    });
    let chat = parse(&body).unwrap();
    let expected = Sampling {
        n: 3,
        temperature: 0.5,
        top_p: 0.9,
        top_k: 7,
        min_p: 0.1,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: -0.3,
        seed: Some(u64::MAX),
        max_tokens: Some(8),
        min_tokens: 2,
        stop: vec!["a".into(), "b".into()],
        include_stop_str_in_output: true,
        stop_token_ids: vec![4, 5],
        ignore_eos: true,
        logit_bias: [(6, 1.5)].into(),
        allowed_token_ids: Some(vec![1, 2, 6]),
        bad_words: vec!["c".into()],
        top_logprobs: 4,
        prompt_logprobs: Some(1),
    };
    assert_eq!(chat.sampling, expected);
    assert_eq!(
        (chat.model.as_deref(), chat.delivery.stream, chat.cache_salt.as_deref()),
        (Some("m"), false, Some("s"))
    );
    assert_eq!(chat.report, Report { logprobs: true, prompt_logprobs: true, token_ids: true, timings: false });
    let text = |text: &str| Part::Text(text.into());
    let messages = [
        Message::text(Role::System, "be brief"),
        Message { role: Role::User, parts: vec![text("look"), Part::Image, text("and"), Part::Image, text("compare")] },
        Message { role: Role::Assistant, parts: vec![] },
        Message::text(Role::System, "go on"),
    ];
    assert_eq!(chat.messages, messages);
    let images: Vec<_> = chat.images.iter().map(|i| (i.url.as_str(), i.param.as_str())).collect();
    assert_eq!(
        images,
        [("http://a.test/1", "messages[1].content[1].image_url.url"), ("data:,2", "messages[1].content[3].image_url")]
    );
    // Nothing said is OpenAI's default, and null is nothing said.
    assert_eq!(
        parse(&with(json!({ "temperature": null, "stop": null, "n": null }))).unwrap().sampling,
        Sampling::default()
    );
    assert_eq!(parse(&with(json!({ "top_k": -1, "stop": "x" }))).unwrap().sampling.stop, ["x"]);
}

#[test]
fn what_is_wrong_is_named_with_its_value() {
    let content = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let image = json!({ "type": "image_url", "image_url": { "url": "data:," } });
    for (body, param, code, part) in [
        (json!([]), None, "invalid_value", "the body is a list of 0; it must be an object"),
        (json!({}), Some("messages"), "missing_required_parameter", "messages must be a list"),
        (json!({ "messages": [] }), Some("messages"), "invalid_value", "messages is empty"),
        (json!({ "messages": ["a"] }), Some("messages[0]"), "invalid_value", "messages[0] is \"a\""),
        (
            json!({ "messages": [{ "content": "a" }] }),
            Some("messages[0].role"),
            "missing_required_parameter",
            "missing",
        ),
        (
            json!({ "messages": [{ "role": "tool", "content": "a" }] }),
            Some("messages[0].role"),
            "invalid_value",
            "\"tool\"",
        ),
        (
            json!({ "messages": [{ "role": "user" }] }),
            Some("messages[0].content"),
            "missing_required_parameter",
            "missing",
        ),
        (content(json!(5)), Some("messages[0].content"), "invalid_value", "messages[0].content is 5"),
        (
            content(json!([{ "type": "audio_url" }])),
            Some("messages[0].content[0].type"),
            "unsupported_content_type",
            "\"audio_url\"; a part is text or image_url",
        ),
        (
            content(json!([{ "type": "text" }])),
            Some("messages[0].content[0].text"),
            "missing_required_parameter",
            "missing",
        ),
        (content(json!([{ "x": 1 }])), Some("messages[0].content[0].type"), "missing_required_parameter", "missing"),
        (
            content(json!([{ "type": "image_url", "image_url": "a" }])),
            Some("messages[0].content[0].image_url"),
            "invalid_value",
            "must be an object",
        ),
        (
            content(json!([{ "type": "image_url", "image_url": {} }])),
            Some("messages[0].content[0].image_url.url"),
            "missing_required_parameter",
            "missing",
        ),
        (
            content(json!([image, image, image])),
            Some("messages"),
            "too_many_images",
            "3 pictures; at most 2 are allowed (--limit-mm-per-prompt)",
        ),
        (
            with(json!({ "temperature": "hot" })),
            Some("temperature"),
            "invalid_value",
            "temperature is \"hot\"; it must be a number",
        ),
        (
            with(json!({ "temperature": 1e39 })),
            Some("temperature"),
            "invalid_value",
            "temperature is 1e39; it must lie in 0 to 2",
        ),
        (with(json!({ "n": 0 })), Some("n"), "invalid_value", "n is 0"),
        (with(json!({ "n": 1u64 << 31 })), Some("n"), "invalid_value", "n is 2147483648; it must lie in 1 to 128"),
        (with(json!({ "n": 2, "temperature": 0 })), Some("n"), "invalid_value", "n is 2 and temperature 0"),
        (with(json!({ "max_tokens": 0 })), Some("max_tokens"), "invalid_value", "max_tokens is 0"),
        (with(json!({ "max_tokens": -1 })), Some("max_tokens"), "invalid_value", "max_tokens is -1"),
        (with(json!({ "min_tokens": 3, "max_tokens": 2 })), Some("min_tokens"), "invalid_value", "min_tokens is 3"),
        (with(json!({ "top_logprobs": 2 })), Some("top_logprobs"), "invalid_value", "logprobs is not true"),
        (
            with(json!({ "logprobs": true, "top_logprobs": 21 })),
            Some("top_logprobs"),
            "invalid_value",
            "top_logprobs is 21",
        ),
        (with(json!({ "stop": [""] })), Some("stop"), "invalid_value", "stop[0] is empty"),
        (with(json!({ "stop": [1] })), Some("stop"), "invalid_value", "stop is a list of 1; it must be a text or"),
        (with(json!({ "logit_bias": { "x": 1 } })), Some("logit_bias"), "invalid_value", "an object of token ids"),
        (with(json!({ "seed": 1.5 })), Some("seed"), "invalid_value", "seed is 1.5"),
        (with(json!({ "cache_salt": "" })), Some("cache_salt"), "invalid_value", "1 to 1024 bytes"),
        (
            with(json!({ "tools": [{}] })),
            Some("tools"),
            "unsupported_parameter",
            "tools is a list of 1, which is not supported",
        ),
        (
            with(json!({ "response_format": { "type": "json_object" } })),
            Some("response_format"),
            "unsupported_parameter",
            "leave it out",
        ),
        (with(json!({ "guided_regex": "(a+)+" })), Some("guided_regex"), "unsupported_parameter", "leave it out"),
        (with(json!({ "chat_template": "{{ x }}" })), Some("chat_template"), "unsupported_parameter", "leave it out"),
        (with(json!({ "prompt_embeds": "x" })), Some("prompt_embeds"), "unsupported_parameter", "leave it out"),
        (with(json!({ "echo": true })), Some("echo"), "unsupported_parameter", "leave it out"),
        (
            with(json!({ "model": "\u{1b}[2J".to_owned() + &"x".repeat(500), "n": "\u{1b}" })),
            Some("n"),
            "invalid_value",
            "n is \"\\u{1b}\"",
        ),
    ] {
        let error = parse(&body).unwrap_err();
        assert_eq!((error.status, error.kind, error.param.as_deref()), (400, "invalid_request_error", param), "{body}");
        assert!(error.code == Some(code) && error.message.contains(part), "{body}: {:?} {}", error.code, error.message);
        let shown = json!({ "message": error.message, "type": error.kind, "param": param, "code": code });
        assert_eq!(error.body(), json!({ "error": shown }));
    }
    let broken = ChatRequest::parse("{\"messages\":", 2).unwrap_err();
    assert!(broken.code == Some("invalid_json") && broken.param.is_none(), "{broken:?}");
    let deep = format!("{{\"messages\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(ChatRequest::parse(&deep, 2).unwrap_err().code, Some("invalid_json"));
}

/// Clients send more than they mean.
#[test]
fn what_asks_for_nothing_changes_nothing() {
    let plain = parse(&with(json!({}))).unwrap();
    for more in [
        json!({ "tools": [], "tool_choice": "auto", "parallel_tool_calls": true }),
        json!({ "tools": null, "tool_choice": "none", "functions": [], "function_call": "none" }),
        json!({ "response_format": { "type": "text" }, "modalities": ["text"], "audio": null }),
        json!({ "guided_json": null, "guided_json_object": false, "structured_outputs": null }),
        json!({ "chat_template": null, "chat_template_kwargs": {}, "documents": [], "media_io_kwargs": {} }),
        json!({ "store": false, "metadata": {}, "service_tier": "auto", "prompt_cache_key": "a", "user": "b" }),
        json!({ "safety_identifier": "c", "verbosity": "low", "prediction": null, "reasoning_effort": "none" }),
        json!({ "add_generation_prompt": true, "continue_final_message": false, "add_special_tokens": false }),
        json!({ "echo": false, "best_of": 1, "use_beam_search": false, "length_penalty": null, "priority": 0 }),
        json!({ "skip_special_tokens": true, "spaces_between_special_tokens": false, "request_id": "d" }),
        json!({ "truncate_prompt_tokens": null, "logit_bias": {}, "stop": [], "stop_token_ids": [], "bad_words": [] }),
        json!({ "stream": false, "stream_options": null, "return_token_ids": false, "return_timings": false }),
        json!({ "mm_processor_kwargs": {}, "vllm_xargs": {}, "kv_transfer_params": null, "no_such_field": 1 }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "hello", "cache_control": {} }] }] }),
    ] {
        let chat = parse(&with(more.clone())).unwrap_or_else(|error| panic!("{more}: {}", error.message));
        assert_eq!(
            (&chat.sampling, chat.report, chat.delivery),
            (&plain.sampling, plain.report, plain.delivery),
            "{more}"
        );
        assert_eq!((&chat.messages, chat.add_generation_prompt), (&plain.messages, true), "{more}");
    }
}

#[test]
fn what_would_be_answered_otherwise_is_refused_with_a_remedy() {
    let grammar = "ask for the format in the prompt";
    let tools = "describe the tools in a message";
    for (more, param, remedy) in [
        (json!({ "response_format": { "type": "json_schema", "json_schema": {} } }), "response_format", grammar),
        (json!({ "structured_outputs": { "choice": ["a"] } }), "structured_outputs", grammar),
        (json!({ "guided_choice": ["a", "b"] }), "guided_choice", grammar),
        (json!({ "guided_grammar": "root" }), "guided_grammar", grammar),
        (json!({ "tool_choice": "required" }), "tool_choice", tools),
        (json!({ "functions": [{}] }), "functions", tools),
        (json!({ "chat_template_kwargs": { "a": 1 } }), "chat_template_kwargs", "--chat-template"),
        (json!({ "add_special_tokens": true }), "add_special_tokens", "BOS"),
        (json!({ "continue_final_message": true }), "continue_final_message", "leave it out"),
        (json!({ "skip_special_tokens": false }), "skip_special_tokens", "leave it out"),
        (json!({ "return_tokens_as_token_ids": true }), "return_tokens_as_token_ids", "leave it out"),
        (json!({ "truncate_prompt_tokens": 5 }), "truncate_prompt_tokens", "leave it out"),
        (json!({ "use_beam_search": true }), "use_beam_search", "leave it out"),
        (json!({ "best_of": 2 }), "best_of", "leave it out"),
        (json!({ "priority": 1 }), "priority", "leave it out"),
        (json!({ "modalities": ["text", "audio"] }), "modalities", "leave it out"),
        (json!({ "reasoning_effort": "high" }), "reasoning_effort", "leave it out"),
        (json!({ "web_search_options": {} }), "web_search_options", "leave it out"),
        (json!({ "media_io_kwargs": { "image": {} } }), "media_io_kwargs", "leave it out"),
    ] {
        let error = parse(&with(more.clone())).unwrap_err();
        assert_eq!(
            (error.status, error.code, error.param.as_deref()),
            (400, Some("unsupported_parameter"), Some(param))
        );
        assert!(error.message.contains("is not supported") && error.message.contains(remedy), "{}", error.message);
    }
}

/// Every number at its borders, and those that contradict each other.
#[test]
fn numbers_are_within_their_limits_or_named() {
    let (huge, half) = (json!(1e20), json!(1.5));
    let numbers = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];
    for name in numbers {
        for value in [json!(-3), json!(1e39), json!("1"), json!([1]), json!(true)] {
            assert_eq!(
                parse(&with(json!({ name: value }))).unwrap_err().param.as_deref(),
                Some(name),
                "{name} {value}"
            );
        }
    }
    for name in ["max_tokens", "max_completion_tokens", "n", "min_tokens", "prompt_logprobs"] {
        for value in [json!(-1), half.clone(), huge.clone(), json!("1"), json!([1]), json!(false)] {
            let error = parse(&with(json!({ name: value }))).unwrap_err();
            // A number that no answer can have is none, and two names are one.
            assert_eq!((error.status, error.param.as_deref()), (400, Some(name)), "{name} {value}");
        }
    }
    let stops = |stops: Value| parse(&with(json!({ "stop": stops })));
    for (more, param) in [
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "top_k": half }), "top_k"),
        (json!({ "seed": huge }), "seed"),
        (json!({ "n": 129 }), "n"),
        (json!({ "prompt_logprobs": 21 }), "prompt_logprobs"),
        (json!({ "logprobs": 1 }), "logprobs"),
        (json!({ "prompt_logprobs": 1, "stream": true }), "prompt_logprobs"),
        (json!({ "min_tokens": 2, "max_completion_tokens": 1 }), "min_tokens"),
        (json!({ "stop": "x".repeat(1 << 20) }), "stop"),
        (json!({ "stop": vec!["x"; 17] }), "stop"),
        (json!({ "stop_token_ids": [-1] }), "stop_token_ids"),
        (json!({ "bad_words": ["  "] }), "bad_words"),
        (json!({ "stream": "yes" }), "stream"),
        (json!({ "stream": true, "stream_options": { "include_usage": 1 } }), "stream_options.include_usage"),
        (json!({ "model": 5 }), "model"),
        (json!({ "return_timings": "a" }), "return_timings"),
    ] {
        assert_eq!(parse(&with(more.clone())).unwrap_err().param.as_deref(), Some(param), "{more}");
    }
    for seed in [json!(i64::MIN), json!(u64::MAX), json!(0)] {
        parse(&with(json!({ "seed": seed }))).unwrap();
    }
    stops(json!(vec!["x"; 16])).unwrap();
    let usage = json!({ "include_usage": true, "continuous_usage_stats": true });
    let chat = parse(&with(json!({ "stream": true, "stream_options": usage, "return_timings": true }))).unwrap();
    assert_eq!(chat.delivery, Delivery { stream: true, include_usage: true, continuous_usage: true });
    assert!(chat.report.timings);
    let chat = parse(&with(json!({ "stream": true, "stream_options": { "continuous_usage_stats": true } }))).unwrap();
    assert!(!chat.delivery.continuous_usage, "as in vLLM, there is no usage in pieces without one at the end");
    let open = parse(&with(json!({ "add_generation_prompt": false }))).unwrap();
    assert!(matches!(open.into_request(vec![]).prompt, Prompt::Transcript(_)));
}

/// Its figures are those of the engine's own answer.
#[test]
fn an_answer_is_a_chat_completion() {
    let engine = engine();
    // Without tokens that stand for single bytes, of which few add up to text.
    let is_text = |id: &u32| engine.tokenizer().id_to_token(*id).is_some_and(|token| !token.starts_with('<'));
    let chat = parse(&with(json!({
        "n": 2, "seed": 3, "max_tokens": 12, "logprobs": true, "top_logprobs": 2, "prompt_logprobs": 1,
        "return_token_ids": true, "ignore_eos": true, "allowed_token_ids": (0..331).filter(is_text).collect::<Vec<_>>(),
    })));
    let chat = chat.unwrap();
    let report = chat.report;
    let request: Request = chat.into_request(vec![]);
    assert!(matches!(request.prompt, Prompt::Chat(_)));
    let output = engine.answer(&request, |_| ControlFlow::Continue(())).unwrap();
    let body = chat_completion("chatcmpl-1", "m", engine.tokenizer(), report, &output).unwrap();
    let head = ["id", "object", "model"].map(|name| body[name].as_str().unwrap());
    assert_eq!(head, ["chatcmpl-1", "chat.completion", "m"]);
    let prompt = output.prompt_token_ids.len();
    assert_eq!(body["usage"]["prompt_tokens"], json!(prompt));
    assert_eq!(
        (&body["usage"]["completion_tokens"], &body["usage"]["total_tokens"]),
        (&json!(24), &json!(prompt + 24))
    );
    assert_eq!(body["prompt_token_ids"], json!(output.prompt_token_ids));
    for (choice, own) in body["choices"].as_array().unwrap().iter().zip(&output.outputs) {
        assert_eq!(choice["message"], json!({ "role": "assistant", "content": own.text, "refusal": null }));
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(own.index), &json!("length")));
        assert_eq!(choice["token_ids"], json!(own.token_ids));
        let content = choice["logprobs"]["content"].as_array().unwrap();
        let bytes: Vec<u8> =
            content.iter().flat_map(|t| t["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
        // The text is that of its tokens, but for the space that the first may begin with.
        let joined = String::from_utf8(bytes).unwrap();
        assert_eq!(joined.strip_prefix(' ').unwrap_or(&joined), own.text.strip_prefix(' ').unwrap_or(&own.text));
        for ((token, logprob), top) in content.iter().zip(&own.logprobs).zip(&own.top_logprobs) {
            assert_eq!(token["logprob"].as_f64().unwrap() as f32, *logprob);
            let shown: Vec<_> = token["top_logprobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["logprob"].as_f64().unwrap() as f32)
                .collect();
            assert_eq!(shown, top.iter().map(|t| t.1).collect::<Vec<_>>());
        }
    }
    let reported = body["prompt_logprobs"].as_array().unwrap();
    assert_eq!((reported.len(), &reported[0]), (prompt, &Value::Null));
    let (id, second) = (output.prompt_token_ids[1].to_string(), output.prompt_logprobs[1].as_ref().unwrap());
    assert_eq!(reported[1][&id]["logprob"].as_f64().unwrap() as f32, second.logprob);
    let plain = chat_completion("x", "m", engine.tokenizer(), Report::default(), &output).unwrap();
    assert!(plain["choices"][0]["logprobs"].is_null() && plain["prompt_logprobs"].is_null());
    assert!(plain["choices"][0]["token_ids"].is_null() && plain["prompt_token_ids"].is_null());
}
