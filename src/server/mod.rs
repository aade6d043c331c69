//! OpenAI's interface: its requests and answers, pictures behind URLs, batch files, and the HTTP server.
//!
//! | module | job |
//! |---|---|
//! | [`openai`] | a body of `/v1/chat/completions` to a request of the engine, an answer to a `chat.completion`, errors |
//! | [`media`] | the bytes behind an `http(s):`, `data:` or `file:` URL, within what the operator allows |
//! | [`batch`] | a file of requests to a file of answers, which a kill does not harm |
//! | [`http`] | the server: routes, limits, streams, an end without loss |

pub mod batch;
pub mod http;
pub mod media;
pub mod openai;
