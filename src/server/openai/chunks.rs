//! An answer piece by piece, as `chat.completion.chunk`s.

use serde_json::{Value, json};

use super::Report;
use super::response::{finish_reason, logprob_entry, now, usage};
use crate::engine::{Output, Piece};
use crate::text::Tokenizer;

/// The chunks of one answer. Its first and its last event are given to it, and all between, in their order.
#[derive(Debug)]
pub struct Chunks {
    id: String,
    model: String,
    created: u64,
    report: Report,
    /// For each of the request's answers, the bytes of text that were sent; none before its first chunk.
    sent: Vec<Option<usize>>,
}

impl Chunks {
    /// Of `n` answers to a request; `id` is that of all its chunks, `model` the name that was asked for.
    pub fn new(id: String, model: String, report: Report, n: usize) -> Chunks {
        Chunks { id, model, created: now(), report, sent: vec![None; n] }
    }

    /// What a token adds: nothing while its text is held back, unless more than the text is reported.
    ///
    /// # Errors
    /// If the tokenizer cannot show a token.
    pub fn piece(&mut self, tokenizer: &Tokenizer, piece: &Piece) -> anyhow::Result<Vec<Value>> {
        let mut chunks = self.begin(piece.index);
        self.sent[piece.index] = self.sent[piece.index].map(|bytes| bytes + piece.text.len());
        if piece.text.is_empty() && !self.report.logprobs && !self.report.token_ids {
            return Ok(chunks);
        }
        let mut choice = json!({ "index": piece.index, "delta": { "content": piece.text }, "finish_reason": null });
        if self.report.logprobs {
            let entry = logprob_entry(tokenizer, piece.token_id, piece.logprob, &piece.top_logprobs)?;
            choice["logprobs"] = json!({ "content": [entry] });
        }
        if self.report.token_ids {
            choice["token_ids"] = json!([piece.token_id]);
        }
        chunks.push(self.chunk(&[choice]));
        Ok(chunks)
    }

    /// The end of each answer, with the text that was held back to it.
    pub fn done(&mut self, output: &Output) -> Vec<Value> {
        let mut chunks = Vec::new();
        for completion in &output.outputs {
            chunks.extend(self.begin(completion.index));
            let rest = completion.text.get(self.sent[completion.index].unwrap_or(0)..).unwrap_or_default();
            chunks.push(self.chunk(&[json!({
                "index": completion.index,
                "delta": if rest.is_empty() { json!({}) } else { json!({ "content": rest }) },
                "finish_reason": finish_reason(completion),
                "stop_reason": completion.stop_reason,
            })]));
        }
        chunks
    }

    /// What the whole request took, in a chunk without a choice.
    pub fn usage(&self, output: &Output) -> Value {
        let mut chunk = self.chunk(&[]);
        chunk["usage"] = usage(output);
        chunk
    }

    /// The first chunk of an answer, unless it was sent.
    fn begin(&mut self, index: usize) -> Vec<Value> {
        if self.sent[index].is_some() {
            return Vec::new();
        }
        self.sent[index] = Some(0);
        let delta = json!({ "role": "assistant", "content": "" });
        vec![self.chunk(&[json!({ "index": index, "delta": delta, "finish_reason": null })])]
    }

    fn chunk(&self, choices: &[Value]) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}
