//! The body of a request, within its limits.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::app::{App, KIB};
use super::failure::Failure;
use crate::server::openai::{ApiError, MAX_VALUES, values};

/// Of a body that nobody wants, so much is heard, and so long. Many clients hear nothing themselves before they have said
/// all, and take a connection that closes under them for a network that failed.
const UNWANTED: (usize, Duration) = (64 << 20, Duration::from_secs(5));

/// A body that two hold: who reads it, and who hears the rest.
#[derive(Clone)]
pub(super) struct Shared {
    body: Arc<Mutex<Body>>,
    /// Somebody has asked for it, so its client has been told to send it.
    asked: Arc<AtomicBool>,
}

impl Shared {
    pub fn new(body: Body) -> Shared {
        Shared { body: Arc::new(Mutex::new(body)), asked: Arc::default() }
    }

    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hear what is left of it.
    pub async fn discard(mut self) {
        let (most, time) = UNWANTED;
        let rest = async {
            let mut heard = 0;
            while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await
                && heard < most
            {
                heard += frame.data_ref().map_or(0, Bytes::len);
            }
        };
        // Then it closes under them.
        let _ = timeout(time, rest).await;
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.asked.store(true, Ordering::Relaxed);
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// A body of JSON, not read any further than that its parts can be counted. It counts among the bodies in memory until it is
/// dropped.
pub(super) struct Json {
    text: String,
    _room: Option<OwnedSemaphorePermit>,
}

impl Json {
    /// The text. Borrowed from the whole, so that who has the one has the other.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text alone. Its room stays taken while this is there.
    pub fn take_text(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

/// Read the body, and take a place for the request. Whoever sends slowly holds none.
pub(super) async fn receive(app: &App, request: Request) -> Result<(OwnedSemaphorePermit, Json), Failure> {
    // Nobody should send a long body for nothing.
    app.has_place()?;
    let body = json(app, request).await?;
    Ok((app.enter()?, body))
}

async fn json(app: &App, request: Request) -> Result<Json, Failure> {
    check(request.headers())?;
    let limit = app.options.body_timeout;
    let Ok(read) = timeout(limit, read(app, request)).await else {
        let message = format!("the body did not come within {} seconds (--body-timeout)", limit.as_secs_f64());
        return Err(refused(408, "body_timeout", message));
    };
    let (bytes, room) = read?;
    let found = values(&bytes);
    if found > MAX_VALUES {
        let message = format!("the body has {found} values; at most {MAX_VALUES} are read");
        return Err(refused(413, "body_too_large", message));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Json { text, _room: room }),
        Err(_) => Err(refused(400, "invalid_json", "the body is no JSON: it is not UTF-8")),
    }
}

/// Whether what comes is JSON, as it is.
fn check(headers: &HeaderMap) -> Result<(), Failure> {
    let header = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let kind = header(CONTENT_TYPE).unwrap_or_default();
    // A page of another site can send any other type without being asked.
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let message = "the body must be JSON; send it with Content-Type: application/json";
        return Err(refused(415, "unsupported_media_type", message));
    }
    // A few bytes could stand for a body of any length.
    if !header(CONTENT_ENCODING).is_none_or(|encoding| encoding.eq_ignore_ascii_case("identity")) {
        let message = "the body is compressed, which is not supported; send it as it is, without Content-Encoding";
        return Err(refused(415, "unsupported_content_encoding", message));
    }
    Ok(())
}

/// All of it, with room among the bodies in memory for what is there. What is announced and does not come takes none.
async fn read(app: &App, request: Request) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Failure> {
    let mut body = request.into_body();
    let mut room = None;
    let mut bytes = Vec::new();
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    fits(app, announced)?;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| refused(400, "invalid_body", "the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        fits(app, bytes.len() + data.len())?;
        make_room(app, &mut room, bytes.len() + data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

/// Whether a body may have so many bytes.
fn fits(app: &App, bytes: usize) -> Result<(), Failure> {
    let max = app.options.max_body_bytes;
    if bytes > max {
        return Err(refused(413, "body_too_large", format!("the body has more than {max} bytes (--max-body-bytes)")));
    }
    Ok(())
}

/// Room for `bytes` in all.
fn make_room(app: &App, room: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Failure> {
    let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let more = bytes.div_ceil(KIB).saturating_sub(held);
    if more == 0 {
        return Ok(());
    }
    let more = app.bodies.clone().try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX)).map_err(|_| {
        let message = "the bodies of other requests fill the memory that there is for them; try again in a second";
        let kind = "server_error";
        Failure(ApiError { status: 503, kind, ..ApiError::refused("bodies_full", message) })
    })?;
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
    Ok(())
}

fn refused(status: u16, code: &'static str, message: impl Into<String>) -> Failure {
    Failure(ApiError { status, ..ApiError::refused(code, message) })
}
