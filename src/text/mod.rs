//! Tokens: the tokenizer, chat templates, picture placeholders, and text that is decoded while it is produced.
//!
//! | step | type |
//! |---|---|
//! | a conversation to text and tokens | [`ChatTemplate`], from [`Message`]s |
//! | a raw prompt to tokens | [`Tokenizer::prompt`]; [`pieces`] from ids |
//! | one placeholder a picture to one a feature | [`expand`] |
//! | tokens to text, up to a stop string | [`TextStream`] |
//!
//! One rule runs through it: text that a user wrote never becomes a control token or a placeholder.

mod added;
mod chat;
mod detokenize;
mod file;
mod jinja;
mod names;
mod placeholder;
mod stop;
mod tags;
mod template;
mod tokenizer;
mod vocab;

pub use chat::{Message, Part, Role};
pub use detokenize::{Detokenizer, MAX_HELD};
pub use placeholder::{ImageSpan, Piece, Placeholder, Prompt, expand, pieces, placeholders};
pub use stop::{MAX_STOP_BYTES, MAX_STOPS, StopMatcher, TextStream};
pub use template::{Builtin, ChatPrompt, ChatTemplate};
pub use tokenizer::{MAX_TEXT_BYTES, Special, TokenName, Tokenizer};
