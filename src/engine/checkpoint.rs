//! A checkpoint that was opened and checked, before anything is allocated.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::Options;
use crate::config::{Config, Family, LlavaConfig};
use crate::mem::DType;
use crate::models::{self, Limits, Registration, Vlm};
use crate::text::{Builtin, ChatTemplate, TokenName, Tokenizer};
use crate::weights::Weights;
use crate::{Error, Result};

/// Settings, mapped tensors, tokenizer and chat template of a checkpoint, each checked and against each other.
pub struct Checkpoint {
    /// Last part of the directory's name.
    pub name: String,
    /// The settings.
    pub config: Config,
    /// The tensors, mapped.
    pub weights: Weights,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template.
    pub template: ChatTemplate,
    /// Type of activations and weights.
    pub dtype: DType,
    /// Longest sequence in tokens.
    pub max_model_len: usize,
    /// Pictures a prompt may hold.
    pub max_images: usize,
    registration: &'static Registration,
    warnings: Vec<String>,
}

impl Checkpoint {
    /// Open and check everything in `dir`; reads no weights.
    ///
    /// # Errors
    /// [`Error::Model`] if the checkpoint is broken, contradictory or of a family this build does not know;
    /// [`Error::Request`] if the options ask for what it cannot do.
    pub fn open(dir: &Path, options: &Options) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::read(dir, options).map_err(Error::Model)?;
        if let Some(asked) = options.max_model_len {
            let most = checkpoint.max_model_len;
            if asked > most {
                let message = format!("max_model_len is {asked}; the model has {most} positions");
                return Err(Error::Request(anyhow::Error::msg(message)));
            }
            checkpoint.max_model_len = asked;
        }
        Ok(checkpoint)
    }

    fn read(dir: &Path, options: &Options) -> anyhow::Result<Checkpoint> {
        let config = Config::load(dir)?;
        let registration = models::find(config.model.family.architecture())?;
        let weights = Weights::open(dir)?;
        let tokenizer = Tokenizer::open(dir)?;
        let Family::Llava(llava) = &config.model.family;
        tokenizer.check_vocab(llava.text.vocab_size)?;
        let image_token = tokenizer.image_token(TokenName::Id(llava.image_token_index))?;
        let tokenizer = Arc::new(tokenizer);
        let template = ChatTemplate::open(
            dir,
            options.chat_template.as_deref(),
            Some(Builtin::Llava15),
            tokenizer.clone(),
            Some(image_token),
        )?;
        let (dtype, contradiction) = config.model.float_dtype(weights.float_dtype());
        let warnings = [weights.warnings(), contradiction.as_slice()].concat();
        let dtype = options.dtype.unwrap_or(dtype);
        ensure!(dtype.is_float(), "the model cannot be computed in {dtype}; f32, f16 and bf16 can");
        let path = dir.canonicalize().with_context(|| format!("{}", dir.display()))?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let max_model_len = llava.text.max_position_embeddings;
        let max_images = options.max_images;
        Ok(Checkpoint {
            name,
            config,
            weights,
            tokenizer,
            template,
            dtype,
            max_model_len,
            max_images,
            registration,
            warnings,
        })
    }

    /// Find every tensor and lay out the regions.
    ///
    /// # Errors
    /// [`Error::Model`] with every tensor that is missing or has another shape.
    pub fn build(&self, limits: Limits) -> Result<Box<dyn Vlm>> {
        (self.registration.build)(&self.config, &self.weights, self.dtype, limits).map_err(Error::Model)
    }

    /// Bytes of a block of the caches of all layers.
    pub fn kv_block_bytes(&self) -> usize {
        (self.registration.kv_block_bytes)(&self.config, self.dtype)
    }

    /// The settings of the family.
    pub fn llava(&self) -> &LlavaConfig {
        let Family::Llava(llava) = &self.config.model.family;
        llava
    }

    /// What is odd about the files but does not change a result.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
