//! The body of a request, within its limits.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use tokio::time::timeout;

use super::failure::Failure;
use crate::server::openai::{ApiError, MAX_VALUES, values};

/// How long a client may take to send a body.
const BODY: Duration = Duration::from_secs(60);

/// A body of JSON, not read any further than that its parts can be counted.
pub(super) async fn json(mut request: Request, max_bytes: usize) -> Result<String, Failure> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    // A page of another site can send any other type without being asked.
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let message = "the body must be JSON; send it with Content-Type: application/json";
        return Err(refused(415, "unsupported_media_type", message));
    }
    DefaultBodyLimit::max(max_bytes).apply(&mut request);
    let body = match timeout(BODY, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body has more than {max_bytes} bytes (--max-body-bytes)");
            return Err(refused(413, "body_too_large", message));
        }
        Ok(Err(_)) => return Err(refused(400, "invalid_body", "the body ended early")),
        Err(_) => {
            let message = format!("the body did not come within {} seconds", BODY.as_secs());
            return Err(refused(408, "body_timeout", message));
        }
    };
    let found = values(&body);
    if found > MAX_VALUES {
        let message = format!("the body has {found} values; at most {MAX_VALUES} are read");
        return Err(refused(413, "body_too_large", message));
    }
    String::from_utf8(body.into()).map_err(|_| refused(400, "invalid_json", "the body is no JSON: it is not UTF-8"))
}

fn refused(status: u16, code: &'static str, message: impl Into<String>) -> Failure {
    Failure(ApiError { status, ..ApiError::refused(code, message) })
}
