//! How an answer is handed over, and what it reports.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, invalid};

/// How an answer is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Whether it comes piece by piece.
    pub stream: bool,
    /// Whether the last piece is followed by what the request took.
    pub include_usage: bool,
    /// Whether every piece says what the request has taken so far.
    pub continuous_usage: bool,
}

/// What an answer reports beside its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The log-probabilities of its tokens.
    pub logprobs: bool,
    /// Those of the prompt.
    pub prompt_logprobs: bool,
    /// The ids of both.
    pub token_ids: bool,
    /// Where the time went.
    pub timings: bool,
}

/// Longest salt, in bytes.
const MAX_SALT: usize = 1024;

impl Delivery {
    /// There are options only where there is a stream. As in vLLM, usage is in every piece only if it is at the end, too.
    pub(super) fn read(fields: &mut Fields) -> Result<Delivery, ApiError> {
        let stream = fields.flag("stream")?.unwrap_or(false);
        let Some(options) = fields.take("stream_options") else {
            return Ok(Delivery { stream, ..Delivery::default() });
        };
        if !stream {
            return Err(invalid("stream_options", "stream_options is set and stream is not true; set it".into()));
        }
        let mut options = Fields::new("stream_options", options)?;
        let include_usage = options.flag("include_usage")?.unwrap_or(false);
        let continuous_usage = options.flag("continuous_usage_stats")?.unwrap_or(false) && include_usage;
        Ok(Delivery { stream, include_usage, continuous_usage })
    }
}

/// The model that is asked for.
pub(super) fn model(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    Ok(fields.text("model")?.filter(|name| !name.is_empty()))
}

/// Requests share cached prompts with those of the same salt alone.
pub(super) fn cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.text("cache_salt")?;
    if salt.as_ref().is_some_and(|salt| salt.is_empty() || salt.len() > MAX_SALT) {
        return Err(invalid("cache_salt", format!("cache_salt must have 1 to {MAX_SALT} bytes")));
    }
    Ok(salt)
}

/// A list of token ids.
pub(super) fn tokens(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(super::fields::token).collect()
}
