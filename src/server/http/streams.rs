//! The answers to the prompts of one request.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::app::App;
use super::observed::Observed;
use crate::Result;
use crate::engine::{Event, Output, Stream};

/// Streams that are read as one. Dropping them cancels all.
pub(super) struct Streams {
    streams: Vec<Observed>,
    /// Whose turn it is.
    next: usize,
}

impl Streams {
    /// One for each prompt of a request that came at `start`, each with `n` answers.
    pub fn new(app: &Arc<App>, streams: Vec<Stream>, n: usize, start: Instant) -> Streams {
        let streams = streams.into_iter().map(|stream| Observed::new(app.clone(), stream, n, start));
        Streams { streams: streams.collect(), next: 0 }
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.streams.iter().map(Observed::prompt_tokens).sum()
    }

    /// The next event, with the number of its prompt from 0 on; `None` after the last of all. Each prompt has its turn.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        poll_fn(|cx| {
            let (count, mut waits) = (self.streams.len(), false);
            for i in (0..count).map(|i| (self.next + i) % count) {
                match self.streams[i].poll_next(cx) {
                    Poll::Ready(Some(event)) => {
                        self.next = i + 1;
                        return Poll::Ready(Some((i, event)));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => waits = true,
                }
            }
            if waits { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// All answers, in the order of their prompts.
    ///
    /// # Errors
    /// The first one; the other prompts are given up.
    pub async fn complete(mut self) -> Result<Vec<Output>> {
        let mut outputs: Vec<Option<Output>> = self.streams.iter().map(|_| None).collect();
        while let Some((i, event)) = self.next().await {
            match event {
                Event::Piece(_) => {}
                Event::Done(output) => outputs[i] = Some(*output),
                Event::Failed(error) => return Err(error),
            }
        }
        Ok(outputs.into_iter().flatten().collect())
    }
}
