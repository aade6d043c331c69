//! Ids to text while they are produced, never showing a piece of a character.
//!
//! Ids are collected into units that decode independently of what follows, and a unit is decoded behind a letter, so
//! that the decoder strips the leading space of the whole text and no other. A unit ends
//!
//! - not before a run of byte tokens does: the decoder of Llama-style files turns a run into characters only if all of
//!   it is valid UTF-8, and each byte into U+FFFD if not, so the next byte can still change the ones before;
//! - not while its text ends in U+FFFD, which is how other decoders show a character that is not complete.
//!
//! A run longer than [`MAX_HELD`] is cut behind its last complete character, which bounds both the delay and the work.
//! Only a run that is that long *and* turns out invalid decodes differently than at once: its complete characters stay.

use std::sync::Arc;

use anyhow::Result;

use super::tokenizer::Tokenizer;

/// Most tokens that are held back: eight characters of four bytes each.
pub const MAX_HELD: usize = 32;

/// Turns a stream of ids into a stream of text; the pieces joined are the text of the ids decoded at once.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Ids whose text is not out yet.
    held: Vec<u32>,
    /// Nothing is out yet, so the decoder may strip a leading space.
    at_start: bool,
}

impl Detokenizer {
    /// A new stream. With `skip_special`, tokens with `special: true` give no text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Detokenizer {
        Detokenizer { tokenizer, skip_special, held: Vec::new(), at_start: true }
    }

    /// Takes the next id and returns the text that is settled by it, often none.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        // Neither gives text, and the decoder joins byte tokens across them.
        if (self.skip_special && self.tokenizer.is_special(id)) || self.tokenizer.id_to_token(id).is_none() {
            return Ok(String::new());
        }
        self.held.push(id);
        let full = self.held.len() >= MAX_HELD;
        if self.tokenizer.byte(id).is_some() {
            return if full { self.cut_run() } else { Ok(String::new()) };
        }
        let text = self.decode(&self.held)?;
        let open = text.ends_with(char::REPLACEMENT_CHARACTER) || (text.is_empty() && self.at_start);
        if open && !full {
            return Ok(String::new());
        }
        self.release(self.held.len(), text)
    }

    /// The text of what is still held; a character that was never completed becomes U+FFFD.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        let text = self.decode(&self.held)?;
        self.release(self.held.len(), text)
    }

    /// Releases the complete characters of the run that fills `held`; all of it if it begins with an invalid byte.
    fn cut_run(&mut self) -> Result<String> {
        // What stands before the run, if anything, is complete: it was held for its own U+FFFD or for a leading space.
        let run = self.held.iter().rev().map_while(|&id| self.tokenizer.byte(id)).count();
        let before = self.held.len() - run;
        let bytes: Vec<u8> = self.held.iter().skip(before).filter_map(|&id| self.tokenizer.byte(id)).collect();
        let complete = match std::str::from_utf8(&bytes) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let count = if before + complete == 0 { self.held.len() } else { before + complete };
        let text = self.decode(self.held.get(..count).unwrap_or_default())?;
        self.release(count, text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        // The special tokens to skip never get here.
        if self.at_start { self.tokenizer.decode(ids, false) } else { self.tokenizer.decode_after(ids) }
    }

    fn release(&mut self, count: usize, text: String) -> Result<String> {
        self.at_start &= count == 0;
        self.held.drain(..count);
        Ok(text)
    }
}
