//! Routes, and the statuses of their answers.

use serde_json::{Map, Value, json};

use super::Facts;
use super::schema::{count, reference};

/// A status of an error, its name and what it says.
type Failure = (&'static str, &'static str, &'static str);

const INVALID: Failure = ("400", "Invalid", "The request is at fault: `param` names the field, and `code` says why.");
const NO_KEY: Failure = ("401", "NoKey", "The key is missing or wrong.");
const FORBIDDEN: Failure = ("403", "Forbidden", "A page of another site asks, and may not.");
const NO_MODEL: Failure = ("404", "NoModel", "The model has another name.");
const LATE: Failure = ("408", "Late", "The body did not come in time.");
const TOO_LARGE: Failure = ("413", "TooLarge", "The body has too many bytes or values.");
const NO_JSON: Failure = ("415", "NoJson", "The body does not say that it is JSON, or is compressed.");
const FULL: Failure = ("429", "Full", "As many requests run and wait as may; Retry-After says when to try again.");
const FAILED: Failure = ("500", "Failed", "The server is at fault; its log says why.");
const BUSY: Failure =
    ("503", "Busy", "There is no room for the body, or no engine; Retry-After says when to try again.");

/// Of requests that have a body.
const OF_BODIES: [Failure; 10] = [INVALID, NO_KEY, FORBIDDEN, NO_MODEL, LATE, TOO_LARGE, NO_JSON, FULL, FAILED, BUSY];

/// The answers that are errors.
pub(super) fn failures() -> Map<String, Value> {
    let entry = |(_, name, about): Failure| {
        let content = json!({ "application/json": { "schema": reference("Error") } });
        let mut headers = named();
        if [FULL.1, BUSY.1].contains(&name) {
            headers["Retry-After"] = json!({ "required": true, "schema": count(), "description": "Seconds" });
        }
        (name.to_owned(), json!({ "description": about, "headers": headers, "content": content }))
    };
    OF_BODIES.into_iter().map(entry).collect()
}

/// The headers of every answer.
fn named() -> Value {
    let about = "The name of the request in the server's log: the client's own, if it sent one";
    json!({ "X-Request-Id": { "required": true, "schema": { "type": "string" }, "description": about } })
}

/// An answer with a status alone, or with content.
fn success(about: &str, content: Option<Value>) -> Value {
    let mut response = json!({ "description": about, "headers": named() });
    if let Some(content) = content {
        response["content"] = content;
    }
    response
}

pub(super) fn paths(facts: &Facts) -> Value {
    let chat = asked(
        facts,
        ("createChatCompletion", "Answer a conversation, which may show pictures"),
        "ChatCompletionRequest",
        "ChatCompletion",
        Some("ChatCompletionChunk"),
    );
    let completion = asked(
        facts,
        ("createCompletion", "Go on with texts, as they are"),
        "CompletionRequest",
        "Completion",
        Some("CompletionChunk"),
    );
    let tokenize =
        asked(facts, ("tokenize", "The tokens of a text or a conversation"), "TokenizeRequest", "Tokens", None);
    let detokenize = asked(facts, ("detokenize", "The text of tokens"), "DetokenizeRequest", "Text", None);
    json!({
        "/v1/chat/completions": { "post": chat },
        "/v1/completions": { "post": completion },
        "/v1/models": { "get": guarded(facts, read("listModels", "The names of the model", "Models")) },
        "/v1/models/{model}": { "get": guarded(facts, one_model(facts)) },
        "/tokenize": { "post": tokenize },
        "/detokenize": { "post": detokenize },
        "/health": { "get": looked("health", "Whether the engine lives") },
        "/ready": { "get": looked("ready", "Whether new requests should be sent here") },
        "/ping": { "get": looked("ping", "As /health"), "post": looked("pingWithPost", "As /health") },
        "/version": { "get": read("version", "The version of the server", "Version") },
        "/load": { "get": read("load", "Requests that are under way", "Load") },
        "/metrics": { "get": metrics() },
        "/openapi.json": { "get": openapi() },
    })
}

/// A request with a body; some are answered in events.
fn asked(facts: &Facts, (id, about): (&str, &str), request: &str, answer: &str, event: Option<&str>) -> Value {
    let mut content = json!({ "application/json": { "schema": reference(answer) } });
    if let Some(event) = event {
        let about = format!(
            "If stream is true: lines `data: ` with a {event} or an Error each, and an empty line behind each of them; at the \
             end `data: [DONE]`, but not behind an Error."
        );
        content["text/event-stream"] = json!({ "schema": { "type": "string", "description": about } });
    }
    let mut responses = Map::new();
    responses.insert("200".into(), success("The answer", Some(content)));
    for (status, name, _) in OF_BODIES.into_iter().filter(|failure| facts.key || failure.0 != NO_KEY.0) {
        responses.insert(status.into(), json!({ "$ref": format!("#/components/responses/{name}") }));
    }
    let mut operation = json!({
        "operationId": id,
        "summary": about,
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": reference(request) } },
        },
        "responses": responses,
    });
    if facts.key {
        operation["security"] = json!([{ "key": [] }]);
    }
    operation
}

/// What everybody may read.
fn read(id: &str, about: &str, answer: &str) -> Value {
    let content = json!({ "application/json": { "schema": reference(answer) } });
    operation(id, about, json!({ "200": success("The answer", Some(content)) }))
}

/// A name of the model, which may hold slashes.
fn one_model(facts: &Facts) -> Value {
    let mut operation = read("retrieveModel", "One of the names of the model", "Model");
    operation["responses"][NO_MODEL.0] = json!({ "$ref": format!("#/components/responses/{}", NO_MODEL.1) });
    let schema = json!({ "type": "string", "enum": facts.models });
    operation["parameters"] = json!([{ "name": "model", "in": "path", "required": true, "schema": schema }]);
    operation
}

/// What is said with a status alone.
fn looked(id: &str, about: &str) -> Value {
    operation(id, about, json!({ "200": success("Yes", None), "503": success("No", None) }))
}

fn metrics() -> Value {
    let content = json!({ "text/plain": { "schema": { "type": "string" } } });
    let responses = json!({ "200": success("Prometheus' text", Some(content)) });
    operation("metrics", "What the engine has done and holds", responses)
}

fn openapi() -> Value {
    let content = json!({ "application/json": { "schema": { "type": "object" } } });
    operation("openapi", "This document", json!({ "200": success("The document", Some(content)) }))
}

fn operation(id: &str, about: &str, mut responses: Value) -> Value {
    responses[FORBIDDEN.0] = json!({ "$ref": format!("#/components/responses/{}", FORBIDDEN.1) });
    json!({ "operationId": id, "summary": about, "responses": responses })
}

/// The same, with the key.
fn guarded(facts: &Facts, mut operation: Value) -> Value {
    if facts.key {
        operation["responses"][NO_KEY.0] = json!({ "$ref": format!("#/components/responses/{}", NO_KEY.1) });
        operation["security"] = json!([{ "key": [] }]);
    }
    operation
}
