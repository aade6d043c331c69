//! Errors as answers: always OpenAI's object, whatever went wrong.

use std::any::Any;

use axum::Json;
use axum::extract::Request;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use tracing::error;

use crate::server::openai::{ApiError, clipped};

/// An error, on its way to the client.
pub(super) struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.body())).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // What is left of the body is not read.
        if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What a request has become whose handler panicked: our mistake, and of no other request.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let cause = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    error!(cause, "a request panicked");
    Failure(ApiError::internal()).into_response()
}

pub(super) async fn no_route(request: Request) -> Failure {
    let message = format!("there is no {}", clipped(request.uri().path()));
    Failure(ApiError { status: 404, ..ApiError::refused("not_found", message) })
}

pub(super) async fn no_method(request: Request) -> Failure {
    let message = format!("{} does not take {}", clipped(request.uri().path()), clipped(request.method().as_str()));
    Failure(ApiError { status: 405, ..ApiError::refused("method_not_allowed", message) })
}
