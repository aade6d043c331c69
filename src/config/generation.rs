//! generation_config.json: where a completion ends, and how its author would sample.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::json;
use super::llama::SpecialTokens;
use super::object::{Nulls, Object};

/// Special tokens and default sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Opens a sequence.
    pub bos: Option<u32>,
    /// Any of them ends a completion; never empty.
    pub eos: Vec<u32>,
    /// Fills a batch elsewhere; nothing here needs it.
    pub pad: Option<u32>,
    /// The author's sampling settings, as far as the file has any.
    pub sampling: SamplingDefaults,
}

/// Sampling settings of generation_config.json; `None` where it says nothing. transformers uses the last five only
/// under `do_sample`, except for the penalty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Whether to sample at all; transformers' default is not to.
    pub do_sample: Option<bool>,
    /// Divides the logits; at least 0.
    pub temperature: Option<f64>,
    /// Keeps the most probable tokens up to this sum; above 0, at most 1.
    pub top_p: Option<f64>,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Drops tokens below this part of the best one's probability; 0 to 1.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens that occurred; above 0.
    pub repetition_penalty: Option<f64>,
}

impl SamplingDefaults {
    /// A warning, where the author would sample otherwise than a request that says nothing: how an answer is sampled
    /// is the request's to say, and these settings are not applied by themselves.
    pub fn unused(&self) -> Option<String> {
        let number = |name: &str, value: Option<f64>| value.filter(|v| *v != 1.0).map(|v| format!("{name} = {v}"));
        let sampled = self.do_sample == Some(true);
        let settings = [
            sampled.then(|| "do_sample = true".to_owned()),
            number("temperature", self.temperature).filter(|_| sampled),
            number("top_p", self.top_p).filter(|_| sampled),
            self.top_k.filter(|_| sampled).map(|k| format!("top_k = {k}")),
            self.min_p.filter(|p| sampled && *p > 0.0).map(|p| format!("min_p = {p}")),
            number("repetition_penalty", self.repetition_penalty),
        ];
        let settings: Vec<_> = settings.into_iter().flatten().collect();
        let list = settings.join(", ");
        (!settings.is_empty()).then(|| format!("generation_config.json recommends {list}; only the request decides"))
    }
}

/// Without effect on what is generated: bookkeeping, output format, speed, and lengths that a request states itself.
const INERT: &[&str] = &[
    "_commit_hash",
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_length",
    "max_matching_ngram_size",
    "max_new_tokens",
    "max_time",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
];

const FILE: &str = "generation_config.json";

impl Generation {
    /// From generation_config.json where it is there; what it does not say, config.json may.
    pub(super) fn parse(text: Option<&[u8]>, config: SpecialTokens, vocab_size: usize) -> Result<Generation> {
        let fields = match text {
            Some(text) => json::object(FILE, text)?,
            None => serde_json::Map::new(),
        };
        let mut o = Object::new(FILE, &fields, Nulls::Everywhere);
        let own = SpecialTokens::read(&mut o)?;
        let sampling = SamplingDefaults::read(&mut o)?;
        one_value(&mut o)?;
        o.finish(&[INERT])?;
        let Some(eos) = own.eos.or(config.eos) else {
            anyhow::bail!(
                "no end-of-sequence token: {FILE} {}, and config.json has no eos_token_id; add \"eos_token_id\" to \
                 {FILE}, or no completion would ever end",
                if text.is_some() { "has no eos_token_id" } else { "is absent" }
            );
        };
        let generation = Generation { bos: own.bos.or(config.bos), eos, pad: own.pad.or(config.pad), sampling };
        let ids = [("bos", generation.bos.as_slice()), ("eos", &generation.eos), ("pad", generation.pad.as_slice())];
        for (name, ids) in ids {
            for &id in ids {
                ensure!(
                    usize::try_from(id).is_ok_and(|id| id < vocab_size),
                    "{name}_token_id = {id} (of {FILE}, or of config.json where that says nothing) must be below \
                     vocab_size = {vocab_size}"
                );
            }
        }
        Ok(generation)
    }
}

impl SamplingDefaults {
    fn read(o: &mut Object) -> Result<SamplingDefaults> {
        let probability = |x: f64| (0.0..=1.0).contains(&x);
        Ok(SamplingDefaults {
            do_sample: o.flag("do_sample")?,
            temperature: o.number("temperature", "a number from 0 to 100", |x| (0.0..=100.0).contains(&x))?,
            top_p: o.number("top_p", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?,
            top_k: o.count("top_k", 1 << 22)?,
            min_p: o.number("min_p", "a number from 0 to 1", probability)?,
            repetition_penalty: o.number("repetition_penalty", "a number above 0", |x| x > 0.0)?,
        })
    }
}

/// Settings that would change what is generated, of which only the neutral value is supported.
fn one_value(o: &mut Object) -> Result<()> {
    for key in ["num_beams", "num_beam_groups", "num_return_sequences"] {
        o.only(key, 1)?;
    }
    for key in ["encoder_repetition_penalty", "guidance_scale", "top_h", "typical_p"] {
        o.only(key, 1.0)?;
    }
    for key in [
        "diversity_penalty",
        "encoder_no_repeat_ngram_size",
        "epsilon_cutoff",
        "eta_cutoff",
        "min_length",
        "min_new_tokens",
        "no_repeat_ngram_size",
        "penalty_alpha",
    ] {
        o.only(key, 0)?;
    }
    o.only("token_healing", false)?;
    for key in [
        "assistant_ensemble_weight",
        "bad_words_ids",
        "begin_suppress_tokens",
        "constraints",
        "dola_layers",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
        "watermarking_config",
    ] {
        o.only(key, Value::Null)?;
    }
    Ok(())
}
