//! Tokens: the tokenizer, chat templates, picture placeholders, and text that is decoded while it is produced.
//!
//! | step | type |
//! |---|---|
//! | a raw prompt to tokens | [`Tokenizer::encode`] |
//!
//! One rule runs through it: text that a user wrote never becomes a control token or a placeholder.

mod added;
mod file;
mod names;
mod tokenizer;
mod vocab;

pub use tokenizer::{MAX_TEXT_BYTES, Special, TokenName, Tokenizer};
