//! config.json of Phi-3-vision and Phi-3.5-vision.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::base;
use super::clip::{ClipConfig, blocks_before};
use super::llama::{LlamaConfig, LongRope, SpecialTokens, theta_of};
use super::object::{Nulls, Object};

/// What config.json says of a Phi-3-vision model.
#[derive(Clone, Debug, PartialEq)]
pub struct Phi3VConfig {
    /// The vision tower. The files of the hub say nothing of it: it is ViT-L/14 at 336 pixels. A `vision_config` with the
    /// fields of a CLIP model makes it another.
    pub vision: ClipConfig,
    /// `img_processor.layer_idx`, from the front: how many blocks of the tower run.
    pub vision_blocks: usize,
    /// The text model.
    pub text: LlamaConfig,
}

/// `original_max_position_embeddings` of a file that has none.
const ORIGINAL_POSITIONS: usize = 4096;

/// Without effect on inference: training.
const INERT: &[&str] = &["attention_dropout", "embd_pdrop", "resid_pdrop"];

impl Phi3VConfig {
    pub(super) fn read(o: &mut Object) -> Result<(Phi3VConfig, SpecialTokens)> {
        base::check(o)?;
        let special = SpecialTokens::read(o)?;
        let vision = match o.object("vision_config", ClipConfig::NULLS)? {
            Some(mut vision) => ClipConfig::read(&mut vision)?,
            None => ClipConfig::vit_l_14_336(),
        };
        let grid = vision.grid();
        ensure!(
            grid.is_multiple_of(2),
            "{} has {grid} patches a side; they are merged two by two, so it must be even",
            o.at("vision_config")
        );
        let vision_blocks = img_processor(o, &vision)?;
        embd_layer(o)?;
        let (sizes, positions) = LlamaConfig::read_phi3(o)?;
        let (rope_theta, long_rope) = rope(o, sizes.head_dim, positions)?;
        let text = LlamaConfig { rope_theta, long_rope, ..sizes };
        o.finish(&[base::INERT, base::OLD_GENERATION, INERT])?;
        Ok((Phi3VConfig { vision, vision_blocks, text }, special))
    }

    /// Rows of the projector's output for a tile: four patches become one.
    pub fn tile_rows(&self) -> usize {
        self.vision.patches() / 4
    }
}

/// Which features of the tower are taken; returns how many blocks must run.
fn img_processor(o: &mut Object, vision: &ClipConfig) -> Result<usize> {
    let blocks = vision.num_hidden_layers;
    let default = blocks.saturating_sub(1);
    let Some(mut inner) = o.object("img_processor", Nulls::In(&[]))? else { return Ok(default) };
    inner.only("name", "clip_vision_model")?;
    inner.only("image_dim_out", vision.hidden_size)?;
    inner.only("num_img_tokens", vision.patches() / 4)?;
    inner.only("type_feature", "patch")?;
    let outputs = blocks + 1;
    let expected = format!("a whole number from -{outputs} to {blocks} (the tower has {blocks} blocks)");
    let layer = inner.read("layer_idx", expected, |value| blocks_before(value, blocks))?;
    inner.finish(&[&["model_name"]])?;
    Ok(layer.unwrap_or(default))
}

/// How the features become rows of a sequence, of which one way is computed.
fn embd_layer(o: &mut Object) -> Result<()> {
    let Some(mut inner) = o.object("embd_layer", Nulls::In(&[]))? else { return Ok(()) };
    inner.only("embedding_cls", "image")?;
    inner.only("hd_transform_order", "sub_glb")?;
    inner.only("projection_cls", "mlp")?;
    inner.only("use_hd_transform", true)?;
    inner.only("with_learnable_separator", true)?;
    inner.finish(&[])
}

/// The rotary base and the factors, in either spelling: `rope_theta` and `rope_scaling`, or inside `rope_parameters`.
fn rope(o: &mut Object, head_dim: usize, positions: usize) -> Result<(f64, Option<LongRope>)> {
    let mut theta = theta_of(o)?;
    let original_key = "original_max_position_embeddings";
    let mut original = o.size(original_key, 1 << 24)?;
    let mut factors = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(mut inner) = o.object(key, Nulls::In(&[]))? else { continue };
        let spelling = inner.spelled("rope_type", "type")?;
        inner.only("partial_rotary_factor", 1.0)?;
        let (inner_theta, inner_original) = (theta_of(&mut inner)?, inner.size(original_key, 1 << 24)?);
        agree(&inner, "rope_theta", inner_theta, &mut theta)?;
        agree(&inner, original_key, inner_original, &mut original)?;
        let long = inner.choice(spelling, &[("default", false), ("su", true), ("longrope", true)])?.unwrap_or(false);
        if long {
            ensure!(factors.is_none(), "config.json: rope_parameters and rope_scaling both have factors; remove one");
            let half = head_dim / 2;
            let expected = format!("{half} numbers above 0, half of a head's elements");
            let mut list = |key| match inner.read(key, &expected, |value| positive(value, half))? {
                Some(list) => Ok(list),
                None => bail!("{} is missing; it is {expected}", inner.at(key)),
            };
            let (short, long) = (list("short_factor")?, list("long_factor")?);
            factors = Some((short, long));
        }
        inner.finish(&[])?;
    }
    let original = original.unwrap_or(ORIGINAL_POSITIONS);
    ensure!(original > 1, "config.json: {original_key} = {original}; expected a whole number from 2");
    let long_rope = factors.map(|(short_factor, long_factor)| {
        let stretch = positions as f64 / original as f64;
        let attention_factor = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
        LongRope { original_max_position_embeddings: original, short_factor, long_factor, attention_factor }
    });
    Ok((theta.unwrap_or(10000.0), long_rope))
}

/// Take a value that may stand in two places; where it stands in both, they must agree.
fn agree<T: Copy + PartialEq + std::fmt::Display>(
    inner: &Object,
    key: &str,
    found: Option<T>,
    outer: &mut Option<T>,
) -> Result<()> {
    match (found, *outer) {
        (Some(a), Some(b)) if a != b => bail!("{} = {a} contradicts config.json: {key} = {b}", inner.at(key)),
        (Some(found), None) => *outer = Some(found),
        _ => {}
    }
    Ok(())
}

fn positive(value: &Value, len: usize) -> Option<Vec<f64>> {
    let items = value.as_array().filter(|items| items.len() == len)?;
    items.iter().map(|item| item.as_f64().filter(|x| x.is_finite() && *x > 0.0)).collect()
}
