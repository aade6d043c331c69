//! `text_config` of the Llama family: Llama, Mistral, and the text model of Phi-3-vision.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::base;
use super::object::{Nulls, Object};

/// Sizes and constants of a Llama text model.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// `llama`, `mistral` or `phi3`: they are computed alike.
    pub model_type: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Elements of a head; even. `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head. Both tensors must have exactly this many, padding rows included.
    pub vocab_size: usize,
    /// Longest sequence, in tokens, that the positions were made for; not beyond `sliding_window` where a file has one,
    /// because up to there a window changes nothing, and it is not computed.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// What divides the frequencies, in a model that was stretched to longer sequences than it was trained on at first.
    pub long_rope: Option<LongRope>,
    /// Whether the head's weight is the embedding's. A checkpoint may store both all the same; each is then
    /// used for itself.
    pub tie_word_embeddings: bool,
}

/// `longrope`, which old files call `su`: two lists of divisors of the rotary frequencies, one for sequences up to a
/// length and one for all positions of longer ones.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Longest sequence, in tokens, of the short factors.
    pub original_max_position_embeddings: usize,
    /// `[head_dim / 2]`, for sequences up to that length.
    pub short_factor: Vec<f64>,
    /// `[head_dim / 2]`, for longer ones.
    pub long_factor: Vec<f64>,
    /// What cosines and sines of both are multiplied by: `sqrt(1 + ln(max / original) / ln(original))`.
    pub attention_factor: f64,
}

/// What a class of transformers takes for a field that the file does not have.
struct Defaults {
    model_type: &'static str,
    hidden_size: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    intermediate_size: usize,
    /// `None` is as many as query heads.
    num_key_value_heads: Option<usize>,
    max_position_embeddings: usize,
    /// Of a file that does not say `null`. Llama itself has none.
    sliding_window: Option<usize>,
    windows: bool,
}

const LLAMA: Defaults = Defaults {
    model_type: "llama",
    hidden_size: 4096,
    vocab_size: 32000,
    rms_norm_eps: 1e-6,
    intermediate_size: 11008,
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    sliding_window: None,
    windows: false,
};

const MISTRAL: Defaults = Defaults {
    model_type: "mistral",
    hidden_size: 4096,
    vocab_size: 32000,
    rms_norm_eps: 1e-6,
    intermediate_size: 14336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    sliding_window: Some(4096),
    windows: true,
};

/// Without effect in a Llama config. `pretraining_tp` only says in how many slices the training code multiplied.
const INERT: &[&str] = &["attention_dropout", "max_sequence_length", "pretraining_tp"];

const NULLABLE: Nulls = Nulls::In(&[
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "num_key_value_heads",
    "pad_token_id",
    "rope_parameters",
    "rope_scaling",
]);

/// Ids that old checkpoints keep in the text model's config.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<Vec<u32>>,
    pub pad: Option<u32>,
}

impl LlamaConfig {
    /// How `text_config` is to be read.
    pub(super) const NULLS: Nulls = NULLABLE;

    /// From `text_config`, or the defaults of transformers' class for its `model_type` where it is absent or says nothing.
    pub(super) fn read(o: &mut Object) -> Result<(LlamaConfig, SpecialTokens)> {
        let defaults = o.choice("model_type", &[("llama", &LLAMA), ("mistral", &MISTRAL)])?.unwrap_or(&LLAMA);
        base::check(o)?;
        let special = SpecialTokens::read(o)?;
        let (sizes, _) = LlamaConfig::sizes(o, defaults)?;
        let config = LlamaConfig { rope_theta: rope_theta(o)?, ..sizes };
        o.finish(&[base::INERT, base::OLD_GENERATION, base::NESTED, INERT])?;
        Ok((config, special))
    }

    /// The same fields beside others, as Phi-3-vision has them, with the defaults of transformers' Phi3Config.
    /// Beside them, `max_position_embeddings` as the file has it.
    pub(super) fn read_phi3(o: &mut Object) -> Result<(LlamaConfig, usize)> {
        const PHI3: Defaults = Defaults {
            model_type: "phi3",
            hidden_size: 3072,
            vocab_size: 32064,
            rms_norm_eps: 1e-5,
            intermediate_size: 8192,
            max_position_embeddings: 4096,
            windows: true,
            ..LLAMA
        };
        LlamaConfig::sizes(o, &PHI3)
    }

    /// All but the rotary embedding; and `max_position_embeddings`, whatever the window.
    fn sizes(o: &mut Object, defaults: &Defaults) -> Result<(LlamaConfig, usize)> {
        o.choice("hidden_act", &[("silu", ()), ("swish", ())])?;
        o.only("attention_bias", false)?;
        o.only("mlp_bias", false)?;
        let hidden_size = o.size("hidden_size", 1 << 16)?.unwrap_or(defaults.hidden_size);
        let num_attention_heads = o.size("num_attention_heads", 1024)?.unwrap_or(32);
        let num_key_value_heads =
            o.size("num_key_value_heads", 1024)?.unwrap_or(defaults.num_key_value_heads.unwrap_or(num_attention_heads));
        ensure!(
            hidden_size.is_multiple_of(num_attention_heads),
            "{} = {hidden_size} is not a multiple of num_attention_heads = {num_attention_heads}",
            o.at("hidden_size")
        );
        ensure!(
            num_attention_heads.is_multiple_of(num_key_value_heads),
            "{} = {num_key_value_heads} does not divide num_attention_heads = {num_attention_heads}",
            o.at("num_key_value_heads")
        );
        let head_dim = o.size("head_dim", 1024)?.unwrap_or(hidden_size / num_attention_heads);
        ensure!(
            head_dim.is_multiple_of(2) && head_dim <= 1024,
            "{} = {head_dim}; rotary positions need an even number up to 1024",
            o.at("head_dim")
        );
        let positions = o.size("max_position_embeddings", 1 << 24)?.unwrap_or(defaults.max_position_embeddings);
        let window = sliding_window(o, defaults)?;
        let config = LlamaConfig {
            model_type: defaults.model_type,
            hidden_size,
            intermediate_size: o.size("intermediate_size", 1 << 20)?.unwrap_or(defaults.intermediate_size),
            num_hidden_layers: o.size("num_hidden_layers", 1024)?.unwrap_or(32),
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: o.size("vocab_size", 1 << 22)?.unwrap_or(defaults.vocab_size),
            max_position_embeddings: window.map_or(positions, |window| window.min(positions)),
            rms_norm_eps: epsilon(o, "rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            rope_theta: 10000.0,
            long_rope: None,
            tie_word_embeddings: o.flag("tie_word_embeddings")?.unwrap_or(false),
        };
        Ok((config, positions))
    }
}

impl SpecialTokens {
    /// From any object that may hold them.
    pub(super) fn read(o: &mut Object) -> Result<SpecialTokens> {
        Ok(SpecialTokens { bos: o.token("bos_token_id")?, eos: o.tokens("eos_token_id")?, pad: pad(o)? })
    }
}

/// The padding token; old Llama files write -1 for none.
fn pad(o: &mut Object) -> Result<Option<u32>> {
    match o.get("pad_token_id").and_then(|value| value.as_i64()) {
        Some(-1) => Ok(None),
        _ => o.token("pad_token_id"),
    }
}

/// How far back a token sees. A `null` is no limit, which is not what an absent field means in every class.
fn sliding_window(o: &mut Object, defaults: &Defaults) -> Result<Option<usize>> {
    if !defaults.windows {
        o.only("sliding_window", Value::Null)?;
    }
    match o.get("sliding_window") {
        None => Ok(defaults.sliding_window),
        Some(Value::Null) => Ok(None),
        Some(_) => o.size("sliding_window", 1 << 24),
    }
}

/// A norm's epsilon.
pub(super) fn epsilon(o: &mut Object, key: &'static str) -> Result<Option<f64>> {
    o.number(key, "a number above 0 and below 1", |x| x > 0.0 && x < 1.0)
}

/// The rotary base in either spelling: `rope_theta` beside `rope_scaling`, or inside `rope_parameters`. No scaling of
/// positions is supported.
fn rope_theta(o: &mut Object) -> Result<f64> {
    let mut theta = theta_of(o)?.map(|theta| (o.at("rope_theta"), theta));
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(mut inner) = o.object(key, Nulls::In(&[]))? else { continue };
        let spelling = inner.spelled("rope_type", "type")?;
        inner.only(spelling, "default")?;
        inner.only("partial_rotary_factor", 1.0)?;
        let found = theta_of(&mut inner)?.map(|theta| (inner.at("rope_theta"), theta));
        inner.finish(&[])?;
        match (&theta, found) {
            (Some((at, a)), Some((inner_at, b))) if *a != b => bail!("{at} = {a} contradicts {inner_at} = {b}"),
            (None, found) => theta = found,
            _ => {}
        }
    }
    Ok(theta.map_or(10000.0, |(_, theta)| theta))
}

pub(super) fn theta_of(o: &mut Object) -> Result<Option<f64>> {
    o.number("rope_theta", "a number from 1 to 1e12", |x| (1.0..=1e12).contains(&x))
}
