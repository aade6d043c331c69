//! Which model a checkpoint is of, and what everybody must know of it before it is built.
//!
//! A family of models is a [`Registration`]: the name that config.json gives it, and a function that reads what a
//! checkpoint says. Those of this crate are in [`REGISTRY`]; a program that embeds it adds its own with
//! [`Builder::register`](crate::engine::Builder::register).

use anyhow::{Result, bail};

use super::{ImageInputType, Limits, Tensors, Vlm, llava, phi3v};
use crate::config::{ClipConfig, Files, Generation, LlamaConfig, ProcessorKwargs};
use crate::mem::DType;
use crate::text::Builtin;

/// One family of models.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// `architectures[0]` of config.json.
    pub architecture: &'static str,
    /// Reads what the settings files of a checkpoint say.
    pub read: fn(&Files<'_>) -> Result<Box<dyn Architecture>>,
}

/// Every family of this crate.
pub const REGISTRY: &[Registration] = &[llava::REGISTRATION, llava::NEXT, phi3v::REGISTRATION];

/// The family of a checkpoint, of `own` or of [`REGISTRY`].
///
/// # Errors
/// If no family goes by the name in config.json.
pub fn find(architecture: &str, own: &[Registration]) -> Result<Registration> {
    let all = || own.iter().chain(REGISTRY);
    match all().find(|r| r.architecture == architecture) {
        Some(found) => Ok(*found),
        None => {
            let known: Vec<_> = all().map(|r| r.architecture).collect();
            bail!("config.json: architectures[0] = {architecture:?}; this build runs {}", known.join(", "))
        }
    }
}

/// A checkpoint's settings, read and checked: a model that is described and not loaded.
pub trait Architecture: Send + Sync {
    /// What everybody must know.
    fn facts(&self) -> &Facts;

    /// Options of the picture processor that differ from those of the checkpoint, for all requests.
    ///
    /// # Errors
    /// If an option is unknown, or has a value that the model cannot do.
    fn set_processor(&mut self, kwargs: &ProcessorKwargs) -> Result<()>;

    /// Bytes of a block of [`KV_BLOCK`](crate::ops::KV_BLOCK) tokens in the caches of all layers.
    fn kv_block_bytes(&self, dtype: DType) -> usize;

    /// Find every tensor, lay out the regions, and be ready to build plans.
    ///
    /// # Errors
    /// With every tensor that is missing or has another shape.
    fn build(&self, tensors: Tensors<'_>, dtype: DType, limits: Limits, input: ImageInputType) -> Result<Box<dyn Vlm>>;
}

/// What everybody must know of a checkpoint before its model is built.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `architectures[0]`.
    pub architecture: &'static str,
    /// The type that config.json says the tensors have.
    pub dtype: Option<DType>,
    /// Rows of the embedding: token ids are below it.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_positions: usize,
    /// Which tokens begin and end a sequence.
    pub generation: Generation,
    /// Texts of tokens that end an answer, too, where the tokenizer has them.
    pub end_tokens: &'static [&'static str],
    /// How a prompt refers to pictures.
    pub image_token: ImageToken,
    /// The chat template of a checkpoint that brings none.
    pub chat_template: Option<Builtin>,
    /// What pictures cost.
    pub pictures: PictureFacts,
    /// The parts, where they are of the usual kinds: for those who want to see them.
    pub parts: Option<Parts>,
}

/// How a prompt refers to pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageToken {
    /// By this special token, once a picture.
    Id(u32),
    /// By the tags `<|image_1|>`, `<|image_2|>` and so on, which are text. The token of this text stands at the places of
    /// pictures.
    Tags(&'static str),
}

/// What pictures cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureFacts {
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Most tiles of a picture.
    pub max_tiles: usize,
    /// Most places of a picture in a sequence.
    pub max_tokens: usize,
    /// Whether every picture has so many.
    pub same_for_all: bool,
    /// Rows and columns of the features of a picture that callers may bring, in a model that takes them.
    pub feature_shape: Option<[usize; 2]>,
}

/// The parts of a model that is CLIP in front of Llama.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The vision tower.
    pub vision: ClipConfig,
    /// Outputs that are taken of it: how many blocks have run before each.
    pub feature_layers: Vec<usize>,
    /// The text model.
    pub text: LlamaConfig,
}

impl Parts {
    /// Blocks of the tower that run.
    pub fn vision_blocks(&self) -> usize {
        self.feature_layers.iter().copied().max().unwrap_or(0)
    }
}
