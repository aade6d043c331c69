//! Picture tags: `<|image_1|>`, `<|image_2|>`, ... in the prompts of models whose placeholder is no token.

use anyhow::{Result, ensure};

use super::placeholder::Piece;

const OPEN: &str = "<|image_";
const CLOSE: &str = "|>";

/// Characters of which tags are made.
pub(super) const ALPHABET: &str = "<|image_0123456789>";

/// Tag number `n`.
pub(super) fn tag(n: usize) -> String {
    format!("{OPEN}{n}{CLOSE}")
}

/// The text around the tags: one chunk more than there are tags, some of them empty.
///
/// # Errors
/// If the tags are not numbered 1, 2, ... in the order of the text.
pub(super) fn chunks(text: &str) -> Result<Vec<&str>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut at) = (0, 0);
    while let Some(found) = text[at..].find(OPEN) {
        let start = at + found;
        at = start + OPEN.len();
        let digits = text[at..].bytes().take_while(u8::is_ascii_digit).count();
        let end = at + digits;
        if digits > 0 && text[end..].starts_with(CLOSE) {
            chunks.push(&text[chunk..start]);
            check(&text[at..end], chunks.len())?;
            at = end + CLOSE.len();
            chunk = at;
        }
    }
    chunks.push(&text[chunk..]);
    Ok(chunks)
}

/// Whether a tag with these digits is number `expected`; those before it are.
fn check(digits: &str, expected: usize) -> Result<()> {
    let shown =
        if digits.len() > 24 { format!("{OPEN}{}...{CLOSE}", &digits[..20]) } else { format!("{OPEN}{digits}{CLOSE}") };
    let number: Option<usize> = digits.parse().ok();
    ensure!(number != Some(0), "the prompt has {shown}; picture tags are counted from {}", tag(1));
    ensure!(
        number.is_none_or(|number| number >= expected),
        "the prompt has {shown} a second time where {} comes next; each picture has one tag",
        tag(expected)
    );
    ensure!(
        number == Some(expected),
        "the prompt has {shown} where {} comes next; picture tags are numbered in the order of the text, without gaps",
        tag(expected)
    );
    Ok(())
}

/// Chunks of ids with a picture between each two.
pub(super) fn join(chunks: impl IntoIterator<Item = Vec<u32>>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (n, ids) in chunks.into_iter().enumerate() {
        if n > 0 {
            pieces.push(Piece::Image(n - 1));
        }
        pieces.push(Piece::Ids(ids));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_holds_every_character_of_a_tag() {
        assert!(tag(9_876_543_210).chars().all(|c| ALPHABET.contains(c)));
    }

    #[test]
    fn only_whole_tags_cut_the_text() {
        assert_eq!(chunks("").unwrap(), [""]);
        assert_eq!(chunks("<|image_1|>").unwrap(), ["", ""]);
        assert_eq!(chunks("a<|image_1|><|image_2|> b").unwrap(), ["a", "", " b"]);
        for text in
            ["<|image_|>", "<|image_1>", "<|image_1 |>", "<|image_x1|>", "<|Image_1|>", "<|image_-1|>", "<|image_1|"]
        {
            assert_eq!(chunks(text).unwrap(), [text]);
        }
        assert_eq!(chunks("<|image_<|image_1|>|>").unwrap(), ["<|image_", "|>"]);
        assert_eq!(chunks("<|image_1<|image_1|>é").unwrap(), ["<|image_1", "é"]);
        // As Python's int() reads it.
        assert_eq!(chunks("<|image_01|>").unwrap(), ["", ""]);
    }

    #[test]
    fn tags_out_of_order_are_named_with_what_comes_next() {
        let long = format!("<|image_{}|>", "9".repeat(1000));
        for (text, expected) in [
            ("<|image_0|>", "has <|image_0|>; picture tags are counted from <|image_1|>"),
            ("<|image_1|><|image_3|>", "has <|image_3|> where <|image_2|> comes next"),
            ("<|image_2|><|image_1|>", "has <|image_2|> where <|image_1|> comes next"),
            ("<|image_1|> and <|image_1|>", "has <|image_1|> a second time where <|image_2|> comes next"),
            ("<|image_1|><|image_2|><|image_1|>", "has <|image_1|> a second time where <|image_3|> comes next"),
            ("<|image_99999999999999999999|>", "has <|image_99999999999999999999|> where <|image_1|> comes next"),
            (&long, "has <|image_99999999999999999999...|> where <|image_1|> comes next"),
        ] {
            let error = chunks(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
