//! A request on the engine's thread: from sampled tokens to text and events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use tokio::sync::mpsc::UnboundedSender;

use super::output::{Event, FinishReason, Output, Piece};
use super::request::Ready;
use super::runner::Sampled;
use super::stats::milliseconds;
use super::window::Ticket;
use crate::Error;
use crate::mem::DType;
use crate::models::Tiles;
use crate::ops::SamplingRow;
use crate::text::TextStream;

/// What the engine keeps of a request beside its sequence.
pub(super) struct Job {
    /// In the order of the sequence's places.
    pub pictures: Vec<Tiles>,
    pub output: Output,
    sampling: super::Sampling,
    seed: u64,
    stream: TextStream,
    max_tokens: usize,
    dtype: DType,
    start: Instant,
    /// When the first token came.
    first: Option<Instant>,
    events: UnboundedSender<Event>,
    cancelled: Arc<AtomicBool>,
    /// Its place among those that are under way.
    _ticket: Option<Ticket>,
}

impl Job {
    /// The sequence of a checked request, and the rest of it.
    pub fn new(
        ready: Ready,
        events: UnboundedSender<Event>,
        cancelled: Arc<AtomicBool>,
        ticket: Option<Ticket>,
    ) -> (super::Sequence, Job) {
        let Ready { sequence, pictures, sampling, seed, stream, max_tokens, dtype, output, start } = ready;
        let job = Job {
            pictures,
            output,
            sampling,
            seed,
            stream,
            max_tokens,
            dtype,
            start,
            first: None,
            events,
            cancelled,
            _ticket: ticket,
        };
        (sequence, job)
    }

    /// Nobody waits for the answer.
    pub fn is_unwanted(&self) -> bool {
        self.events.is_closed() || self.cancelled.load(Ordering::Relaxed)
    }

    /// How its next token is sampled; `state` is its row of counts.
    pub fn sampling(&self, state: usize) -> SamplingRow {
        self.sampling.row(self.seed, self.output.token_ids.len() as u32, state)
    }

    /// Whether the sampler counts its tokens.
    pub fn counts_tokens(&self) -> bool {
        self.sampling.has_penalties()
    }

    /// Alternatives that it wants to know.
    pub fn top_logprobs(&self) -> usize {
        self.sampling.top_logprobs
    }

    /// Take its next token; says why the answer has ended, if it has. `eos` are the tokens that end one.
    pub fn push(&mut self, token: u32, sampled: Sampled, eos: &[u32]) -> Result<Option<FinishReason>> {
        let output = &mut self.output;
        if self.first.is_none() {
            self.first = Some(Instant::now());
            output.timings.ttft_ms = milliseconds(self.start);
            output.timings.prefill_ms = output.timings.ttft_ms - output.timings.prepare_ms;
        }
        let mut top = sampled.top;
        top.truncate(self.sampling.top_logprobs);
        output.token_ids.push(token);
        output.logprobs.push(sampled.logprob);
        output.top_logprobs.push(top.clone());
        let ends = !self.sampling.ignore_eos && eos.contains(&token);
        let text = if ends { None } else { self.stream.push(token)? }.unwrap_or_default();
        self.output.text.push_str(&text);
        // A receiver that went away is noticed before the next step.
        let _ = self.events.send(Event::Piece(Piece {
            token_id: token,
            logprob: sampled.logprob,
            top_logprobs: top,
            text,
        }));
        Ok(if ends || self.stream.stopped().is_some() {
            Some(FinishReason::Stop)
        } else if self.output.token_ids.len() == self.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        })
    }

    /// The answer has ended.
    pub fn finish(mut self, reason: FinishReason, logits_hash: String) {
        match self.stream.finish() {
            Ok(rest) => self.output.text.push_str(&rest),
            Err(error) => return self.fail(Error::Model(error)),
        }
        // What was held back may have been a stop string after all.
        let stopped = self.stream.stopped().is_some() && reason == FinishReason::Length;
        self.output.finish_reason = if stopped { FinishReason::Stop } else { reason };
        self.output.logits_hash = logits_hash;
        let first = self.first.unwrap_or_else(Instant::now);
        self.output.timings.end(first, self.output.token_ids.len());
        let _ = self.events.send(Event::Done(Box::new(self.output)));
    }

    /// Nobody wants the rest.
    pub fn cancel(self) {
        self.finish(FinishReason::Cancelled, String::new());
    }

    /// What it means that there is no next token.
    pub fn no_number(&self) -> Error {
        let narrow = match self.dtype {
            DType::F32 => String::new(),
            dtype => format!(", or {dtype} too narrow for them (--dtype f32)"),
        };
        Error::Model(anyhow!(
            "the logits of token {} of the answer hold a NaN or an infinity; the weights may be damaged{narrow}",
            self.output.token_ids.len()
        ))
    }

    /// There is no answer.
    pub fn fail(self, error: Error) {
        let _ = self.events.send(Event::Failed(error));
    }
}
