//! Stop strings: the text ends before (or behind) the first of them, wherever the borders of tokens lie.
//!
//! The match is the one that is complete first; of several complete at the same character, the first in the list. That
//! depends on the text alone and not on how it is cut into pieces. Text that could still become a match is held back,
//! and no more than that, by running one Knuth-Morris-Pratt automaton a string.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::detokenize::Detokenizer;
use super::tokenizer::Tokenizer;

/// Most stop strings a request may have. OpenAI's interface allows 4.
pub const MAX_STOPS: usize = 16;
/// Longest stop string, in bytes. Also the most text that is ever held back.
pub const MAX_STOP_BYTES: usize = 1024;

/// Finds stop strings in text that arrives in pieces.
#[derive(Clone)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    /// Whether the stop string itself is part of the answer.
    include: bool,
    /// The end of the text so far that is the beginning of a stop string.
    held: String,
    stopped: Option<usize>,
}

/// One string; `matched` bytes of it end the text so far.
#[derive(Clone)]
struct Automaton {
    bytes: Arc<[u8]>,
    /// For each prefix, the length of its longest proper border.
    border: Arc<[usize]>,
    matched: usize,
}

impl Automaton {
    fn new(stop: &str) -> Automaton {
        let bytes = stop.as_bytes();
        let mut border = vec![0; bytes.len()];
        let mut matched = 0;
        for (end, &byte) in bytes.iter().enumerate().skip(1) {
            matched = advance(bytes, &border, matched, byte);
            border[end] = matched;
        }
        Automaton { bytes: bytes.into(), border: border.into(), matched: 0 }
    }

    /// Takes one byte of text; true when it completes the string.
    fn push(&mut self, byte: u8) -> bool {
        self.matched = advance(&self.bytes, &self.border, self.matched, byte);
        self.matched == self.bytes.len()
    }
}

/// How many bytes of `pattern` end the text once `byte` follows one that ended in `matched` of them.
fn advance(pattern: &[u8], border: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && pattern[matched] != byte {
        matched = border[matched - 1];
    }
    if pattern[matched] == byte { matched + 1 } else { 0 }
}

impl StopMatcher {
    /// A matcher for `stops`; with `include`, the answer ends behind the stop string instead of before it.
    ///
    /// # Errors
    /// More than [`MAX_STOPS`] strings, an empty one, or one longer than [`MAX_STOP_BYTES`].
    pub fn new<S: AsRef<str>>(stops: &[S], include: bool) -> Result<StopMatcher> {
        ensure!(stops.len() <= MAX_STOPS, "stop has {} strings; the limit is {MAX_STOPS}", stops.len());
        for (index, stop) in stops.iter().enumerate() {
            let length = stop.as_ref().len();
            ensure!(length > 0, "stop[{index}] is empty, which would stop before the first character; leave it out");
            ensure!(length <= MAX_STOP_BYTES, "stop[{index}] has {length} bytes; the limit is {MAX_STOP_BYTES}");
        }
        let stops = stops.iter().map(|stop| Automaton::new(stop.as_ref())).collect();
        Ok(StopMatcher { stops, include, held: String::new(), stopped: None })
    }

    /// Takes the next piece of text and returns what may be shown. Nothing after a stop string is ever returned.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            // Every automaton takes the byte, also behind the first that completes.
            let complete: Vec<bool> = self.stops.iter_mut().map(|stop| stop.push(byte)).collect();
            if let Some(index) = complete.iter().position(|&done| done) {
                let end = before + offset + 1;
                let keep = if self.include { end } else { end - self.stops[index].bytes.len() };
                self.stopped = Some(index);
                return self.take(keep, true);
            }
        }
        self.release()
    }

    /// All that no stop string can begin in any more.
    fn release(&mut self) -> String {
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        self.take(self.held.len() - hold, false)
    }

    /// Takes text that no stop string ends: one that is complete in it does not count, one that only begins in it does.
    pub fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        for byte in text.bytes() {
            for stop in &mut self.stops {
                if stop.push(byte) {
                    stop.matched = stop.border[stop.matched - 1];
                }
            }
        }
        self.release()
    }

    /// The text held back, once no more follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The index of the stop string that was found.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// The first `keep` bytes of what is held. A stop string begins with a whole character, so `keep` is a boundary.
    fn take(&mut self, keep: usize, discard: bool) -> String {
        let rest = self.held.split_off(keep);
        let shown = std::mem::replace(&mut self.held, rest);
        if discard {
            self.held.clear();
        }
        shown
    }
}

/// Ids to text, up to a stop string: what a client sees of one answer.
#[derive(Clone)]
pub struct TextStream {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// Ids so far, and the last of them whose text no stop string ends.
    seen: usize,
    early: usize,
}

impl TextStream {
    /// A stream that decodes without special tokens and ends at one of `stops` (see [`StopMatcher::new`]).
    ///
    /// # Errors
    /// Those of [`StopMatcher::new`].
    pub fn new<S: AsRef<str>>(tokenizer: Arc<Tokenizer>, stops: &[S], include_stop: bool) -> Result<TextStream> {
        let matcher = StopMatcher::new(stops, include_stop)?;
        Ok(TextStream { detokenizer: Detokenizer::new(tokenizer, true), matcher, seen: 0, early: 0 })
    }

    /// The same, but a stop string counts only if it is complete after more than `min_tokens` ids.
    pub fn after(self, min_tokens: usize) -> TextStream {
        TextStream { early: min_tokens, ..self }
    }

    /// Takes the next id and returns the text that may now be shown, if any.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.stopped().is_some() {
            return Ok(None);
        }
        let settled = self.detokenizer.push(id)?;
        self.seen += 1;
        Ok(Some(self.match_in(&settled)).filter(|text| !text.is_empty()))
    }

    /// The rest of the text, when no more ids follow. What was held back may itself complete a stop string: ask
    /// [`stopped`](Self::stopped) afterwards.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        if self.stopped().is_some() {
            return Ok(String::new());
        }
        let settled = self.detokenizer.finish()?;
        let mut text = self.match_in(&settled);
        text.push_str(&self.matcher.finish());
        Ok(text)
    }

    fn match_in(&mut self, text: &str) -> String {
        if self.seen > self.early { self.matcher.push(text) } else { self.matcher.pass(text) }
    }

    /// The index of the stop string that ended the text.
    pub fn stopped(&self) -> Option<usize> {
        self.matcher.stopped()
    }
}
