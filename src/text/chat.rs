//! A conversation, and how its text is kept apart from the template's own while the template runs.
//!
//! A template returns one string in which its own text (where `<image>` is a placeholder and `</s>` ends a turn) and
//! the users' text (where they are letters) are mixed. To know which is which afterwards, it is rendered twice: once
//! with the real text, and once with a [`Disguise`], in which every character of the users' text that also occurs in
//! some control token is replaced by a private-use character of its own, one for one. White space stays, so `trim` acts
//! alike. A control token found in the disguised rendering then consists of the template's characters alone, even where
//! the template's text and a user's text together spell one. Undisguised, the second rendering must equal the first; a
//! template whose output depends on what the text says does not pass, and its conversation is refused.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, ensure};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in templates and in OpenAI's interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Role> {
        let role = [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.as_str() == name);
        role.ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            anyhow::anyhow!("role {shown:?} is not one of system, user and assistant")
        })
    }
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A picture; pictures are counted over the whole conversation, in order.
    Image,
    /// Text. Whatever it says, it is encoded as ordinary text.
    Text(String),
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is shown and said, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Message {
        Message { role, parts: vec![Part::Text(text.into())] }
    }

    /// A message of `images` pictures and a text behind them.
    pub fn with_images(role: Role, images: usize, text: impl Into<String>) -> Message {
        let mut parts = vec![Part::Image; images];
        parts.push(Part::Text(text.into()));
        Message { role, parts }
    }

    /// The texts, in order.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image => None,
        })
    }

    /// How many pictures it has.
    pub fn images(&self) -> usize {
        self.parts.iter().filter(|part| **part == Part::Image).count()
    }
}

/// A one-to-one replacement of characters by private-use ones that occur nowhere else.
pub(super) struct Disguise {
    forth: HashMap<char, char>,
    back: HashMap<char, char>,
}

impl Disguise {
    /// Replaces the characters of `alphabet`; `texts` are all that will be seen beside the replacements.
    pub fn new<'a>(alphabet: &HashSet<char>, texts: impl Iterator<Item = &'a str>) -> Result<Disguise> {
        let private = ['\u{f0000}'..='\u{ffffd}', '\u{100000}'..='\u{10fffd}'];
        let is_private = |c: &char| private.iter().any(|range| range.contains(c));
        let taken: HashSet<char> =
            texts.flat_map(str::chars).chain(alphabet.iter().copied()).filter(is_private).collect();
        let free = private.into_iter().flatten().filter(|c| !taken.contains(c));
        let forth: HashMap<char, char> = alphabet.iter().copied().zip(free).collect();
        ensure!(forth.len() == alphabet.len(), "the conversation uses up all of Unicode's private-use characters");
        let back = forth.iter().map(|(&from, &to)| (to, from)).collect();
        Ok(Disguise { forth, back })
    }

    /// A user's text, disguised.
    pub fn hide(&self, text: &str) -> String {
        text.chars().map(|c| self.forth.get(&c).copied().unwrap_or(c)).collect()
    }

    /// The text behind the disguise.
    pub fn reveal(&self, text: &str) -> String {
        text.chars().map(|c| self.back.get(&c).copied().unwrap_or(c)).collect()
    }

    /// The message with its texts disguised.
    pub fn hide_message(&self, message: &Message) -> Message {
        let hide = |part: &Part| match part {
            Part::Image => Part::Image,
            Part::Text(text) => Part::Text(self.hide(text)),
        };
        Message { role: message.role, parts: message.parts.iter().map(hide).collect() }
    }
}
