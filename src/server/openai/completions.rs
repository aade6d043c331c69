//! The body of a legacy completion: prompts as they are, without messages and pictures.

use serde_json::Value;

use super::delivery::{cache_salt, model, tokens};
use super::fields::{Fields, invalid, shown};
use super::sampling::{check, sampling};
use super::unsupported::unsupported;
use super::{ApiError, Delivery, Report};
use crate::engine::{MAX_N, Prompt, Request, Sampling};
use crate::text::{MAX_TEXT_BYTES, Special, Tokenizer};

/// Most prompts of a request. With [`Sampling::n`] answers to each, it has [`MAX_N`] answers at most.
pub const MAX_PROMPTS: usize = 64;
/// Longest answer where the request does not say, in tokens.
const MAX_TOKENS: usize = 16;

/// A checked body of `/v1/completions`.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// The model that is asked for.
    pub model: Option<String>,
    /// Trusted texts, in which control tokens are what they say, or token ids.
    pub prompts: Vec<Prompt>,
    /// Whether the tokenizer puts BOS in front of texts.
    pub add_special_tokens: bool,
    /// How answers are sampled.
    pub sampling: Sampling,
    /// What is reported beside the text.
    pub report: Report,
    /// How answers are handed over.
    pub delivery: Delivery,
    /// Whether an answer begins with its prompt.
    pub echo: bool,
    /// Whether that is all that was asked for. The engine is asked for a token nevertheless.
    pub prompt_only: bool,
    /// Requests share cached prompts with those of the same salt alone.
    pub cache_salt: Option<String>,
}

impl CompletionRequest {
    /// Check a body.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn parse(body: &str) -> Result<CompletionRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        let prompts = prompts(&mut fields)?;
        unsupported(&mut fields)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let logprobs = fields.count("logprobs")?;
        let mut sampling = sampling(&mut fields)?;
        let prompt_only = echo && sampling.max_tokens == Some(0);
        sampling.max_tokens = Some(match sampling.max_tokens {
            Some(_) if prompt_only => 1,
            Some(asked) => asked,
            None => MAX_TOKENS.max(sampling.min_tokens),
        });
        let report = Report {
            logprobs: logprobs.is_some(),
            prompt_logprobs: sampling.prompt_logprobs.is_some(),
            token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
            timings: fields.flag("return_timings")?.unwrap_or(false),
        };
        sampling.top_logprobs = logprobs.unwrap_or(0);
        if echo {
            sampling.prompt_logprobs = sampling.prompt_logprobs.or(logprobs);
        }
        // What chats call top_logprobs.
        check(&sampling).map_err(|e| match e.param.as_deref() {
            Some("top_logprobs") => invalid("logprobs", e.message.replacen("top_logprobs", "logprobs", 1)),
            _ => e,
        })?;
        let request = CompletionRequest {
            model: model(&mut fields)?,
            prompts,
            add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(true),
            report,
            delivery: Delivery::read(&mut fields)?,
            echo,
            prompt_only,
            cache_salt: cache_salt(&mut fields)?,
            sampling,
        };
        request.fits(&mut fields)?;
        Ok(request)
    }

    /// Refuse what does not go together.
    fn fits(&self, fields: &mut Fields) -> Result<(), ApiError> {
        let (prompts, n) = (self.prompts.len(), self.sampling.n);
        fields.only("best_of", &[Value::from(n)], "leave it out, or set it to n")?;
        if prompts * n > MAX_N {
            let message = format!("{prompts} prompts and n {n} are {} answers; at most {MAX_N} are given", prompts * n);
            return Err(invalid("prompt", message));
        }
        let text = |prompt: &Prompt| if let Prompt::Raw(text) = prompt { text.len() } else { 0 };
        let bytes: usize = self.prompts.iter().map(text).sum();
        if bytes > MAX_TEXT_BYTES {
            let message = format!("prompt has {bytes} bytes of text; at most {MAX_TEXT_BYTES} are read");
            return Err(invalid("prompt", message));
        }
        if prompts > 1 && self.report.timings {
            let message = format!("return_timings is true and prompt has {prompts}; ask for one at a time");
            return Err(invalid("return_timings", message));
        }
        if self.delivery.stream && self.sampling.prompt_logprobs.is_some() {
            let name = if self.report.prompt_logprobs { "prompt_logprobs" } else { "echo with logprobs" };
            let message = format!("{name}: the log-probabilities of prompts are not streamed; leave out stream");
            return Err(invalid(name.split(' ').next().unwrap_or_default(), message));
        }
        if self.delivery.stream && self.prompt_only {
            let message = "max_tokens is 0 and stream is true; a prompt alone is not streamed";
            return Err(invalid("max_tokens", message.into()));
        }
        Ok(())
    }

    /// The engine's requests, one for each prompt.
    ///
    /// # Errors
    /// If a text is too long for the tokenizer.
    pub fn requests(&self, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Request>> {
        let prompt = |prompt: &Prompt| match prompt {
            Prompt::Raw(text) if !self.add_special_tokens => {
                tokenizer.encode(text, Special::Parse, false).map(Prompt::TokenIds)
            }
            other => Ok(other.clone()),
        };
        let request = |p: &Prompt| {
            let (sampling, cache_salt) = (self.sampling.clone(), self.cache_salt.clone());
            Ok(Request { prompt: prompt(p)?, sampling, cache_salt, ..Request::default() })
        };
        self.prompts.iter().map(request).collect()
    }

    /// What the answers to each prompt begin with, if that was asked for: a text as it was given, or that of the ids.
    ///
    /// # Errors
    /// If the tokenizer cannot show an id.
    pub fn echoes(&self, tokenizer: &Tokenizer) -> anyhow::Result<Option<Vec<String>>> {
        let text = |prompt: &Prompt| match prompt {
            Prompt::Raw(text) => Ok(text.clone()),
            Prompt::TokenIds(ids) => tokenizer.decode(ids, false),
            Prompt::Chat(_) | Prompt::Transcript(_) => Ok(String::new()),
        };
        self.echo.then(|| self.prompts.iter().map(text).collect()).transpose()
    }
}

/// A text, texts, ids, or lists of ids.
fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let Some(value) = fields.take("prompt") else {
        let message = "prompt is missing; it must be a text, a list of texts, token ids, or a list of lists of ids";
        return Err(ApiError::invalid("prompt", "missing_required_parameter", message));
    };
    let prompts = match value {
        Value::String(text) => vec![Prompt::Raw(text)],
        Value::Array(items) if items.iter().all(Value::is_number) && !items.is_empty() => {
            vec![ids("prompt", &Value::Array(items))?]
        }
        Value::Array(items) => {
            let many = items.len();
            if many == 0 || many > MAX_PROMPTS {
                return Err(invalid("prompt", format!("prompt is a list of {many}; 1 to {MAX_PROMPTS} can be given")));
            }
            let one = |(i, item)| match item {
                Value::String(text) => Ok(Prompt::Raw(text)),
                other => ids(&format!("prompt[{i}]"), &other),
            };
            items.into_iter().enumerate().map(one).collect::<Result<_, _>>()?
        }
        other => return Err(not_ids("prompt", &other)),
    };
    Ok(prompts)
}

fn ids(at: &str, value: &Value) -> Result<Prompt, ApiError> {
    tokens(value).map(Prompt::TokenIds).ok_or_else(|| not_ids(at, value))
}

fn not_ids(at: &str, value: &Value) -> ApiError {
    invalid(at, format!("{at} is {}; it must be a text or a list of token ids", shown(value)))
}
