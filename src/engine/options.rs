//! What a caller may choose when a model is loaded.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};

#[cfg(feature = "cuda")]
use crate::backend::cuda::kernels::Kernels;
use crate::config::ProcessorKwargs;
use crate::mem::DType;
use crate::models::{Facts, ImageInputType, ImageToken, ImageTokens, Registration};

/// Most sequences that may run at once.
pub const MAX_NUM_SEQS: usize = 4096;
/// Most tokens of a step.
pub const MAX_NUM_BATCHED_TOKENS: usize = 1 << 20;
/// Most blocks of the cache: their tokens are counted in 32 bits.
pub const MAX_KV_BLOCKS: usize = 1 << 26;
/// Most pictures of a prompt.
pub const MAX_IMAGES: usize = 64;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to run.
    pub device: Device,
    /// Where the weights come from.
    pub load_format: LoadFormat,
    /// Type of activations and weights; `None` is the checkpoint's own.
    pub dtype: Option<DType>,
    /// Longest sequence in tokens; `None` is as long as the model goes.
    pub max_model_len: Option<usize>,
    /// A chat template, as a file or as text, instead of the checkpoint's.
    pub chat_template: Option<String>,
    /// Images a prompt may hold, however they are given; 0 is text alone. vLLM's `limit_mm_per_prompt`.
    pub max_images: usize,
    /// What pictures are given as. With features, the vision tower is not loaded, and pixels are refused.
    pub image_input_type: ImageInputType,
    /// Id of the image token. Like the next two, one of vLLM 0.5.0's: config.json says it, and what is said here must
    /// agree.
    pub image_token_id: Option<u32>,
    /// Shape of the input of one picture: `[1, 3, height, width]` of pixels or `[1, tokens, columns]` of features.
    pub image_input_shape: Option<Vec<usize>>,
    /// Tokens that a picture takes.
    pub image_feature_size: Option<usize>,
    /// Options of the picture processor that differ from those of the checkpoint.
    pub mm_processor_kwargs: ProcessorKwargs,
    /// Sequences that run at once; `None` is 256 on a GPU and 16 on the host.
    pub max_num_seqs: Option<usize>,
    /// Tokens of a step; `None` is 8192 on a GPU and 2048 on the host, or fewer if so many never come together.
    pub max_num_batched_tokens: Option<usize>,
    /// Share of a GPU's memory that weights, activations and cache may take together. In `(0, 1]`.
    pub gpu_memory_utilization: f64,
    /// Blocks of the cache, instead of as many as memory allows.
    pub num_kv_blocks: Option<usize>,
    /// Whether a prompt that begins like an earlier one uses what that left in the cache.
    pub prefix_caching: bool,
    /// Whether a picture that was encoded for an earlier request is kept for later ones.
    pub encoder_caching: bool,
    /// Whether a step is enqueued before the tokens of the one before it are read; `None` is only on a GPU, which works
    /// while the host does. Changes no answer.
    pub async_scheduling: Option<bool>,
    /// A folder of kernels to load instead of those in the program, each `KERNEL.ARCH.cubin` or `KERNEL.ARCH.ptx`: for who
    /// writes kernels. The engine's warnings say what it replaced.
    pub kernel_dir: Option<PathBuf>,
    /// The architecture whose kernels are loaded, whatever the GPU has better ones for: `compute_80` is the PTX that runs on
    /// any GPU from Ampere on. The engine's warnings say so.
    pub kernel_arch: Option<String>,
    /// Families of models beside those of this crate. One that goes by the name of one of these takes its place.
    pub models: Vec<Registration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            device: Device::Auto,
            load_format: LoadFormat::Auto,
            dtype: None,
            max_model_len: None,
            chat_template: None,
            max_images: 4,
            image_input_type: ImageInputType::default(),
            image_token_id: None,
            image_input_shape: None,
            image_feature_size: None,
            mm_processor_kwargs: ProcessorKwargs::new(),
            max_num_seqs: None,
            max_num_batched_tokens: None,
            gpu_memory_utilization: 0.9,
            num_kv_blocks: None,
            prefix_caching: true,
            encoder_caching: true,
            async_scheduling: None,
            kernel_dir: None,
            kernel_arch: None,
            models: Vec::new(),
        }
    }
}

impl Options {
    /// Refuse what cannot be; returns the longest sequence for a model of `positions` positions.
    pub(super) fn check(&self, positions: usize) -> Result<usize> {
        let asked = self.max_model_len.unwrap_or(positions);
        ensure!(
            (1..=positions).contains(&asked),
            "max_model_len is {asked}; the model has {positions} positions, so it must lie in 1 to {positions}"
        );
        for (what, flag, value, most) in [
            ("max_num_seqs", "--max-num-seqs", self.max_num_seqs, MAX_NUM_SEQS),
            ("max_num_batched_tokens", "--max-num-batched-tokens", self.max_num_batched_tokens, MAX_NUM_BATCHED_TOKENS),
            ("num_kv_blocks", "--num-gpu-blocks-override", self.num_kv_blocks, MAX_KV_BLOCKS),
        ] {
            if let Some(value) = value {
                ensure!((1..=most).contains(&value), "{what} is {value}; it must be from 1 to {most} ({flag})");
            }
        }
        ensure!(
            self.max_images <= MAX_IMAGES,
            "max_images is {}; it must be {MAX_IMAGES} at most (--limit-mm-per-prompt)",
            self.max_images
        );
        let share = self.gpu_memory_utilization;
        ensure!(
            share > 0.0 && share <= 1.0,
            "gpu_memory_utilization is {share:?}; it must lie above 0 and at most at 1 (--gpu-memory-utilization)"
        );
        if let Some(dtype) = self.dtype {
            ensure!(dtype.is_float(), "dtype is {dtype}; a model is computed in f32, f16 or bf16");
        }
        Ok(asked)
    }

    /// Refuse what contradicts config.json.
    pub(super) fn check_images(&self, facts: &Facts) -> Result<()> {
        let pictures = &facts.pictures;
        if let Some(asked) = self.image_token_id {
            let ImageToken::Id(id) = facts.image_token else {
                bail!(
                    "image_token_id is {asked} (--image-token-id), and this model's prompts refer to pictures by \
                     <|image_1|>, <|image_2|> and so on; leave it out"
                )
            };
            ensure!(
                asked == id,
                "image_token_id is {asked} (--image-token-id), and config.json says image_token_index = {id}; they must \
                 agree, so leave it out"
            );
        }
        ensure!(
            self.image_input_type == ImageInputType::PixelValues || pictures.feature_columns.is_some(),
            "image_input_type is image_features (--image-input-type), and {} takes pixels or embeddings: how the features of a \
             picture are put together depends on its size",
            facts.architecture
        );
        let (tokens, same_for_all) = (pictures.tokens.most(), matches!(pictures.tokens, ImageTokens::Always(_)));
        if let Some(asked) = self.image_feature_size {
            ensure!(
                !same_for_all || asked == tokens,
                "image_feature_size is {asked} (--image-feature-size), and a picture takes {tokens} tokens by \
                 config.json (vision_config, vision_feature_select_strategy); they must agree, so leave it out"
            );
            ensure!(
                asked <= tokens,
                "image_feature_size is {asked} (--image-feature-size), and a picture takes {tokens} tokens at most; leave \
                 it out"
            );
        }
        if let Some(asked) = &self.image_input_shape {
            self.check_input_shape(asked, facts)?;
        }
        Ok(())
    }

    /// Those of [`Options::kernel_dir`] and [`Options::kernel_arch`].
    #[cfg(feature = "cuda")]
    pub(super) fn kernels(&self) -> Result<Kernels> {
        Kernels::of(self.kernel_dir.as_deref(), self.kernel_arch.as_deref())
    }

    fn check_input_shape(&self, asked: &[usize], facts: &Facts) -> Result<()> {
        let pictures = &facts.pictures;
        let side = pictures.image_size;
        let shape = match (self.image_input_type, pictures.feature_columns) {
            (ImageInputType::ImageFeatures, Some(columns)) => vec![1, pictures.tile_rows, columns],
            _ => vec![1, 3, side, side],
        };
        // Where a picture is cut into tiles, its own size is anybody's choice.
        let tiled = matches!(pictures.tokens, ImageTokens::UpTo(_));
        let pixels = tiled && matches!(asked, [1, 3, height, width] if *height > 0 && *width > 0);
        ensure!(
            pixels || asked == shape,
            "image_input_shape is {asked:?} (--image-input-shape), and by config.json {} have {shape:?} \
             (vision_config); they must agree, so leave it out",
            self.image_input_type.name()
        );
        Ok(())
    }
}

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one and the model is computed in f16 or bf16, otherwise the host.
    Auto,
    /// The references on the host.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl Device {
    /// The device to run on in `dtype`.
    ///
    /// # Errors
    /// If a GPU was asked for and there is none, or it does not compute in `dtype`.
    pub(crate) fn choose(self, dtype: DType) -> Result<Device> {
        match self {
            Device::Auto if dtype != DType::F32 && gpus().is_ok_and(|count| count > 0) => Ok(Device::Cuda(0)),
            Device::Auto | Device::Cpu => Ok(Device::Cpu),
            Device::Cuda(n) => {
                let count = gpus()?;
                ensure!(n < count, "no GPU cuda:{n}: there are {count}");
                ensure!(
                    dtype != DType::F32,
                    "GPUs compute in f16 and bf16; choose --dtype bf16, or --device cpu for f32"
                );
                Ok(self)
            }
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", n)) => n.parse().map(Device::Cuda).map_err(|_| format!("{n:?} is not the number of a GPU")),
            _ => Err("write auto, cpu, cuda or cuda:N".into()),
        }
    }
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// The checkpoint's safetensors, the one format that is read.
    Auto,
    /// No file: random numbers, the same in every run and on every device. For measuring speed with nothing but the
    /// settings and the tokenizer of a model at hand.
    Dummy,
}

impl FromStr for LoadFormat {
    type Err = String;

    /// In vLLM's spelling.
    fn from_str(text: &str) -> Result<LoadFormat, String> {
        match text {
            "auto" | "safetensors" => Ok(LoadFormat::Auto),
            "dummy" => Ok(LoadFormat::Dummy),
            _ => Err("write auto, safetensors or dummy".into()),
        }
    }
}

/// Number of GPUs that the kernels of this build can run on.
#[cfg(feature = "cuda")]
fn gpus() -> Result<usize> {
    use crate::backend::cuda::{driver, image};
    let count = driver::count()?;
    ensure!(!image::embedded().is_empty(), "this build has no CUDA kernels; run tools/install-nvcc and build again");
    Ok(count)
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Result<usize> {
    anyhow::bail!("this build has no CUDA; build with --features cuda, or say --device cpu")
}

/// Bytes of host memory that a process could still take, or 0 where the system does not say.
pub fn available_memory() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_spelled_as_usual() {
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        for bad in ["gpu", "cuda:", "cuda:-1", "cpu:0", ""] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn load_formats_are_vllms_as_far_as_they_exist_here() {
        assert_eq!("safetensors".parse(), Ok(LoadFormat::Auto));
        assert_eq!("dummy".parse(), Ok(LoadFormat::Dummy));
        for bad in ["pt", "npcache", "Dummy", ""] {
            assert!(bad.parse::<LoadFormat>().is_err(), "{bad}");
        }
    }
}
