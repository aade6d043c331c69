//! A request, and everything that can be wrong with it: found on the caller's thread, before the model runs.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::output::{Completion, Output, Timings};
use super::pictures::Picture;
use super::sequence::{Place, Sequence};
use super::stats::milliseconds;
use super::{ImageInput, Sampler, Sampling, Shared};
use crate::Error;
use crate::config::ProcessorKwargs;
use crate::mem::DType;
use crate::models::Tiles;
use crate::ops::KV_BLOCK;
use crate::text::{self, Message, Placeholder, Special, TextStream, pieces};

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The text.
    pub prompt: Prompt,
    /// The pictures, in the order in which the prompt refers to them.
    pub images: Vec<ImageInput>,
    /// Options of the picture processor that differ from those of the checkpoint, for the pixels of this request.
    pub mm_processor_kwargs: ProcessorKwargs,
    /// How the answer is sampled and when it ends.
    pub sampling: Sampling,
    /// Requests share what they leave in the caches with those of the same salt alone. Nobody can find out by the
    /// clock what others with another one have asked.
    pub cache_salt: Option<String>,
}

/// The text of a request.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Trusted text, taken as it is: `<image>` stands for a picture, once or as often as the picture has tokens, and
    /// control tokens are what they say. For models with numbered placeholders `<|image_1|>` stands for the first picture,
    /// `<|image_2|>` for the second, in that order.
    Raw(String),
    /// Messages for the chat template. Their text is text: it never becomes a control token or a picture.
    Chat(Vec<Message>),
    /// Messages for the chat template, and nothing behind them that would begin an answer.
    Transcript(Vec<Message>),
    /// Tokens of the vocabulary, taken as they are: nothing is put in front of them. The image token stands for a
    /// picture, once or as often as the picture has tokens.
    TokenIds(Vec<u32>),
}

impl Default for Prompt {
    /// No text.
    fn default() -> Prompt {
        Prompt::Raw(String::new())
    }
}

/// What the prompt of a request is to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// Its ids; at the places of pictures, the placeholder's.
    pub ids: Vec<u32>,
    /// Places that each picture takes.
    pub image_tokens: Vec<usize>,
}

/// The prompt of a request is longer than the model's context. Found in the chain of an [`Error::Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptTooLong {
    /// Its tokens.
    pub tokens: usize,
    /// Those of them that stand for pictures.
    pub image_tokens: usize,
    /// Tokens that fit, one of the answer among them.
    pub limit: usize,
}

impl fmt::Display for PromptTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PromptTooLong { tokens, image_tokens, limit } = self;
        write!(
            f,
            "the prompt has {tokens} tokens ({image_tokens} of pictures); with one of the answer, {limit} fit \
             (--max-model-len)"
        )
    }
}

impl std::error::Error for PromptTooLong {}

/// A checked request: its sequence, still without a number, and what the engine needs beside that.
pub(super) struct Ready {
    pub sequence: Sequence,
    /// The pictures in the order of the sequence's places. They are kept to the end: a preempted sequence may need them
    /// again.
    pub pictures: Vec<Tiles>,
    pub sampler: Sampler,
    pub stream: TextStream,
    pub max_tokens: usize,
    pub dtype: DType,
    /// The answer to be.
    pub output: Output,
    pub start: Instant,
}

impl Shared {
    /// Check a request, decode and prepare its pictures, and tokenise its text.
    pub(super) fn prepare(&self, request: &Request) -> crate::Result<Ready> {
        self.alive()?;
        let start = Instant::now();
        let (prompt, expanded, pictures) = self.tokens(request).map_err(Error::Request)?;
        self.did("prepare", start, &[("tokens", expanded.ids.len() as u64), ("pictures", pictures.len() as u64)]);
        let max_tokens = self.room(request, &expanded, &pictures).map_err(Error::Request)?;
        let (ids, places) = places(&expanded, &pictures);
        let limit = ids.len() + max_tokens;
        let asked = &request.sampling;
        let tokenizer = self.checkpoint.tokenizer.clone();
        let stream = TextStream::new(tokenizer, &asked.stop, asked.include_stop_str_in_output);
        let mut sequence = Sequence::new(0, ids, places, limit, request.cache_salt.as_deref().unwrap_or(""));
        sequence.reports = asked.prompt_logprobs.is_some();
        let reported = if sequence.reports { expanded.ids.len() } else { 0 };
        let image_tokens = pictures.iter().map(|(t, _)| t.tokens()).collect();
        let pictures = in_order(&expanded, pictures);
        Ok(Ready {
            sequence,
            pictures,
            sampler: self.sampler(asked).map_err(Error::Request)?,
            stream: stream.map_err(Error::Request)?.after(asked.min_tokens),
            max_tokens,
            dtype: self.checkpoint.dtype,
            output: Output {
                prompt,
                image_tokens,
                prompt_token_ids: expanded.ids,
                cached_tokens: 0,
                prompt_logprobs: vec![None; reported],
                outputs: (0..asked.n).map(Completion::new).collect(),
                timings: Timings { load_ms: self.load_ms, prepare_ms: milliseconds(start), ..Timings::default() },
            },
            start,
        })
    }

    /// What a prompt is to the model, however long.
    pub(super) fn prompt_tokens(&self, request: &Request) -> crate::Result<PromptTokens> {
        self.alive()?;
        let (_, expanded, pictures) = self.tokens(request).map_err(Error::Request)?;
        let image_tokens = pictures.iter().map(|(t, _)| t.tokens()).collect();
        Ok(PromptTokens { ids: expanded.ids, image_tokens })
    }

    /// What is asked of the sampler, checked against the model.
    fn sampler(&self, asked: &Sampling) -> Result<Sampler> {
        let c = &self.checkpoint;
        let drawn = RandomState::new().build_hasher().finish();
        let encode = |word: &str| c.tokenizer.encode(word, Special::Parse, false);
        Sampler::new(asked, drawn, &c.end_ids, self.model.io().vocab, encode)
    }

    /// The prompt as text and as tokens, and its pictures.
    fn tokens(&self, request: &Request) -> Result<(String, text::Prompt, Vec<Picture>)> {
        let c = &self.checkpoint;
        let placeholder = c.placeholder;
        request.sampling.check()?;
        let (prompt, pieces, placeholder) = match &request.prompt {
            Prompt::Raw(text) => (text.clone(), c.tokenizer.prompt(text, placeholder)?, placeholder),
            Prompt::Chat(messages) | Prompt::Transcript(messages) => {
                let answered = matches!(request.prompt, Prompt::Chat(_));
                let rendered = c.template.encode(messages, answered)?;
                (rendered.text, rendered.pieces, placeholder)
            }
            Prompt::TokenIds(ids) => {
                self.check_ids(ids)?;
                let id = placeholder.id();
                (String::new(), pieces(ids, id), Placeholder::Token(id))
            }
        };
        let pictures = self.pictures(request)?;
        let counts: Vec<usize> = pictures.iter().map(|(t, _)| t.tokens()).collect();
        let expanded = text::expand(&pieces, &counts, placeholder)?;
        ensure!(!expanded.ids.is_empty(), "the prompt has no tokens, and the tokenizer puts none in front");
        Ok((prompt, expanded, pictures))
    }

    /// Token ids must be rows of the embedding.
    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.io().vocab;
        match ids.iter().position(|&id| id as usize >= vocab) {
            Some(i) => bail!(
                "token {i} of the prompt is {}; the vocabulary has {vocab} tokens, so ids go from 0 to {}",
                ids[i],
                vocab - 1
            ),
            None => Ok(()),
        }
    }

    /// Longest answer, in tokens: what was asked for, as far as the context goes. Without a wish, as far as the cache
    /// goes too.
    fn room(&self, request: &Request, expanded: &text::Prompt, pictures: &[Picture]) -> Result<usize> {
        let (tokens, room) = (expanded.ids.len(), self.checkpoint.max_model_len);
        if tokens >= room {
            let image_tokens = pictures.iter().map(|(t, _)| t.tokens()).sum();
            bail!(PromptTooLong { tokens, image_tokens, limit: room });
        }
        // The last token is never seen by the model. A prompt that leaves no room at all is refused when it arrives.
        let pool = self.memory.kv_blocks * KV_BLOCK + 1;
        Ok(match request.sampling.max_tokens {
            Some(asked) => asked.min(room - tokens),
            None => room.min(pool).saturating_sub(tokens).max(1),
        })
    }
}

/// Ids with -1 at the places of pictures, and those places.
fn places(prompt: &text::Prompt, pictures: &[Picture]) -> (Vec<i32>, Vec<Place>) {
    let mut ids: Vec<i32> = prompt.ids.iter().map(|&id| id as i32).collect();
    let place = |span: &text::ImageSpan| {
        ids[span.range()].fill(-1);
        let (tiles, key) = &pictures[span.image];
        Place { start: span.start, rows: tiles.rows.clone(), tiles: tiles.tiles, key: *key }
    };
    let places = prompt.images.iter().map(place).collect();
    (ids, places)
}

/// The pictures in the order of their places, which is not always the one in which they were given.
fn in_order(prompt: &text::Prompt, pictures: Vec<Picture>) -> Vec<Tiles> {
    let mut start = vec![usize::MAX; pictures.len()];
    prompt.images.iter().for_each(|span| start[span.image] = span.start);
    let mut pictures: Vec<_> = pictures.into_iter().map(|(tiles, _)| tiles).zip(start).collect();
    pictures.sort_by_key(|(_, start)| *start);
    pictures.into_iter().map(|(tiles, _)| tiles).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::PictureKey;
    use crate::models::{Content, RowMap};
    use crate::text::ImageSpan;

    #[test]
    fn pictures_stand_in_the_order_of_their_places() {
        let span = |image, start, len| ImageSpan { image, start, len };
        let picture = |n: u8, tokens| {
            let rows = RowMap::straight(tokens);
            (Tiles { content: Content::Pixels(vec![n]), tiles: 1, rows }, PictureKey([n; 32]))
        };
        let prompt = text::Prompt { ids: vec![1, 9, 9, 5, 9, 2], images: vec![span(1, 1, 2), span(0, 4, 1)] };
        let pictures = vec![picture(7, 1), picture(8, 2)];
        let (ids, places) = places(&prompt, &pictures);
        assert_eq!(ids, [1, -1, -1, 5, -1, 2]);
        assert_eq!(places[0], Place { start: 1, rows: RowMap::straight(2), tiles: 1, key: PictureKey([8; 32]) });
        assert_eq!(in_order(&prompt, pictures).iter().map(Tiles::tokens).collect::<Vec<_>>(), [2, 1]);
    }
}
