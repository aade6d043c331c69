//! Picture placeholders: from the one token that stands for a picture to the run of tokens that its features replace.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use super::tags::tag;
use super::tokenizer::Tokenizer;

/// How prompts refer to pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// By an added token, such as `<image>`.
    Token(u32),
    /// By tags `<|image_1|>`, `<|image_2|>`, ... in the order of the text, which are no tokens: the text between two of
    /// them is encoded by itself. The id is what stands at a picture's places once it is expanded.
    Numbered(u32),
}

impl Placeholder {
    /// What stands at the places of a picture in [`Prompt::ids`].
    pub fn id(self) -> u32 {
        match self {
            Placeholder::Token(id) | Placeholder::Numbered(id) => id,
        }
    }

    /// What refers to picture `number`, counted from 1, in a trusted text.
    pub fn text(self, number: usize, tokenizer: &Tokenizer) -> String {
        match self {
            Placeholder::Token(id) => tokenizer.id_to_token(id).unwrap_or_default(),
            Placeholder::Numbered(_) => tag(number),
        }
    }
}

/// A prompt before the number of tokens of each picture is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Ids(Vec<u32>),
    /// The placeholder with this number, counted from 0 in the order of the text.
    Image(usize),
}

/// The tokens of one picture in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSpan {
    /// Which picture, counted from 0 in the order given.
    pub image: usize,
    /// Position of its first token.
    pub start: usize,
    /// Number of its tokens.
    pub len: usize,
}

impl ImageSpan {
    /// The positions.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// A prompt as the model gets it. At the positions of a picture stands the placeholder's id, once for each of its
/// features; spans are in order and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where the pictures are.
    pub images: Vec<ImageSpan>,
}

/// Splits `ids` at the placeholder `image_token`.
pub fn pieces(ids: &[u32], image_token: u32) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut count = 0;
    for run in ids.chunk_by(|&a, &b| a != image_token && b != image_token) {
        if run.first() == Some(&image_token) {
            pieces.push(Piece::Image(count));
            count += 1;
        } else {
            pieces.push(Piece::Ids(run.to_vec()));
        }
    }
    pieces
}

/// How many placeholders there are.
pub fn placeholders(pieces: &[Piece]) -> usize {
    pieces.iter().filter(|piece| matches!(piece, Piece::Image(_))).count()
}

/// Expands the placeholders; picture i has `tokens[i]` tokens.
///
/// Two ways of writing a prompt are understood: one placeholder a picture, and, of those that are tokens, as many as the
/// pictures have tokens, picture after picture, those of one picture side by side.
///
/// # Errors
/// Any other number of placeholders, or repeated ones that are interrupted; a picture without tokens.
pub fn expand(pieces: &[Piece], tokens: &[usize], placeholder: Placeholder) -> Result<Prompt> {
    if let Some(image) = tokens.iter().position(|&n| n == 0) {
        bail!("picture {image} has no tokens");
    }
    let total = tokens.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)).context("too many picture tokens")?;
    let found = placeholders(pieces);
    if found == tokens.len() {
        return expand_each(pieces, tokens, placeholder.id());
    }
    let repeats = matches!(placeholder, Placeholder::Token(_)) && found == total;
    ensure!(repeats, "{}", miscounted(found, tokens.len(), total, placeholder));
    take_repeated(pieces, tokens, placeholder.id())
}

/// What is wrong with `found` placeholders for pictures of `total` tokens.
fn miscounted(found: usize, pictures: usize, total: usize, placeholder: Placeholder) -> String {
    let (what, remedy) = match placeholder {
        Placeholder::Token(_) if total > 0 => ("placeholders", format!(", or all {total} that they expand to")),
        Placeholder::Numbered(_) if pictures == 1 => ("tags", format!(", {}", tag(1))),
        Placeholder::Numbered(_) if pictures > 1 => ("tags", format!(", {} to {}", tag(1), tag(pictures))),
        Placeholder::Token(_) => ("placeholders", String::new()),
        Placeholder::Numbered(_) => ("tags", String::new()),
    };
    format!("the prompt has {found} picture {what} for {pictures} pictures; write one for each picture{remedy}")
}

/// One placeholder a picture.
fn expand_each(pieces: &[Piece], tokens: &[usize], image_token: u32) -> Result<Prompt> {
    let mut prompt = Prompt { ids: Vec::new(), images: Vec::with_capacity(tokens.len()) };
    let mut seen = vec![false; tokens.len()];
    for piece in pieces {
        match piece {
            Piece::Ids(ids) => prompt.ids.extend(ids),
            &Piece::Image(image) => {
                let known = tokens.get(image).zip(seen.get_mut(image));
                let (&len, seen) =
                    known.with_context(|| format!("placeholder {image} of only {} pictures", tokens.len()))?;
                ensure!(!*seen, "placeholder {image} stands twice in the prompt");
                *seen = true;
                let start = prompt.ids.len();
                prompt.images.push(ImageSpan { image, start, len });
                prompt.ids.resize(start + len, image_token);
            }
        }
    }
    Ok(prompt)
}

/// Placeholders that are already repeated: picture after picture takes its number of them.
fn take_repeated(pieces: &[Piece], tokens: &[usize], image_token: u32) -> Result<Prompt> {
    let mut prompt = Prompt { ids: Vec::new(), images: Vec::with_capacity(tokens.len()) };
    let mut left = tokens.iter().copied().enumerate();
    let mut open: Option<ImageSpan> = None;
    for piece in pieces {
        match piece {
            Piece::Ids(ids) => {
                if let Some(span) = open {
                    bail!(
                        "the {} placeholders of picture {} are interrupted by text after {}",
                        tokens.get(span.image).copied().unwrap_or(0),
                        span.image,
                        span.len
                    );
                }
                prompt.ids.extend(ids);
            }
            Piece::Image(_) => {
                let start = prompt.ids.len();
                prompt.ids.push(image_token);
                let mut span = match open.take() {
                    Some(span) => span,
                    None => match left.next() {
                        Some((image, _)) => ImageSpan { image, start, len: 0 },
                        None => bail!("more placeholders than the pictures have tokens"),
                    },
                };
                span.len += 1;
                if tokens.get(span.image) == Some(&span.len) {
                    prompt.images.push(span);
                } else {
                    open = Some(span);
                }
            }
        }
    }
    Ok(prompt)
}
