//! Fields that any model's settings may have because transformers' base class writes them.

use anyhow::{Result, ensure};

use super::json::shown;
use super::object::Object;

/// Without effect on inference: bookkeeping, training, output format, and settings of other frameworks. `auto_map`
/// names code to download; none is ever run.
pub(super) const INERT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "_output_attentions",
    "attn_implementation",
    "auto_map",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "finetuning_task",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "label2id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "prefix",
    "problem_type",
    "processor_class",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

/// Generation settings that old versions copied into every config. Only generation_config.json counts: current
/// transformers drops these too.
pub(super) const OLD_GENERATION: &[&str] = &[
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// In a nested config: what counts there is the outer config's.
pub(super) const NESTED: &[&str] = &["architectures", "dtype", "torch_dtype"];

/// Base fields that would change the result, of which one value is supported.
pub(super) fn check(o: &mut Object) -> Result<()> {
    for key in ["quantization_config", "compression_config"] {
        ensure!(
            o.get(key).is_none_or(|value| value.is_null()),
            "{} is there: quantised checkpoints are not supported; use the F16, BF16 or F32 checkpoint",
            o.at(key)
        );
    }
    for key in ["add_cross_attention", "is_encoder_decoder"] {
        o.only(key, false)?;
    }
    for key in ["cross_attention_hidden_size", "per_layer_config"] {
        o.only(key, serde_json::Value::Null)?;
    }
    if let Some(heads) = o.get("pruned_heads") {
        let none = heads.is_null() || heads.as_object().is_some_and(|heads| heads.is_empty());
        ensure!(none, "{} = {} is not supported; only {{}} is", o.at("pruned_heads"), shown(heads));
    }
    Ok(())
}
