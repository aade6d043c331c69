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
mod json;
mod llama;
mod llava;
mod model;
mod object;
mod preprocessor;

pub use clip::ClipConfig;
pub use generation::{Generation, SamplingDefaults};
pub use llama::LlamaConfig;
pub use llava::{LlavaConfig, Select};
pub use model::{Activation, Family, ModelConfig};
pub use preprocessor::{Preprocessor, ProcessorKwargs, Resample, Resize};

/// Largest settings file, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Everything that a checkpoint says apart from tensors and text.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// config.json.
    pub model: ModelConfig,
    /// generation_config.json, or what config.json says in its place.
    pub generation: Generation,
    /// preprocessor_config.json, or the `image_processor` of processor_config.json.
    pub preprocessor: Preprocessor,
    /// How the placeholder is spelled; its id is [`LlavaConfig::image_token_index`].
    pub image_token: String,
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

impl Config {
    /// Reads the settings of the checkpoint in `dir`.
    ///
    /// # Errors
    /// When a file that is needed is absent or cannot be read, and whatever [`Config::parse`] refuses.
    pub fn load(dir: &Path) -> Result<Config> {
        let read = |name| read(dir, name).with_context(|| format!("{}", dir.join(name).display()));
        let config = read("config.json")?.with_context(|| {
            format!("{}: config.json is not there; give the directory of a Hugging Face checkpoint", dir.display())
        })?;
        let generation = read("generation_config.json")?;
        let preprocessor = read("preprocessor_config.json")?;
        let processor = read("processor_config.json")?;
        let files = Files {
            config: &config,
            generation: generation.as_deref(),
            preprocessor: preprocessor.as_deref(),
            processor: processor.as_deref(),
        };
        Config::parse(&files).with_context(|| format!("{}", dir.display()))
    }

    /// Reads settings from memory.
    ///
    /// # Errors
    /// When a file is not a JSON object without repeated keys, and when a field is unknown, has a value that is not
    /// allowed, or contradicts another. The message names file, field, value and what is allowed.
    pub fn parse(files: &Files) -> Result<Config> {
        let (model, special) = ModelConfig::parse(files.config)?;
        let Family::Llava(llava) = &model.family;
        let generation = Generation::parse(files.generation, special, model.family.vocab_size())?;
        let image = llava.image_token_index;
        for (name, ids) in [("bos", generation.bos.as_slice()), ("eos", generation.eos.as_slice())] {
            ensure!(!ids.contains(&image), "config.json: image_token_index = {image} is also the {name} token");
        }
        let processor = preprocessor::parse(files.preprocessor, files.processor, llava)?;
        Ok(Config { generation, preprocessor: processor.image, image_token: processor.image_token, model })
    }
}

/// `mm_processor_kwargs` from JSON, as the command line has them. Which options a model has is for
/// [`Preprocessor::with_kwargs`] to say.
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
