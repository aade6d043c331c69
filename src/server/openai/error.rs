//! Errors as OpenAI's interface reports them.

use serde::Serialize;
use serde_json::{Value, json};

use crate::Error;
use crate::engine::PromptTooLong;

/// What is wrong with a request, or why there is no answer: the object behind `"error"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiError {
    /// The HTTP status that goes with it.
    #[serde(skip)]
    pub status: u16,
    /// For people.
    pub message: String,
    /// `invalid_request_error` where the request is at fault, `server_error` where it is not.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault, as a path: `messages[0].content[1].image_url.url`.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// The request is at fault, with status 400.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status: 400,
            message: message.into(),
            kind: "invalid_request_error",
            param: Some(param.into()),
            code: Some(code),
        }
    }

    /// The same, where no one field is.
    pub fn refused(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { param: None, ..ApiError::invalid("", code, message) }
    }

    /// The server is at fault, and why is for its log.
    pub fn internal() -> ApiError {
        let message = "the server failed at this request; its log says why".into();
        ApiError { status: 500, message, kind: "server_error", param: None, code: None }
    }

    /// `name` is no name of the model.
    pub fn no_such_model(name: &str, served: &[String]) -> ApiError {
        let name = super::fields::clipped(name);
        let message = format!("the model {name} does not exist here; {} does", served.join(" or "));
        ApiError { status: 404, ..ApiError::invalid("model", "model_not_found", message) }
    }

    /// The body of an HTTP answer.
    pub fn body(&self) -> Value {
        json!({ "error": self })
    }
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> ApiError {
        let message = error.to_string();
        match error {
            Error::Request(inner) if inner.is::<PromptTooLong>() => {
                ApiError::refused("context_length_exceeded", message)
            }
            Error::Request(_) => ApiError::refused("invalid_request", message),
            // For good: it would not fit were it alone.
            Error::Capacity(_) => ApiError::refused("capacity_exceeded", message),
            Error::Model(_) | Error::Device(_) => {
                ApiError { status: 500, message, kind: "server_error", param: None, code: None }
            }
        }
    }
}
