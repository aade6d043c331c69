//! What comes back.

use serde::Serialize;

use super::stats::milliseconds;
use super::step_outputs::Sampled;
use crate::Error;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// As many tokens as were asked for, or as fit.
    Length,
    /// The caller asked for no more.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// What ended an answer with [`FinishReason::Stop`], where that was the request's own wish. In JSON it is the number or the
/// string alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of its stop tokens.
    Token(u32),
    /// One of its stop strings.
    Text(String),
}

/// A finished request: its prompt, and what was written after it.
#[derive(Clone, Debug)]
pub struct Output {
    /// The prompt as it was tokenised, before pictures were expanded. Empty where it was given as tokens.
    pub prompt: String,
    /// Its ids; at the places of pictures, the placeholder's.
    pub prompt_token_ids: Vec<u32>,
    /// Places that each picture takes.
    pub image_tokens: Vec<usize>,
    /// Tokens of the prompt that were found in the prefix cache when it was first served.
    pub cached_tokens: usize,
    /// For each token of the prompt, it and its log-probability, with the most likely tokens at its place; none for the
    /// first and for those of pictures. Empty where it was not asked for.
    pub prompt_logprobs: Vec<Option<Sampled>>,
    /// The answers, as many as [`Sampling::n`](super::Sampling::n) asked for, by their index.
    pub outputs: Vec<Completion>,
    /// Where the time went.
    pub timings: Timings,
}

/// One answer to a request.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Which of the request's answers it is, from 0 on.
    pub index: usize,
    /// The answer.
    pub text: String,
    /// Its ids, with the end-of-sequence token if it ended so.
    pub token_ids: Vec<u32>,
    /// Log-probability of each, under the logits as the model gave them.
    pub logprobs: Vec<f32>,
    /// For each token, the most likely ones at its place with theirs, as many as were asked for.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Which stop token or stop string ended it; `None` if it was an end-of-sequence token of the model, or something else.
    pub stop_reason: Option<StopReason>,
    /// [`logits_hash`](crate::ops::logits_hash) of the last logits: shows a change in the numbers where the text is the
    /// same. Empty if the answer was cancelled.
    pub logits_hash: String,
}

/// Wall-clock times of a request, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Loading the model, before the request.
    pub load_ms: f64,
    /// Before the device has anything to do: decoding the pictures, tokenising.
    pub prepare_ms: f64,
    /// From there until the engine first serves it: waiting for its turn.
    pub queue_ms: f64,
    /// From there to the first token: vision tower, projector, the prompt's steps.
    pub prefill_ms: f64,
    /// From the request to the first token, the sum of those three.
    pub ttft_ms: f64,
    /// All later tokens, of all answers.
    pub decode_ms: f64,
    /// Later tokens a second, of all answers together; 0 if there was none.
    pub tokens_per_s: f64,
}

/// A token of an answer, as soon as there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Which of the request's answers it belongs to.
    pub index: usize,
    /// The token.
    pub token_id: u32,
    /// Its log-probability, under the logits as the model gave them.
    pub logprob: f32,
    /// The most likely tokens at its place with theirs, as many as were asked for.
    pub top_logprobs: Vec<(u32, f32)>,
    /// Text that can be shown now; empty while a character or what may be a stop string is incomplete. With the last token
    /// of an answer it is all that was held back.
    pub text: String,
    /// Set with the last token of an answer, whether or not the request has others that go on.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub finish_reason: FinishReason,
    /// See [`Completion::stop_reason`].
    pub stop_reason: Option<StopReason>,
}

/// What happens to a request. [`Event::Done`] or [`Event::Failed`] is the last, and always comes.
#[derive(Debug)]
pub enum Event {
    /// A token.
    Piece(Piece),
    /// All answers are complete. Where they were cancelled, a text may end in a little more than its pieces showed: what
    /// was held back.
    Done(Box<Output>),
    /// There is no answer, or no more of it.
    Failed(Error),
}

impl Event {
    /// The answer or the error, if this is the last event.
    pub(super) fn end(self) -> Option<crate::Result<Output>> {
        match self {
            Event::Piece(_) => None,
            Event::Done(output) => Some(Ok(*output)),
            Event::Failed(error) => Some(Err(error)),
        }
    }
}

impl Completion {
    /// An answer of which nothing is written yet, and if nothing ever will be, nobody wanted it.
    pub(crate) fn new(index: usize) -> Completion {
        Completion {
            index,
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            finish_reason: FinishReason::Cancelled,
            stop_reason: None,
            logits_hash: String::new(),
        }
    }

    /// The answer as far as somebody listened: its first tokens, and so many bytes of text.
    pub(super) fn cut(&mut self, tokens: usize, bytes: usize) {
        self.token_ids.truncate(tokens);
        self.logprobs.truncate(tokens);
        self.top_logprobs.truncate(tokens);
        self.text.truncate(bytes);
        self.logits_hash.clear();
        self.stop_reason = None;
        self.finish_reason = FinishReason::Cancelled;
    }
}

impl Timings {
    /// The request has ended with `tokens` tokens: `first` is when its first token came.
    pub(super) fn end(&mut self, first: std::time::Instant, tokens: usize) {
        self.decode_ms = milliseconds(first);
        let later = tokens.saturating_sub(1);
        self.tokens_per_s = if later == 0 { 0.0 } else { later as f64 / (self.decode_ms / 1e3) };
    }
}
