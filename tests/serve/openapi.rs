//! The document at `/openapi.json` says what the server does: its routes, the fields of requests and their limits, the
//! fields of answers and events.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Map, Value, json};

use super::client::{Reply, get, post, read, send};
use super::process::Server;
use super::with;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn document(server: &Server) -> Value {
    get(server.port, "/openapi.json").json()
}

fn schema<'a>(document: &'a Value, name: &str) -> &'a Value {
    &document["components"]["schemas"][name]
}

/// A body that is answered with a token.
fn least(path: &str) -> Value {
    let asked = if path == CHAT {
        json!({ "messages": [{ "role": "user", "content": "hello" }] })
    } else {
        json!({ "prompt": "hello" })
    };
    with(asked, json!({ "max_tokens": 1 }))
}

#[test]
fn every_route_is_described_and_answers_as_it_is() {
    let server = Server::start(&[]);
    let document = document(&server);
    let router = fs::read_to_string("src/server/http/mod.rs").unwrap();
    let routes = router.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    // The page for people is none of the interface. A parameter with slashes is one like any other there.
    let routes: BTreeSet<String> = routes.filter(|path| *path != "/").map(|path| path.replace("{*", "{")).collect();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.keys().cloned().collect::<BTreeSet<_>>(), routes);
    for (path, operations) in paths {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let Reply { status, head, .. } = read(send(server.port, method, path, "", ""));
            assert!(head.contains("\r\nx-request-id: "), "{method} {path}: {head}");
            let operation = &operations[method.to_lowercase()];
            assert_eq!(operation.is_null(), status == 405, "{method} {path} is answered with {status}");
            let described = operation["responses"].get(status.to_string()).is_some();
            assert!(operation.is_null() || described, "{method} {path} is answered with {status}");
        }
    }
}

#[test]
fn a_key_is_described_where_it_is_needed() {
    let open = document(&Server::start(&[]));
    assert!(open["components"]["securitySchemes"].is_null() && !open.to_string().contains("\"security\""));
    let server = Server::start(&["--api-key", "sesame", "--served-model-name", "tiny,small"]);
    let document = document(&server);
    assert_eq!(
        schema(&document, "ChatCompletionRequest")["properties"]["model"]["enum"],
        json!(["tiny", "small", "", null])
    );
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let status = read(send(server.port, &method.to_uppercase(), path, "", "")).status;
            let said = [operation.get("security").is_some(), operation["responses"].get("401").is_some()];
            assert_eq!(said, [status == 401; 2], "{method} {path} is answered with {status}");
        }
    }
}

/// The properties of a request, for values at and beyond their limits.
struct Probe<'a> {
    server: &'a Server,
    path: &'a str,
}

impl Probe<'_> {
    /// A field that is set to a value, written out: some are beyond what a `Value` holds.
    fn ask(&self, name: &str, literal: &str) -> Reply {
        let beside = match name {
            "top_logprobs" => json!({ "logprobs": true }),
            "stream_options" => json!({ "stream": true }),
            "best_of" => json!({ "n": literal.parse().unwrap_or(1).clamp(1, 128) }),
            // Where it is 0.
            "max_tokens" if self.path == COMPLETIONS => json!({ "echo": true }),
            "max_completion_tokens" => json!({ "max_tokens": null }),
            _ => json!({}),
        };
        let body = with(with(least(self.path), beside), json!({ name: "@" })).to_string();
        post(self.server.port, self.path, &body.replace("\"@\"", literal))
    }

    fn takes(&self, name: &str, literal: &str) {
        let reply = self.ask(name, literal);
        assert_eq!(reply.status, 200, "{}: {name}: {literal}: {}", self.path, reply.body);
    }

    fn refuses(&self, name: &str, literal: &str) {
        let reply = self.ask(name, literal);
        assert_eq!(reply.status, 400, "{}: {name}: {literal}: {}", self.path, reply.body);
        let param = reply.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        // The two are one.
        let named = param.starts_with(name) || (name == "max_completion_tokens" && param == "max_tokens");
        assert!(named, "{}: {name}: {literal}: {}", self.path, reply.body);
    }

    fn property(&self, name: &str, schema: &Value) {
        if let Some(values) = schema["enum"].as_array() {
            values.iter().for_each(|value| self.takes(name, &value.to_string()));
            return self.refuses(name, "{\"no\":1}");
        }
        let kinds = schema["type"].as_array().map(|kinds| kinds.iter().filter_map(Value::as_str).collect());
        let kinds: Vec<_> = kinds.unwrap_or_default();
        if kinds.contains(&"null") {
            self.takes(name, "null");
        }
        self.refuses(name, if kinds.contains(&"object") { "5" } else { "{\"no\":1}" });
        if kinds.contains(&"boolean") {
            self.takes(name, "true");
            self.takes(name, "false");
        }
        if kinds.contains(&"integer") || kinds.contains(&"number") {
            self.limits(name, schema);
        }
        if let Some(most) = schema["maxLength"].as_u64() {
            let text = |length: u64| format!("{:?}", "a".repeat(length as usize));
            self.takes(name, &text(most));
            self.refuses(name, &text(most + 1));
            self.refuses(name, "\"\"");
        }
        for schema in schema["anyOf"].as_array().into_iter().flatten().chain([schema]) {
            if let Some(most) = schema["maxItems"].as_u64() {
                self.items(name, schema, most as usize);
            }
        }
    }

    fn limits(&self, name: &str, schema: &Value) {
        if let Some(least) = schema.get("exclusiveMinimum") {
            self.refuses(name, &least.to_string());
        }
        let beyond = |limit: &Value, step: i128| match (limit.as_i64(), limit.as_u64()) {
            (Some(whole), _) => (i128::from(whole) + step).to_string(),
            (_, Some(whole)) => (i128::from(whole) + step).to_string(),
            _ => (limit.as_f64().unwrap() + step as f64).to_string(),
        };
        for (limit, step) in [("minimum", -1), ("maximum", 1)] {
            let Some(limit) = schema.get(limit) else { continue };
            // It has another limit, too: the longest answer.
            if !(name == "min_tokens" && step == 1) {
                self.takes(name, &limit.to_string());
            }
            self.refuses(name, &beyond(limit, step));
        }
    }

    fn items(&self, name: &str, schema: &Value, most: usize) {
        let item = |i: usize| match schema["items"]["type"].as_str() {
            Some("integer") => json!(i % 300),
            _ => json!(format!("zz{i}")),
        };
        let list = |length: usize| json!((0..length).map(item).collect::<Vec<_>>()).to_string();
        self.refuses(name, &list(most + 1));
        // Prompts are as many answers, and half as many words as tokens can be forbidden.
        if !["prompt", "bad_words"].contains(&name) {
            self.takes(name, &list(most));
        }
        if schema["minItems"] == 1 {
            self.refuses(name, "[]");
        }
    }
}

#[test]
fn fields_have_the_limits_that_are_described() {
    let server = Server::start(&[]);
    let document = document(&server);
    for (path, name) in [(CHAT, "ChatCompletionRequest"), (COMPLETIONS, "CompletionRequest")] {
        let properties = schema(&document, name)["properties"].as_object().unwrap();
        assert!(properties.len() > 50, "{}", properties.len());
        let probe = Probe { server: &server, path };
        for (name, schema) in properties {
            probe.property(name, schema);
        }
    }
}

/// The names of all properties of a schema, however deep.
fn names(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            found.extend(map.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys).cloned());
            map.values().for_each(|value| names(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, found)),
        _ => {}
    }
}

#[test]
fn fields_that_are_read_are_described() {
    let document = document(&Server::start(&[]));
    let mut described = BTreeSet::new();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        if name.ends_with("Request") || ["Message", "ContentPart"].contains(&name.as_str()) {
            names(schema, &mut described);
        }
    }
    let mut found = 0;
    for file in ["chat", "completions", "delivery", "sampling", "tokenize", "unsupported"] {
        let source = fs::read_to_string(format!("src/server/openai/{file}.rs")).unwrap();
        let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
        let calls = ["count", "flag", "has", "number", "only", "read", "take", "text"];
        let calls = calls.map(|call| format!("fields.{call}(")).into_iter();
        let calls: Vec<_> = calls.chain(["flag", "only"].map(|call| format!("options.{call}("))).collect();
        let behind = |call: &String| source.split(call.as_str()).skip(1).map(str::trim_start).collect::<Vec<_>>();
        let single = calls.iter().flat_map(behind).filter_map(|rest| rest.strip_prefix('"'));
        let single = single.map(|rest| rest.split('"').next().unwrap());
        // Names that are treated alike.
        let lists = source.split(" in [").skip(1).filter_map(|rest| rest.split("] {").next());
        let lists: Vec<_> = lists.flat_map(|list| list.split('"').skip(1).step_by(2)).collect();
        let lists = if file == "unsupported" { lists } else { Vec::new() };
        // What is taken out here is not looked at.
        let ignored = "spaces_between_special_tokens";
        for name in single.chain(lists).filter(|name| *name != ignored) {
            assert!(described.contains(name), "{file}.rs reads {name:?}");
            found += 1;
        }
    }
    assert!(found > 70, "{found}");
}

/// Whether a value is as a schema says, and has nothing that it does not name.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(path) = schema["$ref"].as_str() {
        return fits(document, document.pointer(&path[1..]).unwrap(), value, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let tried: Vec<_> = choices.iter().map(|choice| fits(document, choice, value, at)).collect();
        return if tried.iter().any(Result::is_ok) { Ok(()) } else { Err(format!("{tried:?}")) };
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is = |name: &Value| name == kind || (name == "number" && kind == "integer");
    let right = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(is),
        Value::Null => {
            schema.get("const").is_some_and(|one| one == value)
                || schema["enum"].as_array().is_some_and(|all| all.contains(value))
        }
        name => is(name),
    };
    if !right {
        return Err(format!("{at} is {value}, and not {schema}"));
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item, &format!("{at}[{i}]"))?;
    }
    let Some(map) = value.as_object() else { return Ok(()) };
    if let Some(name) =
        schema["required"].as_array().into_iter().flatten().find(|name| value.get(name.as_str().unwrap()).is_none())
    {
        return Err(format!("{at} has no {name}"));
    }
    for (name, value) in map {
        let schema = schema["properties"].get(name).or(schema.get("additionalProperties"));
        fits(document, schema.ok_or(format!("{at}.{name} is not described"))?, value, &format!("{at}.{name}"))?;
    }
    Ok(())
}

#[test]
fn answers_and_events_are_as_they_are_described() {
    let server = Server::start(&[]);
    let document = document(&server);
    let check = |name: &str, value: &Value| fits(&document, schema(&document, name), value, name).unwrap();
    let sampled =
        json!({ "max_tokens": 6, "ignore_eos": true, "n": 2, "temperature": 1.0, "seed": 5, "return_token_ids": true });
    let (timings, usage) = (
        json!({ "return_timings": true }),
        json!({ "stream_options": { "include_usage": true, "continuous_usage_stats": true }, "stream": true }),
    );
    let (whole, logprobs) = (json!({ "prompt_logprobs": 2 }), json!({ "logprobs": true, "top_logprobs": 3 }));
    let legacy = json!({ "logprobs": 3 });
    for (path, answer, event, logprobs) in [
        (CHAT, "ChatCompletion", "ChatCompletionChunk", logprobs),
        (COMPLETIONS, "Completion", "CompletionChunk", legacy),
    ] {
        let ask = |body: &Value| post(server.port, path, &body.to_string());
        check(answer, &ask(&least(path)).json());
        let all = with(with(with(least(path), sampled.clone()), timings.clone()), logprobs);
        check(answer, &ask(&with(all.clone(), whole.clone())).json());
        let events = ask(&with(all, usage.clone())).events();
        assert!(events.len() > 12);
        events.iter().for_each(|value| check(event, value));
        ask(&with(least(path), json!({ "stream": true }))).events().iter().for_each(|value| check(event, value));
        check("Error", &ask(&json!({})).json());
    }
    check("Models", &get(server.port, "/v1/models").json());
    check("Version", &get(server.port, "/version").json());
    check("Load", &get(server.port, "/load").json());
    check("Tokens", &post(server.port, "/tokenize", "{\"prompt\":\"a\",\"return_token_strs\":true}").json());
    check("Tokens", &post(server.port, "/tokenize", &least(CHAT).to_string()).json());
    check("Text", &post(server.port, "/detokenize", "{\"tokens\":[1]}").json());
    assert!(fits(&document, schema(&document, "Version"), &json!({ "version": "1", "more": 1 }), "").is_err());
    assert!(fits(&document, schema(&document, "Version"), &json!({ "version": 1 }), "").is_err());
}
