//! The published models by their sizes alone: parameters, cache, and what pictures cost. Nothing is allocated.
//!
//! Totals of parameters are those of the checkpoints. A model asks for fewer: not for the last block of CLIP, whose output
//! nobody reads, nor for the norm behind it.

use ocelli::config::Files;
use ocelli::mem::DType;
use ocelli::models::{self, Architecture, ImageInputType, ImageTokens, Limits, Tensors};
use serde_json::{Value, json};

/// Elements of CLIP ViT-L's last block and of the norm behind it, which are in the files and not read: four square layers
/// and two of the MLP with their biases, three norms.
const UNREAD: usize = 4 * (1024 * 1024 + 1024) + (2 * 4096 * 1024 + 4096 + 1024) + 3 * 2 * 1024;

/// A model, and what there is to know of it.
struct Known {
    name: &'static str,
    config: Value,
    preprocessor: Value,
    /// Of the checkpoint.
    parameters: usize,
    /// Of the checkpoint, without buffers.
    tensors: usize,
    /// Keys and values of a token in all layers, in f16.
    kv_bytes: usize,
    positions: usize,
    max_tiles: usize,
    max_tokens: usize,
}

fn clip() -> Value {
    json!({
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000
    })
}

fn vicuna(size: usize) -> Value {
    let mut text = json!({
        "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5, "torch_dtype": "float16",
        "vocab_size": 32064
    });
    if size == 13 {
        for (key, value) in [
            ("hidden_size", 5120),
            ("intermediate_size", 13824),
            ("num_hidden_layers", 40),
            ("num_attention_heads", 40),
        ] {
            text[key] = value.into();
        }
        text["num_key_value_heads"] = 40.into();
    }
    text
}

fn mistral() -> Value {
    json!({
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": null, "torch_dtype": "bfloat16", "vocab_size": 32064
    })
}

fn llava(next: bool, text: Value) -> Value {
    let (architecture, model_type) = match next {
        true => ("LlavaNextForConditionalGeneration", "llava_next"),
        false => ("LlavaForConditionalGeneration", "llava"),
    };
    let mut config = json!({
        "architectures": [architecture], "ignore_index": -100, "image_token_index": 32000, "model_type": model_type,
        "projector_hidden_act": "gelu", "text_config": text, "tie_word_embeddings": false, "torch_dtype": "float16",
        "vision_config": clip(), "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "vocab_size": 32064
    });
    if next {
        config["image_grid_pinpoints"] = pinpoints();
        config["use_image_newline_parameter"] = true.into();
    }
    config
}

fn pinpoints() -> Value {
    json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])
}

fn clip_pictures(next: bool) -> Value {
    let mut file = json!({
        "crop_size": { "height": 336, "width": 336 }, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
        "do_rescale": true, "do_resize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": { "shortest_edge": 336 }
    });
    if next {
        file["image_processor_type"] = "LlavaNextImageProcessor".into();
        file["aspect_ratio_setting"] = "anyres".into();
        file["do_pad"] = true.into();
        file["image_grid_pinpoints"] = pinpoints();
    }
    file
}

/// Phi-3-vision; the factors are made up, and change no size.
fn phi(window: usize) -> Value {
    let factors = |last: f64| -> Vec<f64> { (0..48).map(|i| 1.0 + (last - 1.0) * f64::from(i) / 47.0).collect() };
    json!({
        "architectures": ["Phi3VForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "embd_layer": {
            "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp", "use_hd_transform": true,
            "with_learnable_separator": true
        },
        "embd_pdrop": 0.0, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 3072,
        "img_processor": {
            "image_dim_out": 1024, "model_name": "openai/clip-vit-large-patch14-336", "name": "clip_vision_model",
            "num_img_tokens": 144
        },
        "intermediate_size": 8192, "max_position_embeddings": 131_072, "model_type": "phi3_v", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_scaling": { "long_factor": factors(64.0), "short_factor": factors(3.0), "type": "su" },
        "rope_theta": 10000.0, "sliding_window": window, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "vocab_size": 32064
    })
}

fn phi_pictures(num_crops: usize) -> Value {
    json!({
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "Phi3VImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "num_crops": num_crops, "num_img_tokens": 144,
        "processor_class": "Phi3VProcessor"
    })
}

fn all() -> Vec<Known> {
    let llava = |name, next, text, parameters, tensors, kv_bytes, positions| Known {
        name,
        config: llava(next, text),
        preprocessor: clip_pictures(next),
        parameters,
        tensors,
        kv_bytes,
        positions,
        max_tiles: if next { 5 } else { 1 },
        // The picture and four tiles, whose 48 lines of 48 patches end in a newline each.
        max_tokens: if next { 576 + 48 * 49 } else { 576 },
    };
    let phi = |name, window, crops| Known {
        name,
        config: phi(window),
        preprocessor: phi_pictures(crops),
        parameters: 4_146_621_440,
        tensors: 592,
        kv_bytes: 2 * 32 * 32 * 96 * 2,
        positions: 131_072,
        max_tiles: 17,
        // A column of 16 tiles: with the picture 17 of 144 rows, a separator between, and 17 * 12 at ends of lines.
        max_tokens: 17 * 144 + 1 + 17 * 12,
    };
    // Two of 32 or 40 layers, of 8, 32 or 40 heads of 128.
    let (seven, thirteen, grouped) = (2 * 32 * 32 * 128 * 2, 2 * 40 * 40 * 128 * 2, 2 * 32 * 8 * 128 * 2);
    vec![
        llava("llava-1.5-7b", false, vicuna(7), 7_063_427_072, 686, seven, 4096),
        llava("llava-1.5-13b", false, vicuna(13), 13_351_494_656, 758, thirteen, 4096),
        llava("llava-v1.6-vicuna-7b", true, vicuna(7), 7_063_431_168, 687, seven, 4096),
        llava("llava-v1.6-vicuna-13b", true, vicuna(13), 13_351_494_656 + 5120, 759, thirteen, 4096),
        llava("llava-v1.6-mistral-7b", true, mistral(), 7_566_747_648, 687, grouped, 32768),
        phi("Phi-3-vision", 131_072, 16),
        phi("Phi-3.5-vision", 262_144, 4),
    ]
}

fn read(known: &Known) -> Box<dyn Architecture> {
    let (config, preprocessor) = (known.config.to_string(), known.preprocessor.to_string());
    let files = Files {
        config: config.as_bytes(),
        generation: Some(br#"{"eos_token_id": 2}"#),
        preprocessor: Some(preprocessor.as_bytes()),
        processor: None,
    };
    let family = models::find(known.config["architectures"][0].as_str().unwrap(), &[]).unwrap();
    (family.read)(&files).unwrap_or_else(|e| panic!("{}: {e:#}", known.name))
}

fn limits(max_model_len: usize, max_tiles: usize) -> Limits {
    Limits {
        max_model_len,
        max_num_seqs: 1,
        max_num_batched_tokens: 1,
        max_logit_rows: 1,
        max_tiles,
        kept_tiles: 0,
        kv_blocks: 3,
    }
}

#[test]
fn published_models_have_their_sizes() {
    for known in all() {
        let name = known.name;
        let architecture = read(&known);
        let facts = architecture.facts();
        assert_eq!((facts.vocab_size, facts.max_positions), (32064, known.positions), "{name}");
        let block = architecture.kv_block_bytes(DType::F16);
        assert_eq!(block, 16 * known.kv_bytes, "{name}");
        assert_eq!(facts.pictures.max_tiles, known.max_tiles, "{name}");
        let tokens = if known.max_tiles == 1 { ImageTokens::Always } else { ImageTokens::UpTo };
        assert_eq!(facts.pictures.tokens, tokens(known.max_tokens), "{name}");

        let model = architecture
            .build(Tensors::Random, DType::F16, limits(64, known.max_tiles), ImageInputType::PixelValues)
            .unwrap();
        let asked = model.placements().iter().filter_map(|p| p.random().map(|_| p.dst.len as usize));
        assert_eq!(asked.clone().sum::<usize>(), known.parameters - UNREAD, "{name}");
        // A block has 16 tensors, and the norm behind the last two.
        assert_eq!(asked.count(), known.tensors - 18, "{name}");
        assert_eq!(model.regions()[1], 3 * block, "{name}");

        // The picture that stands for the dearest is one of the checkpoint's own: 3.5 cuts into 4 tiles unless it is asked
        // for more.
        let dearest = model.dummy_image().unwrap();
        let own = if known.name == "Phi-3.5-vision" { 5 * 144 + 1 + 5 * 12 } else { known.max_tokens };
        let picture = model.processor(&Default::default()).unwrap().prepare(&dearest).unwrap();
        assert_eq!(picture.tokens(), own, "{name}");
        if known.name.starts_with("Phi") {
            let kwargs = [("num_crops".to_owned(), json!(16))].into_iter().collect();
            let tall = ocelli::image::Rgb::filled(8, 128, [0; 3]).unwrap();
            let picture = model.processor(&kwargs).unwrap().prepare(&tall).unwrap();
            assert_eq!((picture.tokens(), picture.tiles), (known.max_tokens, known.max_tiles), "{name}");
        }
    }
}

/// A sequence that goes beyond the short factors needs a second table; one that cannot does not have it.
#[test]
fn long_angles_are_there_where_a_sequence_may_need_them() {
    for known in all() {
        let architecture = read(&known);
        for len in [4096, 4097.min(known.positions)] {
            let model =
                architecture.build(Tensors::Random, DType::F16, limits(len, 1), ImageInputType::PixelValues).unwrap();
            let long = known.name.starts_with("Phi") && len > 4096;
            assert_eq!(model.long_rope().map(|rope| rope.switch), long.then_some(4096), "{} of {len}", known.name);
        }
    }
}
