//! Requests and answers of OpenAI's interface in JSON, with vLLM's additions. No HTTP: whoever has a body and an engine can
//! answer it.
//!
//! | module | job |
//! |---|---|
//! | `chat`, `completions`, `tokenize` | bodies of `/v1/chat/completions`, of `/v1/completions`, of `/tokenize` and `/detokenize` |
//! | `delivery`, `sampling`, `unsupported` | the fields that they share |
//! | `fields`, `values` | reading an object of JSON |
//! | `response`, `text`, `usage` | answers |
//! | `chunks` | answers piece by piece |
//! | `offsets` | where tokens begin in a text |
//! | `error` | errors |

mod chat;
mod chunks;
mod completions;
mod delivery;
mod error;
mod fields;
mod offsets;
mod response;
mod sampling;
mod text;
mod tokenize;
mod unsupported;
mod usage;
mod values;

pub use chat::{ChatRequest, ImageUrl};
pub use chunks::{Chunks, Form, Shape};
pub use completions::{CompletionRequest, MAX_PROMPTS};
pub use delivery::{Delivery, Report};
pub use error::ApiError;
pub(in crate::server) use fields::clipped;
pub(in crate::server) use response::now;
pub use response::{chat_completion, unique_id};
pub use text::{TextForm, text_completion};
pub use tokenize::{DetokenizeRequest, TokenizeRequest, detokenized, tokenized};
pub(in crate::server) use values::{MAX_VALUES, values};
