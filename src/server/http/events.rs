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
use super::streams::Streams;
use crate::Error;
use crate::engine::Event;
use crate::server::openai::Chunks;

/// Events that a client may be behind.
const BEHIND: usize = 64;
/// The end of every stream that is whole.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// An event, and whether it is the last.
type Line = (Bytes, bool);

/// The body of the answer. Dropped when the client goes away.
struct Events {
    receiver: Receiver<Line>,
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
            Some((bytes, last)) => {
                self.done = last;
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
    mut streams: Streams,
    chunks: Chunks,
    place: OwnedSemaphorePermit,
) -> Result<Response, Failure> {
    let first = match streams.next().await {
        Some((_, Event::Failed(error))) => return Err(app.failure(&error)),
        first => first,
    };
    let (sender, receiver) = channel(BEHIND);
    let writer = async move {
        // Kept as long as the request is.
        let _place = place;
        write(&app, streams, first, chunks, &sender).await;
    };
    tokio::spawn(writer.in_current_span());
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::new(Events { receiver, done: false })).into_response())
}

/// Write events until the last, or until nobody reads them. Then the streams are dropped, and the request with them. An error
/// is the last: behind it there is no `[DONE]`, so that no client takes half an answer for a whole one.
async fn write(
    app: &App,
    mut streams: Streams,
    mut next: Option<(usize, Event)>,
    mut chunks: Chunks,
    sender: &Sender<Line>,
) {
    while let Some((prompt, event)) = next {
        let values = match event {
            Event::Piece(piece) => chunks.piece(prompt, &piece).map_err(Error::Model),
            Event::Done(output) => Ok(chunks.done(prompt, &output)),
            Event::Failed(error) => Err(error),
        };
        let values = match values {
            Ok(values) => values,
            Err(error) => {
                send(sender, (line(&app.failure(&error).0.body()), true)).await;
                return;
            }
        };
        for value in values {
            if !send(sender, (line(&value), false)).await {
                return;
            }
        }
        next = tokio::select! {
            event = streams.next() => event,
            () = sender.closed() => return,
        };
    }
    send(sender, (Bytes::from_static(DONE), true)).await;
}

fn line(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Whether somebody will read it.
async fn send(sender: &Sender<Line>, line: Line) -> bool {
    sender.send(line).await.is_ok()
}
