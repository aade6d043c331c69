//! What every request passes before its route: a name, a place of origin, the key; and the line about it in the log.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, EXPECT, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, debug, info, info_span};

use super::app::App;
use super::body::Shared;
use super::failure::Failure;
use crate::server::openai::{ApiError, unique_id};

/// The name of a request, from whoever sent it or from here.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken over.
const MAX_ID: usize = 128;
/// Routes that are asked every few seconds by those who look after the server.
const QUIET: [&str; 5] = ["/health", "/ready", "/ping", "/load", "/metrics"];

pub(super) async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request_id(request.headers());
    let span = info_span!("request", id = id.to_str().unwrap_or_default());
    let waits = request.headers().contains_key(EXPECT);
    let body = Shared::new(std::mem::take(request.body_mut()));
    *request.body_mut() = Body::new(body.clone());
    let answer = async {
        match check(&app, &request) {
            Ok(()) => next.run(request).await,
            Err(error) => Failure(error).into_response(),
        }
    };
    let mut response = answer.instrument(span.clone()).await;
    let refused = response.status().is_client_error() || response.status().is_server_error();
    // Who waits to be asked for the body does not send it before.
    let sends = !waits || body.was_asked();
    if refused && sends && response.status() != StatusCode::REQUEST_TIMEOUT {
        body.discard().await;
    }
    response.headers_mut().insert(REQUEST_ID, id);
    let status = response.status().as_u16();
    app.count(status);
    let ms = start.elapsed().as_secs_f64() * 1e3;
    // Quoted: a path is the client's word.
    span.in_scope(|| match QUIET.contains(&path.as_str()) {
        true => debug!(%method, ?path, status, ms, "answered"),
        false => info!(%method, ?path, status, ms, "answered"),
    });
    response
}

/// The client's own, if a log can hold it.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |id: &HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID).contains(&bytes.len()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b))
    };
    let given = headers.get(REQUEST_ID).filter(|id| plain(id)).cloned();
    given.unwrap_or_else(|| HeaderValue::try_from(unique_id("req-")).unwrap_or(HeaderValue::from_static("req-0")))
}

fn check(app: &App, request: &Request) -> Result<(), ApiError> {
    if app.local && !request.headers().get(ORIGIN).is_none_or(|origin| is_own(app, origin)) {
        let message = "a page of another site asks, and this server listens to this machine alone (--allowed-origins)";
        let kind = "permission_error";
        return Err(ApiError { status: 403, kind, ..ApiError::refused("origin_not_allowed", message) });
    }
    if !knows_key(app, request) {
        let message = "the key is missing or wrong; send it as Authorization: Bearer KEY";
        let kind = "authentication_error";
        return Err(ApiError { status: 401, kind, ..ApiError::refused("invalid_api_key", message) });
    }
    Ok(())
}

/// Whether a page comes from an address, this machine by name, or an allowed site. A name that somebody else resolves to this
/// machine makes a page of theirs look to a browser as if it were of this server; with whatever it asks but by GET, it
/// brings its name as its origin.
fn is_own(app: &App, origin: &HeaderValue) -> bool {
    let Ok(text) = origin.to_str() else { return false };
    let allowed = &app.options.allowed_origins;
    if allowed.iter().any(|allowed| allowed == "*" || allowed == text) {
        return true;
    }
    let uri: Option<Uri> = text.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whether a request brings the key, if it needs one.
fn knows_key(app: &App, request: &Request) -> bool {
    let Some(key) = &app.options.api_key else { return true };
    let path = request.uri().path();
    // What makes the engine work or pictures be fetched, wherever it is.
    if path != "/v1" && !path.starts_with("/v1/") && !["/tokenize", "/detokenize"].contains(&path) {
        return true;
    }
    let given = request.headers().get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let (scheme, given) = given.split_at_checked(7).unwrap_or_default();
    // Hashes are compared in a time that does not depend on where they differ.
    scheme.eq_ignore_ascii_case(b"Bearer ") && blake3::hash(given) == blake3::hash(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_log_can_hold_is_kept() {
        let of = |id: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(of(b"018f-7c:a/b_c.d+e="), "018f-7c:a/b_c.d+e=");
        for bad in [&b""[..], b"a b", b"a\tb", b"\x80", &[b'a'; 129], b"a\"b"] {
            assert!(of(bad).to_str().unwrap().starts_with("req-"), "{bad:?}");
        }
    }
}
