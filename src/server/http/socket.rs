//! A connection's socket, which gives up on a client that reads nothing.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::connections::{Busy, Mark};

/// Fails when nothing could be written for a while: then the client's window and both buffers have been full so long.
pub(super) struct Socket {
    inner: TokioIo<TcpStream>,
    timeout: Duration,
    mark: Mark,
    /// Runs while there is something to write and no room for it. The connection is busy so long.
    stalled: Option<(Pin<Box<Sleep>>, Busy)>,
}

impl Socket {
    pub fn new(stream: TcpStream, timeout: Duration, mark: Mark) -> Socket {
        Socket { inner: TokioIo::new(stream), timeout, mark, stalled: None }
    }

    fn written(&mut self, cx: &mut Context<'_>, polled: Poll<Result<usize>>) -> Poll<Result<usize>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let Socket { timeout, mark, stalled, .. } = self;
        let (timer, _) = stalled.get_or_insert_with(|| (Box::pin(sleep(*timeout)), mark.busy()));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, polled)
    }
}
