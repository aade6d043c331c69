//! config.json and generation_config.json.

use ocelli::config::{Activation, Config, Family, Files, LlavaConfig, SamplingDefaults, Select, float_dtype};
use ocelli::mem::DType;
use serde_json::{Value, json};

use crate::{fails, write};

/// config.json as the 7B checkpoint on the hub has it: what is default is left out.
pub const HUB_7B: &str = r#"{
  "architectures": ["LlavaForConditionalGeneration"],
  "ignore_index": -100,
  "image_token_index": 32000,
  "model_type": "llava",
  "pad_token_id": 32001,
  "projector_hidden_act": "gelu",
  "text_config": {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064
  },
  "tie_word_embeddings": false,
  "torch_dtype": "float16",
  "transformers_version": "4.36.0.dev0",
  "vision_config": {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000
  },
  "vision_feature_layer": -2,
  "vision_feature_select_strategy": "default",
  "vocab_size": 32064
}"#;

/// The text model of the 13B checkpoint.
const TEXT_13B: &str = r#"{
  "_name_or_path": "lmsys/vicuna-13b-v1.5",
  "architectures": ["LlamaForCausalLM"],
  "hidden_size": 5120,
  "intermediate_size": 13824,
  "max_position_embeddings": 4096,
  "model_type": "llama",
  "num_attention_heads": 40,
  "num_hidden_layers": 40,
  "num_key_value_heads": 40,
  "pad_token_id": 0,
  "rms_norm_eps": 1e-05,
  "torch_dtype": "float16",
  "vocab_size": 32064
}"#;

/// A small model as transformers 5 writes it: everything is spelled out, under the new names.
pub const NEW_STYLE: &str = r#"{
  "architectures": ["LlavaForConditionalGeneration"],
  "dtype": "float32",
  "image_seq_length": 576,
  "image_token_index": 100,
  "model_type": "llava",
  "multimodal_projector_bias": true,
  "projector_hidden_act": "gelu",
  "text_config": {
    "attention_bias": false,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "mlp_bias": false,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" },
    "tie_word_embeddings": false,
    "use_cache": true,
    "vocab_size": 101
  },
  "tie_word_embeddings": false,
  "transformers_version": "5.17.0",
  "vision_config": {
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 64,
    "image_size": 28,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 1,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "projection_dim": 32
  },
  "vision_feature_layer": -2,
  "vision_feature_select_strategy": "default"
}"#;

const GENERATION: &str = r#"{"_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
  "output_attentions": false, "output_hidden_states": false, "transformers_version": "5.17.0", "use_cache": true}"#;

/// preprocessor_config.json for pictures of `side` pixels.
pub fn preprocessor(side: usize) -> Value {
    json!({
        "crop_size": { "height": side, "width": side },
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": { "shortest_edge": side }
    })
}

fn parse_with(config: &str, generation: Option<&str>, side: usize) -> anyhow::Result<Config> {
    Config::parse(&Files {
        config: config.as_bytes(),
        generation: generation.map(str::as_bytes),
        preprocessor: Some(preprocessor(side).to_string().as_bytes()),
        processor: None,
    })
}

/// Reads `config` with 28-pixel pictures.
fn parse(config: &Value) -> anyhow::Result<Config> {
    parse_with(&config.to_string(), Some(GENERATION), 28)
}

fn llava(config: &Config) -> &LlavaConfig {
    match &config.model.family {
        Family::Llava(llava) => llava,
        other => panic!("{other:?}"),
    }
}

/// [`NEW_STYLE`] with the field at `path` set to `value`.
fn with(path: &str, value: Value) -> Value {
    let mut config: Value = serde_json::from_str(NEW_STYLE).unwrap();
    let (parent, key) = path.rsplit_once('.').map_or(("", path), |(parent, key)| (parent, key));
    let parent = parent.split('.').filter(|key| !key.is_empty()).fold(&mut config, |value, key| &mut value[key]);
    parent[key] = value;
    config
}

/// [`NEW_STYLE`] without the field at `path`.
fn without(path: &str) -> Value {
    let mut config: Value = serde_json::from_str(NEW_STYLE).unwrap();
    let (parent, key) = path.rsplit_once('.').map_or(("", path), |(parent, key)| (parent, key));
    let parent = parent.split('.').filter(|key| !key.is_empty()).fold(&mut config, |value, key| &mut value[key]);
    parent.as_object_mut().unwrap().remove(key);
    config
}

#[track_caller]
fn refused(path: &str, value: Value, parts: &[&str]) {
    fails(parse(&with(path, value)), parts);
}

#[test]
fn the_hub_files_mean_what_their_defaults_say() {
    let config =
        parse_with(HUB_7B, Some(r#"{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001}"#), 336).unwrap();
    let l = llava(&config);
    assert_eq!(config.model.dtype, Some(DType::F16));
    assert_eq!(config.model.family.architecture(), "LlavaForConditionalGeneration");
    let t = &l.text;
    assert_eq!((t.hidden_size, t.intermediate_size, t.num_hidden_layers), (4096, 11008, 32));
    assert_eq!((t.num_attention_heads, t.num_key_value_heads, t.head_dim), (32, 32, 128));
    assert_eq!((t.vocab_size, t.max_position_embeddings), (32064, 4096));
    assert_eq!((t.rms_norm_eps, t.rope_theta, t.tie_word_embeddings), (1e-5, 10000.0, false));
    let v = &l.vision;
    assert_eq!((v.hidden_size, v.intermediate_size, v.num_hidden_layers), (1024, 4096, 24));
    assert_eq!((v.num_attention_heads, v.head_dim, v.image_size, v.patch_size), (16, 64, 336, 14));
    assert_eq!((v.layer_norm_eps, v.hidden_act), (1e-5, Activation::QuickGelu));
    assert_eq!((l.image_token_index, l.projector_act, l.projector_bias), (32000, Activation::Gelu, true));
    assert_eq!((l.feature_layers.as_slice(), l.select), (&[23][..], Select::Default));
    assert_eq!((l.tile_rows(), l.projector_input(), l.vision_blocks()), (576, 1024, 23));
    let g = &config.generation;
    assert_eq!((g.bos, g.eos.as_slice(), g.pad), (Some(1), &[2][..], Some(32001)));
    assert_eq!(g.sampling, SamplingDefaults::default());
}

#[test]
fn the_13b_sizes_are_read() {
    let mut file: Value = serde_json::from_str(HUB_7B).unwrap();
    file["text_config"] = serde_json::from_str(TEXT_13B).unwrap();
    let config = parse_with(&file.to_string(), Some(GENERATION), 336).unwrap();
    let t = &llava(&config).text;
    assert_eq!((t.hidden_size, t.intermediate_size, t.num_hidden_layers), (5120, 13824, 40));
    assert_eq!((t.num_attention_heads, t.num_key_value_heads, t.head_dim), (40, 40, 128));
}

#[test]
fn the_new_style_is_read() {
    let config = parse(&serde_json::from_str(NEW_STYLE).unwrap()).unwrap();
    let l = llava(&config);
    assert_eq!(config.model.dtype, Some(DType::F32));
    assert_eq!((l.text.num_key_value_heads, l.text.head_dim, l.text.vocab_size), (1, 64, 101));
    assert_eq!((l.feature_layers.as_slice(), l.tile_rows()), (&[2][..], 4));
}

#[test]
fn absent_parts_are_transformers_default_parts() {
    for null in [false, true] {
        let mut file = json!({ "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 31999 });
        if null {
            file["text_config"] = Value::Null;
            file["vision_config"] = Value::Null;
        }
        let config = parse_with(&file.to_string(), Some(GENERATION), 336).unwrap();
        let l = llava(&config);
        assert_eq!((l.vision.hidden_size, l.vision.num_hidden_layers, l.vision.image_size), (1024, 24, 336));
        assert_eq!((l.text.hidden_size, l.text.vocab_size, l.text.max_position_embeddings), (4096, 32000, 2048));
        assert_eq!((l.text.rms_norm_eps, l.text.rope_theta), (1e-6, 10000.0));
    }
    // A tower that is there but says nothing is CLIP's base model, not LLaVA's.
    let file =
        json!({ "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 1000, "vision_config": {} });
    let config = parse_with(&file.to_string(), Some(GENERATION), 224).unwrap();
    let v = &llava(&config).vision;
    assert_eq!((v.hidden_size, v.num_hidden_layers, v.image_size, v.patch_size), (768, 12, 224, 32));
}

#[test]
fn what_is_not_an_object_of_settings_is_refused() {
    for (text, part) in [
        ("", "config.json is not valid JSON"),
        ("{", "config.json is not valid JSON"),
        ("\u{feff}{}", "config.json is not valid JSON"),
        ("[]", "config.json holds []"),
        ("7", "config.json holds 7"),
        ("{\"a\": NaN}", "config.json is not valid JSON"),
        ("{\"a\": 1e400}", "config.json is not valid JSON"),
        (r#"{"a": 1, "a": 1}"#, "\"a\" occurs twice"),
        (r#"{"text_config": {"b": 1, "b": 2}}"#, "\"b\" occurs twice"),
        (r#"{"x": [{"b": 1, "b": 2}]}"#, "\"b\" occurs twice"),
    ] {
        fails(parse_with(text, Some(GENERATION), 28), &[part]);
    }
    for open in ["[", "{\"a\":"] {
        fails(parse_with(&format!("{{\"a\":{}", open.repeat(100_000)), None, 28), &["config.json is not valid JSON"]);
    }
}

#[test]
fn an_unsupported_model_lists_the_supported_ones() {
    let supported = "LlavaForConditionalGeneration";
    refused("architectures", json!(["QwenForCausalLM"]), &["architectures", "QwenForCausalLM", supported]);
    refused("architectures", json!([]), &["architectures = []", supported]);
    refused("architectures", json!("LlavaForConditionalGeneration"), &["architectures = ", supported]);
    fails(parse(&without("architectures")), &["architectures is missing", supported]);
    refused("model_type", json!("llava_next"), &["model_type = \"llava_next\" contradicts architectures"]);
    refused("text_config.model_type", json!("mixtral"), &["text_config.model_type = \"mixtral\"", "\"llama\""]);
    refused(
        "vision_config.model_type",
        json!("siglip_vision_model"),
        &["vision_config.model_type", "clip_vision_model"],
    );
}

#[test]
fn unknown_fields_are_refused_wherever_they_are() {
    for path in ["foo", "text_config.foo", "vision_config.foo", "text_config.rope_parameters.foo"] {
        refused(path, json!(3), &[&format!("config.json: {path} = 3"), "unknown to this build"]);
    }
    refused("a\u{202e}b\n", json!("x".repeat(1 << 20)), &["a\\u{202e}b\\n = \"xxx", "..."]);
    let mut many = with("f0", json!(0));
    for i in 1..30 {
        many[format!("f{i}")] = json!(i);
    }
    fails(parse(&many), &["f9 = 9 and 20 more"]);
}

#[test]
fn fields_without_effect_are_skipped() {
    for (path, value) in [
        ("auto_map", json!({ "AutoModel": "no_such_module.Model" })),
        ("_name_or_path", json!("somewhere")),
        ("use_cache", json!(false)),
        ("image_seq_length", json!(1)),
        ("vocab_size", json!(7)),
        ("ignore_index", json!(-100)),
        ("text_config.pretraining_tp", json!(2)),
        ("text_config.attention_dropout", json!(0.1)),
        ("text_config.temperature", json!(0.2)),
        ("text_config.pruned_heads", json!({})),
        ("text_config.quantization_config", Value::Null),
        ("text_config.rope_scaling", Value::Null),
        ("text_config.sliding_window", Value::Null),
        ("text_config.num_key_value_heads", Value::Null),
        ("text_config.pad_token_id", json!(-1)),
        ("vision_config.projection_dim", json!(1)),
        ("vision_config.vocab_size", json!(49408)),
        ("vision_config.dropout", json!(0.0)),
    ] {
        parse(&with(path, value)).unwrap_or_else(|e| panic!("{path}: {e:#}"));
    }
}

/// What transformers 4 wrote into every config before it left defaults out.
const OLD_BASE: &str = r#"{
  "return_dict": true, "output_hidden_states": false, "output_attentions": false, "torchscript": false,
  "torch_dtype": "float16", "use_bfloat16": false, "tf_legacy_loss": false, "pruned_heads": {},
  "tie_word_embeddings": false, "chunk_size_feed_forward": 0, "is_encoder_decoder": false, "is_decoder": false,
  "cross_attention_hidden_size": null, "add_cross_attention": false, "tie_encoder_decoder": false, "max_length": 20,
  "min_length": 0, "do_sample": false, "early_stopping": false, "num_beams": 1, "num_beam_groups": 1,
  "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
  "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null,
  "num_return_sequences": 1, "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id": null,
  "forced_eos_token_id": null, "remove_invalid_values": false, "exponential_decay_length_penalty": null,
  "suppress_tokens": null, "begin_suppress_tokens": null, "architectures": null, "finetuning_task": null,
  "id2label": { "0": "LABEL_0", "1": "LABEL_1" }, "label2id": { "LABEL_0": 0, "LABEL_1": 1 }, "tokenizer_class": null,
  "prefix": null, "bos_token_id": null, "pad_token_id": null, "eos_token_id": null, "sep_token_id": null,
  "decoder_start_token_id": null, "task_specific_params": null, "problem_type": null, "_name_or_path": ""
}"#;

#[test]
fn a_full_old_dump_of_the_nested_configs_is_read() {
    let mut config: Value = serde_json::from_str(NEW_STYLE).unwrap();
    let base: Value = serde_json::from_str(OLD_BASE).unwrap();
    for part in ["text_config", "vision_config"] {
        for (key, value) in base.as_object().unwrap() {
            config[part][key] = value.clone();
        }
    }
    let config = parse_with(&config.to_string(), Some(GENERATION), 28).unwrap();
    assert_eq!((llava(&config).text.hidden_size, llava(&config).vision.hidden_size), (128, 64));
}

#[test]
fn features_that_are_not_computed_are_refused() {
    for (path, value) in [
        ("text_config.hidden_act", json!("gelu")),
        ("text_config.attention_bias", json!(true)),
        ("text_config.mlp_bias", json!(true)),
        ("text_config.sliding_window", json!(4096)),
        ("text_config.add_cross_attention", json!(true)),
        ("text_config.is_encoder_decoder", json!(true)),
        ("text_config.pruned_heads", json!({ "0": [1] })),
        ("text_config.rope_scaling", json!({ "type": "linear", "factor": 2.0 })),
        ("text_config.rope_scaling", json!({ "rope_type": "su" })),
        ("text_config.rope_parameters", json!({ "rope_type": "dynamic", "factor": 4.0 })),
        ("text_config.rope_parameters", json!({ "rope_type": "default", "factor": 0 })),
        ("text_config.rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 })),
        ("vision_config.hidden_act", json!("silu")),
        ("vision_config.num_channels", json!(4)),
        ("projector_hidden_act", json!("relu")),
        ("vision_feature_select_strategy", json!("cls")),
        ("dtype", json!("float64")),
    ] {
        refused(path, value, &[&format!("config.json: {path}")]);
    }
    let quantised = json!({ "quant_method": "gptq", "bits": 4 });
    refused("quantization_config", quantised.clone(), &["config.json: quantization_config", "quantised"]);
    refused("text_config.quantization_config", quantised, &["text_config.quantization_config", "quantised"]);
}

#[test]
fn numbers_are_numbers_and_in_range() {
    for (path, values) in [
        (
            "text_config.hidden_size",
            [json!(0), json!(-1), json!(65537), json!("128"), json!(128.5), json!(null)].to_vec(),
        ),
        ("text_config.num_hidden_layers", vec![json!(0), json!(-1), json!(1_000_000_000), json!(true), json!([2])]),
        ("text_config.intermediate_size", vec![json!(0), json!(1u64 << 40)]),
        ("text_config.num_attention_heads", vec![json!(0), json!(u64::MAX)]),
        ("text_config.num_key_value_heads", vec![json!(0), json!(-2)]),
        ("text_config.head_dim", vec![json!(0), json!(2048), json!(63)]),
        ("text_config.vocab_size", vec![json!(0), json!(5_000_000)]),
        ("text_config.max_position_embeddings", vec![json!(0), json!(1u64 << 31)]),
        ("text_config.rms_norm_eps", vec![json!(0), json!(-1e-5), json!(1), json!("1e-5"), json!(null)]),
        ("text_config.rope_parameters.rope_theta", vec![json!(0), json!(-1), json!(1e300), json!("10000")]),
        ("text_config.tie_word_embeddings", vec![json!(1), json!("false"), json!(null)]),
        ("text_config.bos_token_id", vec![json!(-1), json!("1"), json!([1]), json!(1u64 << 31)]),
        ("text_config.eos_token_id", vec![json!([]), json!([2, "3"]), json!(2.0), json!(-1)]),
        ("vision_config.hidden_size", vec![json!(0), json!("64")]),
        ("vision_config.num_hidden_layers", vec![json!(0), json!(10_000)]),
        ("vision_config.image_size", vec![json!(0), json!(8192), json!([28, 28])]),
        ("vision_config.patch_size", vec![json!(0), json!(-14), json!("14")]),
        ("vision_config.layer_norm_eps", vec![json!(0.0), json!(2)]),
        ("vision_config", vec![json!([]), json!("clip")]),
        ("text_config", vec![json!(7)]),
        ("multimodal_projector_bias", vec![json!("true"), json!(null)]),
    ] {
        for value in values {
            let shown = format!("config.json: {path} = {value}");
            refused(path, value, &[&shown]);
        }
    }
}

#[test]
fn sizes_that_do_not_divide_are_refused() {
    refused("text_config.num_attention_heads", json!(3), &["text_config.hidden_size = 128", "num_attention_heads = 3"]);
    refused("text_config.num_key_value_heads", json!(3), &["num_key_value_heads = 3 does not divide", "= 2"]);
    refused("text_config.num_key_value_heads", json!(4), &["num_key_value_heads = 4 does not divide"]);
    refused("vision_config.num_attention_heads", json!(3), &["vision_config.hidden_size = 64"]);
    refused("vision_config.patch_size", json!(13), &["vision_config.image_size = 28", "patch_size = 13"]);
    refused("vision_config.patch_size", json!(56), &["vision_config.image_size = 28"]);
    let mut fine = with("vision_config.image_size", json!(4096));
    fine["vision_config"]["patch_size"] = json!(1);
    fails(parse(&fine), &["vision_config.image_size = 4096", "at most 256 patches a side"]);
    // Head dim 63 is odd; rotary positions turn pairs.
    let mut odd = without("text_config.head_dim");
    odd["text_config"]["hidden_size"] = json!(126);
    fails(parse(&odd), &["text_config.head_dim = 63", "even"]);
}

#[test]
fn feature_layers_count_from_either_end() {
    for (value, layers) in [
        (json!(-1), vec![3]),
        (json!(-2), vec![2]),
        (json!(-4), vec![0]),
        (json!(0), vec![0]),
        (json!(3), vec![3]),
        (json!([-2, 1]), vec![2, 1]),
    ] {
        let config = parse(&with("vision_feature_layer", value)).unwrap();
        assert_eq!(llava(&config).feature_layers, layers);
        assert_eq!(llava(&config).projector_input(), 64 * layers.len());
    }
    for value in [json!(4), json!(-5), json!([]), json!([-2, 9]), json!("-2"), json!(1.5), json!(i64::MIN), json!(null)]
    {
        refused("vision_feature_layer", value.clone(), &[&format!("vision_feature_layer = {value}"), "-4 to 3"]);
    }
    assert_eq!(llava(&parse(&without("vision_feature_layer")).unwrap()).feature_layers, [2]);
}

#[test]
fn the_full_strategy_keeps_the_class_token() {
    let config = parse(&with("vision_feature_select_strategy", json!("full"))).unwrap();
    assert_eq!((llava(&config).select, llava(&config).tile_rows()), (Select::Full, 5));
}

#[test]
fn the_placeholder_is_a_token_of_its_own() {
    refused("image_token_index", json!(101), &["image_token_index = 101", "below text_config.vocab_size = 101"]);
    refused("image_token_index", json!(-1), &["image_token_index = -1", "a token id"]);
    refused("image_token_index", json!(2), &["image_token_index = 2 is also the eos token"]);
    refused("image_token_index", json!(1), &["image_token_index = 1 is also the bos token"]);
    fails(parse(&without("image_token_index")), &["= 32000 (the default", "vocab_size = 101"]);
}

#[test]
fn both_spellings_of_a_field_are_known_and_must_agree() {
    let mut config = without("image_token_index");
    config["image_token_id"] = json!(99);
    assert_eq!(llava(&parse(&config).unwrap()).image_token_index, 99);
    config["image_token_index"] = json!(98);
    fails(parse(&config), &["image_token_id = 99", "contradicts", "image_token_index = 98"]);
    config["image_token_index"] = json!(99);
    parse(&config).unwrap();

    let mut config = with("torch_dtype", json!("float16"));
    fails(parse(&config), &["dtype = \"float32\"", "contradicts", "torch_dtype = \"float16\""]);
    config["dtype"] = Value::Null;
    assert_eq!(parse(&config).unwrap().model.dtype, Some(DType::F16));

    let mut config = without("text_config.rope_parameters");
    assert_eq!(llava(&parse(&config).unwrap()).text.rope_theta, 10000.0);
    config["text_config"]["rope_theta"] = json!(500000);
    assert_eq!(llava(&parse(&config).unwrap()).text.rope_theta, 500000.0);
    config["text_config"]["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 500000.0 });
    assert_eq!(llava(&parse(&config).unwrap()).text.rope_theta, 500000.0);
    config["text_config"]["rope_parameters"]["rope_theta"] = json!(1e6);
    fails(parse(&config), &["text_config.rope_theta = 500000", "contradicts", "rope_parameters.rope_theta = 1000000"]);
    config["text_config"]["rope_parameters"] = json!({ "rope_type": "default", "type": "linear" });
    fails(parse(&config), &["rope_type = \"default\"", "contradicts", "type = \"linear\""]);
}

#[test]
fn tied_embeddings_may_be_said_in_either_place() {
    assert!(llava(&parse(&with("tie_word_embeddings", json!(true))).unwrap()).text.tie_word_embeddings);
    assert!(llava(&parse(&with("text_config.tie_word_embeddings", json!(true))).unwrap()).text.tie_word_embeddings);
}

#[test]
fn the_tensors_decide_the_type_and_a_contradiction_is_a_warning() {
    let said = parse_with(HUB_7B, Some(GENERATION), 336).unwrap().model.dtype;
    assert_eq!(float_dtype(said, Some(DType::F16)), (DType::F16, None));
    assert_eq!(float_dtype(said, None), (DType::F16, None));
    let (dtype, warning) = float_dtype(said, Some(DType::Bf16));
    assert_eq!(dtype, DType::Bf16);
    assert!(warning.unwrap().contains("says that the tensors are f16, but most are bf16"));
}

#[test]
fn a_completion_ends_at_any_end_token_of_the_file_or_of_config() {
    let generation = |text: &str| parse_with(NEW_STYLE, Some(text), 28);
    assert_eq!(generation(r#"{"eos_token_id": [7, 2, 7]}"#).unwrap().generation.eos, [2, 7]);
    assert_eq!(generation(r#"{"eos_token_id": 5}"#).unwrap().generation.eos, [5], "the file goes before config.json");
    assert_eq!(generation(r#"{"eos_token_id": null}"#).unwrap().generation.eos, [2]);
    assert_eq!(parse_with(NEW_STYLE, None, 28).unwrap().generation.eos, [2]);
    assert_eq!(parse_with(NEW_STYLE, None, 28).unwrap().generation.bos, Some(1));
    fails(generation(r#"{"eos_token_id": 101}"#), &["eos_token_id = 101", "vocab_size = 101"]);
    fails(generation(r#"{"bos_token_id": 4000}"#), &["bos_token_id = 4000", "vocab_size = 101"]);
    fails(generation(r#"{"eos_token_id": [2, 100]}"#), &["image_token_index = 100 is also the eos token"]);

    let nowhere = without("text_config.eos_token_id").to_string();
    fails(parse_with(&nowhere, None, 28), &["no end-of-sequence token", "generation_config.json is absent"]);
    fails(parse_with(&nowhere, Some("{}"), 28), &["no end-of-sequence token", "generation_config.json has no"]);
    let mut outer: Value = serde_json::from_str(&nowhere).unwrap();
    outer["eos_token_id"] = json!(3);
    assert_eq!(parse_with(&outer.to_string(), None, 28).unwrap().generation.eos, [3]);
}

#[test]
fn sampling_defaults_are_read_and_checked() {
    let generation = |field: &str, value: Value| {
        let text = json!({ "eos_token_id": 2, field: value }).to_string();
        parse_with(NEW_STYLE, Some(&text), 28).map(|config| config.generation.sampling)
    };
    assert_eq!(generation("do_sample", json!(true)).unwrap().do_sample, Some(true));
    assert_eq!(generation("temperature", json!(0.2)).unwrap().temperature, Some(0.2));
    assert_eq!(generation("top_p", json!(0.9)).unwrap().top_p, Some(0.9));
    assert_eq!(generation("top_k", json!(50)).unwrap().top_k, Some(50));
    assert_eq!(generation("min_p", json!(0)).unwrap().min_p, Some(0.0));
    assert_eq!(generation("repetition_penalty", json!(1.1)).unwrap().repetition_penalty, Some(1.1));
    for (field, value) in [
        ("temperature", json!(-0.1)),
        ("temperature", json!("1")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-1)),
        ("top_k", json!(1.5)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("num_beams", json!(4)),
        ("typical_p", json!(0.5)),
        ("no_repeat_ngram_size", json!(3)),
        ("suppress_tokens", json!([1])),
        ("stop_strings", json!(["x"])),
        ("forced_eos_token_id", json!(2)),
        ("something_new", json!(1)),
    ] {
        let shown = format!("generation_config.json: {field} = {value}");
        fails(generation(field, value), &[&shown]);
    }
    for (field, value) in
        [("num_beams", json!(1)), ("typical_p", json!(1)), ("max_length", json!(4096)), ("min_length", json!(0))]
    {
        generation(field, value).unwrap();
    }
}

#[test]
fn a_directory_is_read_and_errors_name_its_files() {
    let dir = tempfile::tempdir().unwrap();
    fails(Config::load(dir.path()), &["config.json is not there", "Hugging Face"]);
    write(dir.path(), "config.json", NEW_STYLE);
    fails(Config::load(dir.path()), &["preprocessor_config.json is not there"]);
    write(dir.path(), "preprocessor_config.json", preprocessor(28).to_string());
    assert_eq!(Config::load(dir.path()).unwrap().generation.eos, [2]);
    write(dir.path(), "generation_config.json", "{");
    fails(Config::load(dir.path()), &[dir.path().to_str().unwrap(), "generation_config.json is not valid JSON"]);
    write(dir.path(), "generation_config.json", " ".repeat((16 << 20) + 1));
    fails(Config::load(dir.path()), &["generation_config.json", "over the limit of 16777216 bytes"]);
    std::fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    std::fs::create_dir(dir.path().join("generation_config.json")).unwrap();
    fails(Config::load(dir.path()), &["generation_config.json", "not a regular file"]);
}
