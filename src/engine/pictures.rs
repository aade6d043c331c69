//! From what a request says of its pictures to what the model takes, on the caller's thread.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::encoder_cache::PictureKey;
use super::image_array::{ArrayKind, ArrayShapes};
use super::image_input::read;
use super::{ImageArray, ImageInput, Request, Shared};
use crate::image::{self, Alpha, Limits, Rgb};
use crate::mem::Source;
use crate::models::{Content, Processor, RowMap, Tiles};

/// A picture made ready for the model, and what it is.
pub(super) type Picture = (Tiles, PictureKey);

/// What is done to pictures. Two that do different things to one have different keys for it.
pub(super) struct Processing {
    how: Box<dyn Processor>,
    key: PictureKey,
}

impl Processing {
    /// What `how` does.
    pub fn new(how: Box<dyn Processor>) -> Processing {
        Processing { key: PictureKey::of_processing(&*how), how }
    }
}

impl Shared {
    /// The pictures of a request, one by one.
    pub(super) fn pictures(&self, request: &Request) -> Result<Vec<Picture>> {
        let count = request.images.iter().fold(0usize, |sum, input| sum.saturating_add(input.count()));
        let most = self.checkpoint.max_images;
        ensure!(
            count <= most,
            "the prompt has {count} pictures; at most {most} image(s) may be given in one prompt \
             (--limit-mm-per-prompt image={most})"
        );
        let own;
        let processing = match request.mm_processor_kwargs.is_empty() {
            true => &self.processing,
            false => {
                own = Processing::new(self.model.processor(&request.mm_processor_kwargs)?);
                &own
            }
        };
        let salted = |key: PictureKey| request.cache_salt.as_deref().map_or(key, |salt| key.salted(salt));
        let mut pictures = Vec::with_capacity(count);
        for input in &request.images {
            let number = pictures.len() + 1;
            let some = self.input(input, processing).with_context(|| format!("picture {number}"))?;
            pictures.extend(some.into_iter().map(|(tiles, key)| (tiles, salted(key))));
        }
        Ok(pictures)
    }

    fn input(&self, input: &ImageInput, processing: &Processing) -> Result<Vec<Picture>> {
        let one = |rgb| self.pixels(rgb, processing).map(|picture| vec![picture]);
        match input {
            ImageInput::Path(path) => one(self.decode(&read(path)?)?),
            ImageInput::Bytes(bytes) => one(self.decode(bytes)?),
            ImageInput::Rgb(rgb) => one(rgb.clone()),
            ImageInput::Features(array) => self.array(array, ArrayKind::Features),
            ImageInput::Embeddings(array) => self.array(array, ArrayKind::Embeddings),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<Rgb> {
        let start = Instant::now();
        let rgb = image::decode(bytes, Alpha::White, &Limits::default()).map_err(anyhow::Error::new)?;
        self.did("decode", start, &[("width", rgb.width() as u64), ("height", rgb.height() as u64)]);
        Ok(rgb)
    }

    /// Pixels made ready for the vision tower. A GPU resizes them itself.
    fn pixels(&self, rgb: Rgb, processing: &Processing) -> Result<Picture> {
        let start = Instant::now();
        let key = PictureKey::of_pixels(&rgb, processing.key);
        self.did("hash", start, &[]);
        let start = Instant::now();
        let how = &processing.how;
        let tiles = if self.runs_kernels { how.prepare_for_device(rgb)? } else { how.prepare(&rgb)? };
        self.check(&tiles)?;
        self.did("process", start, &[("tiles", tiles.tiles as u64)]);
        Ok((tiles, key))
    }

    /// Hold a processor to what its model said of pictures: memory was planned for that.
    fn check(&self, picture: &Tiles) -> Result<()> {
        let (facts, areas) = (&self.checkpoint.facts().pictures, self.model.areas());
        let (tiles, rows) = (picture.tiles, &picture.rows);
        ensure!(
            tiles <= facts.max_tiles
                && rows.len() <= facts.tokens.most()
                && rows.encoded() == tiles * facts.tile_rows
                && rows.constants() <= areas.constants,
            "the model's processor made {tiles} tiles, {} rows and {} places of it, which show {} separators; the model \
             says that there are {} tiles of {} rows and {} places at most, and {} separators",
            rows.encoded(),
            rows.len(),
            rows.constants(),
            facts.max_tiles,
            facts.tile_rows,
            facts.tokens.most(),
            areas.constants
        );
        Ok(())
    }

    /// The pictures of an array, in the type that the model computes in.
    fn array(&self, array: &ImageArray, kind: ArrayKind) -> Result<Vec<Picture>> {
        let wanted = ArrayShapes::new(&self.checkpoint.facts().pictures, self.model.areas().hidden);
        let tiles = |rows| match kind {
            ArrayKind::Features => Content::Features(rows),
            ArrayKind::Embeddings => Content::Embeddings(rows),
        };
        let split = array.split(kind, &wanted, self.checkpoint.dtype)?.into_iter().enumerate();
        let picture = |(i, rows): (usize, Source)| {
            let shape = array.picture_shape();
            let content = tiles(rows);
            let key = PictureKey::of_rows(&content, shape, &array.picture(i));
            // There is nothing to encode in embeddings.
            let tiles = usize::from(kind == ArrayKind::Features);
            (Tiles { content, tiles, rows: RowMap::straight(shape[0]) }, key)
        };
        Ok(split.map(picture).collect())
    }
}
