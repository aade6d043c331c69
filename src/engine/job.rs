//! An answer on the engine's thread: from sampled tokens to text and events.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, anyhow};
use tokio::sync::mpsc::UnboundedSender;

use super::answers::Answers;
use super::output::{Completion, End, Event, FinishReason, Piece, StopReason};
use super::request::Ready;
use super::step_outputs::Sampled;
use super::window::Ticket;
use super::{Sampler, Sequence};
use crate::Error;
use crate::mem::DType;
use crate::models::Tiles;
use crate::ops::{SamplingRow, TokenBias};
use crate::text::TextStream;

/// What the engine keeps of an answer beside its sequence.
pub(super) struct Job {
    /// Of the request, in the order of the sequence's places.
    pub pictures: Arc<[Tiles]>,
    completion: Completion,
    sampler: Sampler,
    stream: TextStream,
    max_tokens: usize,
    dtype: DType,
    answers: Arc<Answers>,
    /// The request's other answers. They start when this one has its first token, and find the prompt in the cache.
    others: Vec<(Sequence, Job)>,
}

impl Job {
    /// The sequence of a checked request's first answer, and the rest of it.
    pub fn new(
        ready: Ready,
        events: UnboundedSender<Event>,
        cancelled: Arc<AtomicBool>,
        ticket: Option<Ticket>,
    ) -> (Sequence, Job) {
        let Ready { sequence, pictures, sampler, stream, max_tokens, dtype, output, start } = ready;
        let pictures: Arc<[Tiles]> = pictures.into();
        let answers = output.outputs.len();
        let group = Arc::new(Answers::new(output, start, events, cancelled, ticket));
        let job = |index: usize| Job {
            pictures: pictures.clone(),
            completion: Completion::new(index),
            sampler: sampler.nth(index),
            stream: stream.clone(),
            max_tokens,
            dtype,
            answers: group.clone(),
            others: Vec::new(),
        };
        // What the prompt says is reported once.
        let mut quiet = sequence.clone();
        quiet.reports = false;
        let others = (1..answers).map(|index| (quiet.clone(), job(index))).collect();
        (sequence, Job { others, ..job(0) })
    }

    /// Nobody waits for the answer.
    pub fn is_unwanted(&self) -> bool {
        self.answers.are_unwanted()
    }

    /// The request's other answers, once this one has a token.
    pub fn take_others(&mut self) -> Vec<(Sequence, Job)> {
        std::mem::take(&mut self.others)
    }

    /// It is served from now on; `cached` tokens of the prompt were found in the prefix cache.
    pub fn begin(&self, cached: usize) {
        // The request's other answers find it there because of this one.
        if self.completion.index == 0 {
            self.answers.begin(cached);
        }
    }

    /// How its next token is sampled, with the list of tokens that goes with it, when `ahead` tokens before that one are not
    /// known yet; `state` is its row of counts.
    pub fn sampling(&self, ahead: usize, state: usize, list: &mut Vec<TokenBias>) -> SamplingRow {
        self.sampler.row(&self.completion.token_ids, ahead, state, list)
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
        self.answers.report(position, sampled);
    }

    /// Whether the sampler counts its tokens.
    pub fn counts_tokens(&self) -> bool {
        self.sampler.sampling().has_penalties()
    }

    /// The most alternatives that any of its rows reports.
    pub fn alternatives(&self) -> usize {
        self.sampler.sampling().top_logprobs.max(self.prompt_logprobs().unwrap_or(0))
    }

    /// Take its next token; says why the answer has ended with it, if it has.
    pub fn push(&mut self, token: u32, sampled: Sampled) -> Result<Option<FinishReason>> {
        let mut top = sampled.top;
        top.truncate(self.sampler.sampling().top_logprobs);
        let completion = &mut self.completion;
        completion.token_ids.push(token);
        completion.logprobs.push(sampled.logprob);
        completion.top_logprobs.push(top.clone());
        let ends = self.sampler.ends(token);
        let full = completion.token_ids.len() == self.max_tokens;
        let mut text = if ends { None } else { self.stream.push(token)? }.unwrap_or_default();
        let ended = ends || full || self.stream.stopped().is_some();
        if ended {
            text += &self.stream.finish()?;
            // What was held back may have been a stop string after all.
            let stopped = ends || self.stream.stopped().is_some();
            self.completion.finish_reason = if stopped { FinishReason::Stop } else { FinishReason::Length };
            self.completion.stop_reason = self.stop_reason();
        }
        let completion = &mut self.completion;
        completion.text.push_str(&text);
        let end =
            ended.then(|| End { finish_reason: completion.finish_reason, stop_reason: completion.stop_reason.clone() });
        self.answers.push(Piece {
            index: completion.index,
            token_id: token,
            logprob: sampled.logprob,
            top_logprobs: top,
            text,
            end,
        });
        Ok(ended.then_some(self.completion.finish_reason))
    }

    /// The answer has ended with its last token, whose logits had this hash.
    pub fn finish(mut self, logits_hash: String) {
        self.completion.logits_hash = logits_hash;
        self.answers.end(self.completion);
    }

    /// Which of the request's stop tokens and strings ended the answer.
    fn stop_reason(&self) -> Option<StopReason> {
        if self.completion.finish_reason != FinishReason::Stop {
            return None;
        }
        let stop = &self.sampler.sampling().stop;
        let text = self.stream.stopped().and_then(|index| stop.get(index)).map(|stop| StopReason::Text(stop.clone()));
        let token = || self.completion.token_ids.last().copied().filter(|&token| self.sampler.stops(token));
        text.or_else(|| token().map(StopReason::Token))
    }

    /// Nobody wants the rest.
    pub fn cancel(mut self) {
        // They are there only where this one has no token yet.
        self.take_others().into_iter().for_each(|other| other.1.cancel());
        match self.stream.finish() {
            Ok(rest) => self.completion.text.push_str(&rest),
            Err(error) => return self.fail(Error::Model(error)),
        }
        self.answers.end(self.completion);
    }

    /// What it means that there is no next token.
    pub fn no_number(&self) -> Error {
        let narrow = match self.dtype {
            DType::F32 => String::new(),
            dtype => format!(", or {dtype} too narrow for them (--dtype f32)"),
        };
        Error::Model(anyhow!(
            "the logits of token {} of the answer hold a NaN or an infinity; the weights may be damaged{narrow}",
            self.completion.token_ids.len()
        ))
    }

    /// There is no answer.
    pub fn fail(self, error: Error) {
        self.answers.fail(error);
    }
}
