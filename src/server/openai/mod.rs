//! Requests and answers of `/v1/chat/completions` in JSON, with vLLM's additions. No HTTP: whoever has a body and an
//! engine can answer it.

mod chat;
mod error;
mod fields;
mod response;
mod sampling;

pub use chat::{ChatRequest, ImageUrl, Report};
pub use error::ApiError;
pub(in crate::server) use fields::clipped;
pub use response::{chat_completion, unique_id};
