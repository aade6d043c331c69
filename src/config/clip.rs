//! `vision_config` of the CLIP family.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::base;
use super::llama::epsilon;
use super::model::Activation;
use super::object::{Nulls, Object};

/// Sizes and constants of a CLIP vision tower. Colour channels are always 3, attention and MLP always have biases, the
/// patch embedding never.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks that are stored; how many are run is the model's choice.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Side of the square picture, in pixels; a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of the square patch, in pixels.
    pub patch_size: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// Between the MLP's two matrices.
    pub hidden_act: Activation,
}

/// Without effect in a CLIP vision config: training, and the sizes of CLIP's other half.
const INERT: &[&str] = &[
    "attention_dropout",
    "bos_token_id",
    "dropout",
    "eos_token_id",
    "pad_token_id",
    "projection_dim",
    "tie_word_embeddings",
    "vocab_size",
];

impl ClipConfig {
    /// How `vision_config` is to be read.
    pub(super) const NULLS: Nulls = Nulls::In(&[]);

    /// ViT-L/14 at 336 pixels: what LLaVA takes when there is no `vision_config` at all.
    pub(super) fn vit_l_14_336() -> ClipConfig {
        ClipConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            head_dim: 64,
            image_size: 336,
            patch_size: 14,
            layer_norm_eps: 1e-5,
            hidden_act: Activation::QuickGelu,
        }
    }

    /// From `vision_config`; what it does not say has the defaults of transformers' CLIPVisionConfig.
    pub(super) fn read(o: &mut Object) -> Result<ClipConfig> {
        o.choice("model_type", &[("clip_vision_model", ())])?;
        base::check(o)?;
        o.only("num_channels", 3)?;
        let hidden_size = o.size("hidden_size", 1 << 16)?.unwrap_or(768);
        let num_attention_heads = o.size("num_attention_heads", 1024)?.unwrap_or(12);
        ensure!(
            hidden_size.is_multiple_of(num_attention_heads),
            "{} = {hidden_size} is not a multiple of num_attention_heads = {num_attention_heads}",
            o.at("hidden_size")
        );
        let image_size = o.size("image_size", 4096)?.unwrap_or(224);
        let patch_size = o.size("patch_size", 4096)?.unwrap_or(32);
        ensure!(
            image_size.is_multiple_of(patch_size) && image_size / patch_size <= 256,
            "{} = {image_size} must be a multiple of patch_size = {patch_size}, at most 256 patches a side",
            o.at("image_size")
        );
        let config = ClipConfig {
            hidden_size,
            intermediate_size: o.size("intermediate_size", 1 << 20)?.unwrap_or(3072),
            num_hidden_layers: o.size("num_hidden_layers", 1024)?.unwrap_or(12),
            num_attention_heads,
            head_dim: hidden_size / num_attention_heads,
            image_size,
            patch_size,
            layer_norm_eps: epsilon(o, "layer_norm_eps")?.unwrap_or(1e-5),
            hidden_act: o.choice("hidden_act", Activation::NAMES)?.unwrap_or(Activation::QuickGelu),
        };
        o.finish(&[base::INERT, base::OLD_GENERATION, base::NESTED, INERT])?;
        Ok(config)
    }

    /// Patches of a picture, a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a picture: rows of the tower's output without the class token.
    pub fn patches(&self) -> usize {
        self.grid().pow(2)
    }
}

/// How many of a tower's `blocks` blocks have run before the output that an index names: 0 is the output of the first norm,
/// and -1 that of the last block. `None` if there is no such output.
pub(super) fn blocks_before(index: &Value, blocks: usize) -> Option<usize> {
    let outputs = i64::try_from(blocks).ok()? + 1;
    let index = index.as_i64().filter(|index| (-outputs..outputs).contains(index))?;
    usize::try_from(if index < 0 { outputs + index } else { index }).ok()
}
