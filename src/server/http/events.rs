//! An answer as server-sent events.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::Instrument;

use super::app::App;
use super::failure::Failure;
use super::observed::Observed;
use crate::Error;
use crate::engine::Event;
use crate::server::openai::Chunks;

/// Events that a client may be behind.
const BEHIND: usize = 64;
/// The end of every stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// The body of the answer. Dropped when the client goes away.
struct Events {
    receiver: Receiver<Bytes>,
    done: bool,
}

/// The stream broke off.
#[derive(Debug)]
struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the stream broke off")
    }
}

impl std::error::Error for BrokenOff {}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        Poll::Ready(match ready!(self.receiver.poll_recv(cx)) {
            Some(bytes) => {
                self.done = bytes == DONE;
                Some(Ok(Frame::data(bytes)))
            }
            None if self.done => None,
            // An end that looked like one would hide that something is missing.
            None => Some(Err(BrokenOff)),
        })
    }
}

/// Answer with events. What fails before the first of them is an error of its own status.
pub(super) async fn answer(
    app: Arc<App>,
    mut stream: Observed,
    chunks: Chunks,
    include_usage: bool,
    place: OwnedSemaphorePermit,
) -> Result<Response, Failure> {
    let first = match stream.next().await {
        Some(Event::Failed(error)) => return Err(app.failure(&error)),
        first => first,
    };
    let (sender, receiver) = channel(BEHIND);
    let writer = async move {
        // Kept as long as the request is.
        let _place = place;
        write(&app, stream, first, chunks, include_usage, &sender).await;
    };
    tokio::spawn(writer.in_current_span());
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::new(Events { receiver, done: false })).into_response())
}

/// Write events until the last, or until nobody reads them. Then the stream is dropped, and the request with it.
async fn write(
    app: &App,
    mut stream: Observed,
    mut next: Option<Event>,
    mut chunks: Chunks,
    include_usage: bool,
    sender: &Sender<Bytes>,
) {
    while let Some(event) = next {
        let values = match event {
            Event::Piece(piece) => chunks
                .piece(app.engine.tokenizer(), &piece)
                .unwrap_or_else(|error| vec![app.failure(&Error::Model(error)).0.body()]),
            Event::Done(output) => {
                let mut last = chunks.done(&output);
                last.extend(include_usage.then(|| chunks.usage(&output)));
                last
            }
            Event::Failed(error) => vec![app.failure(&error).0.body()],
        };
        for value in values {
            // Nobody reads it any more.
            if sender.send(line(&value)).await.is_err() {
                return;
            }
        }
        next = tokio::select! {
            event = stream.next() => event,
            () = sender.closed() => return,
        };
    }
    let _ = sender.send(Bytes::from_static(DONE)).await;
}

fn line(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}
