//! Which model a checkpoint is of, and what everybody must know of it before it is built.
//!
//! A family of models is a [`Registration`]: the name that config.json gives it, and a function that reads what a
//! checkpoint says. Those of this crate are in [`REGISTRY`]; a program that embeds it adds its own with
//! [`Builder::register`](crate::engine::Builder::register).

use anyhow::{Result, bail, ensure};

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
    /// Image rows of a tile.
    pub tile_rows: usize,
    /// Most tiles of a picture.
    pub max_tiles: usize,
    /// Places of a picture in a sequence.
    pub tokens: ImageTokens,
    /// Columns of the features that callers may bring, in a model that takes them; their rows are those of a tile.
    pub feature_columns: Option<usize>,
}

impl PictureFacts {
    /// Pages of a tile's rows that a picture takes at most, encoded or brought as embeddings.
    pub fn max_pages(&self) -> usize {
        self.max_tiles.max(self.tokens.most().div_ceil(self.tile_rows))
    }

    /// Refuse what no picture can be.
    ///
    /// # Errors
    /// If a picture has no tiles, rows or places.
    pub fn check(&self) -> Result<()> {
        let PictureFacts { tile_rows, max_tiles, tokens, .. } = *self;
        ensure!(
            tile_rows > 0 && max_tiles > 0 && tokens.most() > 0,
            "pictures of {max_tiles} tiles of {tile_rows} rows, in {tokens:?} places; there must be one of each"
        );
        Ok(())
    }
}

/// Places that a picture takes in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageTokens {
    /// As many whatever its size.
    Always(usize),
    /// By its size, at most so many.
    UpTo(usize),
}

impl ImageTokens {
    /// The most.
    pub fn most(self) -> usize {
        match self {
            ImageTokens::Always(n) | ImageTokens::UpTo(n) => n,
        }
    }
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
