//! A checkpoint that was opened and checked, before anything is allocated.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::{LoadFormat, Options};
use crate::config::{Config, Family, LlavaConfig};
use crate::mem::DType;
use crate::models::{self, ImageInputType, Limits, Registration, Tensors, Vlm};
use crate::text::{Builtin, ChatTemplate, Placeholder, TokenName, Tokenizer};
use crate::weights::Weights;
use crate::{Error, Result};

/// Settings, mapped tensors, tokenizer and chat template of a checkpoint, each checked and against each other.
pub struct Checkpoint {
    /// Last part of the directory's name.
    pub name: String,
    /// The settings.
    pub config: Config,
    /// The tensors, mapped; `None` with [`LoadFormat::Dummy`].
    pub weights: Option<Weights>,
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
    /// What they are given as.
    pub image_input_type: ImageInputType,
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
        let mut config = Config::load(dir).map_err(Error::Model)?;
        let Family::Llava(llava) = &config.model.family;
        let max_model_len = options.check(llava.text.max_position_embeddings).map_err(Error::Request)?;
        options.check_images(llava).map_err(Error::Request)?;
        let preprocessor = config.preprocessor.with_kwargs(&options.mm_processor_kwargs, llava.vision.image_size);
        config.preprocessor = preprocessor.map_err(Error::Request)?;
        let tokenizer = Checkpoint::tokenizer(dir, llava).map_err(Error::Model)?;
        let template = ChatTemplate::open(
            dir,
            options.chat_template.as_deref(),
            Some(Builtin::Llava15),
            tokenizer.clone(),
            Some(Placeholder::Token(llava.image_token_index)),
        );
        // Whose template it is decides who can mend it.
        let at_fault = if options.chat_template.is_some() { Error::Request } else { Error::Model };
        let template = template.map_err(at_fault)?;
        Checkpoint::read(dir, options, config, tokenizer, template, max_model_len).map_err(Error::Model)
    }

    /// The tokenizer, which must know the placeholder and no id that the embedding lacks.
    fn tokenizer(dir: &Path, llava: &LlavaConfig) -> anyhow::Result<Arc<Tokenizer>> {
        let tokenizer = Tokenizer::open(dir)?;
        tokenizer.check_vocab(llava.text.vocab_size)?;
        tokenizer.image_token(TokenName::Id(llava.image_token_index))?;
        Ok(Arc::new(tokenizer))
    }

    fn read(
        dir: &Path,
        options: &Options,
        config: Config,
        tokenizer: Arc<Tokenizer>,
        template: ChatTemplate,
        max_model_len: usize,
    ) -> anyhow::Result<Checkpoint> {
        let registration = models::find(config.model.family.architecture())?;
        let (weights, odd) = match options.load_format {
            LoadFormat::Auto => {
                let weights = Weights::open(dir)?;
                let odd = weights.warnings().to_vec();
                (Some(weights), odd)
            }
            LoadFormat::Dummy => {
                (None, vec!["the weights are random numbers (load format dummy), and so are the answers".into()])
            }
        };
        let (dtype, contradiction) = config.model.float_dtype(weights.as_ref().and_then(Weights::float_dtype));
        let unused = config.generation.sampling.unused();
        let warnings = [odd.as_slice(), contradiction.as_slice(), unused.as_slice()].concat();
        let dtype = options.dtype.unwrap_or(dtype);
        let path = dir.canonicalize().with_context(|| format!("{}", dir.display()))?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
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
            image_input_type: options.image_input_type,
            registration,
            warnings,
        })
    }

    /// Find every tensor and lay out the regions.
    ///
    /// # Errors
    /// [`Error::Model`] with every tensor that is missing or has another shape.
    pub fn build(&self, limits: Limits) -> Result<Box<dyn Vlm>> {
        let tensors = self.weights.as_ref().map_or(Tensors::Random, Tensors::Stored);
        (self.registration.build)(&self.config, tensors, self.dtype, limits, self.image_input_type)
            .map_err(Error::Model)
    }

    /// See [`Weights::check_unchanged`].
    ///
    /// # Errors
    /// When a file was rewritten since it was mapped.
    pub fn check_unchanged(&self) -> anyhow::Result<()> {
        self.weights.as_ref().map_or(Ok(()), Weights::check_unchanged)
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

    /// How prompts refer to pictures.
    pub fn placeholder(&self) -> Placeholder {
        Placeholder::Token(self.llava().image_token_index)
    }

    /// What is odd about the files but does not change a result.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
