//! A request on the engine's thread: from sampled tokens to text and events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use tokio::sync::mpsc::UnboundedSender;

use super::Sampler;
use super::output::{Event, FinishReason, Output, Piece};
use super::request::Ready;
use super::stats::milliseconds;
use super::step_outputs::Sampled;
use super::window::Ticket;
use crate::Error;
use crate::mem::DType;
use crate::models::Tiles;
use crate::ops::{SamplingRow, TokenBias};
use crate::text::TextStream;

/// What the engine keeps of a request beside its sequence.
pub(super) struct Job {
    /// In the order of the sequence's places.
    pub pictures: Vec<Tiles>,
    pub output: Output,
    sampler: Sampler,
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
        let Ready { sequence, pictures, sampler, stream, max_tokens, dtype, output, start } = ready;
        let job = Job {
            pictures,
            output,
            sampler,
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

    /// How its next token is sampled, with the list of tokens that goes with it, when `ahead` tokens before that one are not
    /// known yet; `state` is its row of counts.
    pub fn sampling(&self, ahead: usize, state: usize, list: &mut Vec<TokenBias>) -> SamplingRow {
        self.sampler.row(&self.output.token_ids, ahead, state, list)
    }

    /// Whether a token can only be sampled once the one before it is known.
    pub fn looks_back(&self) -> bool {
        self.sampler.looks_back()
    }

    /// How a row that ends amid the prompt, before `next`, is reported. `None` if it is not.
    pub fn prompt_row(&self, next: i32) -> Option<SamplingRow> {
        self.sampler.prompt_row(next)
    }

    /// Alternatives reported beside the tokens of the prompt, if those are.
    pub fn prompt_logprobs(&self) -> Option<usize> {
        self.sampler.sampling().prompt_logprobs
    }

    /// What is reported of the token at `position` of the prompt.
    pub fn report(&mut self, position: usize, mut sampled: Sampled) {
        sampled.top.truncate(self.prompt_logprobs().unwrap_or(0));
        if let Some(place) = self.output.prompt_logprobs.get_mut(position) {
            *place = Some(sampled);
        }
    }

    /// Whether the sampler counts its tokens.
    pub fn counts_tokens(&self) -> bool {
        self.sampler.sampling().has_penalties()
    }

    /// The most alternatives that any of its rows reports.
    pub fn alternatives(&self) -> usize {
        self.sampler.sampling().top_logprobs.max(self.prompt_logprobs().unwrap_or(0))
    }

    /// Take its next token; says why the answer has ended, if it has.
    pub fn push(&mut self, token: u32, sampled: Sampled) -> Result<Option<FinishReason>> {
        let output = &mut self.output;
        if self.first.is_none() {
            self.first = Some(Instant::now());
            output.timings.ttft_ms = milliseconds(self.start);
            output.timings.prefill_ms = output.timings.ttft_ms - output.timings.prepare_ms;
        }
        let mut top = sampled.top;
        top.truncate(self.sampler.sampling().top_logprobs);
        output.token_ids.push(token);
        output.logprobs.push(sampled.logprob);
        output.top_logprobs.push(top.clone());
        let ends = self.sampler.ends(token);
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
