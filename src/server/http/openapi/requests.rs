//! Bodies of requests.

use serde_json::{Map, Value, json};

use super::Facts;
use super::schema::{list, object, optional, reference, token, with, within};
use crate::engine::{MAX_N, MAX_TOP_LOGPROBS};
use crate::models::MAX_TOKEN_BIASES;
use crate::server::openai::MAX_PROMPTS;
use crate::text::{MAX_STOP_BYTES, MAX_STOPS};

pub(super) fn schemas(facts: &Facts) -> Map<String, Value> {
    let schemas = [
        ("ChatCompletionRequest", chat(facts)),
        ("CompletionRequest", completion(facts)),
        ("TokenizeRequest", tokenize(facts)),
        ("DetokenizeRequest", detokenize(facts)),
        ("Message", message()),
        ("ContentPart", part()),
    ];
    schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn chat(facts: &Facts) -> Value {
    let own = json!({
        "messages": with(list(reference("Message")), json!({ "minItems": 1 })),
        "logprobs": optional("boolean", "Whether the log-probabilities of the answer are reported"),
        "top_logprobs": within("integer", 0, MAX_TOP_LOGPROBS, "Alternatives to each token; needs logprobs"),
        "mm_processor_kwargs": optional("object", "Settings of the picture processor"),
        "add_generation_prompt": optional("boolean", "Whether an answer begins behind the last message; true if absent"),
        "echo": harmless(&[json!(false)]),
        "best_of": harmless(&[json!(1)]),
        "add_special_tokens": harmless(&[json!(false)]),
    });
    object(&["messages"], with(with(own, shared(facts)), unsupported()))
}

fn completion(facts: &Facts) -> Value {
    let tokens = json!({ "type": "array", "items": token(), "minItems": 1 });
    let prompts = |items: Value| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": MAX_PROMPTS });
    let texts = prompts(json!({ "anyOf": [{ "type": "string" }, tokens] }));
    let prompt = with(
        json!({ "anyOf": [{ "type": "string" }, tokens, texts] }),
        json!({ "description": format!("A text, token ids, or a list of either; with n, at most {MAX_N} answers") }),
    );
    let own = json!({
        "prompt": prompt,
        "logprobs": within("integer", 0, MAX_TOP_LOGPROBS, "Alternatives to each token whose log-probability is reported"),
        "echo": optional("boolean", "Whether the answer begins with the prompt"),
        "add_special_tokens": optional("boolean", "Whether BOS is put in front of a text; true if absent"),
        "best_of": within("integer", 1, MAX_N, "Must be n"),
        "max_tokens": within("integer", 0, i64::MAX, "Tokens of an answer; 16 if absent, and 0 with echo alone"),
    });
    object(&["prompt"], with(with(shared(facts), own), unsupported()))
}

fn tokenize(facts: &Facts) -> Value {
    let of_both = json!({
        "model": model(facts),
        "return_token_strs": optional("boolean", "Whether tokens are shown as the tokenizer writes them, too"),
    });
    let text = json!({
        "prompt": { "type": "string" },
        "messages": { "type": "null" },
        "add_special_tokens": optional("boolean", "Whether BOS is put in front; true if absent"),
    });
    let conversation = json!({
        "prompt": { "type": "null" },
        "messages": with(list(reference("Message")), json!({ "minItems": 1 })),
        "add_generation_prompt": optional("boolean", "Whether an answer begins behind the last message; true if absent"),
        "add_special_tokens": harmless(&[json!(false)]),
        "mm_processor_kwargs": optional("object", "Settings of the picture processor"),
    });
    json!({
        "type": "object",
        "anyOf": [
            object(&["prompt"], with(text, of_both.clone())),
            object(&["messages"], with(with(conversation, of_both), template())),
        ],
    })
}

fn detokenize(facts: &Facts) -> Value {
    object(&["tokens"], json!({ "model": model(facts), "tokens": list(token()) }))
}

/// A name of the model. An empty one is none, as in vLLM.
fn model(facts: &Facts) -> Value {
    let mut names: Vec<_> = facts.models.iter().map(|name| json!(name)).collect();
    names.extend([json!(""), Value::Null]);
    json!({ "enum": names, "description": "The model; the first of these if absent" })
}

/// Fields of chats and completions.
fn shared(facts: &Facts) -> Value {
    let tokens =
        |about: &str| with(optional("array", about), json!({ "items": token(), "maxItems": MAX_TOKEN_BIASES }));
    let biases = json!({
        "propertyNames": { "pattern": "^[0-9]{1,9}$" },
        "additionalProperties": { "type": "number" },
        "maxProperties": MAX_TOKEN_BIASES,
    });
    let stop = json!({ "type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES });
    let word = json!({ "type": "string", "pattern": "\\S", "maxLength": 1024 });
    json!({
        "model": model(facts),
        "n": within("integer", 1, MAX_N, "Answers; more than one need a temperature above 0"),
        "temperature": within("number", 0, 2, "0 takes the likeliest token; 1 if absent"),
        "top_p": with(
            optional("number", "Share of the probability that is kept; 1 if absent"),
            json!({ "exclusiveMinimum": 0, "maximum": 1 }),
        ),
        "top_k": within("integer", -1, u32::MAX, "Tokens that are kept; all if absent, 0 or -1"),
        "min_p": within("number", 0, 1, "Least share of the likeliest token's probability; 0 if absent"),
        "repetition_penalty": within("number", 0.01, 10, "1 if absent"),
        "presence_penalty": within("number", -2, 2, "0 if absent"),
        "frequency_penalty": within("number", -2, 2, "0 if absent"),
        "seed": within("integer", i64::MIN, u64::MAX, "The same answer for the same seed; another one each time if absent"),
        "max_tokens": within("integer", 1, i64::MAX, "Tokens of an answer; as many as there is room for if absent"),
        "max_completion_tokens": within("integer", 1, i64::MAX, "The same, and before it"),
        "min_tokens": within("integer", 0, i64::MAX, "Tokens before the answer may end; at most max_tokens"),
        "stop": {
            "anyOf": [stop, list_or_null(stop.clone(), MAX_STOPS)],
            "description": "Texts that end the answer",
        },
        "include_stop_str_in_output": optional("boolean", "Whether the answer holds the text that ended it"),
        "stop_token_ids": tokens("Tokens that end the answer"),
        "ignore_eos": optional("boolean", "Whether the answer goes on behind the end of the text"),
        "logit_bias": with(optional("object", "What is added to the logits of tokens, by their ids; at most 100 of either sign"), biases),
        "allowed_token_ids": with(tokens("The only tokens that an answer may have"), json!({ "minItems": 1 })),
        "bad_words": {
            "anyOf": [word, list_or_null(word.clone(), MAX_TOKEN_BIASES)],
            "description": "Words that an answer does not have",
        },
        "prompt_logprobs": within("integer", 0, MAX_TOP_LOGPROBS, "Alternatives to each token of the prompt; not with stream"),
        "return_token_ids": optional("boolean", "Whether the ids of tokens are reported"),
        "return_timings": optional("boolean", "Whether the answer says where the time went"),
        "stream": optional("boolean", "Whether the answer comes in events"),
        "stream_options": with(optional("object", "Only if stream is true"), json!({ "properties": {
            "include_usage": optional("boolean", "Whether the last event says what the request took"),
            "continuous_usage_stats": optional("boolean", "Whether all do; needs include_usage"),
        } })),
        "cache_salt": with(
            optional("string", "Requests share cached prompts with those of the same salt alone"),
            json!({ "minLength": 1, "maxLength": 1024 }),
        ),
    })
}

fn list_or_null(items: Value, most: usize) -> Value {
    json!({ "type": ["array", "null"], "items": items, "maxItems": most })
}

/// A field that is not supported, and its values that ask for nothing.
fn harmless(values: &[Value]) -> Value {
    let values: Vec<_> = [Value::Null].iter().chain(values).collect();
    json!({ "enum": values, "description": "Not supported" })
}

/// Fields that would change an answer.
fn unsupported() -> Value {
    let mut fields = json!({
        "suffix": harmless(&[json!("")]),
        "reasoning_effort": harmless(&[json!("none")]),
        "modalities": harmless(&[json!(["text"])]),
        "media_io_kwargs": harmless(&[json!({})]),
        "priority": harmless(&[json!(0)]),
        "response_format": harmless(&[json!({ "type": "text" })]),
        "return_tokens_as_token_ids": harmless(&[json!(false)]),
        "skip_special_tokens": harmless(&[json!(true)]),
        "use_beam_search": harmless(&[json!(false)]),
    });
    for name in [
        "audio",
        "length_penalty",
        "logits_processors",
        "prompt_embeds",
        "thinking_token_budget",
        "truncate_prompt_tokens",
        "web_search_options",
    ] {
        fields[name] = harmless(&[]);
    }
    for name in [
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_json_object",
        "guided_regex",
        "guided_whitespace_pattern",
        "structural_tag",
        "structured_outputs",
    ] {
        fields[name] = harmless(&[json!(false)]);
    }
    with(fields, template())
}

/// Fields that would change how a conversation becomes a prompt.
fn template() -> Value {
    json!({
        "tools": harmless(&[json!([])]),
        "functions": harmless(&[json!([])]),
        "tool_choice": harmless(&[json!("none"), json!("auto")]),
        "function_call": harmless(&[json!("none"), json!("auto")]),
        "chat_template": harmless(&[]),
        "chat_template_kwargs": harmless(&[json!({})]),
        "documents": harmless(&[json!([])]),
        "continue_final_message": harmless(&[json!(false)]),
    })
}

fn message() -> Value {
    let parts = list(reference("ContentPart"));
    let said = |roles: &[&str], content: Value, required: &[&str]| {
        let properties = json!({
            "role": { "enum": roles },
            "content": content,
            "tool_calls": { "type": ["array", "null"], "maxItems": 0 },
            "function_call": { "type": "null" },
        });
        object(required, properties)
    };
    let content = json!({ "anyOf": [{ "type": "string" }, parts] });
    let maybe = json!({ "anyOf": [{ "type": ["string", "null"] }, parts] });
    json!({ "anyOf": [
        said(&["system", "developer", "user"], content, &["role", "content"]),
        said(&["assistant"], maybe, &["role"]),
    ] })
}

/// Without a type it is what its field says, as in vLLM.
fn part() -> Value {
    let url = object(&["url"], json!({ "url": { "type": "string", "description": "A data:, http(s): or file: URL" } }));
    let text = json!({ "type": { "enum": ["text", null] }, "text": { "type": "string" } });
    let picture = json!({ "type": { "const": "image_url" }, "image_url": url });
    let untyped = json!({
        "type": { "type": "null" },
        "text": { "type": "null" },
        "image_url": { "anyOf": [{ "type": "string" }, url] },
    });
    json!({ "anyOf": [
        { "type": "string" },
        object(&["text"], text),
        object(&["type", "image_url"], picture),
        object(&["image_url"], untyped),
    ] })
}
