//! The options of an engine, one call each.

use std::path::PathBuf;

use super::{Device, Engine, LoadFormat, Options};
use crate::Result;
use crate::config::ProcessorKwargs;
use crate::mem::DType;
use crate::models::{ImageInputType, Registration};

/// How a model is loaded: see [`Options`] for what each choice means and what it is when it is not made.
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded before `open`"]
pub struct Builder {
    dir: PathBuf,
    options: Options,
}

impl Builder {
    pub(super) fn new(dir: PathBuf) -> Builder {
        Builder { dir, options: Options::default() }
    }

    /// All options at once.
    pub fn options(mut self, options: Options) -> Builder {
        self.options = options;
        self
    }

    /// See [`Options::device`].
    pub fn device(mut self, device: Device) -> Builder {
        self.options.device = device;
        self
    }

    /// See [`Options::load_format`].
    pub fn load_format(mut self, format: LoadFormat) -> Builder {
        self.options.load_format = format;
        self
    }

    /// See [`Options::dtype`].
    pub fn dtype(mut self, dtype: DType) -> Builder {
        self.options.dtype = Some(dtype);
        self
    }

    /// See [`Options::max_model_len`].
    pub fn max_model_len(mut self, tokens: usize) -> Builder {
        self.options.max_model_len = Some(tokens);
        self
    }

    /// See [`Options::chat_template`].
    pub fn chat_template(mut self, file_or_text: impl Into<String>) -> Builder {
        self.options.chat_template = Some(file_or_text.into());
        self
    }

    /// See [`Options::max_images`].
    pub fn max_images(mut self, images: usize) -> Builder {
        self.options.max_images = images;
        self
    }

    /// See [`Options::image_input_type`].
    pub fn image_input_type(mut self, input: ImageInputType) -> Builder {
        self.options.image_input_type = input;
        self
    }

    /// See [`Options::image_token_id`].
    pub fn image_token_id(mut self, id: u32) -> Builder {
        self.options.image_token_id = Some(id);
        self
    }

    /// See [`Options::image_input_shape`].
    pub fn image_input_shape(mut self, shape: impl Into<Vec<usize>>) -> Builder {
        self.options.image_input_shape = Some(shape.into());
        self
    }

    /// See [`Options::image_feature_size`].
    pub fn image_feature_size(mut self, tokens: usize) -> Builder {
        self.options.image_feature_size = Some(tokens);
        self
    }

    /// See [`Options::mm_processor_kwargs`].
    pub fn mm_processor_kwargs(mut self, kwargs: ProcessorKwargs) -> Builder {
        self.options.mm_processor_kwargs = kwargs;
        self
    }

    /// See [`Options::max_num_seqs`].
    pub fn max_num_seqs(mut self, sequences: usize) -> Builder {
        self.options.max_num_seqs = Some(sequences);
        self
    }

    /// See [`Options::max_num_batched_tokens`].
    pub fn max_num_batched_tokens(mut self, tokens: usize) -> Builder {
        self.options.max_num_batched_tokens = Some(tokens);
        self
    }

    /// See [`Options::gpu_memory_utilization`].
    pub fn gpu_memory_utilization(mut self, share: f64) -> Builder {
        self.options.gpu_memory_utilization = share;
        self
    }

    /// See [`Options::num_kv_blocks`].
    pub fn num_kv_blocks(mut self, blocks: usize) -> Builder {
        self.options.num_kv_blocks = Some(blocks);
        self
    }

    /// See [`Options::prefix_caching`].
    pub fn prefix_caching(mut self, on: bool) -> Builder {
        self.options.prefix_caching = on;
        self
    }

    /// See [`Options::encoder_caching`].
    pub fn encoder_caching(mut self, on: bool) -> Builder {
        self.options.encoder_caching = on;
        self
    }

    /// See [`Options::async_scheduling`].
    pub fn async_scheduling(mut self, on: bool) -> Builder {
        self.options.async_scheduling = Some(on);
        self
    }

    /// See [`Options::kernel_dir`].
    pub fn kernel_dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.options.kernel_dir = Some(dir.into());
        self
    }

    /// See [`Options::kernel_arch`].
    pub fn kernel_arch(mut self, arch: impl Into<String>) -> Builder {
        self.options.kernel_arch = Some(arch.into());
        self
    }

    /// Add a family of models: see [`Options::models`].
    pub fn register(mut self, family: Registration) -> Builder {
        self.options.models.push(family);
        self
    }

    /// Load the model.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn open(self) -> Result<Engine> {
        Engine::open(&self.dir, &self.options, |_, _| ())
    }
}
