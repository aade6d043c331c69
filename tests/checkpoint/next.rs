//! config.json and preprocessor_config.json of LLaVA-NeXT.

use ocelli::config::{Config, Family, Files, LlavaConfig, Pictures, Preprocessor, Resize, processor_kwargs};
use serde_json::{Value, json};

use crate::{fails, set, unset};

/// config.json of v1.6-mistral-7b as the hub has it: what is default is left out.
pub fn mistral() -> Value {
    json!({
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": pinpoints(),
        "image_token_index": 32000,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
            "architectures": ["MistralForCausalLM"],
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "sliding_window": null,
            "torch_dtype": "bfloat16",
            "vocab_size": 32064
        },
        "tie_word_embeddings": false,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": true,
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
    })
}

/// That of v1.6-vicuna-7b.
fn vicuna() -> Value {
    let mut config = mistral();
    config["text_config"] = json!({
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        "vocab_size": 32064
    });
    config
}

fn pinpoints() -> Value {
    json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])
}

/// preprocessor_config.json as the hub has it.
pub fn pictures() -> Value {
    json!({
        "aspect_ratio_setting": "anyres",
        "crop_size": { "height": 336, "width": 336 },
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_pad": true,
        "do_rescale": true,
        "do_resize": true,
        "image_grid_pinpoints": pinpoints(),
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "LlavaNextImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaNextProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": { "shortest_edge": 336 }
    })
}

fn parse(config: &Value, pictures: &Value) -> anyhow::Result<Config> {
    let (config, pictures) = (config.to_string(), pictures.to_string());
    Config::parse(&Files {
        config: config.as_bytes(),
        generation: Some(br#"{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001}"#),
        preprocessor: Some(pictures.as_bytes()),
        processor: None,
    })
}

fn llava(config: &Value) -> anyhow::Result<LlavaConfig> {
    match parse(config, &pictures())?.model.family {
        Family::Llava(llava) => Ok(llava),
        other => panic!("{other:?}"),
    }
}

fn clip(file: &Value) -> anyhow::Result<Preprocessor> {
    match parse(&mistral(), file)?.pictures {
        Pictures::Clip(preprocessor) => Ok(preprocessor),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(path: &str, value: Value, parts: &[&str]) {
    let at = format!("config.json: {path}");
    fails(llava(&set(mistral(), path, value)), &[&[at.as_str()], parts].concat());
}

#[track_caller]
fn pictures_refused(path: &str, value: Value, parts: &[&str]) {
    let at = format!("preprocessor_config.json: {path}");
    fails(clip(&set(pictures(), path, value)), &[&[at.as_str()], parts].concat());
}

#[test]
fn the_mistral_file_means_what_its_defaults_say() {
    let l = llava(&mistral()).unwrap();
    let t = &l.text;
    assert_eq!((t.model_type, t.hidden_size, t.intermediate_size, t.num_hidden_layers), ("mistral", 4096, 14336, 32));
    assert_eq!((t.num_attention_heads, t.num_key_value_heads, t.head_dim), (32, 8, 128));
    assert_eq!((t.vocab_size, t.max_position_embeddings), (32064, 32768));
    assert_eq!((t.rms_norm_eps, t.rope_theta, t.tie_word_embeddings), (1e-5, 1e6, false));
    assert!(t.long_rope.is_none());
    assert_eq!((l.image_token_index, l.feature_layers.as_slice(), l.tile_rows()), (32000, &[23][..], 576));
    let expected = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
    assert_eq!(l.pinpoints.as_deref(), Some(&expected[..]));
    assert_eq!(llava(&unset(mistral(), "image_grid_pinpoints")).unwrap(), l, "they are the default");
    assert_eq!(
        parse(&mistral(), &pictures()).unwrap().model.family.architecture(),
        "LlavaNextForConditionalGeneration"
    );
}

#[test]
fn the_vicuna_file_means_what_its_defaults_say() {
    let t = llava(&vicuna()).unwrap().text;
    assert_eq!((t.model_type, t.hidden_size, t.intermediate_size, t.num_hidden_layers), ("llama", 4096, 11008, 32));
    assert_eq!((t.num_attention_heads, t.num_key_value_heads, t.head_dim), (32, 32, 128));
    assert_eq!((t.max_position_embeddings, t.rms_norm_eps, t.rope_theta), (4096, 1e-5, 10000.0));
}

/// Absent is 4096 in transformers' MistralConfig, and `null` is none. To the end of a window nothing is cut off.
#[test]
fn a_window_ends_where_it_would_cut() {
    let positions = |config: &Value| llava(config).unwrap().text.max_position_embeddings;
    let with = |window: Value| set(mistral(), "text_config.sliding_window", window);
    assert_eq!(positions(&mistral()), 32768);
    assert_eq!(positions(&unset(mistral(), "text_config.sliding_window")), 4096);
    assert_eq!(positions(&with(json!(4096))), 4096);
    assert_eq!(positions(&with(json!(1))), 1);
    assert_eq!(positions(&with(json!(32768))), 32768);
    assert_eq!(positions(&with(json!(131_072))), 32768);
    for window in [json!(0), json!(-1), json!(1.5), json!("4096"), json!(true), json!([4096])] {
        refused("text_config.sliding_window", window, &["expected a whole number from 1"]);
    }
    let llama = set(vicuna(), "text_config.sliding_window", json!(4096));
    fails(llava(&llama), &["config.json: text_config.sliding_window = 4096 is not supported; only null is"]);
}

#[test]
fn mistral_has_the_defaults_of_its_class() {
    let empty = set(mistral(), "text_config", json!({ "model_type": "mistral", "vocab_size": 32064 }));
    let t = llava(&empty).unwrap().text;
    assert_eq!((t.hidden_size, t.intermediate_size, t.num_hidden_layers, t.num_key_value_heads), (4096, 14336, 32, 8));
    assert_eq!((t.max_position_embeddings, t.rms_norm_eps, t.rope_theta), (4096, 1e-6, 10000.0));
    let new = set(mistral(), "text_config.rope_parameters", json!({ "rope_type": "default", "rope_theta": 1e6 }));
    assert_eq!(llava(&unset(new.clone(), "text_config.rope_theta")).unwrap().text.rope_theta, 1e6);
    assert_eq!(llava(&new).unwrap().text.rope_theta, 1e6);
    let other = set(new, "text_config.rope_theta", json!(1e4));
    fails(llava(&other), &["text_config.rope_theta = 10000 contradicts", "rope_parameters.rope_theta = 1000000"]);
    refused("text_config.rope_scaling", json!({ "type": "linear", "factor": 2.0 }), &["type = \"linear\""]);
    refused("text_config.num_key_value_heads", json!(5), &["5 does not divide num_attention_heads = 32"]);
    // A second fact of the same kind is one too many: half of a rule.
    let both = set(mistral(), "image_token_id", json!(32001));
    fails(llava(&both), &["image_token_id = 32001 contradicts", "image_token_index = 32000"]);
}

#[test]
fn a_tower_that_is_not_described_is_vit_l() {
    let described = llava(&mistral()).unwrap();
    assert_eq!(llava(&unset(mistral(), "vision_config")).unwrap().vision, described.vision);
    assert_eq!(llava(&set(mistral(), "vision_config", Value::Null)).unwrap().vision, described.vision);
}

#[test]
fn resolutions_are_pairs_of_whole_tiles() {
    for value in [
        json!([]),
        json!(7),
        json!([336, 672]),
        json!([[336]]),
        json!([[336, 672, 3]]),
        json!([[0, 336]]),
        json!([[-336, 336]]),
        json!([[336.0, 672.5]]),
        json!([["336", "672"]]),
        json!(vec![[336, 672]; 257]),
    ] {
        refused("image_grid_pinpoints", value, &["1 to 256 pairs of a height and a width in pixels"]);
    }
    for (pair, shown) in [([336, 700], "336x700"), ([100, 336], "100x336"), ([3360, 3360], "3360x3360")] {
        let says = ["both must be multiples of vision_config.image_size = 336, of at most 64 tiles together", shown];
        refused("image_grid_pinpoints", json!([[336, 336], pair]), &says);
    }
    // 65536 by 65536 tiles of one pixel are 0 in 32 bits.
    let tiny = set(set(mistral(), "vision_config.image_size", json!(1)), "vision_config.patch_size", json!(1));
    fails(llava(&set(tiny, "image_grid_pinpoints", json!([[65536, 65536]]))), &["at most 64 tiles together"]);
    refused("vision_feature_select_strategy", json!("full"), &["is not supported with image_grid_pinpoints"]);
}

#[test]
fn the_two_files_must_agree_on_the_resolutions() {
    assert_eq!(clip(&unset(pictures(), "image_grid_pinpoints")).unwrap(), clip(&pictures()).unwrap());
    for other in [
        json!([[672, 336], [336, 672], [672, 672], [1008, 336], [336, 1008]]),
        json!([[672, 672]]),
        json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008], [336, 336]]),
    ] {
        pictures_refused(
            "image_grid_pinpoints",
            other,
            &["contradicts config.json: image_grid_pinpoints", "one order"],
        );
    }
    pictures_refused("image_grid_pinpoints", json!([]), &["1 to 256 pairs"]);
}

#[test]
fn the_preprocessor_of_the_hub_is_read() {
    let usual = clip(&pictures()).unwrap();
    assert_eq!((usual.size, usual.crop_size, usual.do_pad), (Resize::ShortestEdge(336), (336, 336), false));
    for same in [
        set(pictures(), "crop_size", json!(336)),
        set(pictures(), "size", json!(336)),
        set(pictures(), "do_pad", json!(false)),
        unset(pictures(), "do_pad"),
        unset(pictures(), "image_processor_type"),
        unset(pictures(), "aspect_ratio_setting"),
        set(pictures(), "image_processor_type", json!("LlavaNextImageProcessorFast")),
    ] {
        assert_eq!(clip(&same).unwrap(), usual, "{same}");
    }
    pictures_refused("aspect_ratio_setting", json!("pad"), &["\"anyres\""]);
    pictures_refused("size", json!({ "shortest_edge": 224 }), &["336x336", "vision_config.image_size"]);
    let whole = [r#"size = {"shortest_edge": 336} and crop_size = 224x224 must both be a tile's 336x336 pixels"#];
    fails(clip(&set(pictures(), "crop_size", json!(224))), &whole);
    let exact = json!({ "height": 336, "width": 300 });
    pictures_refused("size", exact, &[r#" = {"height": 336, "width": 300} and crop_size = 336x336 must both"#]);
    pictures_refused("image_processor_type", json!("CLIPImageProcessor"), &["must be LlavaNextImageProcessor"]);
    pictures_refused("num_crops", json!(4), &["unknown to this build"]);
    fails(clip(&json!({})), &["preprocessor_config.json: size"]);
}

#[test]
fn options_replace_settings_of_tiles() {
    let own = clip(&pictures()).unwrap();
    let with = |json: &str| own.with_kwargs(&processor_kwargs(json).unwrap(), 336);
    assert_eq!(with(r#"{"do_pad": true, "size": 336, "crop_size": 336}"#).unwrap(), own);
    assert_ne!(with(r#"{"resample": 2}"#).unwrap(), own);
    fails(
        with(r#"{"num_crops": 4}"#),
        &["mm_processor_kwargs: num_crops = 4 is no option of this model's", "resample"],
    );
    fails(with(r#"{"image_grid_pinpoints": [[336, 336]]}"#), &["image_grid_pinpoints", "is no option"]);
    fails(with(r#"{"size": 224}"#), &["mm_processor_kwargs: size", "336x336"]);
    fails(with(r#"{"crop_size": 224}"#), &["mm_processor_kwargs: ", "crop_size = 224x224"]);
}
