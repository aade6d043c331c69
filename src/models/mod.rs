//! Model families: what a checkpoint becomes, and the plans that run it.
//!
//! A model answers what a picture costs at worst, with a picture that costs that much, how a picture becomes tiles and
//! a token count, and which id stands for it in a prompt; and it builds two plans: one that encodes tiles, and one step
//! of the language model over decode rows and prompt chunks.

mod clip;
mod io;
mod llama;
mod llava;
mod load;
mod picture;

pub use io::{Limits, MAX_TOKEN_BIASES, StepArea, StepIo, StepShape};
pub use llava::clip_processor;
pub use load::{Placement, Tensors, random_fills};
pub use picture::{Picture, PictureArea};

use anyhow::{Result, bail};

use crate::config::Config;
use crate::image::Rgb;
use crate::mem::{Buf, DType};
use crate::plan::Plan;

/// A picture made ready for the vision tower.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// What they are made of.
    pub pixels: Pixels,
    /// Pieces of the picture that are encoded on their own.
    pub tiles: usize,
    /// Places that the picture takes in the sequence. The only count: expansion, cache budget and splice all use it.
    pub tokens: usize,
}

/// The pixels of [`Tiles`].
#[derive(Clone, Debug)]
pub enum Pixels {
    /// `[tiles, image_size, image_size, 3]` bytes.
    Ready(Vec<u8>),
    /// One tile, which the device makes.
    Picture(Box<Picture>),
}

impl Pixels {
    /// Bytes of the tiles.
    pub fn bytes(&self) -> usize {
        match self {
            Pixels::Ready(tiles) => tiles.len(),
            Pixels::Picture(picture) => picture.resize.y.len(),
        }
    }
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

/// A loaded model: places of its weights, and its plans.
pub trait Vlm: Send + Sync {
    /// Places that the largest picture takes in a sequence.
    fn max_image_tokens(&self) -> usize;

    /// A picture that costs [`Vlm::max_image_tokens`], for warm-up.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn dummy_image(&self) -> Result<Rgb>;

    /// Tiles and token count of a picture.
    ///
    /// # Errors
    /// If the picture cannot be brought into the shape that the model takes.
    fn prepare(&self, picture: &Rgb) -> Result<Tiles>;

    /// The same with the resizing left to the device, if it is one that it can do; the pixels are the same to the byte.
    ///
    /// # Errors
    /// As [`Vlm::prepare`].
    fn prepare_for_device(&self, picture: Rgb) -> Result<Tiles> {
        self.prepare(&picture)
    }

    /// The vocabulary's id that stands for a picture in a prompt.
    fn image_token_id(&self) -> u32;

    /// Encode `tiles` tiles from [`Vlm::pixels`] and leave their rows at the start of the image rows.
    fn encode_plan(&self, tiles: usize) -> Plan;

    /// Image rows of a tile. Row 0 of those that are kept comes after the rows of all tiles that are encoded together.
    fn tile_rows(&self) -> usize;

    /// Copy image rows that an encode plan left behind to where they are kept.
    fn keep_plan(&self, moves: &[RowMove]) -> Plan;

    /// One step of the language model.
    fn step_plan(&self, shape: StepShape) -> Plan;

    /// Where [`Vlm::encode_plan`] reads the tiles, `[max_tiles, image_size, image_size, 3]`.
    fn pixels(&self) -> Buf<u8>;

    /// Where a picture stands before the device resizes it.
    fn picture_area(&self) -> &PictureArea;

    /// What the host and the device exchange at a step.
    fn io(&self) -> &StepArea;

    /// Sizes of the regions in bytes, in the order of [`Region::ALL`](crate::mem::Region::ALL).
    fn regions(&self) -> [usize; 4];

    /// What goes where in the weights region.
    fn placements(&self) -> &[Placement];

    /// What was odd about the checkpoint but does not change a result.
    fn warnings(&self) -> &[String];
}

/// Finds every tensor, lays out the regions, and is ready to build plans.
pub type Build = fn(&Config, Tensors<'_>, DType, Limits) -> Result<Box<dyn Vlm>>;

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
