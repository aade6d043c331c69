//! From what a request says of its pictures to what the model takes, on the caller's thread.

use anyhow::{Context, Result, ensure};

use super::encoder_cache::PictureKey;
use super::image_array::ArrayKind;
use super::image_input::read;
use super::{ImageArray, ImageInput, Request, Shared};
use crate::config::Preprocessor;
use crate::image::{self, Alpha, Limits, Rgb};
use crate::models::{Content, RowMap, Tiles};

/// A picture made ready for the model, and what it is.
pub(super) type Picture = (Tiles, PictureKey);

/// What is done to the pictures of a request that has options of its own.
struct Processing {
    how: Option<Preprocessor>,
    key: PictureKey,
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
        let processing = self.processing(request)?;
        let salted = |key: PictureKey| request.cache_salt.as_deref().map_or(key, |salt| key.salted(salt));
        let mut pictures = Vec::with_capacity(count);
        for input in &request.images {
            let number = pictures.len() + 1;
            let some = self.input(input, &processing).with_context(|| format!("picture {number}"))?;
            pictures.extend(some.into_iter().map(|(tiles, key)| (tiles, salted(key))));
        }
        Ok(pictures)
    }

    fn processing(&self, request: &Request) -> Result<Processing> {
        if request.mm_processor_kwargs.is_empty() {
            return Ok(Processing { how: None, key: self.processing });
        }
        let how = self.model.preprocessor(&request.mm_processor_kwargs)?;
        Ok(Processing { key: PictureKey::of_processing(&how), how: Some(how) })
    }

    fn input(&self, input: &ImageInput, processing: &Processing) -> Result<Vec<Picture>> {
        let one = |rgb| self.pixels(rgb, processing).map(|picture| vec![picture]);
        match input {
            ImageInput::Path(path) => one(decode(&read(path)?)?),
            ImageInput::Bytes(bytes) => one(decode(bytes)?),
            ImageInput::Rgb(rgb) => one(rgb.clone()),
            ImageInput::Features(array) => self.array(array, ArrayKind::Features),
            ImageInput::Embeddings(array) => self.array(array, ArrayKind::Embeddings),
        }
    }

    /// Pixels made ready for the vision tower. A GPU resizes them itself.
    fn pixels(&self, rgb: Rgb, processing: &Processing) -> Result<Picture> {
        let key = PictureKey::of_pixels(&rgb, processing.key);
        let how = processing.how.as_ref();
        let tiles =
            if self.runs_kernels { self.model.prepare_for_device(rgb, how)? } else { self.model.prepare(&rgb, how)? };
        Ok((tiles, key))
    }

    /// The pictures of an array, in the type that the model computes in.
    fn array(&self, array: &ImageArray, kind: ArrayKind) -> Result<Vec<Picture>> {
        let (features, embeddings) = (self.model.feature_shape(), self.model.embedding_shape());
        let (shape, other) = match kind {
            ArrayKind::Features => (features, embeddings),
            ArrayKind::Embeddings => (embeddings, features),
        };
        let tiles = |rows| match kind {
            ArrayKind::Features => Content::Features(rows),
            ArrayKind::Embeddings => Content::Embeddings(rows),
        };
        let split = array.split(kind, shape, other, self.checkpoint.dtype)?.into_iter().enumerate();
        let picture = |(i, rows)| {
            let content = tiles(rows);
            let key = PictureKey::of_rows(&content, shape, &array.picture(i));
            let tiles = shape[0].div_ceil(self.model.tile_rows());
            (Tiles { content, tiles, rows: RowMap::straight(shape[0]) }, key)
        };
        Ok(split.map(picture).collect())
    }
}

fn decode(bytes: &[u8]) -> Result<Rgb> {
    image::decode(bytes, Alpha::White, &Limits::default()).map_err(anyhow::Error::new)
}
