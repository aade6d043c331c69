//! The ways to give a picture.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::ImageArray;
use crate::image::{Limits, Rgb};

/// A picture of a request; an array may be several, which then follow one another.
///
/// Whatever way a picture is given, the same numbers give the same answer: features are what the model's vision tower
/// makes of the pixels, and embeddings what its projector makes of the features.
#[derive(Clone, Debug)]
pub enum ImageInput {
    /// A picture file. It is read when the request is checked.
    Path(PathBuf),
    /// The content of a picture file: PNG, JPEG, WebP, GIF or BMP.
    Bytes(Vec<u8>),
    /// Decoded pixels.
    Rgb(Rgb),
    /// What the vision tower gives: its selected layers' rows, before the projector. `[pictures, 576, 1024]` for
    /// LLaVA-1.5.
    Features(ImageArray),
    /// What the projector gives, in place of the embeddings of tokens. `[pictures, 576, 4096]` for LLaVA-1.5-7B.
    Embeddings(ImageArray),
}

impl ImageInput {
    /// The content of a picture file. What it is is decided by its content, when the request is checked.
    ///
    /// # Errors
    /// When the file cannot be read, or is larger than a picture may be.
    pub fn open(path: &Path) -> Result<ImageInput> {
        read(path).map(ImageInput::Bytes)
    }

    /// How many pictures it is.
    pub fn count(&self) -> usize {
        match self {
            ImageInput::Features(array) | ImageInput::Embeddings(array) => array.pictures(),
            _ => 1,
        }
    }
}

/// The bytes of a picture file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let limit = Limits::default().max_bytes;
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    ensure!(!file.metadata()?.is_dir(), "{} is a directory; name a picture file", path.display());
    // Up to the limit whatever the file says of its size: a device has no end.
    file.take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("{}", path.display()))?;
    ensure!(bytes.len() as u64 <= limit, "{} has more than the {limit} bytes that a picture may have", path.display());
    Ok(bytes)
}

impl From<PathBuf> for ImageInput {
    fn from(path: PathBuf) -> ImageInput {
        ImageInput::Path(path)
    }
}

impl From<&Path> for ImageInput {
    fn from(path: &Path) -> ImageInput {
        ImageInput::Path(path.to_owned())
    }
}

impl From<Vec<u8>> for ImageInput {
    fn from(bytes: Vec<u8>) -> ImageInput {
        ImageInput::Bytes(bytes)
    }
}

impl From<&[u8]> for ImageInput {
    fn from(bytes: &[u8]) -> ImageInput {
        ImageInput::Bytes(bytes.to_owned())
    }
}

impl From<Rgb> for ImageInput {
    fn from(rgb: Rgb) -> ImageInput {
        ImageInput::Rgb(rgb)
    }
}
