//! **ocelli** is a vision-language inference runtime: it maps Hugging Face safetensors, and drives LLaVA-1.5, LLaVA-NeXT,
//! Phi-3-vision and Phi-3.5-vision as a flat list of kernel launches over pre-allocated memory. There is no tensor type and
//! no graph compiler; a model is a few structs and a function that pushes ops onto a [`plan::Plan`], and a backend runs the plan.
//!
//! The layers, each of which knows only those after it:
//!
//! | layer | job |
//! |---|---|
//! | `server` | OpenAI's interface: its JSON, pictures behind URLs, files of requests |
//! | [`engine`] | a request in, a stream of text out |
//! | [`models`] | plans of a model family, and its answers to "how many tokens is this picture?" |
//! | [`image`], [`text`] | pixels and tokens; no device |
//! | [`backend`] | runs a plan: on the CPU the references, on a GPU the kernels |
//! | [`ops`] | the closed list of ops; each states its cost, what it writes and a plain f32 reference |
//! | [`plan`] | the flat list of launches, and the bisection that finds a wrong one |
//! | [`trace`] | what ran when, for a viewer |
//! | [`kernel`], [`host`] | what an op must answer, and the host memory that its reference runs on |
//! | [`mem`] | offsets into four regions; owns nothing |
//! | [`weights`], [`config`] | a checkpoint's tensors and settings, checked strictly |
//!
//! Start at [`Engine`].

pub mod backend;
pub mod cli;
pub mod config;
pub mod engine;
mod error;
pub mod host;
pub mod image;
pub mod kernel;
pub mod mem;
pub mod models;
pub mod ops;
pub mod plan;
mod range;
#[cfg(feature = "server")]
pub mod server;
pub mod text;
pub mod trace;
pub mod weights;
pub mod workbench;

pub use engine::{Engine, ImageInput, Options, Output, Prompt, Request, Sampling};
pub use error::{DeviceLost, EngineEnded, Error, Result};

/// The snippets of the pages for those who use the crate, compiled and run.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/embedding.md")]
    struct Embedding;
}
