//! A line of the input, and a line of the output.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::MAX_LINE_BYTES;
use crate::engine::Output;
use crate::server::openai::{ApiError, MAX_VALUES, clipped, unique_id, values};

/// The one kind of request.
const URL: &str = "/v1/chat/completions";
/// Longest `custom_id`, in bytes.
const MAX_CUSTOM_ID: usize = 512;
/// How every line of the output begins; the number of the input's line follows.
pub(super) const BEGINNING: &str = "{\"id\":\"batch_req_";

/// A request of the input.
#[derive(Debug)]
pub(super) struct Asked {
    pub who: Who,
    /// Not read yet; or what is wrong with the line around it.
    pub body: Result<Box<RawValue>, ApiError>,
}

/// Whose answer a line of the output is: all that is kept of a line while it is answered.
#[derive(Debug)]
pub(super) struct Who {
    pub number: u64,
    /// Length of its line.
    pub bytes: u64,
    pub custom_id: String,
}

/// A line without a `custom_id` of its own.
#[derive(Debug)]
pub(super) struct Fault {
    pub number: u64,
    error: ApiError,
}

/// A line of the output.
pub(super) struct Answered {
    /// With its line break.
    pub text: String,
    pub failed: bool,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

#[derive(Deserialize)]
struct Envelope {
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
    body: Option<Box<RawValue>>,
}

impl Asked {
    /// What a line asks, but for the body.
    pub fn parse(number: u64, bytes: u64, text: &[u8]) -> Result<Asked, Fault> {
        let no_json = |why: String| {
            let message = format!("line {number} is no JSON object: {why}");
            Fault { number, error: ApiError::refused("invalid_json", message) }
        };
        if !text.starts_with(b"{") {
            return Err(no_json("it does not begin with a brace".into()));
        }
        let values = values(text);
        if values > MAX_VALUES {
            let message = format!("line {number} has {values} values; at most {MAX_VALUES} are read");
            return Err(Fault { number, error: ApiError::refused("line_too_long", message) });
        }
        let envelope: Envelope = serde_json::from_slice(text).map_err(|error| no_json(error.to_string()))?;
        let no_id = |code, what: String| {
            let message = format!("line {number}: custom_id {what}");
            Fault { number, error: ApiError::invalid("custom_id", code, message) }
        };
        match &envelope.custom_id {
            Some(Value::String(id)) if (1..=MAX_CUSTOM_ID).contains(&id.len()) => {
                let who = Who { number, bytes, custom_id: id.clone() };
                Ok(Asked { who, body: envelope.body() })
            }
            None => Err(no_id("missing_required_parameter", "is missing".into())),
            Some(_) => Err(no_id("invalid_value", format!("must be a text of 1 to {MAX_CUSTOM_ID} bytes"))),
        }
    }
}

impl Who {
    /// The line of an answer.
    pub fn answered(&self, body: &Value, output: &Output) -> Answered {
        let response = json!({ "status_code": 200, "request_id": unique_id(""), "body": body });
        Answered {
            text: line(self.number, Some(&self.custom_id), &response, &Value::Null),
            failed: false,
            prompt_tokens: output.prompt_token_ids.len() as u64,
            completion_tokens: output.outputs.iter().map(|o| o.token_ids.len() as u64).sum(),
        }
    }

    /// The line of a request that has no answer.
    pub fn failed(&self, error: &ApiError) -> Answered {
        let error = ApiError { message: format!("line {}: {}", self.number, error.message), ..error.clone() };
        failed(self.number, Some(&self.custom_id), &error)
    }

    /// What is wrong with the line if it repeats an earlier one's `custom_id`.
    pub fn repeats(&self, earlier: u64) -> Fault {
        let message = format!(
            "line {}: custom_id {} is that of line {earlier}, too; give each request its own",
            self.number,
            clipped(&self.custom_id)
        );
        Fault { number: self.number, error: ApiError::invalid("custom_id", "duplicate_custom_id", message) }
    }
}

impl Envelope {
    /// The body of a request of the one kind that there is.
    fn body(self) -> Result<Box<RawValue>, ApiError> {
        let missing = |name: &str, wanted: &str| {
            ApiError::invalid(name, "missing_required_parameter", format!("{name} is missing; it must be {wanted}"))
        };
        for (name, value, wanted) in [("method", self.method, "POST"), ("url", self.url, URL)] {
            let value = value.ok_or_else(|| missing(name, wanted))?;
            if value != wanted {
                let shown = value.as_str().map_or_else(|| "no text".into(), clipped);
                let message = format!("{name} is {shown}; it must be {wanted}");
                return Err(ApiError::invalid(name, "invalid_value", message));
            }
        }
        self.body.ok_or_else(|| missing("body", "the body of a chat completion"))
    }
}

impl Fault {
    /// A line that was not read to its end.
    pub fn too_long(number: u64, bytes: u64) -> Fault {
        let message = format!("line {number} has {bytes} bytes; at most {MAX_LINE_BYTES} are read");
        Fault { number, error: ApiError::refused("line_too_long", message) }
    }

    /// Its line in the output.
    pub fn answered(&self) -> Answered {
        failed(self.number, None, &self.error)
    }
}

fn failed(number: u64, custom_id: Option<&str>, error: &ApiError) -> Answered {
    let response = json!({ "status_code": error.status, "request_id": unique_id(""), "body": error.body() });
    let text = line(number, custom_id, &response, &json!(error));
    Answered { text, failed: true, prompt_tokens: 0, completion_tokens: 0 }
}

fn line(number: u64, custom_id: Option<&str>, response: &Value, error: &Value) -> String {
    let id = format!("batch_req_{number}");
    let line = json!({ "id": id, "custom_id": custom_id, "response": response, "error": error });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (Option<String>, String, Value) {
        let line = match Asked::parse(7, 1, text.as_bytes()) {
            Ok(asked) => asked.who.failed(&asked.body.unwrap_err()),
            Err(fault) => fault.answered(),
        };
        assert!(line.failed && line.text.starts_with(BEGINNING) && line.text.ends_with("}\n"));
        let value: Value = serde_json::from_str(&line.text).unwrap();
        let error = value["error"].clone();
        assert_eq!(value["response"]["body"]["error"], error);
        assert_eq!((&value["id"], &value["response"]["status_code"]), (&json!("batch_req_7"), &json!(400)));
        (value["custom_id"].as_str().map(Into::into), error["message"].as_str().unwrap().into(), error["param"].clone())
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        assert_eq!(values(br#"{"a":"b,[{\"","c":[1,2,{}]}"#), 7);
        let many = format!("{{\"custom_id\":[{}0]}}", "0,".repeat(MAX_VALUES));
        assert!(fault(&many).1.contains("values; at most 100000 are read"));
    }

    #[test]
    fn every_fault_names_the_line_and_the_field() {
        let own = Some("a".to_owned());
        let chat = "\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\"";
        for (text, id, part, param) in [
            ("[1]", None, "line 7 is no JSON object", Value::Null),
            ("{\"custom_id\":\"a\"", None, "line 7 is no JSON object: EOF", Value::Null),
            ("{\"custom_id\":\"a\",\"custom_id\":\"b\"}", None, "duplicate field `custom_id`", Value::Null),
            ("{}", None, "line 7: custom_id is missing", json!("custom_id")),
            ("{\"custom_id\":\"\"}", None, "custom_id must be a text of 1 to 512 bytes", json!("custom_id")),
            ("{\"custom_id\":5}", None, "custom_id must be a text", json!("custom_id")),
            ("{\"custom_id\":\"a\"}", own.clone(), "line 7: method is missing; it must be POST", json!("method")),
            ("{\"custom_id\":\"a\",\"method\":\"GET\"}", own.clone(), "method is \"GET\"", json!("method")),
            ("{\"custom_id\":\"a\",\"method\":5}", own.clone(), "method is no text", json!("method")),
            (&chat.replace("chat/completions", "embeddings"), None, "line 7 is no JSON", Value::Null),
            (&format!("{{{}}}", chat.replace("chat/completions", "embeddings")), own.clone(), "url is", json!("url")),
            (&format!("{{{chat}}}"), own.clone(), "line 7: body is missing", json!("body")),
            (&format!("{{{chat},\"body\":null}}"), own, "line 7: body is missing", json!("body")),
        ] {
            let (found, message, at) = fault(text);
            assert!(message.contains(part), "{message:?} does not say {part:?}");
            assert_eq!((found, at), (id, param), "{text}");
        }
        let long = fault(&format!("{{\"custom_id\":\"{}\"}}", "x".repeat(513)));
        assert!(long.1.contains("1 to 512 bytes"));
    }
}
