//! Model families: what a checkpoint becomes, and the plans that run it.
//!
//! A model answers what a picture costs at worst, with a picture that costs that much, how a picture becomes tiles and
//! a token count, and which id stands for it in a prompt; and it builds three plans: one that encodes tiles, one that
//! projects features that a caller brings, and one step of the language model over decode rows and prompt chunks.

mod areas;
mod clip;
mod io;
mod llama;
mod llava;
mod load;
mod phi3v;
mod picture;
mod processor;
mod registry;
mod rows;
mod vision;

pub use areas::{Areas, PictureSizes};
pub use clip::{Clip, TileInput};
pub use io::{Limits, MAX_TOKEN_BIASES, StepArea, StepIo, StepShape};
pub use llama::{EMBED, Fused, Llama};
pub use load::{Loader, Placement, Tensors, random_fills};
pub use picture::{Picture, PictureArea};
pub use processor::{AnyresTiles, HdTiles, OneTile, Processor, clip_processor};
pub use registry::{Architecture, Facts, ImageToken, ImageTokens, Parts, PictureFacts, REGISTRY, Registration, find};
pub use rows::{ImageRow, RowMap};
pub use vision::{Projector, Tower};

use std::str::FromStr;

use anyhow::Result;

use crate::config::ProcessorKwargs;
use crate::image::Rgb;
use crate::mem::Source;
use crate::plan::Plan;

/// What a model is given for a picture, in vLLM's words: whether it needs its vision tower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageInputType {
    /// Pixels, which the tower makes features of. Features and embeddings are taken as well.
    #[default]
    PixelValues,
    /// The tower's features. The tower is not loaded, so pixels are refused; embeddings are taken as well.
    ImageFeatures,
}

impl ImageInputType {
    /// In vLLM's spelling.
    pub const fn name(self) -> &'static str {
        match self {
            ImageInputType::PixelValues => "pixel_values",
            ImageInputType::ImageFeatures => "image_features",
        }
    }
}

impl FromStr for ImageInputType {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageInputType, String> {
        let all = [ImageInputType::PixelValues, ImageInputType::ImageFeatures];
        all.into_iter().find(|t| t.name() == text).ok_or_else(|| "write pixel_values or image_features".into())
    }
}

/// A picture made ready for the model.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// What they are made of.
    pub content: Content,
    /// Pieces of the picture that are encoded on their own; none where there is nothing left to do.
    pub tiles: usize,
    /// The places that the picture takes in the sequence. The only count: expansion, cache budget and splice all use it.
    pub rows: RowMap,
}

impl Tiles {
    /// Places that the picture takes in the sequence.
    pub fn tokens(&self) -> usize {
        self.rows.len()
    }
}

/// What there is of a picture's [`Tiles`] before the model runs.
#[derive(Clone, Debug)]
pub enum Content {
    /// `[tiles, image_size, image_size, 3]` bytes.
    Pixels(Vec<u8>),
    /// A first tile of values, and bytes of the others.
    Views {
        /// `[3, image_size, image_size]`, normalised.
        overview: Vec<f32>,
        /// `[tiles - 1, image_size, image_size, 3]`
        pixels: Vec<u8>,
    },
    /// One tile of pixels, which the device makes.
    Picture(Box<Picture>),
    /// `[tile_rows, `[`feature_columns`](PictureFacts::feature_columns)`]` in the model's type: what the tower makes of the pixels.
    Features(Source),
    /// `[tokens, `[`hidden`](Areas::hidden)`]` in the model's type: what the projector makes of the features.
    Embeddings(Source),
}

impl Content {
    /// What comes first; `None` if nothing is left to do.
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Content::Pixels(_) | Content::Views { .. } | Content::Picture(_) => Some(Stage::Tower),
            Content::Features(_) => Some(Stage::Projector),
            Content::Embeddings(_) => None,
        }
    }
}

/// Where the encoding of a picture begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// At the vision tower: [`Vlm::encode_plan`].
    Tower,
    /// At the projector: [`Vlm::project_plan`].
    Projector,
}

/// Image rows on their way to where they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMove {
    /// Image row of the first.
    pub from: usize,
    /// Where that goes.
    pub to: usize,
    /// How many, at most those of a tile.
    pub rows: usize,
}

/// Where the rotary angles change with the length of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongAngles {
    /// Longest sequence, in tokens, of the short angles. In a longer one every position has its long angle.
    pub switch: usize,
    /// Row of the rotary table at which the long ones begin.
    pub first_row: usize,
}

/// A loaded model: places of its weights, and its plans.
pub trait Vlm: Send + Sync {
    /// Where everything lies that others read and write.
    fn areas(&self) -> &Areas;

    /// What makes pictures ready, with options that differ from those of the checkpoint.
    ///
    /// # Errors
    /// If an option is unknown, or asks for what this model cannot do, or cannot do any more once it is loaded.
    fn processor(&self, kwargs: &ProcessorKwargs) -> Result<Box<dyn Processor>>;

    /// A picture that takes the most places with the options of the checkpoint, for warm-up.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn dummy_image(&self) -> Result<Rgb>;

    /// What is computed once, when the weights are in their places: the image rows that are the same for every picture.
    fn setup_plan(&self) -> Plan {
        Plan::new(self.areas().dtype)
    }

    /// Encode the first `tiles` tiles of [`Areas::tiles`] and leave their rows at the start of the image rows. An empty
    /// plan in a model without its tower.
    fn encode_plan(&self, tiles: usize) -> Plan;

    /// Project `tiles` tiles from [`Areas::features`] and leave their rows at the start of the image rows.
    fn project_plan(&self, _tiles: usize) -> Plan {
        Plan::new(self.areas().dtype)
    }

    /// One step of the language model.
    fn step_plan(&self, shape: StepShape) -> Plan;

    /// Where the angles of positions change with the length of the sequence, if they do.
    fn long_rope(&self) -> Option<LongAngles> {
        None
    }

    /// Image rows of a tile.
    fn tile_rows(&self) -> usize {
        self.areas().tile_rows
    }

    /// What the host and the device exchange at a step.
    fn io(&self) -> &StepArea {
        &self.areas().io
    }

    /// Sizes of the regions in bytes, in the order of [`Region::ALL`](crate::mem::Region::ALL).
    fn regions(&self) -> [usize; 4] {
        self.areas().regions
    }

    /// What goes where in the weights region.
    fn placements(&self) -> &[Placement] {
        &self.areas().placements
    }
}

/// Whether a tensor of CLIP or Llama, by its canonical name, is one that checkpoints carry and a model which runs `blocks`
/// blocks of CLIP does not read.
pub fn unused(name: &str, blocks: usize) -> bool {
    let later_block = name
        .strip_prefix("vision_tower.encoder.layers.")
        .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok())
        .is_some_and(|i| i >= blocks);
    later_block
        || name.ends_with(".position_ids")
        || name.ends_with(".rotary_emb.inv_freq")
        || name.starts_with("vision_tower.post_layernorm.")
}
