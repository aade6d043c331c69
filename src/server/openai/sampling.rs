//! The fields of a request that say how it is answered.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ApiError;
use super::delivery::tokens;
use super::fields::{Fields, invalid, whole};
use crate::engine::Sampling;

/// Whether a chat reports the log-probabilities of its answer, and with how many alternatives.
pub(super) fn chat_logprobs(fields: &mut Fields) -> Result<(bool, usize), ApiError> {
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.count("top_logprobs")?.unwrap_or(0);
    if top_logprobs > 0 && !logprobs {
        return Err(invalid(
            "top_logprobs",
            format!("top_logprobs is {top_logprobs} and logprobs is not true; set it"),
        ));
    }
    Ok((logprobs, top_logprobs))
}

/// How the answer is sampled, but for the alternatives that it reports. Not checked yet.
pub(super) fn sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let base = Sampling::default();
    let (old, new) = (fields.count("max_tokens")?, fields.count("max_completion_tokens")?);
    let seed = fields.read("seed", "a whole number", |value| {
        // A negative one is as good as its bits.
        value.as_u64().or_else(|| whole(value).map(|seed| seed as u64))
    })?;
    Ok(Sampling {
        n: fields.count("n")?.unwrap_or(base.n),
        temperature: fields.number("temperature")?.unwrap_or(base.temperature),
        top_p: fields.number("top_p")?.unwrap_or(base.top_p),
        top_k: fields.read("top_k", "a whole number from 0 on, or -1", top_k)?.unwrap_or(base.top_k),
        min_p: fields.number("min_p")?.unwrap_or(base.min_p),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(base.repetition_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(base.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(base.frequency_penalty),
        seed,
        max_tokens: new.or(old),
        min_tokens: fields.count("min_tokens")?.unwrap_or(0),
        stop: fields.read("stop", "a text or a list of texts", texts)?.unwrap_or_default(),
        include_stop_str_in_output: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
        stop_token_ids: fields.read("stop_token_ids", "a list of token ids", tokens)?.unwrap_or_default(),
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        logit_bias: fields.read("logit_bias", "an object of token ids and numbers", biases)?.unwrap_or_default(),
        allowed_token_ids: fields.read("allowed_token_ids", "a list of token ids", tokens)?,
        bad_words: fields.read("bad_words", "a list of texts", texts)?.unwrap_or_default(),
        top_logprobs: 0,
        prompt_logprobs: fields.count("prompt_logprobs")?,
    })
}

/// Refuse what no model can be asked for.
pub(super) fn check(sampling: &Sampling) -> Result<(), ApiError> {
    sampling.check().map_err(|error| {
        // The message begins with the name of what it is about.
        let message = error.to_string();
        let name = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        invalid(name, message.clone())
    })
}

/// 0 and -1 keep all.
fn top_k(value: &Value) -> Option<u32> {
    whole(value).and_then(|k| if k == -1 { Some(0) } else { u32::try_from(k).ok() })
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn biases(value: &Value) -> Option<BTreeMap<u32, f64>> {
    let entries = value.as_object()?.iter();
    entries.map(|(id, bias)| Some((id.parse().ok()?, bias.as_f64().filter(|b| b.is_finite())?))).collect()
}
