//! Answers of `/v1/completions`.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Report;
use super::offsets::{Offsets, prompt_offsets};
use super::response::{FINGERPRINT, FLOOR, finish_reason, now, prompt_logprobs};
use super::usage::{Usage, timings};
use crate::engine::{Completion, FinishReason, Output, Sampled};
use crate::text::Tokenizer;

/// How the answers to a list of prompts are shown.
#[derive(Clone, Debug)]
pub struct TextForm {
    /// What they report beside the text.
    pub report: Report,
    /// What the answers to each prompt begin with, if they repeat it.
    pub echoes: Option<Vec<String>>,
    /// Whether they hold nothing else.
    pub prompt_only: bool,
}

/// The log-probabilities of tokens as four lists of one length.
#[derive(Debug, Default, Serialize)]
pub(super) struct LegacyLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl LegacyLogprobs {
    /// One token more. `top` are the most likely ones at its place; it is shown among them in any case. Without a
    /// log-probability, as the first of a prompt, it has none of both.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        offset: usize,
    ) -> anyhow::Result<()> {
        let own = tokenizer.token_text(id)?.0;
        let logprob = logprob.map(|l| l.max(FLOOR));
        let alternatives = logprob.map(|logprob| {
            let mut map = Map::new();
            map.insert(own.clone(), logprob.into());
            for &(id, l) in top {
                // Tokens of one text are one entry: that of the token itself, or else of the likelier.
                let text = tokenizer.token_text(id)?.0;
                map.entry(text).or_insert_with(|| l.max(FLOOR).into());
            }
            anyhow::Ok(map)
        });
        self.top_logprobs.push(alternatives.transpose()?);
        self.tokens.push(own);
        self.token_logprobs.push(logprob);
        self.text_offset.push(offset);
        Ok(())
    }
}

/// The object that `/v1/completions` answers with: the answers to all prompts, those to the first before all others. `id` is
/// its own, `model` the name that was asked for.
///
/// # Errors
/// If the tokenizer cannot show a token.
pub fn text_completion(
    id: &str,
    model: &str,
    tokenizer: &Arc<Tokenizer>,
    form: &TextForm,
    mut outputs: Vec<Output>,
) -> anyhow::Result<Value> {
    if form.prompt_only {
        outputs.iter_mut().flat_map(|output| &mut output.outputs).for_each(forget);
    }
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (prompt, output) in outputs.iter().enumerate() {
        usage.add(output);
        let echo = form.echoes.as_ref().map(|echoes| &echoes[prompt][..]);
        for completion in &output.outputs {
            choices.push(choice(choices.len(), tokenizer, form.report, echo, output, completion)?);
        }
    }
    let mut body = json!({
        "id": id,
        "object": "text_completion",
        "created": now(),
        "model": model,
        "choices": choices,
        "service_tier": null,
        "system_fingerprint": FINGERPRINT,
        "usage": usage.json(),
    });
    if form.report.timings
        && let [output] = &outputs[..]
    {
        body["timings"] = timings(output);
    }
    Ok(body)
}

fn choice(
    index: usize,
    tokenizer: &Arc<Tokenizer>,
    report: Report,
    echo: Option<&str>,
    output: &Output,
    completion: &Completion,
) -> anyhow::Result<Value> {
    let logprobs = if report.logprobs { json!(logprobs(tokenizer, echo, output, completion)?) } else { Value::Null };
    let prompt_logprobs = if report.prompt_logprobs { prompt_logprobs(tokenizer, output)? } else { Value::Null };
    Ok(json!({
        "index": index,
        "text": format!("{}{}", echo.unwrap_or_default(), completion.text),
        "logprobs": logprobs,
        "finish_reason": finish_reason(completion.finish_reason),
        "stop_reason": completion.stop_reason,
        "token_ids": report.token_ids.then_some(&completion.token_ids),
        "prompt_logprobs": prompt_logprobs,
        "prompt_token_ids": report.token_ids.then_some(&output.prompt_token_ids),
    }))
}

/// Those of the prompt, if it is repeated, and of the answer.
fn logprobs(
    tokenizer: &Arc<Tokenizer>,
    echo: Option<&str>,
    output: &Output,
    completion: &Completion,
) -> anyhow::Result<LegacyLogprobs> {
    let mut logprobs = LegacyLogprobs::default();
    if let Some(text) = echo {
        let offsets = prompt_offsets(tokenizer, text, &output.prompt_token_ids)?;
        for ((&id, sampled), offset) in output.prompt_token_ids.iter().zip(&output.prompt_logprobs).zip(offsets) {
            let (logprob, top) = match sampled {
                Some(Sampled { logprob, top, .. }) => (Some(*logprob), &top[..]),
                None => (None, &[][..]),
            };
            logprobs.push(tokenizer, id, logprob, top, offset)?;
        }
    }
    let mut offsets = Offsets::new(tokenizer, echo.map_or(0, |text| text.chars().count()));
    let tokens = completion.token_ids.iter().zip(&completion.logprobs).zip(&completion.top_logprobs);
    for ((&id, &logprob), top) in tokens {
        logprobs.push(tokenizer, id, Some(logprob), top, offsets.next(id)?)?;
    }
    Ok(logprobs)
}

/// The model was asked for a token so that it reads the prompt, and the client for none.
fn forget(completion: &mut Completion) {
    *completion = Completion { finish_reason: FinishReason::Length, ..Completion::new(completion.index) };
}
