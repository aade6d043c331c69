//! A checkpoint that was opened and checked, before anything is allocated.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::{LoadFormat, Options};
use crate::config::{self, Texts};
use crate::mem::DType;
use crate::models::{self, Architecture, Facts, ImageInputType, ImageToken, Limits, Tensors, Vlm};
use crate::text::{ChatTemplate, Placeholder, TokenName, Tokenizer};
use crate::weights::Weights;
use crate::{Error, Result};

/// Settings, mapped tensors, tokenizer and chat template of a checkpoint, each checked and against each other.
pub struct Checkpoint {
    /// Last part of the directory's name.
    pub name: String,
    /// The tensors, mapped; `None` with [`LoadFormat::Dummy`].
    pub weights: Option<Weights>,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template.
    pub template: ChatTemplate,
    /// How prompts refer to pictures.
    pub placeholder: Placeholder,
    /// Tokens that end an answer.
    pub end_ids: Vec<u32>,
    /// Type of activations and weights.
    pub dtype: DType,
    /// Longest sequence in tokens.
    pub max_model_len: usize,
    /// Pictures a prompt may hold.
    pub max_images: usize,
    /// What they are given as.
    pub image_input_type: ImageInputType,
    architecture: Box<dyn Architecture>,
    warnings: Vec<String>,
}

/// What turns conversations into tokens.
struct Prompts {
    tokenizer: Arc<Tokenizer>,
    placeholder: Placeholder,
    template: ChatTemplate,
}

impl Checkpoint {
    /// Open and check everything in `dir`; reads no weights.
    ///
    /// # Errors
    /// [`Error::Model`] if the checkpoint is broken, contradictory or of a family that nobody registered;
    /// [`Error::Request`] if the options ask for what it cannot do.
    pub fn open(dir: &Path, options: &Options) -> Result<Checkpoint> {
        let mut architecture = Checkpoint::architecture(dir, options).map_err(Error::Model)?;
        let max_model_len = options.check(architecture.facts().max_positions).map_err(Error::Request)?;
        architecture.set_processor(&options.mm_processor_kwargs).map_err(Error::Request)?;
        architecture.facts().pictures.check().map_err(Error::Model)?;
        options.check_images(architecture.facts()).map_err(Error::Request)?;
        let facts = architecture.facts();
        let (tokenizer, placeholder) = Checkpoint::tokenizer(dir, facts).map_err(Error::Model)?;
        let template = ChatTemplate::open(
            dir,
            options.chat_template.as_deref(),
            facts.chat_template,
            tokenizer.clone(),
            Some(placeholder),
        );
        // Whose template it is decides who can mend it.
        let at_fault = if options.chat_template.is_some() { Error::Request } else { Error::Model };
        let template = template.map_err(at_fault)?;
        let prompts = Prompts { tokenizer, placeholder, template };
        Checkpoint::read(dir, options, architecture, prompts, max_model_len).map_err(Error::Model)
    }

    /// The settings, as the family that config.json names reads them.
    fn architecture(dir: &Path, options: &Options) -> anyhow::Result<Box<dyn Architecture>> {
        let texts = Texts::read(dir)?;
        let named = config::architecture(texts.files().config).and_then(|name| models::find(&name, &options.models));
        named.and_then(|family| (family.read)(&texts.files())).with_context(|| format!("{}", dir.display()))
    }

    /// The tokenizer, which must know the placeholder and no id that the embedding lacks.
    fn tokenizer(dir: &Path, facts: &Facts) -> anyhow::Result<(Arc<Tokenizer>, Placeholder)> {
        let tokenizer = Tokenizer::open(dir)?;
        tokenizer.check_vocab(facts.vocab_size)?;
        let placeholder = match facts.image_token {
            ImageToken::Id(id) => Placeholder::Token(tokenizer.image_token(TokenName::Id(id))?),
            ImageToken::Tags(text) => Placeholder::Numbered(tokenizer.image_token(TokenName::Text(text))?),
        };
        Ok((Arc::new(tokenizer), placeholder))
    }

    fn read(
        dir: &Path,
        options: &Options,
        architecture: Box<dyn Architecture>,
        prompts: Prompts,
        max_model_len: usize,
    ) -> anyhow::Result<Checkpoint> {
        let facts = architecture.facts();
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
        let (dtype, contradiction) = config::float_dtype(facts.dtype, weights.as_ref().and_then(Weights::float_dtype));
        let unused = facts.generation.sampling.unused();
        let warnings = [odd.as_slice(), contradiction.as_slice(), unused.as_slice()].concat();
        let dtype = options.dtype.unwrap_or(dtype);
        let path = dir.canonicalize().with_context(|| format!("{}", dir.display()))?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let Prompts { tokenizer, placeholder, template } = prompts;
        let also = facts.end_tokens.iter().filter_map(|text| tokenizer.token_to_id(text));
        let mut end_ids: Vec<u32> = facts.generation.eos.iter().copied().chain(also).collect();
        end_ids.sort_unstable();
        end_ids.dedup();
        Ok(Checkpoint {
            name,
            weights,
            tokenizer,
            template,
            placeholder,
            end_ids,
            dtype,
            max_model_len,
            max_images: options.max_images,
            image_input_type: options.image_input_type,
            architecture,
            warnings,
        })
    }

    /// Find every tensor and lay out the regions.
    ///
    /// # Errors
    /// [`Error::Model`] with every tensor that is missing or has another shape.
    pub fn build(&self, limits: Limits) -> Result<Box<dyn Vlm>> {
        let tensors = self.weights.as_ref().map_or(Tensors::Random, Tensors::Stored);
        self.architecture.build(tensors, self.dtype, limits, self.image_input_type).map_err(Error::Model)
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
        self.architecture.kv_block_bytes(self.dtype)
    }

    /// What the settings say that everybody must know.
    pub fn facts(&self) -> &Facts {
        self.architecture.facts()
    }

    /// What is odd about the files but does not change a result.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
