//! preprocessor_config.json and processor_config.json.

use ocelli::config::{Config, Files, Pictures, Preprocessor, Resample, Resize, processor_kwargs};
use serde_json::{Value, json};

use crate::config::{NEW_STYLE, preprocessor};
use crate::fails;

/// Reads these two files beside a model of 28-pixel pictures and 14-pixel patches.
fn both(preprocessor: Option<&Value>, processor: Option<&Value>) -> anyhow::Result<Config> {
    let preprocessor = preprocessor.map(Value::to_string);
    let processor = processor.map(Value::to_string);
    Config::parse(&Files {
        config: NEW_STYLE.as_bytes(),
        generation: None,
        preprocessor: preprocessor.as_deref().map(str::as_bytes),
        processor: processor.as_deref().map(str::as_bytes),
    })
}

fn clip(config: Config) -> Preprocessor {
    match config.pictures {
        Pictures::Clip(preprocessor) => preprocessor,
        other => panic!("{other:?}"),
    }
}

fn parse(file: &Value) -> anyhow::Result<Preprocessor> {
    both(Some(file), None).map(clip)
}

fn with(fields: Value) -> Value {
    let mut file = preprocessor(28);
    for (key, value) in fields.as_object().unwrap() {
        file[key] = value.clone();
    }
    file
}

#[track_caller]
fn refused(field: &str, value: Value, parts: &[&str]) {
    let at = format!("preprocessor_config.json: {field}");
    fails(parse(&with(json!({ field: value }))), &[&[at.as_str()], parts].concat());
}

#[test]
fn the_usual_file_is_read() {
    let p = parse(&preprocessor(28)).unwrap();
    assert_eq!(
        (p.do_resize, p.do_center_crop, p.do_rescale, p.do_normalize, p.do_pad),
        (true, true, true, true, false)
    );
    assert_eq!((p.size, p.crop_size, p.resample), (Resize::ShortestEdge(28), (28, 28), Resample::Bicubic));
    assert_eq!(p.rescale_factor, 1.0 / 255.0);
    assert_eq!(p.mean, [0.48145466, 0.4578275, 0.40821073]);
    assert_eq!(p.std, [0.26862954, 0.26130258, 0.27577711]);
}

#[test]
fn what_is_left_out_or_null_is_clips_default() {
    let usual = parse(&preprocessor(28)).unwrap();
    let short = parse(&json!({ "size": 28, "crop_size": 28 })).unwrap();
    assert_eq!(short, usual);
    let nulls = with(json!({
        "data_format": "channels_first", "default_to_square": false, "device": null, "disable_grouping": null,
        "do_pad": null, "image_seq_length": null, "input_data_format": null, "pad_size": null, "return_tensors": null,
        "resample": null, "rescale_factor": null
    }));
    assert_eq!(parse(&nulls).unwrap(), usual);
}

#[test]
fn sizes_have_several_forms() {
    for (size, expected) in [
        (json!(30), Resize::ShortestEdge(30)),
        (json!({ "shortest_edge": 30 }), Resize::ShortestEdge(30)),
        (json!({ "height": 30, "width": 40 }), Resize::Exact { height: 30, width: 40 }),
    ] {
        assert_eq!(parse(&with(json!({ "size": size }))).unwrap().size, expected);
    }
    for size in [
        json!(0),
        json!(-1),
        json!(28.0),
        json!("28"),
        json!([28, 28]),
        json!({}),
        json!({ "shortest_edge": 0 }),
        json!({ "shortest_edge": 5000 }),
        json!({ "shortest_edge": 28, "longest_edge": 56 }),
        json!({ "height": 28 }),
        json!({ "height": 28, "width": 28, "depth": 28 }),
    ] {
        refused("size", size, &["shortest_edge"]);
    }
    for crop in [json!(0), json!({ "height": 28 }), json!({ "shortest_edge": 28 }), json!("28")] {
        refused("crop_size", crop, &["height"]);
    }
}

#[test]
fn the_result_must_have_the_towers_size() {
    refused("crop_size", json!(27), &["27x27", "vision_config.image_size = 28"]);
    refused("crop_size", json!({ "height": 28, "width": 42 }), &["28x42", "image_size = 28"]);
    refused("do_center_crop", json!(false), &["does not make every picture 28x28"]);
    let exact = json!({ "do_center_crop": false, "size": { "height": 28, "width": 28 } });
    assert!(!parse(&with(exact)).unwrap().do_center_crop);
    let padded = json!({ "do_center_crop": false, "do_pad": true, "image_processor_type": "LlavaImageProcessor" });
    assert!(parse(&with(padded)).unwrap().do_pad);
    let unresized = json!({ "do_center_crop": false, "do_resize": false, "size": { "height": 28, "width": 28 } });
    fails(parse(&with(unresized)), &["does not make every picture 28x28"]);
}

#[test]
fn only_llavas_processor_pads() {
    for kind in ["LlavaImageProcessor", "LlavaImageProcessorFast", "LlavaImageProcessorPil"] {
        assert!(parse(&with(json!({ "do_pad": true, "image_processor_type": kind }))).unwrap().do_pad);
    }
    refused("do_pad", json!(true), &["CLIPImageProcessor never pads"]);
}

#[test]
fn other_processors_and_filters_are_refused() {
    for kind in ["SiglipImageProcessor", "Phi3VImageProcessor"] {
        refused("image_processor_type", json!(kind), &["CLIPImageProcessor"]);
    }
    refused("image_processor_type", json!("LlavaNextImageProcessor"), &["is LLaVA-NeXT's"]);
    assert_eq!(parse(&with(json!({ "resample": 2 }))).unwrap().resample, Resample::Bilinear);
    for filter in [json!(0), json!(1), json!(4), json!("bicubic"), json!(-1)] {
        refused("resample", filter, &["2 (bilinear) or 3 (bicubic)"]);
    }
    refused("default_to_square", json!(true), &[]);
    refused("image_grid_pinpoints", json!([[336, 672]]), &["unknown to this build"]);
}

#[test]
fn colours_are_three_sane_numbers() {
    for value in [json!([0.5]), json!([0.5, 0.5, 0.5, 0.5]), json!(0.5), json!(["a", 1, 1]), json!([1e300, 0, 0])] {
        refused("image_mean", value.clone(), &["three numbers"]);
        refused("image_std", value, &["three numbers"]);
    }
    refused("image_std", json!([0.2, 0.0, 0.2]), &["none 0"]);
    refused("image_std", json!([0.2, -0.2, 0.2]), &["none 0"]);
    for factor in [json!(0), json!(-1), json!(255), json!("1/255")] {
        refused("rescale_factor", factor, &["above 0"]);
    }
    refused("do_resize", json!(1), &["true or false"]);
}

#[test]
fn without_either_file_nobody_guesses() {
    fails(both(None, None), &["preprocessor_config.json is not there"]);
    fails(
        both(None, Some(&json!({ "processor_class": "LlavaProcessor" }))),
        &["preprocessor_config.json is not there"],
    );
}

/// processor_config.json as transformers 5 writes it.
fn processor() -> Value {
    let mut image = preprocessor(28);
    image.as_object_mut().unwrap().remove("processor_class");
    json!({
        "image_processor": image,
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 14,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default"
    })
}

#[test]
fn the_settings_may_be_inside_processor_config() {
    let config = both(None, Some(&processor())).unwrap();
    assert_eq!(clip(config), parse(&preprocessor(28)).unwrap());
    both(Some(&preprocessor(28)), Some(&processor())).unwrap();
    let mut broken = processor();
    broken["image_processor"]["crop_size"] = json!(0);
    fails(both(None, Some(&broken)), &["processor_config.json: image_processor.crop_size = 0"]);
    let other = with(json!({ "resample": 2 }));
    fails(both(Some(&other), Some(&processor())), &["preprocessor_config.json contradicts processor_config.json"]);
}

#[test]
fn processor_config_must_agree_with_the_model() {
    let changed = |key: &str, value: Value| {
        let mut file = processor();
        file[key] = value;
        both(None, Some(&file))
    };
    fails(changed("patch_size", json!(16)), &["processor_config.json: patch_size = 16", "patch_size = 14"]);
    fails(changed("vision_feature_select_strategy", json!("full")), &["vision_feature_select_strategy contradicts"]);
    fails(changed("image_token", json!("")), &["processor_config.json: image_token", "1 to 64 bytes"]);
    fails(changed("foo", json!(1)), &["processor_config.json: foo = 1", "unknown to this build"]);
    changed("image_token", json!("<pic>")).unwrap();
    changed("num_additional_image_tokens", json!(0)).unwrap();
    changed("patch_size", Value::Null).unwrap();
}

/// Options replace single settings, and all the rules of the file hold for them.
#[test]
fn options_replace_settings() {
    let own = parse(&preprocessor(28)).unwrap();
    let with = |json: &str| own.with_kwargs(&processor_kwargs(json).unwrap(), 28);
    assert_eq!(with("{}").unwrap(), own);
    assert_eq!(with(r#"{"resample": null}"#).unwrap(), own);
    let changed = with(r#"{"size": 40, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "do_normalize": false}"#).unwrap();
    let expected =
        Preprocessor { size: Resize::ShortestEdge(40), resample: Resample::Bilinear, mean: [0.5; 3], ..own.clone() };
    assert_eq!(changed, Preprocessor { do_normalize: false, ..expected });
    fails(with(r#"{"num_crops": 4}"#), &["mm_processor_kwargs: num_crops = 4 is no option", "do_convert_rgb, do_pad"]);
    fails(with(r#"{"return_tensors": "pt"}"#), &["return_tensors = \"pt\" is no option"]);
    fails(with(r#"{"crop_size": 14}"#), &["mm_processor_kwargs: crop_size = 14x14", "image_size = 28"]);
    fails(with(r#"{"image_std": [1, 0, 1]}"#), &["mm_processor_kwargs: image_std", "none 0"]);
    fails(with(r#"{"do_pad": true}"#), &["CLIPImageProcessor never pads"]);
}

#[test]
fn only_a_processor_that_pads_may_be_told_to() {
    let mut file = preprocessor(28);
    file["image_processor_type"] = json!("LlavaImageProcessor");
    let llava = parse(&file).unwrap();
    assert!(llava.may_pad && !llava.do_pad);
    let padded = llava.with_kwargs(&processor_kwargs(r#"{"do_pad": true}"#).unwrap(), 28).unwrap();
    assert_eq!(padded, Preprocessor { do_pad: true, ..llava.clone() });
    // One of two files may leave out which processor it is.
    let mut silent = file.clone();
    silent.as_object_mut().unwrap().remove("image_processor_type");
    assert_eq!(clip(both(Some(&silent), Some(&json!({ "image_processor": file }))).unwrap()), llava);
}
