//! config.json of LLaVA-1.5 and of LLaVA-NeXT.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::base;
use super::clip::{ClipConfig, blocks_before};
use super::json::shown;
use super::llama::{LlamaConfig, SpecialTokens};
use super::model::Activation;
use super::object::{Nulls, Object, size};

/// What config.json says of a LLaVA model.
#[derive(Clone, Debug, PartialEq)]
pub struct LlavaConfig {
    /// `image_grid_pinpoints` of LLaVA-NeXT: height and width in pixels of the resolutions at which a picture is looked at
    /// in tiles; `None` in LLaVA-1.5, which looks at every picture once.
    pub pinpoints: Option<Vec<(u32, u32)>>,
    /// The placeholder token: each stands for one row of picture features. Below `text.vocab_size`.
    pub image_token_index: u32,
    /// Between the projector's two matrices.
    pub projector_act: Activation,
    /// Whether the projector's two matrices have biases.
    pub projector_bias: bool,
    /// The tower's outputs that are joined, channel after channel, into the projector's input. Each number is how many
    /// blocks have run: 0 is the output of the first norm, `vision.num_hidden_layers` that of the last block.
    pub feature_layers: Vec<usize>,
    /// Which rows of them.
    pub select: Select,
    /// The vision tower.
    pub vision: ClipConfig,
    /// The text model.
    pub text: LlamaConfig,
}

/// `vision_feature_select_strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The patches, without the class token.
    Default,
    /// The class token, then the patches.
    Full,
}

impl Select {
    /// As the files spell them.
    pub(super) const NAMES: &[(&str, Select)] = &[("default", Select::Default), ("full", Select::Full)];
}

/// Without effect in LLaVA's outer config. `image_seq_length` is written as 576 whatever the picture size; how many
/// tokens a picture takes follows from the tower. `vocab_size` is an old copy of the text model's. A checkpoint of
/// LLaVA-NeXT has a newline whatever `use_image_newline_parameter` says.
const INERT: &[&str] = &["ignore_index", "image_seq_length", "use_image_newline_parameter", "vocab_size"];

/// What LLaVA-NeXT has where the file has no resolutions.
const PINPOINTS: [(u32, u32); 5] = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];

/// Most resolutions.
const MAX_PINPOINTS: usize = 256;
/// Most tiles of a resolution.
const MAX_GRID: u64 = 64;

impl LlavaConfig {
    /// Fields that may be `null`: transformers takes a missing part as the default one.
    pub(super) const NULLS: Nulls = super::model::NULLABLE;

    /// LLaVA-1.5.
    pub(super) fn read(o: &mut Object) -> Result<(LlavaConfig, SpecialTokens)> {
        let (config, special) = LlavaConfig::common(o)?;
        o.finish(&[base::INERT, base::OLD_GENERATION, INERT])?;
        Ok((config, special))
    }

    /// LLaVA-NeXT.
    pub(super) fn read_next(o: &mut Object) -> Result<(LlavaConfig, SpecialTokens)> {
        let (config, special) = LlavaConfig::common(o)?;
        let key = "vision_feature_select_strategy";
        ensure!(
            config.select == Select::Default,
            "{} = \"full\" is not supported with image_grid_pinpoints; only \"default\" is: tiles are put together by \
             their patches",
            o.at(key)
        );
        let side = config.vision.image_size;
        let pinpoints = pinpoints(o)?.unwrap_or_else(|| PINPOINTS.to_vec());
        for &(height, width) in &pinpoints {
            let tiles = [height, width].map(|n| (n as usize).is_multiple_of(side).then_some(n / side as u32));
            ensure!(
                matches!(tiles, [Some(down), Some(across)] if u64::from(down) * u64::from(across) <= MAX_GRID),
                "{} has {height}x{width}; both must be multiples of vision_config.image_size = {side}, of at most {MAX_GRID} \
                 tiles together",
                o.at("image_grid_pinpoints")
            );
        }
        o.finish(&[base::INERT, base::OLD_GENERATION, INERT])?;
        Ok((LlavaConfig { pinpoints: Some(pinpoints), ..config }, special))
    }

    fn common(o: &mut Object) -> Result<(LlavaConfig, SpecialTokens)> {
        base::check(o)?;
        let vision = match o.object("vision_config", ClipConfig::NULLS)? {
            Some(mut vision) => ClipConfig::read(&mut vision)?,
            None => ClipConfig::vit_l_14_336(),
        };
        let empty = serde_json::Map::new();
        let mut text = o
            .object("text_config", LlamaConfig::NULLS)?
            .unwrap_or_else(|| Object::new("config.json", &empty, LlamaConfig::NULLS));
        let (mut text, inner) = LlamaConfig::read(&mut text)?;
        // Either place ties them, as in transformers 5; earlier versions wrote it into the text model only.
        text.tie_word_embeddings |= o.flag("tie_word_embeddings")?.unwrap_or(false);
        let outer = SpecialTokens::read(o)?;
        let special =
            SpecialTokens { bos: inner.bos.or(outer.bos), eos: inner.eos.or(outer.eos), pad: inner.pad.or(outer.pad) };
        let config = LlavaConfig {
            pinpoints: None,
            image_token_index: image_token(o, text.vocab_size)?,
            projector_act: o.choice("projector_hidden_act", Activation::NAMES)?.unwrap_or(Activation::Gelu),
            projector_bias: o.flag("multimodal_projector_bias")?.unwrap_or(true),
            feature_layers: feature_layers(o, vision.num_hidden_layers)?,
            select: o.choice("vision_feature_select_strategy", Select::NAMES)?.unwrap_or(Select::Default),
            vision,
            text,
        };
        Ok((config, special))
    }

    /// Rows of the projector's output for a tile, which in LLaVA-1.5 are the tokens of a picture.
    pub fn tile_rows(&self) -> usize {
        match self.select {
            Select::Default => self.vision.patches(),
            Select::Full => self.vision.patches() + 1,
        }
    }

    /// Columns of the projector's first matrix.
    pub fn projector_input(&self) -> usize {
        self.vision.hidden_size * self.feature_layers.len()
    }

    /// Blocks of the tower that must run.
    pub fn vision_blocks(&self) -> usize {
        self.feature_layers.iter().copied().max().unwrap_or(0)
    }
}

/// `image_grid_pinpoints`, in config.json or in preprocessor_config.json.
pub(super) fn pinpoints(o: &mut Object) -> Result<Option<Vec<(u32, u32)>>> {
    let pair = |value: &Value| match value.as_array()?.as_slice() {
        [height, width] => Some((size(height, 1 << 16)? as u32, size(width, 1 << 16)? as u32)),
        _ => None,
    };
    let pairs = |value: &Value| {
        let pairs: Vec<_> = value.as_array()?.iter().map(pair).collect::<Option<_>>()?;
        (1..=MAX_PINPOINTS).contains(&pairs.len()).then_some(pairs)
    };
    o.read("image_grid_pinpoints", format!("1 to {MAX_PINPOINTS} pairs of a height and a width in pixels"), pairs)
}

/// The placeholder's id, in either spelling.
fn image_token(o: &mut Object, vocab_size: usize) -> Result<u32> {
    let key = o.spelled("image_token_id", "image_token_index")?;
    let (id, note) = match o.token(key)? {
        Some(id) => (id, ""),
        None => (32000, " (the default, because config.json does not say)"),
    };
    ensure!(
        usize::try_from(id).is_ok_and(|id| id < vocab_size),
        "{} = {id}{note} must be below text_config.vocab_size = {vocab_size}",
        o.at(key)
    );
    Ok(id)
}

/// `vision_feature_layer`, an index or a list of them into the tower's `blocks + 1` outputs; negative ones count from
/// the end, so -1 is the output of the last block.
fn feature_layers(o: &mut Object, blocks: usize) -> Result<Vec<usize>> {
    let key = "vision_feature_layer";
    let default = Value::from(-2);
    let value = o.get(key).unwrap_or(&default);
    let items = match value {
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let outputs = blocks + 1;
    let layers: Option<Vec<_>> = items.iter().map(|item| blocks_before(item, blocks)).collect();
    match layers {
        Some(layers) if !layers.is_empty() && layers.len() <= 64 => Ok(layers),
        _ => bail!(
            "{} = {}; expected a whole number from -{outputs} to {blocks}, or a list of 1 to 64 of them \
             (the tower has {blocks} blocks)",
            o.at(key),
            shown(value)
        ),
    }
}
