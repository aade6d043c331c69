//! A request's sampling against one model: its words and ids made into lists of tokens, and the record of every step.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::Sampling;
use crate::models::MAX_TOKEN_BIASES;
use crate::ops::{ONLY_LISTED, SamplingRow, TokenBias};

/// What is checked once, when a request comes, and read at every step of its answer.
///
/// Of the bad words, those of one token are forbidden always, as are the tokens that end the answer as long as it is
/// shorter than `min_tokens`; a word of several tokens is looked for in the answer so far: see [`Sampler::looks_back`].
#[derive(Clone, Debug)]
pub struct Sampler {
    rules: Arc<Rules>,
    seed: u64,
}

/// What the answers of a request have in common.
#[derive(Debug)]
struct Rules {
    sampling: Sampling,
    /// What holds at every step, in ascending order of tokens.
    list: Vec<TokenBias>,
    /// Tokens that end the answer.
    ends: Vec<u32>,
    /// Those and, where they are ignored, the model's own: forbidden as long as the answer is too short.
    early: Vec<u32>,
    /// Bad words of several tokens.
    words: Vec<Vec<u32>>,
}

impl Sampler {
    /// Check a request's sampling against a model with `vocab` tokens whose answers end at `eos`. `encode` is its
    /// tokenizer, without a token in front; `seed` counts where the request has none of its own.
    ///
    /// # Errors
    /// Those of [`Sampling::check`]; an id outside the vocabulary; lists of more than [`MAX_TOKEN_BIASES`] tokens
    /// together; lists that leave no token to choose.
    pub fn new(
        sampling: &Sampling,
        seed: u64,
        eos: &[u32],
        vocab: usize,
        encode: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Sampler> {
        sampling.check()?;
        let words = bad_words(&sampling.bad_words, encode)?;
        let within = |name: &str, id: u32| {
            ensure!((id as usize) < vocab, "{name} has token {id}; the vocabulary has {vocab} tokens, from 0 on");
            Ok(())
        };
        let allowed = sampling.allowed_token_ids.as_deref();
        allowed.unwrap_or_default().iter().try_for_each(|&id| within("allowed_token_ids", id))?;
        sampling.logit_bias.keys().try_for_each(|&id| within("logit_bias", id))?;
        sampling.stop_token_ids.iter().try_for_each(|&id| within("stop_token_ids", id))?;
        words.iter().flatten().try_for_each(|&id| within("bad_words", id))?;

        let mut early = [eos, &sampling.stop_token_ids].concat();
        early.retain(|&id| (id as usize) < vocab);
        let mut ends = sampling.stop_token_ids.clone();
        if !sampling.ignore_eos {
            ends.extend_from_slice(eos);
        }
        let (single, several): (Vec<_>, Vec<_>) = words.into_iter().partition(|word| word.len() == 1);
        let seed = sampling.seed.unwrap_or(seed);
        let mut list = listed(sampling);
        let only_listed = sampling.allowed_token_ids.is_some();
        single.iter().for_each(|word| forbid(&mut list, word[0], only_listed));
        let rules = Rules { sampling: sampling.clone(), list, ends, early, words: several };
        rules.check(vocab)?;
        Ok(Sampler { rules: Arc::new(rules), seed })
    }

    /// That of the request's answer of index `index`: it draws from another seed.
    pub(in crate::engine) fn nth(&self, index: usize) -> Sampler {
        Sampler { rules: self.rules.clone(), seed: self.seed.wrapping_add(index as u64) }
    }

    /// The request's own settings.
    pub fn sampling(&self) -> &Sampling {
        &self.rules.sampling
    }

    /// Whether the record of a step depends on which tokens came before, not only on how many.
    pub fn looks_back(&self) -> bool {
        !self.rules.words.is_empty()
    }

    /// The record and, in `list`, the tokens for the step after `generated`, the answer so far and nothing of the
    /// prompt, and `ahead` tokens of it that nobody knows yet: none if the sampler [looks back](Sampler::looks_back).
    /// `state` is the row of counts.
    pub fn row(&self, generated: &[u32], ahead: usize, state: usize, list: &mut Vec<TokenBias>) -> SamplingRow {
        let (rules, length) = (&*self.rules, generated.len() + ahead);
        list.clear();
        list.extend_from_slice(&rules.list);
        if length < rules.sampling.min_tokens {
            rules.early.iter().for_each(|&id| rules.forbid(list, id));
        }
        for (last, before) in rules.words.iter().filter_map(|word| word.split_last()) {
            if generated.ends_with(before) {
                rules.forbid(list, *last);
            }
        }
        let flags = if rules.only_listed() { ONLY_LISTED } else { 0 };
        SamplingRow { flags, ..rules.sampling.row(self.seed, length as u32, state) }
    }

    /// The record of the last row of a step that ends before the prompt does: report `next`, the id that follows.
    /// `None` if the request does not ask for its prompt, or the place is a picture's.
    pub fn prompt_row(&self, next: i32) -> Option<SamplingRow> {
        let (n, next) = (self.rules.sampling.prompt_logprobs?, u32::try_from(next).ok()?);
        Some(SamplingRow::report(next, n as u32))
    }

    /// Whether `token` ends the answer.
    pub fn ends(&self, token: u32) -> bool {
        self.rules.ends.contains(&token)
    }

    /// Whether `token` ends the answer because the request says so, and is not the model's own end.
    pub(in crate::engine) fn stops(&self, token: u32) -> bool {
        let (asked, own) = self.rules.ends.split_at(self.rules.sampling.stop_token_ids.len());
        asked.contains(&token) && !own.contains(&token)
    }
}

impl Rules {
    /// Refuse lists that are too long, or leave nothing, when everything is forbidden that ever can be at once.
    fn check(&self, vocab: usize) -> Result<()> {
        let mut list = self.list.clone();
        if self.sampling.min_tokens > 0 {
            self.early.iter().for_each(|&id| self.forbid(&mut list, id));
        }
        self.words.iter().filter_map(|word| word.last()).for_each(|&id| self.forbid(&mut list, id));
        ensure!(
            list.len() <= MAX_TOKEN_BIASES,
            "allowed_token_ids, logit_bias, bad_words and, with min_tokens, the tokens that end an answer are {} tokens \
             together; at most {MAX_TOKEN_BIASES} can be listed",
            list.len()
        );
        let choices = if self.only_listed() { list.len() } else { vocab };
        let forbidden = list.iter().filter(|entry| entry.bias == f32::NEG_INFINITY).count();
        ensure!(
            forbidden < choices,
            "no token is left to choose: bad_words and min_tokens forbid all {choices} that may be chosen"
        );
        Ok(())
    }

    fn only_listed(&self) -> bool {
        self.sampling.allowed_token_ids.is_some()
    }

    fn forbid(&self, list: &mut Vec<TokenBias>, token: u32) {
        forbid(list, token, self.only_listed());
    }
}

fn forbid(list: &mut Vec<TokenBias>, token: u32, only_listed: bool) {
    match list.binary_search_by_key(&token, |entry| entry.token) {
        Ok(at) => list[at].bias = f32::NEG_INFINITY,
        // Where only listed tokens may be chosen, it is forbidden already.
        Err(_) if only_listed => {}
        Err(at) => list.insert(at, TokenBias { token, bias: f32::NEG_INFINITY }),
    }
}

/// Biases of the tokens that may be chosen; without `allowed_token_ids`, only those that are not 0.
fn listed(sampling: &Sampling) -> Vec<TokenBias> {
    let bias = |token: u32| sampling.logit_bias.get(&token).map_or(0.0, |b| b.clamp(-100.0, 100.0) as f32);
    let mut tokens = match &sampling.allowed_token_ids {
        Some(allowed) => allowed.clone(),
        None => sampling.logit_bias.keys().copied().filter(|&token| bias(token) != 0.0).collect(),
    };
    tokens.sort_unstable();
    tokens.dedup();
    tokens.into_iter().map(|token| TokenBias { token, bias: bias(token) }).collect()
}

/// The tokens of each word at the start of a text and, as vLLM has it, behind a space where that is as many and begins
/// with another.
fn bad_words(words: &[String], encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
    let mut found = Vec::new();
    for word in words {
        let word = word.trim_start();
        let bare = encode(word)?;
        ensure!(!bare.is_empty(), "bad_words has {word:?}, of which the tokenizer makes no token");
        let spaced = encode(&format!(" {word}"))?;
        if spaced.len() == bare.len() && spaced[0] != bare[0] {
            found.push(spaced);
        }
        found.push(bare);
    }
    Ok(found)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
