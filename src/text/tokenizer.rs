//! `tokenizer.json`, taken literally, and the two ways to encode: trusted text, in which `<image>` is the placeholder,
//! and text that a user wrote, in which `<image>` is seven characters.
//!
//! Every added token counts as a control token here, special or not (the `</s>` of Phi-3 is not): user text never
//! encodes to one. The `tokenizers` crate's own switch, `encode_special_tokens`, covers only those that are special,
//! and a model may also build such a string by merges or, with `ignore_merges`, find it as a whole word. Hence user
//! text goes through a copy of the model from which those strings were removed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use tokenizers::normalizer::Range as Span;
use tokenizers::{
    AddedVocabulary, Model, ModelWrapper, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, Token,
};

use super::added::{Added, AddedTokens, added_tokens, control_vocabulary};
use super::file::read_json;
use super::names::Names;
use super::placeholder::{Piece, Placeholder, pieces};
use super::{tags, vocab};

/// Largest `tokenizer.json`, in bytes. The largest in use are a quarter of it.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Largest text that is encoded at once, in bytes: a context of 128 Ki tokens of 16 bytes each, which is as long as the
/// common pieces of a Llama vocabulary get. Encoding is linear in the text, at 0.5 to 2 s a MiB on one slow core.
pub const MAX_TEXT_BYTES: usize = 2 << 20;

/// What added tokens written out in a text are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Themselves: the text is trusted, `<image>` is a placeholder and `</s>` ends a turn.
    Parse,
    /// Ordinary text: someone else wrote it, and it must not reach past its place.
    AsText,
}

/// A token named by the model's configuration.
#[derive(Clone, Copy, Debug)]
pub enum TokenName<'a> {
    /// By id, as `image_token_index` in config.json.
    Id(u32),
    /// By its text, as `image_token` in tokenizer_config.json.
    Text(&'a str),
}

/// Text to ids and back.
pub struct Tokenizer {
    /// The file as it stands: encodes trusted text, decodes.
    literal: tokenizers::Tokenizer,
    /// The model without control tokens: encodes what lies between them.
    plain: ModelWrapper,
    /// Finds control tokens in raw text.
    control: AddedVocabulary,
    /// Every added token by id.
    added: AddedTokens,
    names: BTreeMap<String, String>,
    bos_prefix: Vec<u32>,
    unknown: Option<u32>,
    largest: (u32, String),
    bytes: HashMap<u32, u8>,
    anchor: (u32, String),
}

/// A control token in a text: where it stands, and what it encodes to.
pub(super) struct Cut {
    pub at: Range<usize>,
    pub id: u32,
}

impl Tokenizer {
    /// Opens `tokenizer.json` in `dir`, with the facts of `tokenizer_config.json` and `special_tokens_map.json` where
    /// they exist. Truncation and padding of the file are not applied.
    ///
    /// # Errors
    /// A file that is missing, truncated, too large or a Git LFS pointer; any part of it that is not supported or
    /// contradicts another, by name.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let json = read_json(&path, MAX_FILE_BYTES)?.with_context(|| {
            format!("{} does not exist; a checkpoint without it cannot turn text into tokens", path.display())
        })?;
        let config = read_json(&dir.join("tokenizer_config.json"), MAX_FILE_BYTES)?;
        let map = read_json(&dir.join("special_tokens_map.json"), MAX_FILE_BYTES)?;
        let names = Names::new(config.as_ref(), map.as_ref()).with_context(|| format!("in {}", dir.display()))?;
        Tokenizer::build(json, names).with_context(|| format!("in {}", path.display()))
    }

    fn build(mut json: Value, names: Names) -> Result<Tokenizer> {
        vocab::check_components(&json)?;
        let vocab = vocab::check_model(&json["model"])?;
        let added = added_tokens(&json["added_tokens"], &names, &vocab)?;
        let control: HashSet<&str> = added.values().map(|token| token.content.as_str()).collect();
        let plain: Option<ModelWrapper> = vocab::without_control(&json["model"], &control)
            .map(serde_json::from_value)
            .transpose()
            .context("field 'model' without its added tokens")?;
        let bos_prefix = bos_prefix(&json["post_processor"], &names, &vocab, &added)?;
        let unknown = json["model"]["unk_token"].as_str().and_then(|token| vocab.get(token).copied());
        let byte_fallback = vocab::has_byte_fallback(&json);

        // What is left out here is applied by this type instead, or not wanted at all.
        for field in ["truncation", "padding", "post_processor"] {
            json[field] = Value::Null;
        }
        json["added_tokens"] = added.values().map(Added::to_json).collect();
        let mut literal: tokenizers::Tokenizer = serde_json::from_value(json)?;
        let whole = uncached(literal.get_model().clone());
        literal.with_model(whole);
        for token in added.values() {
            let got = literal.token_to_id(&token.content);
            ensure!(
                got == Some(token.id),
                "field 'added_tokens': {:?} has id {}, but ids of added tokens must follow the vocabulary without \
                 gaps, which makes it {}",
                token.content,
                token.id,
                got.map_or("none".to_owned(), |id| id.to_string())
            );
        }

        let largest = vocab
            .iter()
            .map(|(token, &id)| (id, token))
            .chain(added.values().map(|token| (token.id, &token.content)))
            .max()
            .map(|(id, token)| (id, token.clone()))
            .context("field 'model.vocab' is empty")?;
        let bytes =
            vocab.iter().filter(|_| byte_fallback).filter_map(|(token, &id)| Some((id, vocab::byte_of(token)?)));
        let bytes = bytes.collect();
        let anchor = anchor(&literal, &vocab, &added)?;
        Ok(Tokenizer {
            plain: uncached(plain.unwrap_or_else(|| literal.get_model().clone())),
            control: control_vocabulary(&literal, &added)?,
            names: names.tokens,
            literal,
            added,
            bos_prefix,
            unknown,
            largest,
            bytes,
            anchor,
        })
    }

    /// Checks that a model whose embedding has `rows` rows knows every id.
    ///
    /// # Errors
    /// The largest id is `rows` or more.
    pub fn check_vocab(&self, rows: usize) -> Result<()> {
        let (id, token) = &self.largest;
        ensure!(
            usize::try_from(*id).is_ok_and(|id| id < rows),
            "tokenizer.json has id {id} ({token:?}), but the model's vocab_size is {rows}: the two are not of one model"
        );
        Ok(())
    }

    /// The id of the picture placeholder, checked: it must be an added token, and special.
    ///
    /// # Errors
    /// There is no such added token, or it is `special: false`.
    pub fn image_token(&self, name: TokenName<'_>) -> Result<u32> {
        let token = match name {
            TokenName::Id(id) => self.added.get(&id).with_context(|| {
                format!("the picture placeholder has id {id}, but tokenizer.json has no added token with that id")
            })?,
            TokenName::Text(text) => {
                let token = self.added.values().find(|token| token.content == text);
                token.with_context(|| {
                    format!("the picture placeholder is {text:?}, but tokenizer.json has no added token {text:?}")
                })?
            }
        };
        ensure!(
            token.special,
            "the picture placeholder {:?} (id {}) is 'special: false' in tokenizer.json; set it to true",
            token.content,
            token.id
        );
        Ok(token.id)
    }

    /// Encodes `text`. With `add_bos`, puts in front what the file's post-processor puts there: BOS, for the models
    /// here.
    ///
    /// # Errors
    /// The text is longer than [`MAX_TEXT_BYTES`].
    pub fn encode(&self, text: &str, special: Special, add_bos: bool) -> Result<Vec<u32>> {
        check_length(text)?;
        let mut ids = if add_bos { self.bos_prefix.clone() } else { Vec::new() };
        match special {
            Special::Parse => ids.extend(self.literal.encode_fast(text, false).map_err(|e| anyhow!(e))?.get_ids()),
            Special::AsText => ids.extend(self.encode_cut(text, &[])?),
        }
        Ok(ids)
    }

    /// Encodes a trusted prompt, cut at its placeholders. BOS goes in front of it; between numbered placeholders, in front
    /// of every text, as the processors of such models put it there.
    ///
    /// # Errors
    /// The text is longer than [`MAX_TEXT_BYTES`], or its placeholders are not numbered 1, 2, ... in their order.
    pub fn prompt(&self, text: &str, placeholder: Placeholder) -> Result<Vec<Piece>> {
        let encode = |text: &str| self.encode(text, Special::Parse, true);
        match placeholder {
            Placeholder::Token(id) => Ok(pieces(&encode(text)?, id)),
            Placeholder::Numbered(_) => {
                check_length(text)?;
                let chunks: Result<Vec<_>> = tags::chunks(text)?.into_iter().map(encode).collect();
                Ok(tags::join(chunks?))
            }
        }
    }

    /// Decodes `ids` at once; the decoder of the file strips one leading space, if it strips any. Ids that the
    /// tokenizer does not know give nothing.
    ///
    /// # Errors
    /// Those of the `tokenizers` crate's decoder.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.literal.decode(ids, skip_special).map_err(|e| anyhow!(e))
    }

    /// The text of token `id` as the file writes it (`▁the`, `<0x0A>`), or `None`.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.literal.id_to_token(id)
    }

    /// What one token adds to a text, and its bytes. A token that stands for a byte gives that byte, which alone may be no
    /// text.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn token_text(&self, id: u32) -> Result<(String, Vec<u8>)> {
        let text = self.decode_after(&[id])?;
        let bytes = self.byte(id).map_or_else(|| text.as_bytes().to_vec(), |byte| vec![byte]);
        Ok((text, bytes))
    }

    /// The id of a token, added or not.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.literal.token_to_id(token)
    }

    /// Whether `id` is an added token with `special: true`, which decoding skips on request.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|token| token.special)
    }

    /// Whether `id` is an added token, special or not: one that user text never encodes to.
    pub fn is_control(&self, id: u32) -> bool {
        self.added.contains_key(&id)
    }

    /// The text of the special token called `name` (`bos_token`, `eos_token`, ...) in `tokenizer_config.json`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(String::as_str)
    }

    /// The id of the special token called `name`, as [`special_token`](Self::special_token).
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.special_token(name).and_then(|token| self.token_to_id(token))
    }

    /// Every named special token with its text, for the chat template's variables.
    pub(super) fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.names
    }

    /// What stands before every prompt: BOS, or nothing.
    pub(super) fn bos_prefix(&self) -> &[u32] {
        &self.bos_prefix
    }

    /// Characters of which control tokens are made, white space aside.
    pub(super) fn control_alphabet(&self) -> HashSet<char> {
        self.added.values().flat_map(|token| token.content.chars()).filter(|c| !c.is_whitespace()).collect()
    }

    /// The text of the control token `id`.
    pub(super) fn control_token(&self, id: u32) -> Option<&str> {
        self.added.get(&id).map(|token| token.content.as_str())
    }

    /// Splits `text` at control tokens: pieces in order, each with the id that it encodes to or `None`. A token with
    /// `rstrip` takes the white space behind it along.
    pub(super) fn split_control<'t>(&self, text: &'t str) -> Vec<(&'t str, Option<u32>)> {
        self.control
            .extract_and_normalize(None::<&NormalizerWrapper>, text)
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .filter_map(|(_, (start, end), tokens)| {
                let id = tokens.as_ref().and_then(|tokens| tokens.first()).map(|token| token.id);
                text.get(start..end).map(|piece| (piece, id))
            })
            .collect()
    }

    /// Encodes `text` as the library would if the added tokens in it were exactly `cuts`, which are in order.
    ///
    /// The stages are the library's: cut, normalise each piece, split it into words, look them up. Only the cut
    /// differs, so whatever the file prescribes at the edges of a piece (a prefix space for each, or for the first)
    /// comes out alike.
    pub(super) fn encode_cut(&self, text: &str, cuts: &[Cut]) -> Result<Vec<u32>> {
        check_length(text)?;
        let mut pieces = PreTokenizedString::from(text);
        pieces
            .split(|_, whole| {
                let mut parts = Vec::with_capacity(2 * cuts.len() + 1);
                let mut done = 0;
                // Nothing is normalised yet, so the offsets are those of `text`.
                let slice = |at: Range<usize>| whole.slice(Span::Normalized(at)).ok_or("a cut inside a character");
                for cut in cuts {
                    if done < cut.at.start {
                        parts.push((slice(done..cut.at.start)?, None));
                    }
                    let token = Token::new(cut.id, String::new(), (0, cut.at.len()));
                    parts.push((slice(cut.at.clone())?, Some(vec![token])));
                    done = cut.at.end;
                }
                if done < text.len() {
                    parts.push((slice(done..text.len())?, None));
                }
                Ok(parts)
            })
            .and_then(|()| match self.literal.get_normalizer() {
                Some(normalizer) => pieces.normalize(|piece| normalizer.normalize(piece)),
                None => Ok(()),
            })
            .and_then(|()| match self.literal.get_pre_tokenizer() {
                Some(pre_tokenizer) => pre_tokenizer.pre_tokenize(&mut pieces),
                None => Ok(()),
            })
            .and_then(|()| pieces.tokenize(|piece| self.encode_word(piece.get())))
            .and_then(|()| pieces.into_encoding(None, 0, OffsetType::None))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| anyhow!(e))
    }

    fn encode_word(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.plain.tokenize(word)?;
        // The model holds no such token; this guards the promise itself.
        match tokens.iter().find(|token| self.is_control(token.id) && Some(token.id) != self.unknown) {
            Some(token) => Err(format!("text encoded to the control token {:?}", token.value).into()),
            None => Ok(tokens),
        }
    }

    /// The byte that token `id` stands for, if the decoder joins byte tokens to characters.
    pub(super) fn byte(&self, id: u32) -> Option<u8> {
        self.bytes.get(&id).copied()
    }

    /// What `ids` add to a text that goes before: decoded behind a letter, so that no leading space is stripped.
    pub(super) fn decode_after(&self, ids: &[u32]) -> Result<String> {
        let (letter, text) = &self.anchor;
        let anchored: Vec<u32> = std::iter::once(*letter).chain(ids.iter().copied()).collect();
        let whole = self.decode(&anchored, false)?;
        match whole.strip_prefix(text) {
            Some(rest) => Ok(rest.to_owned()),
            None => bail!("tokenizer.json's decoder changes text that is already out: {text:?} became {whole:?}"),
        }
    }
}

fn check_length(text: &str) -> Result<()> {
    ensure!(
        text.len() <= MAX_TEXT_BYTES,
        "the text has {} bytes; the limit is {MAX_TEXT_BYTES}, more than any model's context holds",
        text.len()
    );
    Ok(())
}

/// What goes before every prompt. `add_bos_token` decides where it is given, as in transformers; else the file does.
fn bos_prefix(processor: &Value, names: &Names, vocab: &HashMap<String, u32>, added: &AddedTokens) -> Result<Vec<u32>> {
    match (names.add_bos, names.tokens.get("bos_token")) {
        (Some(true), Some(bos)) => {
            let id = added.values().find(|token| token.content == *bos).map(|token| token.id);
            let id = id.or_else(|| vocab.get(bos).copied());
            Ok(vec![id.with_context(|| format!("bos_token {bos:?} has no id"))?])
        }
        (Some(_), _) => Ok(Vec::new()),
        (None, _) => vocab::post_processor_prefix(processor),
    }
}

/// The model without its cache. Whole texts are one word for the models here, so the cache would only keep texts of
/// other requests in memory, ten thousand of them for each thread.
fn uncached(model: ModelWrapper) -> ModelWrapper {
    match model {
        ModelWrapper::BPE(mut bpe) => {
            bpe.resize_cache(0);
            ModelWrapper::BPE(bpe)
        }
        other => other,
    }
}

/// A token that is one plain letter and decodes to it wherever it stands.
fn anchor(literal: &tokenizers::Tokenizer, vocab: &HashMap<String, u32>, added: &AddedTokens) -> Result<(u32, String)> {
    for letter in ('a'..='z').chain('A'..='Z').map(String::from) {
        let Some(&id) = vocab.get(&letter).filter(|id| !added.contains_key(id)) else { continue };
        let twice = literal.decode(&[id, id], false).map_err(|e| anyhow!(e))?;
        if twice == letter.repeat(2) {
            return Ok((id, letter));
        }
    }
    bail!("no token is a single letter that decodes to itself, so text cannot be decoded while it is produced")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Tokenizer>();
    }
}
