//! What is seen of answers: times and sizes for `/metrics`, and a line in the log at the end of each.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tracing::{Span, info};

use super::app::App;
use super::histogram::Histogram;
use crate::engine::{Event, Output, Stream};

/// Seconds to a first token: prompts with pictures on a GPU take hundredths, those that wait for their turn minutes.
const FIRST: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Seconds between two tokens.
const BETWEEN: [f64; 20] = [
    0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0,
    10.0, 40.0,
];
/// Seconds of a whole answer, or of waiting for a turn.
const WHOLE: [f64; 22] = [
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0,
    1920.0, 7680.0,
];
/// Tokens of a prompt or an answer.
const TOKENS: [f64; 18] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100000.0,
    200000.0, 500000.0,
];

/// What was seen of all answers.
pub(super) struct Observations {
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub e2e_latency: Histogram,
    pub queue_time: Histogram,
    pub prompt_tokens: Histogram,
    pub generation_tokens: Histogram,
}

impl Default for Observations {
    fn default() -> Observations {
        Observations {
            time_to_first_token: Histogram::new(&FIRST),
            inter_token_latency: Histogram::new(&BETWEEN),
            e2e_latency: Histogram::new(&WHOLE),
            queue_time: Histogram::new(&WHOLE),
            prompt_tokens: Histogram::new(&TOKENS),
            generation_tokens: Histogram::new(&TOKENS),
        }
    }
}

impl Observations {
    fn done(&self, output: &Output, start: Instant) {
        self.e2e_latency.observe(start.elapsed().as_secs_f64());
        self.queue_time.observe(output.timings.queue_ms / 1e3);
        self.prompt_tokens.observe(output.prompt_token_ids.len() as f64);
        output.outputs.iter().for_each(|o| self.generation_tokens.observe(o.token_ids.len() as f64));
    }
}

/// An answer as it comes, seen by the server. Dropped before its end, it was cancelled.
pub(super) struct Observed {
    app: Arc<App>,
    stream: Stream,
    /// When the request's head had come.
    start: Instant,
    /// When each of its answers had its latest token.
    latest: Vec<Option<Instant>>,
    tokens: u64,
    ttft_ms: Option<f64>,
    ended: bool,
    /// Of the request, whose name its lines in the log have.
    span: Span,
}

impl Observed {
    /// Of `n` answers to a request that came at `start`.
    pub fn new(app: Arc<App>, stream: Stream, n: usize, start: Instant) -> Observed {
        let span = Span::current();
        Observed { app, stream, start, latest: vec![None; n], tokens: 0, ttft_ms: None, ended: false, span }
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.stream.prompt_tokens()
    }

    /// The next event; `None` after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = ready!(self.stream.poll_next(cx));
        match &event {
            Some(Event::Piece(piece)) => self.token(piece.index),
            Some(Event::Done(output)) => {
                self.app.observations.done(output, self.start);
                self.end("complete", Some(output));
            }
            Some(Event::Failed(_)) => self.end("failed", None),
            None => {}
        }
        Poll::Ready(event)
    }

    fn token(&mut self, index: usize) {
        let now = Instant::now();
        let seen = &self.app.observations;
        self.tokens += 1;
        if self.ttft_ms.is_none() {
            let ttft = (now - self.start).as_secs_f64();
            seen.time_to_first_token.observe(ttft);
            self.ttft_ms = Some(ttft * 1e3);
        }
        if let Some(latest) = self.latest.get_mut(index)
            && let Some(before) = latest.replace(now)
        {
            seen.inter_token_latency.observe((now - before).as_secs_f64());
        }
    }

    fn end(&mut self, outcome: &'static str, output: Option<&Output>) {
        self.ended = true;
        let prompt = self.prompt_tokens();
        let image = output.map(|o| o.image_tokens.iter().sum::<usize>());
        let (cached, queue_ms) = (output.map(|o| o.cached_tokens), output.map(|o| o.timings.queue_ms));
        let (tokens, ttft_ms, ms) = (self.tokens, self.ttft_ms, self.start.elapsed().as_secs_f64() * 1e3);
        self.span.in_scope(|| info!(outcome, prompt, image, cached, tokens, queue_ms, ttft_ms, ms, "generated"));
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.ended {
            self.end("cancelled", None);
        }
    }
}
