//! Why a picture was refused, sorted by what the sender can do about it.

use std::fmt;

/// Why [`decode`](super::decode()) refused a picture. Each message names the value, the limit and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Another format, or a kind of JPEG, GIF... that is not decoded: convert it.
    Unsupported(String),
    /// Over one of the [`Limits`](super::Limits) on bytes, sides, pixels, memory or scans: send a smaller one.
    TooLarge(String),
    /// Longer and thinner than [`Limits::max_aspect`](super::Limits::max_aspect): crop it.
    AspectRatio(String),
    /// Damaged, cut off or contradictory: send the whole file.
    Invalid(String),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Unsupported(m)
            | DecodeError::TooLarge(m)
            | DecodeError::AspectRatio(m)
            | DecodeError::Invalid(m) => f.write_str(m),
        }
    }
}

impl std::error::Error for DecodeError {}

/// `Result` of everything that reads an encoded picture.
pub(super) type Result<T> = std::result::Result<T, DecodeError>;

/// `Err(Invalid)`.
pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(DecodeError::Invalid(message.into()))
}

/// `Err(Unsupported)`.
pub(super) fn unsupported<T>(message: impl Into<String>) -> Result<T> {
    Err(DecodeError::Unsupported(message.into()))
}
