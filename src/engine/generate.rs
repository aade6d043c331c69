//! One request from start to end.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::runner::{LogitRows, Sampled, SequenceLists, SequenceStep};
use super::{Engine, Sampler, Sampling};
use crate::image::{self, Alpha, Limits};
use crate::mem::DType;
use crate::models::Tiles;
use crate::ops::SamplingRow;
use crate::text::{self, Message, Special, TextStream, pieces};
use crate::{Error, Result};

/// Rows of logits of a step. A prompt whose log-probabilities are asked for is read in steps of so many tokens.
pub(super) const LOGIT_ROWS: usize = 64;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The text.
    pub prompt: Prompt,
    /// Encoded pictures, in the order in which the prompt refers to them.
    pub images: Vec<Vec<u8>>,
    /// How the answer is sampled and when it ends.
    pub sampling: Sampling,
}

/// The text of a request.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Trusted text, taken as it is: `<image>` stands for a picture, once or as often as the picture has tokens, and
    /// control tokens are what they say.
    Raw(String),
    /// Messages for the chat template. Their text is text: it never becomes a control token or a picture.
    Chat(Vec<Message>),
}

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

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Output {
    /// The prompt as it was tokenised, before pictures were expanded.
    pub prompt: String,
    /// Its ids; at the places of pictures, the placeholder's.
    pub prompt_token_ids: Vec<u32>,
    /// Places that each picture takes.
    pub image_tokens: Vec<usize>,
    /// The answer.
    pub text: String,
    /// Its ids, with the end-of-sequence token if it ended so.
    pub token_ids: Vec<u32>,
    /// Log-probability of each, under the logits as the model gave them.
    pub logprobs: Vec<f32>,
    /// For each token, the most likely ones at its place with theirs, as many as were asked for.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// For each token of the prompt, it and its log-probability, with the most likely tokens at its place; none for the
    /// first and for those of pictures. Empty where it was not asked for.
    pub prompt_logprobs: Vec<Option<Sampled>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// FNV-1a of the last logits: shows a change in the numbers where the text is the same.
    pub logits_hash: String,
    /// Where the time went.
    pub timings: Timings,
}

/// Wall-clock times of a request, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Loading the model, before the request.
    pub load_ms: f64,
    /// Before the device has anything to do: decoding the pictures, tokenising.
    pub prepare_ms: f64,
    /// From there to the first token: vision tower, projector, the prompt's step.
    pub prefill_ms: f64,
    /// From the request to the first token, the sum of those two.
    pub ttft_ms: f64,
    /// All later tokens.
    pub decode_ms: f64,
    /// Later tokens a second; 0 if there was none.
    pub tokens_per_s: f64,
}

/// A checked request.
struct Ready {
    prompt: String,
    tiles: Vec<Tiles>,
    expanded: text::Prompt,
    stream: TextStream,
    sampler: Sampler,
    max_tokens: usize,
}

impl Engine {
    /// Answer a request. `on_text` gets the answer piece by piece, never a part of a character, and can end it.
    ///
    /// # Errors
    /// [`Error::Request`] if the request cannot be answered, [`Error::Capacity`] if there is no room for it,
    /// [`Error::Model`] if the model yields no number, [`Error::Device`] if the backend fails.
    pub fn generate(&mut self, request: &Request, on_text: impl FnMut(&str) -> ControlFlow<()>) -> Result<Output> {
        let start = Instant::now();
        let ready = self.prepare(request).map_err(Error::Request)?;
        let length = (ready.expanded.ids.len() + ready.max_tokens).min(self.checkpoint.max_model_len);
        let blocks = self.blocks.take(length).map_err(Error::Capacity)?;
        let output = self.answer(request, ready, &blocks, start, on_text);
        self.blocks.give(blocks);
        output
    }

    /// Everything that can be wrong with a request is found here, before the model runs.
    fn prepare(&self, request: &Request) -> anyhow::Result<Ready> {
        let (c, model) = (&self.checkpoint, self.runner.model());
        request.sampling.check()?;
        ensure!(
            request.images.len() <= c.max_images,
            "the prompt has {} pictures; at most {} are allowed (--limit-mm-per-prompt)",
            request.images.len(),
            c.max_images
        );
        let (prompt, pieces) = match &request.prompt {
            Prompt::Raw(text) => {
                let ids = c.tokenizer.encode(text, Special::Parse, true)?;
                (text.clone(), pieces(&ids, model.image_token_id()))
            }
            Prompt::Chat(messages) => {
                let rendered = c.template.encode(messages, true)?;
                (rendered.text, rendered.pieces)
            }
        };
        let tiles = request.images.iter().enumerate().map(|(i, bytes)| {
            let rgb = image::decode(bytes, Alpha::White, &Limits::default());
            let tiles = rgb.map_err(anyhow::Error::new).and_then(|rgb| self.tiles(rgb));
            tiles.with_context(|| format!("picture {}", i + 1))
        });
        let tiles = tiles.collect::<anyhow::Result<Vec<_>>>()?;
        let counts: Vec<usize> = tiles.iter().map(|t| t.tokens).collect();
        let expanded = text::expand(&pieces, &counts, model.image_token_id())?;
        let (tokens, room) = (expanded.ids.len(), c.max_model_len);
        ensure!(tokens > 0, "the prompt has no tokens, and the tokenizer puts none in front");
        if tokens >= room {
            let pictures: usize = counts.iter().sum();
            bail!(
                "the prompt has {tokens} tokens ({pictures} of pictures); with one of the answer, {room} fit (--max-model-len)"
            );
        }
        let max_tokens = request.sampling.max_tokens.unwrap_or(usize::MAX).min(room - tokens);
        let stream = TextStream::new(c.tokenizer.clone(), &request.sampling.stop, false)?;
        let drawn = RandomState::new().build_hasher().finish();
        let encode = |word: &str| c.tokenizer.encode(word, Special::Parse, false);
        let sampler = Sampler::new(&request.sampling, drawn, &c.config.generation.eos, model.io().vocab, encode)?;
        Ok(Ready { prompt, tiles, expanded, stream, sampler, max_tokens })
    }

    fn answer(
        &mut self,
        request: &Request,
        ready: Ready,
        blocks: &[i32],
        start: Instant,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Output> {
        let Ready { prompt, tiles, expanded, mut stream, sampler, max_tokens } = ready;
        let timings = Timings { load_ms: self.load_ms, prepare_ms: milliseconds(start), ..Timings::default() };
        self.runner.encode(&tiles, None).map_err(Error::Device)?;
        let ids = splice(&expanded);
        if request.sampling.has_penalties() {
            self.runner.reset_counts(0, &ids).map_err(Error::Device)?;
        }
        let mut output = Output {
            prompt,
            image_tokens: tiles.iter().map(|t| t.tokens).collect(),
            prompt_token_ids: expanded.ids,
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            finish_reason: FinishReason::Length,
            logits_hash: String::new(),
            timings,
        };
        let asked = &request.sampling;
        let mut reports = Vec::new();
        let mut cached = match asked.prompt_logprobs {
            Some(_) => self.read_prompt(&ids, blocks, &sampler, &mut reports)?,
            None => 0,
        };
        let mut next = ids[cached..].to_vec();
        let mut biases = Vec::new();
        let mut decoding = Instant::now();
        while output.token_ids.len() < max_tokens {
            let step = output.token_ids.len();
            let sampling = sampler.row(&output.token_ids, 0, &mut biases);
            let sequence = SequenceStep { ids: &next, cached, blocks, sampling };
            let lists = SequenceLists { biases: &biases, prompt_logprobs: asked.prompt_logprobs.filter(|_| step == 0) };
            self.runner.step_with(&[sequence], LogitRows::Last, &[lists], None).map_err(Error::Device)?;
            let known = lists.prompt_logprobs.map_or(0, |_| followers(&next));
            let mut rows = self.sampled(known + 1, step, asked)?;
            let (token, mut sampled) = rows.pop().context("no row was sampled").map_err(Error::Device)?;
            sampled.top.truncate(asked.top_logprobs);
            reports.extend(rows.into_iter().map(|(_, row)| row));
            cached += next.len();
            next = vec![token as i32];
            if step == 0 {
                output.timings.ttft_ms = milliseconds(start);
                output.timings.prefill_ms = output.timings.ttft_ms - output.timings.prepare_ms;
                decoding = Instant::now();
            }
            output.token_ids.push(token);
            output.logprobs.push(sampled.logprob);
            output.top_logprobs.push(sampled.top);
            if sampler.ends(token) {
                output.finish_reason = FinishReason::Stop;
                break;
            }
            let piece = stream.push(token).map_err(Error::Model)?.unwrap_or_default();
            if emit(&mut output, &piece, &mut on_text).is_break() {
                output.finish_reason = FinishReason::Cancelled;
                break;
            }
            if stream.stopped().is_some() {
                output.finish_reason = FinishReason::Stop;
                break;
            }
        }
        let rest = stream.finish().map_err(Error::Model)?;
        if output.finish_reason != FinishReason::Cancelled && emit(&mut output, &rest, &mut on_text).is_break() {
            output.finish_reason = FinishReason::Cancelled;
        }
        if stream.stopped().is_some() && output.finish_reason == FinishReason::Length {
            output.finish_reason = FinishReason::Stop;
        }
        if let Some(n) = asked.prompt_logprobs {
            output.prompt_logprobs = placed(&ids, reports, n);
        }
        output.timings.decode_ms = milliseconds(decoding);
        let later = output.token_ids.len() - 1;
        output.timings.tokens_per_s = if later == 0 { 0.0 } else { later as f64 / (output.timings.decode_ms / 1e3) };
        output.logits_hash = fnv1a(&self.runner.logits(1).map_err(Error::Device)?);
        Ok(output)
    }

    /// Read a prompt whose log-probabilities are asked for but for its last step; returns the tokens read.
    fn read_prompt(
        &mut self,
        ids: &[i32],
        blocks: &[i32],
        sampler: &Sampler,
        reports: &mut Vec<Sampled>,
    ) -> Result<usize> {
        let asked = sampler.sampling();
        let lists = [SequenceLists { prompt_logprobs: asked.prompt_logprobs, ..SequenceLists::default() }];
        let mut cached = 0;
        while ids.len() - cached > LOGIT_ROWS {
            let end = cached + LOGIT_ROWS;
            let (chunk, last) = (&ids[cached..end], sampler.prompt_row(ids[end]));
            let sampling = last.unwrap_or(SamplingRow::GREEDY);
            let sequence = SequenceStep { ids: chunk, cached, blocks, sampling };
            self.runner.step_with(&[sequence], LogitRows::Last, &lists, None).map_err(Error::Device)?;
            let mut rows = self.sampled(followers(chunk) + 1, 0, asked)?;
            if last.is_none() {
                rows.pop();
            }
            reports.extend(rows.into_iter().map(|(_, row)| row));
            cached = end;
        }
        Ok(cached)
    }

    /// The tokens of the last step's rows, with as many alternatives as any of them has.
    fn sampled(&self, rows: usize, step: usize, asked: &Sampling) -> Result<Vec<(u32, Sampled)>> {
        let alternatives = asked.top_logprobs.max(asked.prompt_logprobs.unwrap_or(0));
        let sampled = self.runner.sampled(rows, alternatives).map_err(Error::Device)?;
        let rows: Option<Vec<(u32, Sampled)>> = sampled.into_iter().map(|s| Some((s.token?, s))).collect();
        if let Some(rows) = rows {
            return Ok(rows);
        }
        let narrow = match self.dtype() {
            DType::F32 => String::new(),
            dtype => format!(", or {dtype} too narrow for them (--dtype f32)"),
        };
        Err(Error::Model(anyhow::Error::msg(format!(
            "the logits of token {step} of the answer hold a NaN or an infinity; the weights may be damaged{narrow}"
        ))))
    }
}

fn emit(output: &mut Output, piece: &str, on_text: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
    if piece.is_empty() {
        return ControlFlow::Continue(());
    }
    output.text.push_str(piece);
    on_text(piece)
}

/// Ids as the embedding op reads them: a place of a picture is `-1 - row` of the rows that the encoder wrote, picture
/// after picture.
fn splice(prompt: &text::Prompt) -> Vec<i32> {
    let mut ids: Vec<i32> = prompt.ids.iter().map(|&id| id as i32).collect();
    let mut spans = prompt.images.clone();
    spans.sort_by_key(|s| s.image);
    let mut row = 0;
    for span in spans {
        for id in &mut ids[span.range()] {
            *id = -1 - row;
            row += 1;
        }
    }
    ids
}

/// Ids that follow another of the same step and are of the vocabulary.
fn followers(ids: &[i32]) -> usize {
    ids[1..].iter().filter(|&&id| id >= 0).count()
}

/// What was reported of a prompt, at the places of its tokens, with `n` alternatives each.
fn placed(ids: &[i32], reports: Vec<Sampled>, n: usize) -> Vec<Option<Sampled>> {
    let mut reports = reports.into_iter();
    let report = |(place, &id): (usize, &i32)| {
        let report = if place > 0 && id >= 0 { reports.next()? } else { return None };
        Some(Sampled { top: report.top.into_iter().take(n).collect(), ..report })
    };
    ids.iter().enumerate().map(report).collect()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// FNV-1a, 64 bits, over the little-endian bytes.
fn fnv1a(values: &[f32]) -> String {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::ImageSpan;

    #[test]
    fn pictures_take_their_rows_in_their_own_order() {
        let span = |image, start, len| ImageSpan { image, start, len };
        let prompt = text::Prompt { ids: vec![1, 9, 9, 5, 9, 2], images: vec![span(1, 1, 2), span(0, 4, 1)] };
        assert_eq!(splice(&prompt), [1, -2, -3, 5, -1, 2]);
    }

    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(&[]), "cbf29ce484222325");
        assert_eq!(fnv1a(&[f32::from_le_bytes(*b"foob")]), format!("{:016x}", 0xdd12_0e79_0c25_12af_u64));
    }
}
