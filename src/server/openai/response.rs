//! An answer as a `chat.completion`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Report;
use super::usage::{Usage, timings};
use crate::engine::{Completion, FinishReason, Output, Sampled};
use crate::text::Tokenizer;

/// Lowest log-probability that is reported: JSON has no infinity.
pub(super) const FLOOR: f32 = -9999.0;
/// What answers.
pub(super) const FINGERPRINT: &str = concat!("ocelli-", env!("CARGO_PKG_VERSION"));

/// The object that `/v1/chat/completions` answers with; `id` is its own, `model` the name that was asked for.
///
/// # Errors
/// If the tokenizer cannot show a token.
pub fn chat_completion(
    id: &str,
    model: &str,
    tokenizer: &Tokenizer,
    report: Report,
    output: &Output,
) -> anyhow::Result<Value> {
    let choice = |completion| choice(tokenizer, report, completion);
    let choices = output.outputs.iter().map(choice).collect::<anyhow::Result<Vec<_>>>()?;
    let prompt_logprobs = if report.prompt_logprobs { prompt_logprobs(tokenizer, output)? } else { Value::Null };
    let mut body = json!({
        "id": id,
        "object": "chat.completion",
        "created": now(),
        "model": model,
        "choices": choices,
        "service_tier": null,
        "system_fingerprint": FINGERPRINT,
        "usage": Usage::of(output).json(),
        "prompt_logprobs": prompt_logprobs,
        "prompt_token_ids": report.token_ids.then_some(&output.prompt_token_ids),
    });
    if report.timings {
        body["timings"] = timings(output);
    }
    Ok(body)
}

/// Seconds since 1970.
pub(in crate::server) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn choice(tokenizer: &Tokenizer, report: Report, completion: &Completion) -> anyhow::Result<Value> {
    Ok(json!({
        "index": completion.index,
        "message": { "role": "assistant", "content": completion.text, "refusal": null },
        "logprobs": if report.logprobs { logprobs(tokenizer, completion)? } else { Value::Null },
        "finish_reason": finish_reason(completion.finish_reason),
        "stop_reason": completion.stop_reason,
        "token_ids": report.token_ids.then_some(&completion.token_ids),
    }))
}

/// Why an answer ended, in the words of the interface.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Cancelled => "abort",
        other => other.name(),
    }
}

fn logprobs(tokenizer: &Tokenizer, completion: &Completion) -> anyhow::Result<Value> {
    let tokens = completion.token_ids.iter().zip(&completion.logprobs).zip(&completion.top_logprobs);
    let content = tokens.map(|((&id, &logprob), top)| logprob_entry(tokenizer, id, logprob, top));
    Ok(json!({ "content": content.collect::<anyhow::Result<Vec<_>>>()? }))
}

/// A token of an answer with its log-probability, and the most likely ones at its place with theirs.
pub(super) fn logprob_entry(tokenizer: &Tokenizer, id: u32, logprob: f32, top: &[(u32, f32)]) -> anyhow::Result<Value> {
    let mut entry = logprob_of(tokenizer, id, logprob)?;
    let top = top.iter().map(|&(id, l)| logprob_of(tokenizer, id, l)).collect::<anyhow::Result<Vec<_>>>()?;
    entry["top_logprobs"] = top.into();
    Ok(entry)
}

fn logprob_of(tokenizer: &Tokenizer, id: u32, logprob: f32) -> anyhow::Result<Value> {
    let (token, bytes) = tokenizer.token_text(id)?;
    Ok(json!({ "token": token, "logprob": logprob.max(FLOOR), "bytes": bytes }))
}

/// The tokens of a prompt among their alternatives.
pub(super) fn prompt_logprobs(tokenizer: &Tokenizer, output: &Output) -> anyhow::Result<Value> {
    let tokens = output.prompt_logprobs.iter().map(|token| prompt_logprob(tokenizer, token.as_ref()));
    Ok(tokens.collect::<anyhow::Result<Vec<_>>>()?.into())
}

/// A token of the prompt among its alternatives, by its id, as vLLM reports it. The rank is known of the most likely ones.
fn prompt_logprob(tokenizer: &Tokenizer, sampled: Option<&Sampled>) -> anyhow::Result<Value> {
    let Some(Sampled { token: Some(own), logprob, top }) = sampled else { return Ok(Value::Null) };
    let ranked = top.iter().enumerate().map(|(i, &(id, l))| (id, l, Some(i + 1)));
    let own = (!top.iter().any(|(id, _)| id == own)).then_some((*own, *logprob, None));
    let mut entry = serde_json::Map::new();
    for (id, logprob, rank) in own.into_iter().chain(ranked) {
        let (text, _) = tokenizer.token_text(id)?;
        entry.insert(id.to_string(), json!({ "logprob": logprob.max(FLOOR), "rank": rank, "decoded_token": text }));
    }
    Ok(entry.into())
}

/// `prefix` and 32 random digits.
pub fn unique_id(prefix: &str) -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:016x}", random(), random())
}
