//! What a caller may ask of the sampler, and the one place that checks it.

mod sampler;

pub use sampler::Sampler;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::models::MAX_TOKEN_BIASES;
use crate::ops::{MAX_TOP_LOGPROBS, SamplingRow};
use crate::text::StopMatcher;

/// Most answers to one request, which is also the OpenAI interface's limit.
pub const MAX_N: usize = 128;

/// Longest bad word, in bytes.
const MAX_WORD_BYTES: usize = 1024;

/// How an answer is sampled and when it ends. The defaults are those of the OpenAI interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Answers to the request, drawn independently of each other; 1 to [`MAX_N`]. They share its pictures and, where
    /// prefixes are cached, what is computed of its prompt.
    pub n: usize,
    /// 0 takes the most likely token; otherwise scores are divided by it. In `0 ..= 2`.
    pub temperature: f64,
    /// Keep the most likely tokens that reach this probability together. In `(0, 1]`; 1 keeps all.
    pub top_p: f64,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens below this fraction of the largest probability. In `0 ..= 1`; 0 keeps all.
    pub min_p: f64,
    /// For tokens of the prompt and the answer: divide a positive score, multiply a negative one. In `0.01 ..= 10`.
    pub repetition_penalty: f64,
    /// Subtract for every token of the answer. In `-2 ..= 2`.
    pub presence_penalty: f64,
    /// Subtract for every occurrence in the answer. In `-2 ..= 2`.
    pub frequency_penalty: f64,
    /// The same seed gives the same answer; without one, every call draws anew. Of several answers, the one of index `i` is
    /// that of a request for one with the seed `seed + i`, as in vLLM.
    pub seed: Option<u64>,
    /// Longest answer in tokens; without one, as long as the context allows.
    pub max_tokens: Option<usize>,
    /// Before so many tokens, the tokens that would end the answer are never chosen, and a stop string that is complete
    /// by then does not end it.
    pub min_tokens: usize,
    /// The answer ends before the first of these. See [`StopMatcher`](crate::text::StopMatcher::new) for their limits.
    pub stop: Vec<String>,
    /// The answer ends behind the stop string instead of before it.
    pub include_stop_str_in_output: bool,
    /// The answer ends at the first of these tokens, and holds it.
    pub stop_token_ids: Vec<u32>,
    /// Do not end at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Added to the scores of these tokens before anything else. Raised or lowered into `-100 ..= 100`, as vLLM does.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Choose no other token than these.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Never write these words: the last token of each is not chosen where the answer ends in the ones before it. A word
    /// is taken as it is tokenised at the start of a text and, where that gives as many tokens, behind a space.
    pub bad_words: Vec<String>,
    /// Alternatives reported beside every token, at most 20.
    pub top_logprobs: usize,
    /// Report the log-probability of every token of the prompt but the first and those of pictures, with so many
    /// alternatives, at most 20.
    pub prompt_logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            n: 1,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            include_stop_str_in_output: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logit_bias: BTreeMap::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            top_logprobs: 0,
            prompt_logprobs: None,
        }
    }
}

impl Sampling {
    /// Refuse what has no meaning.
    ///
    /// # Errors
    /// Names the parameter, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f64, low: f64, high: f64| {
            ensure!((low..=high).contains(&value), "{name} is {value:?}; it must lie in {low} to {high}");
            Ok(())
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        ensure!((1..=MAX_N).contains(&self.n), "n is {}; it must lie in 1 to {MAX_N}", self.n);
        ensure!(
            self.n == 1 || self.temperature > 0.0,
            "n is {} and temperature 0, which gives the same answer every time; ask for one, or raise the temperature",
            self.n
        );
        let (top_p, above_zero) = (self.top_p, f64::MIN_POSITIVE..=1.0);
        ensure!(above_zero.contains(&top_p), "top_p is {top_p:?}; it must lie above 0 and go up to 1");
        within("min_p", self.min_p, 0.0, 1.0)?;
        // A penalty much below this would overflow the scores.
        within("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        ensure!(self.max_tokens != Some(0), "max_tokens is 0; an answer has at least one token");
        let max_tokens = self.max_tokens.unwrap_or(usize::MAX);
        ensure!(self.min_tokens <= max_tokens, "min_tokens is {}; max_tokens is {max_tokens}", self.min_tokens);
        for (name, asked) in [("top_logprobs", Some(self.top_logprobs)), ("prompt_logprobs", self.prompt_logprobs)] {
            let asked = asked.unwrap_or(0);
            ensure!(asked <= MAX_TOP_LOGPROBS, "{name} is {asked}; at most {MAX_TOP_LOGPROBS} can be reported");
        }
        for (name, count) in [
            ("logit_bias", self.logit_bias.len()),
            ("allowed_token_ids", self.allowed_token_ids.as_ref().map_or(0, Vec::len)),
            ("stop_token_ids", self.stop_token_ids.len()),
            ("bad_words", self.bad_words.len()),
        ] {
            ensure!(count <= MAX_TOKEN_BIASES, "{name} has {count} entries; at most {MAX_TOKEN_BIASES} can be given");
        }
        for (token, bias) in &self.logit_bias {
            ensure!(!bias.is_nan(), "logit_bias of token {token} is NaN; it must lie in -100 to 100");
        }
        ensure!(
            self.allowed_token_ids.as_ref().is_none_or(|ids| !ids.is_empty()),
            "allowed_token_ids is empty; name at least one token, or leave it out to allow all"
        );
        for (i, word) in self.bad_words.iter().enumerate() {
            ensure!(!word.trim().is_empty(), "bad_words[{i}] is {word:?}; a word has at least one character");
            let bytes = word.len();
            ensure!(bytes <= MAX_WORD_BYTES, "bad_words[{i}] has {bytes} bytes; the limit is {MAX_WORD_BYTES}");
        }
        StopMatcher::new(&self.stop, false)?;
        Ok(())
    }

    /// Whether the sampler must know which tokens occurred.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// The record that the sampling op reads, but for the lists of tokens: those are the [`Sampler`]'s. `state` is the
    /// row of counts.
    pub(super) fn row(&self, seed: u64, step: u32, state: usize) -> SamplingRow {
        SamplingRow {
            seed: [seed as u32, (seed >> 32) as u32],
            step,
            state: if self.has_penalties() { state as i32 } else { -1 },
            // Smaller ones are raised, as vLLM does: the division would overflow.
            temperature: if self.temperature > 0.0 { self.temperature.max(0.01) as f32 } else { 0.0 },
            top_p: self.top_p as f32,
            min_p: self.min_p as f32,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty as f32,
            presence_penalty: self.presence_penalty as f32,
            frequency_penalty: self.frequency_penalty as f32,
            top_logprobs: self.top_logprobs as u32,
            ..SamplingRow::GREEDY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_named_with_the_value() {
        let base = Sampling::default;
        let refused = [
            (Sampling { temperature: f64::NAN, ..base() }, "temperature is NaN; it must lie in 0 to 2"),
            (Sampling { temperature: 1e39, ..base() }, "temperature is 1e39"),
            (Sampling { temperature: -0.1, ..base() }, "temperature is -0.1"),
            (Sampling { n: 0, ..base() }, "n is 0; it must lie in 1 to 128"),
            (Sampling { n: 129, ..base() }, "n is 129; it must lie in 1 to 128"),
            (Sampling { n: 2, temperature: 0.0, ..base() }, "n is 2 and temperature 0"),
            (Sampling { top_p: 0.0, ..base() }, "top_p is 0.0; it must lie above 0 and go up to 1"),
            (Sampling { top_p: 1.1, ..base() }, "top_p is 1.1"),
            (Sampling { min_p: 2.0, ..base() }, "min_p is 2.0; it must lie in 0 to 1"),
            (Sampling { repetition_penalty: 0.0, ..base() }, "repetition_penalty is 0"),
            (Sampling { presence_penalty: 3.0, ..base() }, "presence_penalty is 3"),
            (Sampling { frequency_penalty: f64::INFINITY, ..base() }, "frequency_penalty is inf"),
            (Sampling { max_tokens: Some(0), ..base() }, "max_tokens is 0"),
            (Sampling { top_logprobs: 21, ..base() }, "top_logprobs is 21; at most 20"),
            (Sampling { prompt_logprobs: Some(21), ..base() }, "prompt_logprobs is 21; at most 20"),
            (Sampling { min_tokens: 6, max_tokens: Some(5), ..base() }, "min_tokens is 6; max_tokens is 5"),
            (Sampling { logit_bias: [(3, f64::NAN)].into(), ..base() }, "logit_bias of token 3 is NaN"),
            (Sampling { allowed_token_ids: Some(vec![]), ..base() }, "allowed_token_ids is empty; name at least one"),
            (Sampling { bad_words: vec!["a".into(), " ".into()], ..base() }, "bad_words[1] is \" \"; a word has"),
        ];
        for (sampling, expected) in refused {
            let message = sampling.check().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message:?} does not begin with {expected:?}");
        }
        base().check().unwrap();
        Sampling { temperature: 0.0, top_p: 1e-9, ..base() }.check().unwrap();
        Sampling { min_tokens: 7, prompt_logprobs: Some(20), ..base() }.check().unwrap();
    }
}
