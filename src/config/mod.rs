//! A checkpoint's settings, read strictly.
//!
//! The rule: a field that could change the result is read, or has the one value that this build computes, or is an
//! error that names it. Each object has a list of the fields that have no effect; what is on no list is refused. Values
//! are checked for type, range and agreement with each other before anything is sized by them. Missing fields have the
//! defaults of transformers' config classes, because its files leave out what is default.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};

mod base;
mod clip;
mod generation;
mod hd;
mod json;
mod llama;
mod llava;
mod model;
mod object;
mod phi3v;
mod preprocessor;

pub use clip::ClipConfig;
pub use generation::{Generation, SamplingDefaults};
pub use hd::HdConfig;
pub use llama::{LlamaConfig, LongRope};
pub use llava::{LlavaConfig, Select};
use model::Alias;
pub use model::{Activation, Family, LLAVA, LLAVA_NEXT, ModelConfig, PHI3_V, architecture, float_dtype};
pub use phi3v::Phi3VConfig;
pub use preprocessor::{Pictures, Preprocessor, ProcessorKwargs, Resample, Resize};

/// Largest settings file, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Everything that a checkpoint of a family of this crate says apart from tensors and text.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// config.json.
    pub model: ModelConfig,
    /// generation_config.json, or what config.json says in its place.
    pub generation: Generation,
    /// preprocessor_config.json, or the `image_processor` of processor_config.json.
    pub pictures: Pictures,
}

/// The texts of a checkpoint's settings files.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// config.json.
    pub config: &'a [u8],
    /// generation_config.json.
    pub generation: Option<&'a [u8]>,
    /// preprocessor_config.json.
    pub preprocessor: Option<&'a [u8]>,
    /// processor_config.json.
    pub processor: Option<&'a [u8]>,
}

/// The settings files of a directory.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    config: Vec<u8>,
    generation: Option<Vec<u8>>,
    preprocessor: Option<Vec<u8>>,
    processor: Option<Vec<u8>>,
}

impl Texts {
    /// Reads those of the checkpoint in `dir`.
    ///
    /// # Errors
    /// When config.json is absent, or a file is no regular one, too large or cannot be read.
    pub fn read(dir: &Path) -> Result<Texts> {
        let read = |name| read(dir, name).with_context(|| format!("{}", dir.join(name).display()));
        let config = read("config.json")?.with_context(|| {
            format!("{}: config.json is not there; give the directory of a Hugging Face checkpoint", dir.display())
        })?;
        Ok(Texts {
            config,
            generation: read("generation_config.json")?,
            preprocessor: read("preprocessor_config.json")?,
            processor: read("processor_config.json")?,
        })
    }

    /// To be parsed.
    pub fn files(&self) -> Files<'_> {
        Files {
            config: &self.config,
            generation: self.generation.as_deref(),
            preprocessor: self.preprocessor.as_deref(),
            processor: self.processor.as_deref(),
        }
    }
}

impl Config {
    /// Reads the settings of the checkpoint in `dir`.
    ///
    /// # Errors
    /// Those of [`Texts::read`], and whatever [`Config::parse`] refuses.
    pub fn load(dir: &Path) -> Result<Config> {
        Config::parse(&Texts::read(dir)?.files()).with_context(|| format!("{}", dir.display()))
    }

    /// Reads settings from memory.
    ///
    /// # Errors
    /// When a file is not a JSON object without repeated keys, and when a field is unknown, has a value that is not
    /// allowed, or contradicts another. The message names file, field, value and what is allowed.
    pub fn parse(files: &Files) -> Result<Config> {
        Config::read(files, None)
    }

    /// [`Config::parse`] for files that have the fields of `family`, a name of
    /// [`REGISTRY`](crate::models::REGISTRY), and call themselves something else: a model that adds to one of this crate.
    /// `own_fields` of config.json are for the caller to read.
    ///
    /// # Errors
    /// Those of [`Config::parse`], or if there is no such family.
    pub fn parse_as(files: &Files, family: &str, own_fields: &[&str]) -> Result<Config> {
        Config::read(files, Some(Alias { family, own_fields }))
    }

    fn read(files: &Files, alias: Option<Alias>) -> Result<Config> {
        let (model, special) = ModelConfig::parse(files.config, alias)?;
        let generation = Generation::parse(files.generation, special, model.family.vocab_size())?;
        if let Family::Llava(llava) = &model.family {
            let image = llava.image_token_index;
            for (name, ids) in [("bos", generation.bos.as_slice()), ("eos", generation.eos.as_slice())] {
                ensure!(!ids.contains(&image), "config.json: image_token_index = {image} is also the {name} token");
            }
        }
        let pictures = preprocessor::parse(files.preprocessor, files.processor, &model.family)?;
        Ok(Config { generation, pictures, model })
    }
}

/// `mm_processor_kwargs` from JSON, as the command line has them. Which options a model has is for
/// [`Preprocessor::with_kwargs`] and [`HdConfig::with_kwargs`] to say.
///
/// # Errors
/// When `text` is not a JSON object without repeated keys.
pub fn processor_kwargs(text: &str) -> Result<ProcessorKwargs> {
    json::object("mm_processor_kwargs", text.as_bytes())
}

/// The content of a file, or nothing when there is none of that name.
fn read(dir: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    let kind = match fs::metadata(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        kind => kind.context("cannot be opened")?,
    };
    ensure!(kind.is_file(), "it is not a regular file");
    let mut text = Vec::new();
    fs::File::open(&path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text)).context("cannot be read")?;
    ensure!(text.len() as u64 <= MAX_FILE, "it is over the limit of {MAX_FILE} bytes");
    Ok(Some(text))
}
