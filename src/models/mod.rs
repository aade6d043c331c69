//! Model families: what a checkpoint becomes, and the plans that run it.
//!
//! A model answers what a picture costs at worst, with a picture that costs that much, how a picture becomes tiles and
//! a token count, and which id stands for it in a prompt; and it builds three plans: one that encodes tiles, one that
//! projects features that a caller brings, and one step of the language model over decode rows and prompt chunks.

mod clip;
mod io;
mod llama;
mod llava;
mod load;
mod picture;
mod rows;

pub use io::{Limits, MAX_TOKEN_BIASES, StepArea, StepIo, StepShape};
pub use llava::clip_processor;
pub use load::{Placement, Tensors, random_fills};
pub use picture::{Picture, PictureArea};
pub use rows::{ImageRow, RowMap};

use std::str::FromStr;

use anyhow::{Result, bail};

use crate::config::{Config, Preprocessor, ProcessorKwargs};
use crate::image::Rgb;
use crate::mem::{Act, Buf, DType, Source};
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
    /// Pieces of the picture that are encoded on their own.
    pub tiles: usize,
    /// Which image row stands at each place that the picture takes in the sequence.
    pub rows: RowMap,
}

impl Tiles {
    /// Places that the picture takes in the sequence. The only count: expansion, cache budget and splice all use it.
    pub fn tokens(&self) -> usize {
        self.rows.len()
    }
}

/// What there is of a picture's [`Tiles`] before the model runs.
#[derive(Clone, Debug)]
pub enum Content {
    /// `[tiles, image_size, image_size, 3]` bytes.
    Pixels(Vec<u8>),
    /// One tile of pixels, which the device makes.
    Picture(Box<Picture>),
    /// `[tokens, columns]` of [`Vlm::feature_shape`] in the model's type: what the tower makes of the pixels.
    Features(Source),
    /// `[tokens, columns]` of [`Vlm::embedding_shape`] in the model's type: what the projector makes of the features.
    Embeddings(Source),
}

impl Content {
    /// What comes first; `None` if nothing is left to do.
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Content::Pixels(_) | Content::Picture(_) => Some(Stage::Tower),
            Content::Features(_) => Some(Stage::Projector),
            Content::Embeddings(_) => None,
        }
    }

    /// Bytes that it takes on the device, where its first stage reads it.
    pub fn bytes(&self) -> usize {
        match self {
            Content::Pixels(tiles) => tiles.len(),
            Content::Picture(picture) => picture.resize.y.len(),
            Content::Features(rows) | Content::Embeddings(rows) => rows.bytes().len(),
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

/// Rotary angles of two kinds: the short ones for sequences of at most `switch` tokens, the long ones for all positions of
/// longer sequences. Both lie in one table, a row for each position, the short ones from row 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongRope {
    /// Tokens of the longest sequence that has the short angles.
    pub switch: usize,
    /// Row of the table that holds the long angles of position 0.
    pub first_row: usize,
}

/// A loaded model: places of its weights, and its plans.
pub trait Vlm: Send + Sync {
    /// Places that the largest picture takes in a sequence.
    fn max_image_tokens(&self) -> usize;

    /// A picture that costs [`Vlm::max_image_tokens`], for warm-up.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn dummy_image(&self) -> Result<Rgb>;

    /// What is done to a picture that comes with options of its own.
    ///
    /// # Errors
    /// If an option is unknown, or asks for what this model cannot do, or cannot do any more once it is loaded.
    fn preprocessor(&self, kwargs: &ProcessorKwargs) -> Result<Preprocessor>;

    /// Tiles and token count of a picture. `how` is of [`Vlm::preprocessor`]; `None` is the checkpoint's own.
    ///
    /// # Errors
    /// If the picture cannot be brought into the shape that the model takes, or the model was built without its tower.
    fn prepare(&self, picture: &Rgb, how: Option<&Preprocessor>) -> Result<Tiles>;

    /// The same with the resizing left to the device, if it is one that it can do; the pixels are the same to the byte.
    ///
    /// # Errors
    /// As [`Vlm::prepare`].
    fn prepare_for_device(&self, picture: Rgb, how: Option<&Preprocessor>) -> Result<Tiles> {
        self.prepare(&picture, how)
    }

    /// Rows and columns of a picture's [`Content::Features`].
    fn feature_shape(&self) -> [usize; 2];

    /// Rows and columns of a picture's [`Content::Embeddings`].
    fn embedding_shape(&self) -> [usize; 2];

    /// The vocabulary's id that stands for a picture in a prompt.
    fn image_token_id(&self) -> u32;

    /// Encode `tiles` tiles from [`Vlm::pixels`] and leave their rows at the start of the image rows. An empty plan in a
    /// model without its tower.
    fn encode_plan(&self, tiles: usize) -> Plan;

    /// Project `tiles` tiles from [`Vlm::features`] and leave their rows at the start of the image rows.
    fn project_plan(&self, tiles: usize) -> Plan;

    /// Image rows of a tile. Row 0 of those that are kept comes after the rows of all tiles that are encoded together.
    fn tile_rows(&self) -> usize;

    /// Copy image rows that an encode plan left behind to where they are kept.
    fn keep_plan(&self, moves: &[RowMove]) -> Plan;

    /// One step of the language model.
    fn step_plan(&self, shape: StepShape) -> Plan;

    /// Where [`Vlm::encode_plan`] reads the tiles, `[max_tiles, image_size, image_size, 3]`.
    fn pixels(&self) -> Buf<u8>;

    /// Where [`Vlm::project_plan`] reads the features, `[max_tiles * rows of a tile, columns]`.
    fn features(&self) -> Buf<Act>;

    /// What prompts refer to, `[(max_tiles + kept_tiles) * rows of a tile, columns]`.
    fn image_rows(&self) -> Buf<Act>;

    /// Where a picture stands before the device resizes it.
    fn picture_area(&self) -> &PictureArea;

    /// What the host and the device exchange at a step.
    fn io(&self) -> &StepArea;

    /// Where the rotary angles change with the length of a sequence, if they do within the greatest length.
    fn long_rope(&self) -> Option<LongRope> {
        None
    }

    /// Sizes of the regions in bytes, in the order of [`Region::ALL`](crate::mem::Region::ALL).
    fn regions(&self) -> [usize; 4];

    /// What goes where in the weights region.
    fn placements(&self) -> &[Placement];

    /// What was odd about the checkpoint but does not change a result.
    fn warnings(&self) -> &[String];
}

/// Finds every tensor, lays out the regions, and is ready to build plans.
pub type Build = fn(&Config, Tensors<'_>, DType, Limits, ImageInputType) -> Result<Box<dyn Vlm>>;

/// One family of models, by the name that config.json gives it.
pub struct Registration {
    /// `architectures[0]` of config.json.
    pub architecture: &'static str,
    /// Bytes of a block of [`KV_BLOCK`](crate::ops::KV_BLOCK) tokens in the caches of all layers.
    pub kv_block_bytes: fn(&Config, DType) -> usize,
    /// How it is loaded.
    pub build: Build,
}

/// Every family that this build knows.
pub const REGISTRY: &[Registration] = &[llava::REGISTRATION];

/// The family of a checkpoint.
///
/// # Errors
/// If no family goes by the name in config.json.
pub fn find(architecture: &str) -> Result<&'static Registration> {
    match REGISTRY.iter().find(|r| r.architecture == architecture) {
        Some(found) => Ok(found),
        None => {
            let known: Vec<_> = REGISTRY.iter().map(|r| r.architecture).collect();
            bail!("config.json: architectures[0] = {architecture:?}; this build runs {}", known.join(", "))
        }
    }
}
