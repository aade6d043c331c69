//! config.json and preprocessor_config.json of Phi-3-vision and Phi-3.5-vision.

use ocelli::config::{Config, Family, Files, HdConfig, Phi3VConfig, Pictures, processor_kwargs};
use serde_json::{Value, json};

use crate::{fails, set, unset};

/// config.json as the hub has it, with other factors.
pub fn phi() -> Value {
    json!({
        "_name_or_path": "Phi-3-vision-128k-instruct",
        "architectures": ["Phi3VForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": { "AutoConfig": "configuration_phi3_v.Phi3VConfig" },
        "bos_token_id": 1,
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": true,
            "with_learnable_separator": true
        },
        "embd_pdrop": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "img_processor": {
            "image_dim_out": 1024,
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": 144
        },
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131_072,
        "model_type": "phi3_v",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": { "long_factor": factors(1.25), "short_factor": factors(0.0625), "type": "su" },
        "rope_theta": 10000.0,
        "sliding_window": 131_072,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.1",
        "use_cache": true,
        "vocab_size": 32064,
        "_attn_implementation": "flash_attention_2"
    })
}

fn factors(step: f64) -> Vec<f64> {
    (0..48).map(|i| 1.0 + step * f64::from(i)).collect()
}

/// preprocessor_config.json as the hub has it.
pub fn pictures() -> Value {
    json!({
        "auto_map": {
            "AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor",
            "AutoProcessor": "processing_phi3_v.Phi3VProcessor"
        },
        "do_convert_rgb": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Phi3VImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "num_crops": 16,
        "num_img_tokens": 144,
        "processor_class": "Phi3VProcessor"
    })
}

fn parse(config: &Value, pictures: &Value) -> anyhow::Result<Config> {
    let (config, pictures) = (config.to_string(), pictures.to_string());
    let files =
        Files { config: config.as_bytes(), generation: None, preprocessor: Some(pictures.as_bytes()), processor: None };
    Config::parse(&files)
}

fn read(config: &Value) -> anyhow::Result<Phi3VConfig> {
    match parse(config, &pictures())?.model.family {
        Family::Phi3V(phi) => Ok(phi),
        other => panic!("{other:?}"),
    }
}

fn hd(file: &Value) -> anyhow::Result<HdConfig> {
    match parse(&phi(), file)?.pictures {
        Pictures::Hd(hd) => Ok(hd),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(path: &str, value: Value, parts: &[&str]) {
    let at = format!("config.json: {path}");
    fails(read(&set(phi(), path, value)), &[&[at.as_str()], parts].concat());
}

#[track_caller]
fn pictures_refused(path: &str, value: Value, parts: &[&str]) {
    let at = format!("preprocessor_config.json: {path}");
    fails(hd(&set(pictures(), path, value)), &[&[at.as_str()], parts].concat());
}

#[test]
fn the_hub_file_is_read() {
    let p = read(&phi()).unwrap();
    let t = &p.text;
    assert_eq!((t.model_type, t.hidden_size, t.intermediate_size, t.num_hidden_layers), ("phi3", 3072, 8192, 32));
    assert_eq!((t.num_attention_heads, t.num_key_value_heads, t.head_dim), (32, 32, 96));
    assert_eq!((t.vocab_size, t.max_position_embeddings, t.rms_norm_eps), (32064, 131_072, 1e-5));
    let rope = t.long_rope.as_ref().unwrap();
    assert_eq!((t.rope_theta, rope.original_max_position_embeddings), (10000.0, 4096));
    assert_eq!((&rope.short_factor, &rope.long_factor), (&factors(0.0625), &factors(1.25)));
    // sqrt(1 + ln 32 / ln 4096), in which the logarithms are 5 and 12 times that of 2.
    assert!((rope.attention_factor - (17.0f64 / 12.0).sqrt()).abs() < 1e-15, "{}", rope.attention_factor);
    let v = &p.vision;
    assert_eq!((v.hidden_size, v.intermediate_size, v.num_hidden_layers, v.num_attention_heads), (1024, 4096, 24, 16));
    assert_eq!((v.image_size, v.patch_size, p.vision_blocks, p.tile_rows()), (336, 14, 23, 144));
    let config = parse(&phi(), &pictures()).unwrap();
    assert_eq!((config.generation.bos, config.generation.eos.as_slice()), (Some(1), &[2][..]));
    // Phi-3.5-vision differs in what it does not say, in its factors, and in a window that is wider still.
    let newer = unset(set(phi(), "sliding_window", json!(262_144)), "_name_or_path");
    assert_eq!(read(&newer).unwrap(), p);
}

/// The window never changes what the factors mean: how far the model was stretched is max_position_embeddings' to say.
#[test]
fn a_window_limits_the_length_and_not_the_stretch() {
    let p = read(&phi()).unwrap();
    for (window, longest) in [(json!(2048), 2048), (json!(200_000), 131_072), (Value::Null, 131_072)] {
        let t = read(&set(phi(), "sliding_window", window)).unwrap().text;
        assert_eq!((t.max_position_embeddings, &t.long_rope), (longest, &p.text.long_rope));
    }
    assert_eq!(read(&unset(phi(), "sliding_window")).unwrap(), p);
    refused("sliding_window", json!(0), &["expected a whole number from 1"]);
}

#[test]
fn both_spellings_of_the_factors_are_read() {
    let p = read(&phi()).unwrap();
    let (long, short) = (factors(1.25), factors(0.0625));
    for kind in ["su", "longrope"] {
        for key in ["type", "rope_type"] {
            let scaling = json!({ key: kind, "long_factor": long, "short_factor": short });
            assert_eq!(read(&set(phi(), "rope_scaling", scaling)).unwrap(), p, "{kind} as {key}");
        }
        let parameters = json!({
            "rope_type": kind, "long_factor": long, "short_factor": short, "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0
        });
        let new = set(unset(phi(), "rope_scaling"), "rope_parameters", parameters);
        assert_eq!(read(&new).unwrap(), p);
        let only = unset(unset(new, "rope_theta"), "original_max_position_embeddings");
        assert_eq!(read(&only).unwrap(), p);
    }
    let plain = read(&unset(phi(), "rope_scaling")).unwrap();
    assert!(plain.text.long_rope.is_none());
}

#[test]
fn factors_that_cannot_be_used_are_refused() {
    for key in ["short_factor", "long_factor"] {
        let path = format!("rope_scaling.{key}");
        let says = ["48 numbers above 0, half of a head's elements"];
        for value in [
            json!(factors(1.0)[..47]),
            json!([factors(1.0), vec![1.0]].concat()),
            json!([]),
            json!(1.0),
            json!(vec!["1"; 48]),
            json!(vec![0.0; 48]),
            json!([vec![-1.0], factors(1.0)[1..].to_vec()].concat()),
            Value::Null,
        ] {
            refused(&path, value, &says);
        }
        fails(read(&unset(phi(), &path)), &["config.json: ", &path, "is missing", says[0]]);
    }
    refused("rope_scaling.type", json!("yarn"), &["\"yarn\"", "\"longrope\""]);
    refused("rope_scaling.factor", json!(2.0), &["unknown to this build"]);
    refused("rope_scaling.rope_theta", json!(5e5), &["500000 contradicts config.json: rope_theta = 10000"]);
    refused(
        "rope_scaling.original_max_position_embeddings",
        json!(2048),
        &["= 2048 contradicts config.json: original_max_position_embeddings = 4096"],
    );
    refused("original_max_position_embeddings", json!(1), &["expected a whole number from 2"]);
    refused("original_max_position_embeddings", json!(0), &["expected a whole number from 1"]);
    let twice = set(phi(), "rope_parameters", phi()["rope_scaling"].clone());
    fails(read(&twice), &["rope_parameters and rope_scaling both have factors; remove one"]);
}

#[test]
fn only_one_way_to_the_rows_of_a_picture_is_computed() {
    for (path, value) in [
        ("embd_layer.embedding_cls", json!("text")),
        ("embd_layer.hd_transform_order", json!("glb_sub")),
        ("embd_layer.projection_cls", json!("linear")),
        ("embd_layer.use_hd_transform", json!(false)),
        ("embd_layer.with_learnable_separator", json!(false)),
        ("img_processor.name", json!("siglip_vision_model")),
        ("img_processor.image_dim_out", json!(768)),
        ("img_processor.num_img_tokens", json!(576)),
        ("img_processor.type_feature", json!("cls_patch")),
    ] {
        refused(path, value.clone(), &[&format!("{value} is not supported; only ")]);
    }
    refused("embd_layer.image_dropout", json!(1), &["unknown to this build"]);
    refused("img_processor.image_dropout", json!(1), &["unknown to this build"]);
    for (layer, blocks) in [(-2, 23), (-1, 24), (23, 23), (0, 0), (-25, 0), (24, 24)] {
        assert_eq!(read(&set(phi(), "img_processor.layer_idx", json!(layer))).unwrap().vision_blocks, blocks);
    }
    for layer in [json!(25), json!(-26), json!([-2]), json!("-2")] {
        refused("img_processor.layer_idx", layer, &["a whole number from -25 to 24 (the tower has 24 blocks)"]);
    }
    for absent in ["embd_layer", "img_processor"] {
        assert_eq!(read(&unset(phi(), absent)).unwrap(), read(&phi()).unwrap(), "without {absent}");
    }
}

#[test]
fn patches_are_merged_two_by_two() {
    let tower = |image: usize, patch: usize| {
        let vision =
            json!({ "hidden_size": 1024, "image_size": image, "patch_size": patch, "num_attention_heads": 16 });
        let config = unset(set(phi(), "vision_config", vision), "img_processor");
        parse(&config, &unset(pictures(), "num_img_tokens"))
    };
    for (image, patch, grid) in [(42, 14, "3"), (14, 14, "1"), (350, 14, "25")] {
        fails(tower(image, patch), &[&format!("config.json: vision_config has {grid} patches a side"), "must be even"]);
    }
    tower(56, 14).unwrap();
    fails(tower(337, 14), &["config.json: vision_config.image_size = 337"]);
}

#[test]
fn the_text_model_has_to_be_one_that_is_computed() {
    refused("attention_bias", json!(true), &["is not supported; only false is"]);
    refused("hidden_act", json!("gelu"), &["\"silu\""]);
    refused("hidden_size", json!(3080), &["= 3080 is not a multiple of num_attention_heads = 32"]);
    refused("num_key_value_heads", json!(5), &["= 5 does not divide num_attention_heads = 32"]);
    refused("partial_rotary_factor", json!(0.5), &[]);
    refused("quantization_config", json!({ "bits": 4 }), &["quantization_config"]);
    refused("model_type", json!("phi3"), &["contradicts architectures = [\"Phi3VForCausalLM\"]"]);
    refused("text_config", json!({}), &["unknown to this build"]);
    for path in ["foo", "embd_layer.foo", "img_processor.foo", "rope_scaling.foo"] {
        refused(path, json!(3), &["= 3", "unknown to this build"]);
    }
}

#[test]
fn the_preprocessor_is_read() {
    let usual = hd(&pictures()).unwrap();
    assert_eq!(usual.num_crops, 16);
    assert_eq!(hd(&set(pictures(), "num_crops", json!(4))).unwrap().num_crops, 4);
    assert_eq!(hd(&unset(pictures(), "num_crops")).unwrap().num_crops, 1);
    assert_eq!(hd(&json!({ "num_crops": 16 })).unwrap(), usual);
    assert_eq!(hd(&unset(pictures(), "num_img_tokens")).unwrap(), usual);
    for crops in [json!(0), json!(-4), json!(65), json!(4.5), json!("16"), json!([16]), json!(u64::MAX)] {
        pictures_refused("num_crops", crops, &["expected a whole number from 1 to 64"]);
    }
    pictures_refused("num_img_tokens", json!(576), &["576 is not supported; only 144 is"]);
    pictures_refused("image_processor_type", json!("CLIPImageProcessor"), &["Phi3VImageProcessor"]);
    pictures_refused("image_std", json!([0.2, 0.0, 0.2]), &["none 0"]);
    pictures_refused("size", json!(336), &["unknown to this build"]);
    pictures_refused("image_grid_pinpoints", json!([[336, 336]]), &["unknown to this build"]);
    let text = phi().to_string();
    let none = Files { config: text.as_bytes(), generation: None, preprocessor: None, processor: None };
    fails(Config::parse(&none), &["preprocessor_config.json is not there"]);
}

#[test]
fn only_the_number_of_crops_is_an_option() {
    let own = hd(&pictures()).unwrap();
    let with = |json: &str| own.with_kwargs(&processor_kwargs(json).unwrap());
    assert_eq!(with("{}").unwrap(), own);
    assert_eq!(with(r#"{"num_crops": null}"#).unwrap(), own);
    assert_eq!(with(r#"{"num_crops": 4}"#).unwrap(), HdConfig { num_crops: 4, ..own.clone() });
    for crops in ["0", "65", "\"4\"", "2.5"] {
        let json = format!("{{\"num_crops\": {crops}}}");
        fails(with(&json), &["mm_processor_kwargs: num_crops = ", "expected a whole number from 1 to 64"]);
    }
    for json in [r#"{"image_mean": [0, 0, 0]}"#, r#"{"size": 336}"#, r#"{"num_img_tokens": 144}"#] {
        fails(with(json), &["is no option of this model's picture processor; it has num_crops"]);
    }
}
