//! config.json: which family, and what it says.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::json::{self, shown};
use super::llama::SpecialTokens;
use super::llava::LlavaConfig;
use super::object::{Nulls, Object};
use super::phi3v::Phi3VConfig;
use crate::mem::DType;

/// config.json of a supported model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `dtype` or `torch_dtype`: the type that the writer says the tensors have. What is stored decides; see
    /// [`float_dtype`].
    pub dtype: Option<DType>,
    /// The model, by `architectures[0]`.
    pub family: Family,
}

/// A model family with its settings.
#[derive(Clone, Debug, PartialEq)]
pub enum Family {
    /// `LlavaForConditionalGeneration`, which is LLaVA-1.5, and `LlavaNextForConditionalGeneration`.
    Llava(LlavaConfig),
    /// `Phi3VForCausalLM`: Phi-3-vision and Phi-3.5-vision.
    Phi3V(Phi3VConfig),
}

/// The function between two matrices of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * Phi(x), with the exact Gaussian distribution function.
    Gelu,
    /// x * sigmoid(1.702 x).
    QuickGelu,
}

impl Activation {
    /// As config.json spells them.
    pub(super) const NAMES: &[(&str, Activation)] =
        &[("gelu", Activation::Gelu), ("quick_gelu", Activation::QuickGelu)];
}

/// A family whose fields a config.json has, though it calls itself something else.
#[derive(Clone, Copy)]
pub(super) struct Alias<'a> {
    pub family: &'a str,
    /// Fields that somebody else reads.
    pub own_fields: &'a [&'a str],
}

/// Reads the fields of a family; `fields` is the whole of config.json.
type Reader = fn(&mut Object) -> Result<(Family, SpecialTokens)>;

/// `architectures[0]`, `model_type`, and who reads the rest.
const FAMILIES: &[(&str, &str, Reader)] = &[
    (LLAVA, "llava", |o| {
        let (llava, special) = LlavaConfig::read(o)?;
        Ok((Family::Llava(llava), special))
    }),
    (LLAVA_NEXT, "llava_next", |o| {
        let (llava, special) = LlavaConfig::read_next(o)?;
        Ok((Family::Llava(llava), special))
    }),
    (PHI3_V, "phi3_v", |o| {
        let (phi, special) = Phi3VConfig::read(o)?;
        Ok((Family::Phi3V(phi), special))
    }),
];

/// `architectures[0]` of LLaVA-1.5.
pub const LLAVA: &str = "LlavaForConditionalGeneration";
/// `architectures[0]` of LLaVA-NeXT.
pub const LLAVA_NEXT: &str = "LlavaNextForConditionalGeneration";
/// `architectures[0]` of Phi-3-vision and Phi-3.5-vision.
pub const PHI3_V: &str = "Phi3VForCausalLM";

const FILE: &str = "config.json";

impl ModelConfig {
    /// What a config.json says; as one of the family `alias`, if that is given, whatever it calls itself.
    pub(super) fn parse(text: &[u8], alias: Option<Alias>) -> Result<(ModelConfig, SpecialTokens)> {
        let mut fields = json::object(FILE, text)?;
        let (architecture, model_type, reader) = match alias {
            Some(alias) => {
                fields.retain(|key, _| !alias.own_fields.contains(&key.as_str()));
                let known = FAMILIES.iter().find(|(name, ..)| *name == alias.family);
                *known.with_context(|| {
                    format!("{} is no family of this crate, which has {}", alias.family, supported())
                })?
            }
            None => family(&fields)?,
        };
        let mut o = Object::new(FILE, &fields, LlavaConfig::NULLS);
        o.get("architectures");
        if let Some(found) = o.get("model_type").filter(|_| alias.is_none()) {
            ensure!(
                found.as_str() == Some(model_type),
                "{FILE}: model_type = {} contradicts architectures = [\"{architecture}\"], whose type is \"{model_type}\"",
                shown(found)
            );
        }
        let spelling = o.spelled("dtype", "torch_dtype")?;
        let dtypes = [("float32", DType::F32), ("float16", DType::F16), ("bfloat16", DType::Bf16)];
        let dtype = o.choice(spelling, &dtypes)?;
        let (family, special) = reader(&mut o)?;
        Ok((ModelConfig { dtype, family }, special))
    }
}

/// The type to compute in when the user does not choose one: `stored`, the one that most of the tensors have
/// ([`crate::weights::Weights::float_dtype`]), and only without it the one that config.json states, `said`. When the two
/// disagree, the second value says so.
pub fn float_dtype(said: Option<DType>, stored: Option<DType>) -> (DType, Option<String>) {
    let dtype = stored.or(said).unwrap_or(DType::F32);
    let warning = said
        .filter(|&said| said != dtype)
        .map(|said| format!("{FILE} says that the tensors are {said}, but most are {dtype}; {dtype} is used"));
    (dtype, warning)
}

impl Family {
    /// `architectures[0]`.
    pub fn architecture(&self) -> &'static str {
        match self {
            Family::Llava(llava) if llava.pinpoints.is_some() => LLAVA_NEXT,
            Family::Llava(_) => LLAVA,
            Family::Phi3V(_) => PHI3_V,
        }
    }

    /// Rows of the embedding: token ids are below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Family::Llava(LlavaConfig { text, .. }) | Family::Phi3V(Phi3VConfig { text, .. }) => text.vocab_size,
        }
    }
}

/// `architectures[0]` of a config.json, whatever else it holds.
///
/// # Errors
/// When it is not a JSON object, or names none.
pub fn architecture(config: &[u8]) -> Result<String> {
    let fields = json::object(FILE, config)?;
    match first_architecture(&fields) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("{FILE}: architectures is missing, or names no model; it is a list of one name"),
    }
}

fn first_architecture(fields: &Map<String, Value>) -> Option<&str> {
    fields.get("architectures")?.as_array()?.first()?.as_str()
}

fn supported() -> String {
    let names: Vec<_> = FAMILIES.iter().map(|(name, ..)| *name).collect();
    names.join(", ")
}

/// The entry of [`FAMILIES`] that `architectures` names.
fn family(fields: &Map<String, Value>) -> Result<(&'static str, &'static str, Reader)> {
    let supported = supported();
    let Some(value) = fields.get("architectures") else {
        bail!("{FILE}: architectures is missing; this build supports {supported}");
    };
    let first = first_architecture(fields);
    match FAMILIES.iter().find(|(name, ..)| Some(*name) == first) {
        Some(&found) => Ok(found),
        None => bail!("{FILE}: architectures = {} is not supported; this build supports [{supported}]", shown(value)),
    }
}

/// Fields of config.json that may be `null`.
pub(super) const NULLABLE: Nulls = Nulls::In(&[
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "num_key_value_heads",
    "pad_token_id",
    "rope_parameters",
    "rope_scaling",
    "text_config",
    "torch_dtype",
    "vision_config",
]);
