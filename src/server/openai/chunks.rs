//! Answers piece by piece, as `chat.completion.chunk`s or `text_completion`s.

use std::sync::Arc;

use serde_json::{Value, json};

use super::offsets::Offsets;
use super::response::{finish_reason, logprob_entry, now};
use super::text::LegacyLogprobs;
use super::usage::{Usage, so_far, timings};
use super::{Delivery, Report};
use crate::engine::{End, Output, Piece};
use crate::text::Tokenizer;

/// What all chunks of a request have in common.
#[derive(Clone, Debug)]
pub struct Form {
    /// Of all of them.
    pub id: String,
    /// The name that was asked for.
    pub model: String,
    /// What they report beside the text.
    pub report: Report,
    /// Where they say what the request took.
    pub delivery: Delivery,
    /// Answers to each prompt.
    pub n: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
}

/// Whose chunks they are.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Those of `/v1/chat/completions`, which has one prompt.
    Chat,
    /// Those of `/v1/completions`, with what each answer to each prompt begins with: the prompt, or nothing.
    Text(Vec<String>),
}

/// The chunks of a request. The events of its prompts are given to it in their order.
pub struct Chunks {
    form: Form,
    shape: Shape,
    created: u64,
    tokenizer: Arc<Tokenizer>,
    /// For each prompt, its answers.
    choices: Vec<Choice>,
    /// Prompts whose last event has not come.
    left: usize,
    usage: Usage,
}

/// How far an answer is.
#[derive(Clone, Default)]
struct Choice {
    begun: bool,
    ended: bool,
    /// Bytes of text that were sent.
    bytes: usize,
    tokens: usize,
    /// Where they are reported.
    offsets: Option<Offsets>,
}

impl Chunks {
    /// None yet.
    pub fn new(form: Form, shape: Shape, tokenizer: &Arc<Tokenizer>) -> Chunks {
        let choice = |echo: &str| {
            let offsets = form.report.logprobs.then(|| Offsets::new(tokenizer, echo.chars().count()));
            vec![Choice { offsets, ..Choice::default() }; form.n]
        };
        let choices: Vec<_> = match &shape {
            Shape::Chat => vec![Choice::default(); form.n],
            Shape::Text(echoes) => echoes.iter().flat_map(|echo| choice(echo)).collect(),
        };
        let left = choices.len() / form.n.max(1);
        Chunks { created: now(), tokenizer: tokenizer.clone(), choices, left, usage: Usage::default(), form, shape }
    }

    /// What a token of an answer to `prompt`, counted from 0, adds: nothing while its text is held back, unless more than the
    /// text is reported. The last of an answer says how that ended.
    ///
    /// # Errors
    /// If the tokenizer cannot show a token.
    pub fn piece(&mut self, prompt: usize, piece: &Piece) -> anyhow::Result<Vec<Value>> {
        let index = prompt * self.form.n + piece.index;
        let mut chunks = self.begin(index);
        let choice = &mut self.choices[index];
        choice.bytes += piece.text.len();
        choice.tokens += 1;
        choice.ended = piece.end.is_some();
        let Report { logprobs, token_ids, .. } = self.form.report;
        if piece.text.is_empty() && !choice.ended && !logprobs && !token_ids {
            return Ok(chunks);
        }
        let mut value = self.choice(index, &piece.text, piece.end.as_ref());
        if logprobs {
            value["logprobs"] = self.logprobs(index, piece)?;
        }
        if token_ids {
            value["token_ids"] = json!([piece.token_id]);
        }
        chunks.push(self.chunk(&[value]));
        Ok(chunks)
    }

    /// A prompt has no more events. Answers to it that were cancelled end, with the text that was held back; behind the last
    /// prompt, a chunk without a choice says what was asked for of the whole request.
    pub fn done(&mut self, prompt: usize, output: &Output) -> Vec<Value> {
        let mut chunks = Vec::new();
        for completion in &output.outputs {
            let index = prompt * self.form.n + completion.index;
            if self.choices[index].ended {
                continue;
            }
            chunks.extend(self.begin(index));
            let rest = completion.text.get(self.choices[index].bytes..).unwrap_or_default();
            let end = End { finish_reason: completion.finish_reason, stop_reason: completion.stop_reason.clone() };
            chunks.push(self.chunk(&[self.choice(index, rest, Some(&end))]));
        }
        self.usage.add(output);
        self.left -= 1;
        let Form { delivery, report, .. } = &self.form;
        if self.left == 0 && (delivery.include_usage || report.timings) {
            let mut chunk = self.chunk(&[]);
            if delivery.include_usage {
                chunk["usage"] = self.usage.json();
            }
            if report.timings {
                chunk["timings"] = timings(output);
            }
            chunks.push(chunk);
        }
        chunks
    }

    /// The first chunk of an answer, unless it was sent or there is nothing to say in it.
    fn begin(&mut self, index: usize) -> Vec<Value> {
        if std::mem::replace(&mut self.choices[index].begun, true) {
            return Vec::new();
        }
        let first = match &self.shape {
            Shape::Chat => json!({
                "index": index, "delta": { "role": "assistant", "content": "" }, "finish_reason": null,
            }),
            Shape::Text(echoes) if echoes[index / self.form.n].is_empty() => return Vec::new(),
            Shape::Text(echoes) => self.choice(index, &echoes[index / self.form.n], None),
        };
        vec![self.chunk(&[first])]
    }

    fn choice(&self, index: usize, text: &str, end: Option<&End>) -> Value {
        let mut choice = match &self.shape {
            Shape::Chat if text.is_empty() && end.is_some() => json!({ "index": index, "delta": {} }),
            Shape::Chat => json!({ "index": index, "delta": { "content": text } }),
            Shape::Text(_) => json!({ "index": index, "text": text, "logprobs": null }),
        };
        choice["finish_reason"] = json!(end.map(|end| finish_reason(end.finish_reason)));
        if let Some(end) = end {
            choice["stop_reason"] = json!(end.stop_reason);
        }
        choice
    }

    fn logprobs(&mut self, index: usize, piece: &Piece) -> anyhow::Result<Value> {
        let (id, top) = (piece.token_id, &piece.top_logprobs);
        let Some(offsets) = &mut self.choices[index].offsets else {
            let entry = logprob_entry(&self.tokenizer, id, piece.logprob, top)?;
            return Ok(json!({ "content": [entry] }));
        };
        let mut logprobs = LegacyLogprobs::default();
        logprobs.push(&self.tokenizer, id, Some(piece.logprob), top, offsets.next(id)?)?;
        Ok(json!(logprobs))
    }

    fn chunk(&self, choices: &[Value]) -> Value {
        let object = match self.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Text(_) => "text_completion",
        };
        let mut chunk = json!({
            "id": self.form.id,
            "object": object,
            "created": self.created,
            "model": self.form.model,
            "choices": choices,
        });
        if self.form.delivery.continuous_usage {
            chunk["usage"] = so_far(self.form.prompt_tokens, self.choices.iter().map(|c| c.tokens).sum());
        }
        chunk
    }
}
