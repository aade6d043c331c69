//! Where tokens begin in a text, in characters: what the legacy completions call `text_offset`.

use std::sync::Arc;

use anyhow::Result;

use crate::text::{Detokenizer, Tokenizer};

/// Places of the tokens of an answer in its text, as if no stop string had cut it. A token amid a character begins where that
/// does, and one that is not shown where the next would.
#[derive(Clone)]
pub(super) struct Offsets {
    detokenizer: Detokenizer,
    /// Characters before what the detokenizer holds.
    settled: usize,
    latest: usize,
}

impl Offsets {
    /// Of an answer that begins behind so many characters.
    pub fn new(tokenizer: &Arc<Tokenizer>, before: usize) -> Offsets {
        let detokenizer = Detokenizer::new(tokenizer.clone(), true);
        Offsets { detokenizer, settled: before, latest: before }
    }

    /// Where the next token begins.
    ///
    /// # Errors
    /// If the tokenizer cannot show it.
    pub fn next(&mut self, id: u32) -> Result<usize> {
        let held = self.detokenizer.clone().finish()?;
        // A character that is not complete may still become one with this token.
        let held = held.trim_end_matches(char::REPLACEMENT_CHARACTER).chars().count();
        self.latest = self.latest.max(self.settled + held);
        self.settled += self.detokenizer.push(id)?.chars().count();
        Ok(self.latest)
    }
}

/// Places of the tokens of a prompt in its text, which may hold control tokens or not show them, and may begin without the
/// space that its first token has.
///
/// # Errors
/// If the tokenizer cannot show a token.
pub(super) fn prompt_offsets(tokenizer: &Arc<Tokenizer>, text: &str, ids: &[u32]) -> Result<Vec<usize>> {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
    let mut place = Place { rest: text, characters: 0 };
    let mut offsets = Vec::with_capacity(ids.len());
    for &id in ids {
        let held = detokenizer.clone().finish()?;
        let mut here = place;
        here.pass(held.trim_end_matches(char::REPLACEMENT_CHARACTER));
        offsets.push(here.characters.max(offsets.last().copied().unwrap_or(0)));
        if tokenizer.is_special(id) {
            place.pass(&detokenizer.finish()?);
            // BOS, for one, is not written where the tokenizer put it in front.
            let token = tokenizer.id_to_token(id).filter(|token| place.rest.starts_with(token));
            place.pass(&token.unwrap_or_default());
        } else {
            place.pass(&detokenizer.push(id)?);
        }
    }
    Ok(offsets)
}

/// How far a text has been read.
#[derive(Clone, Copy)]
struct Place<'a> {
    rest: &'a str,
    characters: usize,
}

impl Place<'_> {
    /// Go past what some tokens show, or the part of it that stands there.
    fn pass(&mut self, shown: &str) {
        let written = if self.rest.starts_with(shown) { shown } else { shown.trim_start_matches(' ') };
        let mut after = self.rest.chars();
        self.characters += after.by_ref().take(written.chars().count()).count();
        self.rest = after.as_str();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::Special;

    fn tokenizer() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::open(Path::new("tests/goldens/llava-tiny-mha")).unwrap())
    }

    /// What each token of a prompt begins.
    fn places(text: &str, add_bos: bool) -> Vec<(String, &str)> {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(text, Special::Parse, add_bos).unwrap();
        let offsets = prompt_offsets(&tokenizer, text, &ids).unwrap();
        let from = |offset: usize| text.char_indices().nth(offset).map_or("", |(at, _)| &text[at..]);
        ids.iter().zip(offsets).map(|(&id, at)| (tokenizer.id_to_token(id).unwrap(), from(at))).collect()
    }

    #[test]
    fn tokens_of_a_prompt_begin_where_the_text_has_them() {
        let shown = |text, add_bos| {
            let places = places(text, add_bos);
            places
                .into_iter()
                .map(|(token, rest)| (token.replace('\u{2581}', " "), rest.to_owned()))
                .collect::<Vec<_>>()
        };
        let bos = shown("the picture", true);
        assert_eq!(bos[0], ("<s>".to_owned(), "the picture".to_owned()));
        assert_eq!(bos[1], (" the".to_owned(), "the picture".to_owned()));
        assert_eq!(bos[2], (" picture".to_owned(), " picture".to_owned()));
        // BOS that is written, a character of two tokens, and a control token behind it.
        let written = shown("<s>the \u{e9}</s>the", false);
        let (tokens, rests): (Vec<_>, Vec<_>) = written.iter().map(|(t, r)| (&t[..], &r[..])).unzip();
        assert_eq!(tokens[..2], ["<s>", " the"]);
        assert_eq!(rests[..2], ["<s>the \u{e9}</s>the", "the \u{e9}</s>the"]);
        let bytes: Vec<_> = (0..tokens.len()).filter(|&i| tokens[i].starts_with("<0x")).collect();
        assert!(bytes.len() == 2 && bytes.iter().all(|&i| rests[i] == "\u{e9}</s>the"), "{written:?}");
        let end = tokens.iter().position(|token| *token == "</s>").unwrap();
        assert_eq!((rests[end], rests[end + 1]), ("</s>the", "the"));
    }

    #[test]
    fn tokens_of_an_answer_begin_behind_those_before() {
        let tokenizer = tokenizer();
        let text = "the \u{e9}\u{e9}u";
        let ids = tokenizer.encode(text, Special::AsText, false).unwrap();
        let mut offsets = Offsets::new(&tokenizer, 10);
        let found: Vec<_> = ids.iter().map(|&id| offsets.next(id).unwrap()).collect();
        let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
        assert_eq!(tokens, ["\u{2581}the", "\u{2581}", "<0xC3>", "<0xA9>", "<0xC3>", "<0xA9>", "u"]);
        assert_eq!(found, [10, 13, 14, 14, 15, 15, 16]);
        // The model's end is not shown.
        assert_eq!((offsets.next(2).unwrap(), offsets.next(2).unwrap()), (17, 17));
    }
}
