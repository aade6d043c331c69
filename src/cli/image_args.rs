//! Flags about pictures: what they are given as, how they are prepared, and arrays in files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::config::{ProcessorKwargs, processor_kwargs};
use crate::engine::{ImageArray, ImageInput, ImageInputType, MAX_IMAGES, Options};

/// How pictures are given to the model: vLLM's flags, those of 0.5.0 among them.
#[derive(Args)]
pub(crate) struct ImageArgs {
    /// What pictures are given as; image_features needs no vision tower, so it is not loaded
    #[arg(
        long,
        env = "OCELLI_IMAGE_INPUT_TYPE",
        default_value = "pixel_values",
        value_name = "pixel_values|image_features"
    )]
    image_input_type: ImageInputType,
    /// Id of the image token; must be what config.json says
    #[arg(long, env = "OCELLI_IMAGE_TOKEN_ID", value_name = "ID")]
    image_token_id: Option<u32>,
    /// Shape of a picture's input, for example 1,3,336,336; must be what config.json says
    #[arg(long, env = "OCELLI_IMAGE_INPUT_SHAPE", value_name = "N,N,...", value_delimiter = ',')]
    image_input_shape: Option<Vec<usize>>,
    /// Tokens that a picture takes; must be what config.json says
    #[arg(long, env = "OCELLI_IMAGE_FEATURE_SIZE", value_name = "TOKENS")]
    image_feature_size: Option<usize>,
    /// Options of the picture processor that differ from the checkpoint's, for example {"do_center_crop": false}
    #[arg(long, env = "OCELLI_MM_PROCESSOR_KWARGS", value_name = "JSON", value_parser = kwargs)]
    mm_processor_kwargs: Option<Kwargs>,
}

/// Clap takes a map for something that it should fill itself.
#[derive(Clone)]
struct Kwargs(ProcessorKwargs);

impl ImageArgs {
    pub fn apply(&self, options: Options) -> Options {
        Options {
            image_input_type: self.image_input_type,
            image_token_id: self.image_token_id,
            image_input_shape: self.image_input_shape.clone(),
            image_feature_size: self.image_feature_size,
            mm_processor_kwargs: self.mm_processor_kwargs.clone().map(|k| k.0).unwrap_or_default(),
            ..options
        }
    }
}

/// The pictures of a prompt.
#[derive(Args)]
pub(super) struct PictureArgs {
    /// A picture file: PNG, JPEG, WebP, GIF or BMP; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Features of pictures, from before the projector; they follow those of --image
    #[arg(long, value_name = "FILE.safetensors[:TENSOR]")]
    image_features: Vec<String>,
    /// Embeddings of pictures, from behind the projector; they follow those of --image-features
    #[arg(long, value_name = "FILE.safetensors[:TENSOR]")]
    image_embeds: Vec<String>,
}

impl PictureArgs {
    /// Read every file: nobody should wait for a model to hear that one is missing.
    pub fn read(&self) -> Result<Vec<ImageInput>> {
        let files = self.image.iter().map(|path| ImageInput::open(path));
        let features = self.image_features.iter().map(|name| array(name).map(ImageInput::Features));
        let embeddings = self.image_embeds.iter().map(|name| array(name).map(ImageInput::Embeddings));
        files.chain(features).chain(embeddings).collect()
    }
}

/// `FILE`, or `FILE.safetensors:TENSOR`. Colons elsewhere belong to the names.
fn array(text: &str) -> Result<ImageArray> {
    const SUFFIX: &str = ".safetensors:";
    match text.find(SUFFIX).map(|at| text.split_at(at + SUFFIX.len())) {
        Some((file, tensor)) => ImageArray::read(Path::new(&file[..file.len() - 1]), Some(tensor)),
        None => ImageArray::read(Path::new(text), None),
    }
}

fn kwargs(text: &str) -> Result<Kwargs, String> {
    processor_kwargs(text).map(Kwargs).map_err(|error| format!("{error:#}"))
}

/// `image=N`, `{"image": N}`, or `N` alone.
pub(super) fn limit(text: &str) -> Result<u32, String> {
    let number = match serde_json::from_str(text) {
        Ok(Value::Object(limits)) if limits.len() == 1 => limits.get("image").and_then(Value::as_u64),
        Ok(Value::Number(number)) => number.as_u64(),
        _ => text.strip_prefix("image=").and_then(|n| n.parse().ok()),
    };
    let number = number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n as usize <= MAX_IMAGES);
    number.ok_or_else(|| format!("write image=N with N from 0 to {MAX_IMAGES}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_limits_are_vllms_spelling() {
        assert_eq!(limit("image=2"), Ok(2));
        assert_eq!(limit("{\"image\": 5}"), Ok(5));
        assert_eq!(limit("3"), Ok(3));
        assert_eq!(limit("image=0"), Ok(0));
        for bad in ["image=", "video=2", "image=65", "-1", "{\"video\": 1}", "{\"image\": 1, \"video\": 1}", "[1]"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tensor_is_named_behind_the_file() {
        let error = |text: &str| format!("{:#}", array(text).unwrap_err());
        assert!(error("no/a.safetensors:x:y").starts_with("no/a.safetensors: "));
        assert!(error("no/such:file").starts_with("no/such:file: "));
    }
}
