//! Bodies of answers, and events.

use serde_json::{Map, Value, json};

use super::schema::{count, list, object, or_null, reference, token, tokens_or_null, with};

pub(super) fn schemas() -> Map<String, Value> {
    let schemas = [
        ("ChatCompletion", chat_completion()),
        ("ChatCompletionChunk", chat_chunk()),
        ("Completion", completion()),
        ("CompletionChunk", completion_chunk()),
        ("Logprobs", object(&["content"], json!({ "content": list(reference("TokenLogprob")) }))),
        ("TokenLogprob", token_logprob()),
        ("LegacyLogprobs", legacy_logprobs()),
        ("PromptLogprobs", prompt_logprobs()),
        ("Usage", usage()),
        ("Timings", timings()),
        ("Model", model()),
        ("Models", models()),
        ("Tokens", tokens()),
        ("Text", object(&["prompt"], json!({ "prompt": { "type": "string" } }))),
        ("Version", object(&["version"], json!({ "version": { "type": "string" } }))),
        ("Load", object(&["server_load"], json!({ "server_load": count() }))),
        ("Error", error()),
    ];
    schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// What every answer begins with.
fn head(object: &str) -> Value {
    json!({
        "id": { "type": "string" },
        "object": { "const": object },
        "created": with(count(), json!({ "description": "Seconds since 1970" })),
        "model": { "type": "string" },
    })
}

/// How an answer ended.
fn finish() -> Value {
    json!({
        "finish_reason": { "enum": ["stop", "length", "abort"] },
        "stop_reason": { "type": ["string", "integer", "null"], "description": "The text or the token of the request" },
    })
}

fn whole(choice: Value) -> Value {
    json!({
        "choices": with(list(choice), json!({ "minItems": 1 })),
        "service_tier": { "type": "null" },
        "system_fingerprint": { "type": "string" },
        "usage": reference("Usage"),
        "timings": reference("Timings"),
    })
}

fn chat_completion() -> Value {
    let message = json!({
        "role": { "const": "assistant" },
        "content": { "type": "string" },
        "refusal": { "type": "null" },
    });
    let choice = json!({
        "index": count(),
        "message": object(&["role", "content"], message),
        "logprobs": or_null("Logprobs"),
        "token_ids": tokens_or_null(),
    });
    let choice = object(&["index", "message", "logprobs", "finish_reason", "stop_reason"], with(choice, finish()));
    let of_prompt = json!({ "prompt_logprobs": or_null("PromptLogprobs"), "prompt_token_ids": tokens_or_null() });
    let properties = with(with(head("chat.completion"), whole(choice)), of_prompt);
    object(&["id", "object", "created", "model", "choices", "usage"], properties)
}

fn completion() -> Value {
    let choice = json!({
        "index": count(),
        "text": { "type": "string" },
        "logprobs": or_null("LegacyLogprobs"),
        "token_ids": tokens_or_null(),
        "prompt_logprobs": or_null("PromptLogprobs"),
        "prompt_token_ids": tokens_or_null(),
    });
    let choice = object(&["index", "text", "logprobs", "finish_reason", "stop_reason"], with(choice, finish()));
    let properties = with(head("text_completion"), whole(choice));
    object(&["id", "object", "created", "model", "choices", "usage"], properties)
}

/// What every event has.
fn piece(kind: &str, choice: Value) -> Value {
    let more = json!({
        "choices": with(list(choice), json!({ "maxItems": 1, "description": "None in the last, which has usage" })),
        "usage": reference("Usage"),
        "timings": reference("Timings"),
    });
    object(&["id", "object", "created", "model", "choices"], with(head(kind), more))
}

/// Of a piece; only the last of an answer says how that ended.
fn end_or_null() -> Value {
    with(finish(), json!({ "finish_reason": { "enum": ["stop", "length", "abort", null] } }))
}

fn chat_chunk() -> Value {
    let delta = json!({ "role": { "const": "assistant" }, "content": { "type": "string" } });
    let choice = json!({
        "index": count(),
        "delta": object(&[], delta),
        "logprobs": or_null("Logprobs"),
        "token_ids": tokens_or_null(),
    });
    piece("chat.completion.chunk", object(&["index", "delta", "finish_reason"], with(choice, end_or_null())))
}

fn completion_chunk() -> Value {
    let choice = json!({
        "index": count(),
        "text": { "type": "string" },
        "logprobs": or_null("LegacyLogprobs"),
        "token_ids": tokens_or_null(),
    });
    piece("text_completion", object(&["index", "text", "finish_reason"], with(choice, end_or_null())))
}

fn token_logprob() -> Value {
    let logprob = json!({
        "token": { "type": "string" },
        "logprob": { "type": "number", "maximum": 0 },
        "bytes": list(json!({ "type": "integer", "minimum": 0, "maximum": u8::MAX })),
    });
    let top = json!({ "top_logprobs": list(object(&["token", "logprob", "bytes"], logprob.clone())) });
    object(&["token", "logprob", "bytes", "top_logprobs"], with(logprob, top))
}

fn legacy_logprobs() -> Value {
    let by_token = json!({ "type": ["object", "null"], "additionalProperties": { "type": "number" } });
    let properties = json!({
        "tokens": list(json!({ "type": "string" })),
        "token_logprobs": list(json!({ "type": ["number", "null"] })),
        "top_logprobs": list(by_token),
        "text_offset": list(count()),
    });
    object(&["tokens", "token_logprobs", "top_logprobs", "text_offset"], properties)
}

/// Null for the first token.
fn prompt_logprobs() -> Value {
    let alternative = json!({
        "logprob": { "type": "number" },
        "rank": { "type": ["integer", "null"] },
        "decoded_token": { "type": "string" },
    });
    let alternative = object(&["logprob", "rank", "decoded_token"], alternative);
    list(json!({
        "type": ["object", "null"],
        "additionalProperties": alternative,
        "description": "The token and the likeliest ones at its place, by their ids",
    }))
}

fn usage() -> Value {
    let pictures = object(&["image"], json!({ "image": count() }));
    let details = json!({ "cached_tokens": count(), "multimodal_tokens": pictures });
    let properties = json!({
        "prompt_tokens": with(count(), json!({ "description": "Those of pictures among them" })),
        "completion_tokens": count(),
        "total_tokens": count(),
        "prompt_tokens_details": object(&["cached_tokens", "multimodal_tokens"], details),
    });
    object(&["prompt_tokens", "completion_tokens", "total_tokens"], properties)
}

/// In milliseconds.
fn timings() -> Value {
    let names = ["prepare_ms", "queue_ms", "prefill_ms", "ttft_ms", "decode_ms", "tokens_per_s"];
    let properties: Map<_, _> = names.map(|name| (name.to_owned(), json!({ "type": "number" }))).into_iter().collect();
    object(&names, properties.into())
}

fn model() -> Value {
    let card = json!({
        "id": { "type": "string" },
        "object": { "const": "model" },
        "created": count(),
        "owned_by": { "type": "string" },
        "root": { "type": "string" },
        "parent": { "type": "null" },
        "max_model_len": with(count(), json!({ "description": "Longest sequence in tokens, prompt and answer together" })),
    });
    object(&["id", "object", "created", "owned_by", "root", "parent", "max_model_len"], card)
}

fn models() -> Value {
    object(&["object", "data"], json!({ "object": { "const": "list" }, "data": list(reference("Model")) }))
}

fn tokens() -> Value {
    let properties = json!({
        "count": count(),
        "max_model_len": count(),
        "tokens": list(token()),
        "token_strs": { "type": ["array", "null"], "items": { "type": ["string", "null"] } },
    });
    object(&["count", "max_model_len", "tokens", "token_strs"], properties)
}

fn error() -> Value {
    let properties = json!({
        "message": { "type": "string" },
        "type": { "type": "string" },
        "param": { "type": ["string", "null"], "description": "The field at fault, as a path" },
        "code": { "type": ["string", "null"] },
    });
    object(&["error"], json!({ "error": object(&["message", "type", "param", "code"], properties) }))
}
