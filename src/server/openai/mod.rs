//! Requests and answers of `/v1/chat/completions` in JSON, with vLLM's additions. No HTTP: whoever has a body and an
//! engine can answer it.

mod chat;
mod chunks;
mod error;
mod fields;
mod response;
mod sampling;
mod values;

pub use chat::{ChatRequest, ImageUrl, Report};
pub use chunks::Chunks;
pub use error::ApiError;
pub(in crate::server) use fields::clipped;
pub(in crate::server) use response::now;
pub use response::{chat_completion, unique_id};
pub(in crate::server) use values::{MAX_VALUES, values};
