//! LLaVA-NeXT and Phi-3-vision against transformers, on tiny random checkpoints: the tiles of pictures, what stands at their
//! places, logits of prompts on both sides of the length at which Phi-3 changes its rotary factors, and 64 greedy tokens of
//! an engine, some of which cross it.
//!
//! The bounds are those of `golden_models`: f32 runs of transformers differ from its f64 runs by 1e-6 on logits. What stands
//! for the crossing is a forward pass over the whole sequence for every token.

#![allow(clippy::print_stdout, reason = "how much of a bound was used is worth seeing")]

// Each test uses a part of it.
#[allow(dead_code)]
mod golden;

use std::ops::ControlFlow;

use golden::{Golden, goldens, hold, max_abs, picture, relative_l2};
use ocelli::backend::Cpu;
use ocelli::engine::{Engine, Options};
use ocelli::image::{Anyres, Filter, Hd};
use ocelli::mem::DType;
use ocelli::models::Content;
use serde_json::Value;

const F32_RELATIVE_L2: f64 = 1e-5;
const F32_ELEMENT: f64 = 1e-4;

const FOLDERS: [&str; 4] = ["next-tiny-llama", "next-tiny-mistral", "phi3-tiny", "phi35-tiny"];
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

fn open(folder: &str, dtype: Option<DType>) -> Golden<Cpu> {
    Golden::open(folder, dtype, |regions| Cpu::new(regions).unwrap())
}

#[test]
fn f32_is_transformers() {
    for folder in FOLDERS {
        let mut g = open(folder, Some(DType::F32));
        for name in g.picture_names() {
            let rows = g.rows(&name);
            let expected = g.floats(&g.rows_name(&name));
            hold(&format!("{folder} {name} rows"), relative_l2(&rows, &expected), F32_RELATIVE_L2);
        }
        for case in g.case_names() {
            let prompt = g.prompt(&case);
            let logits = g.prompt_logits(&case, &prompt);
            let expected = g.floats(&format!("case/{case}/logits"));
            hold(&format!("{folder} {case} logits"), relative_l2(&logits, &expected), F32_RELATIVE_L2);
            let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
            let worst = max_abs(&logits, &expected) / f64::from(largest);
            hold(&format!("{folder} {case} worst logit"), worst, F32_ELEMENT);
        }
    }
}

/// The whole way: pictures from files, prompts as text, and 64 tokens that an engine chooses, alone and all at once.
#[test]
fn an_engine_answers_as_transformers_does() {
    for folder in FOLDERS {
        let g = open(folder, Some(DType::F32));
        let options = Options { dtype: Some(DType::F32), ..Options::default() };
        let engine = Engine::open(&goldens().join(folder), &options, |_, _| ()).unwrap();
        let cases = g.case_names();
        let requests: Vec<_> = cases.iter().map(|case| g.request(case)).collect();
        for (case, request) in cases.iter().zip(&requests) {
            let output = engine.answer(request, |_| ControlFlow::Continue(())).unwrap();
            let prompt: Vec<i32> = output.prompt_token_ids.iter().map(|&id| id as i32).collect();
            assert_eq!(prompt, g.ids(&format!("case/{case}/input_ids")), "{folder} {case}");
            let answer = &output.outputs[0];
            let tokens: Vec<i32> = answer.token_ids.iter().map(|&id| id as i32).collect();
            assert_eq!(tokens, g.ids(&format!("case/{case}/greedy_ids")), "{folder} {case}");
            let expected = g.floats(&format!("case/{case}/greedy_logprobs"));
            hold(&format!("{folder} {case} logprobs"), max_abs(&answer.logprobs, &expected), 1e-4);
        }
        for (case, output) in cases.iter().zip(engine.generate(&requests)) {
            let tokens: Vec<i32> = output.unwrap().outputs[0].token_ids.iter().map(|&id| id as i32).collect();
            assert_eq!(tokens, g.ids(&format!("case/{case}/greedy_ids")), "{folder} {case} among others");
        }
        let switches = engine.stats().scheduler.rope_switches;
        println!("{folder}: {switches} sequences grew past the short factors");
        assert_eq!(switches > 0, folder.starts_with("phi"));
    }
}

#[test]
fn half_precision_is_as_close_as_transformers_is() {
    for folder in FOLDERS {
        let mut g = open(folder, None);
        assert_ne!(g.checkpoint.dtype, DType::F32);
        g.is_as_close_as_transformers(folder);
    }
}

/// Of every byte that the tower sees, normalised: CRC-32 of f32, channel after channel.
#[test]
fn tiles_are_transformers_bit_for_bit() {
    for folder in FOLDERS {
        let g = open(folder, Some(DType::F32));
        let side = g.checkpoint.facts().pictures.image_size;
        let next = folder.starts_with("next");
        let table = if next { clip_table() } else { hd(1, side as u32).table() };
        for name in g.picture_names() {
            let content = g.tiles(&name).content;
            let (pixels, overview) = match &content {
                Content::Pixels(pixels) => (pixels, None),
                Content::Views { overview, pixels } => (pixels, Some(overview)),
                other => panic!("{other:?}"),
            };
            let crc = |tile: &[u8]| {
                let values: Vec<f32> = table
                    .chunks_exact(256)
                    .enumerate()
                    .flat_map(|(c, values)| tile.iter().skip(c).step_by(3).map(|&byte| values[usize::from(byte)]))
                    .collect();
                Value::from(crc32(bytemuck::cast_slice(&values)))
            };
            let found: Vec<Value> = pixels.chunks_exact(3 * side * side).map(crc).collect();
            assert_eq!(Value::from(found), g.described(&name)["pixels_crc32"], "{folder} {name}");
            let recorded = format!("picture/{name}/overview");
            if let (Some(overview), true) = (overview, g.has(&recorded)) {
                // torch adds up in another order.
                hold(&format!("{folder} {name} overview"), max_abs(overview, &g.floats(&recorded)), 2e-6);
            }
        }
    }
}

/// Sizes and counts of about sixty picture sizes, at the real size of a tile.
#[test]
fn views_are_those_of_transformers() {
    let views: Value = serde_json::from_slice(&std::fs::read(goldens().join("views.json")).unwrap()).unwrap();
    let pair = |value: &Value| [0, 1].map(|i| value[i].as_u64().unwrap() as u32);
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let pinpoints = views["pinpoints"].as_array().unwrap().iter().map(|p| pair(p).into()).collect();
    let anyres = Anyres { pinpoints, tile: 336, resample: Filter::Bicubic };
    let all = views["views"].as_array().unwrap();
    assert!(all.len() >= 50);
    for view in all {
        let [width, height] = pair(&view["size"]);
        match (anyres.view(width, height), &view["next"]) {
            (Err(_), Value::Null) => {}
            (found, expected) => {
                let found = found.unwrap();
                let (rows, columns) = found.kept(24);
                assert_eq!(
                    [found.resolution, found.resized].map(<[u32; 2]>::from),
                    [pair(&expected["resolution"]), pair(&expected["resized"])]
                );
                assert_eq!([rows.len() as u32, columns.len() as u32], pair(&expected["kept"]), "{width}x{height}");
                assert_eq!(found.tokens(24), number(&expected["tokens"]), "{width}x{height}");
            }
        }
        for (crops, key) in [(4, "phi_4"), (16, "phi_16")] {
            match (hd(crops, 336).shape(width, height), &view[key]) {
                (Err(_), Value::Null) => {}
                (found, expected) => {
                    let found = found.unwrap();
                    assert_eq!(<[u32; 2]>::from(found.resized), pair(&expected["resized"]), "{width}x{height}");
                    assert_eq!([336 * found.grid.0, 336 * found.grid.1], pair(&expected["canvas"]), "{width}x{height}");
                    assert_eq!(found.tokens(24), number(&expected["tokens"]), "{width}x{height} with {crops}");
                }
            }
        }
    }
}

/// Counts that others have published or asserted in their tests: width, height; LLaVA-NeXT; Phi-3-vision with 16 crops and 4.
#[test]
fn counts_are_the_published_ones() {
    let pinpoints = vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
    let anyres = Anyres { pinpoints, tile: 336, resample: Filter::Bicubic };
    for (width, height, next, sixteen, four) in [
        (336, 336, 1176, 2509, 757),
        (256, 256, 1176, 2509, 757),
        (448, 448, 2928, 2509, 757),
        (672, 672, 2928, 2509, 757),
        (640, 480, 2340, 1921, 757),
        (1024, 768, 2340, 1921, 757),
        (1280, 720, 1948, 2353, 757),
        (720, 1280, 1968, 2377, 757),
        (171, 152, 1272, 2509, 757),
        (184, 161, 1272, 2509, 757),
        (333, 296, 1272, 2509, 757),
        (369, 328, 1272, 2509, 757),
        (152, 171, 1128, 2509, 757),
        (161, 184, 1128, 2509, 757),
        (488, 183, 1458, 1621, 457),
        (183, 488, 1488, 1657, 469),
        (700, 840, 2544, 2509, 757),
        (2560, 1669, 2144, 1921, 757),
    ] {
        let size = format!("{width}x{height}");
        assert_eq!(anyres.view(width, height).unwrap().tokens(24), next, "{size}");
        assert_eq!(hd(16, 336).shape(width, height).unwrap().tokens(24), sixteen, "{size} in 16");
        assert_eq!(hd(4, 336).shape(width, height).unwrap().tokens(24), four, "{size} in 4");
    }
    assert_eq!(hd(16, 336).shape(50, 8000).unwrap().tokens(24), 2653);
}

/// The picture that stands for the worst case costs what the model says the worst case is, and no picture costs more.
#[test]
fn no_picture_costs_more_than_is_planned_for() {
    for folder in FOLDERS {
        let g = open(folder, Some(DType::F32));
        let model = g.runner.model();
        let crops = if folder == "phi35-tiny" { "@16" } else { "" };
        let most = g.checkpoint.facts().pictures.tokens.most();
        for name in ["wide", "tall", "tiny", "large", "strip", "column", "photo", "square"] {
            let tiles = g.tiles(&format!("{name}{crops}"));
            assert!(
                tiles.tokens() <= most && tiles.tiles <= g.checkpoint.facts().pictures.max_tiles,
                "{folder} {name}"
            );
            assert_eq!(tiles.rows.encoded(), tiles.tiles * model.tile_rows());
        }
        let kwargs = match crops.strip_prefix('@') {
            Some(n) => [("num_crops".to_owned(), Value::from(n.parse::<u32>().unwrap()))].into_iter().collect(),
            None => Default::default(),
        };
        let dearest = model.processor(&kwargs).unwrap().prepare(&model.dummy_image().unwrap()).unwrap();
        assert!(dearest.tokens() <= most, "{folder}");
        if folder != "phi35-tiny" {
            assert_eq!(dearest.tokens(), most, "{folder}");
        }
    }
    assert_eq!(picture("photo").width(), 60);
}

fn hd(num_crops: u32, tile: u32) -> Hd {
    Hd { num_crops, tile, mean: MEAN, std: STD }
}

/// What a byte stands for in LLaVA: rescaled in f64, normalised in f32.
fn clip_table() -> Vec<f32> {
    let byte = |b: u8, mean: f64, std: f64| ((f64::from(b) * (1.0 / 255.0)) as f32 - mean as f32) / std as f32;
    MEAN.into_iter().zip(STD).flat_map(|(mean, std)| (0..=255).map(move |b| byte(b, mean, std))).collect()
}

/// CRC-32 as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}
