//! A model without a file of weights: `LoadFormat::Dummy`, on the settings and the tokenizer of a tiny model.

#![allow(clippy::print_stdout, reason = "a figure is worth seeing")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use ocelli::backend::Cpu;
use ocelli::engine::{Checkpoint, Engine, LoadFormat, LogitRows, Options, Output, Prompt, Request, Runner, Sampling};
use ocelli::engine::{Device, SequenceStep};
use ocelli::kernel::GpuInfo;
use ocelli::mem::{Bases, DType, Span};
use ocelli::models::{Limits, StepShape, Vlm};
use ocelli::ops::SamplingRow;
use ocelli::plan::Backend;
use serde_json::{Value, json};
use tempfile::TempDir;

const MODEL: &str = "tests/goldens/llava-tiny-mha";

/// Everything of `folder` but its tensors.
fn settings(folder: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if !name.to_str().unwrap().contains("safetensors") {
            fs::copy(&path, dir.path().join(name)).unwrap();
        }
    }
    dir
}

fn dummy() -> Options {
    Options { load_format: LoadFormat::Dummy, device: Device::Cpu, ..Options::default() }
}

fn answer(dir: &Path, options: &Options) -> Output {
    let engine = Engine::open(dir, options, |_, _| ()).unwrap();
    let request = Request {
        prompt: Prompt::Raw("USER: <image>\nwhat is this? ASSISTANT:".into()),
        images: vec![Path::new("tests/goldens/pictures/wide.png").into()],
        sampling: Sampling { temperature: 0.0, max_tokens: Some(24), ignore_eos: true, ..Sampling::default() },
        ..Request::default()
    };
    engine.answer(&request, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn it_answers_the_same_every_time_in_every_type() {
    let dir = settings(MODEL);
    let mut hashes = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let options = Options { dtype: Some(dtype), ..dummy() };
        let (first, second) = (answer(dir.path(), &options), answer(dir.path(), &options));
        assert_eq!(first.outputs[0].token_ids.len(), 24);
        assert!(first.outputs[0].logprobs.iter().all(|l| l.is_finite()), "{:?}", first.outputs[0].logprobs);
        assert_eq!(
            (&first.outputs[0].token_ids, &first.outputs[0].logits_hash),
            (&second.outputs[0].token_ids, &second.outputs[0].logits_hash)
        );
        hashes.push(first.outputs[0].logits_hash.clone());
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 3);
}

#[test]
fn its_type_is_what_the_config_says_and_it_warns_that_nothing_is_meant() {
    let dir = settings("tests/goldens/llava-tiny-gqa-bf16");
    let engine = Engine::open(dir.path(), &dummy(), |_, _| ()).unwrap();
    assert_eq!(engine.dtype(), DType::Bf16);
    assert!(engine.warnings().iter().any(|w| w.contains("random numbers")), "{:?}", engine.warnings());
    let read = Options { load_format: LoadFormat::Auto, ..dummy() };
    let missing = Engine::open(dir.path(), &read, |_, _| ()).err().unwrap().to_string();
    assert!(missing.contains("model.safetensors"), "{missing}");
}

/// Files that are there are not looked at.
#[test]
fn it_does_not_depend_on_files_that_are_there() {
    let dir = settings(MODEL);
    let without = answer(dir.path(), &dummy()).outputs[0].logits_hash.clone();
    fs::write(dir.path().join("model.safetensors"), "not one").unwrap();
    assert_eq!(answer(dir.path(), &dummy()).outputs[0].logits_hash, without);
}

const LIMITS: Limits = Limits {
    max_model_len: 64,
    max_num_seqs: 1,
    max_num_batched_tokens: 64,
    max_logit_rows: 64,
    max_tiles: 1,
    kept_tiles: 0,
    kv_blocks: 4,
};

fn model(dir: &Path, limits: Limits) -> Box<dyn Vlm> {
    Checkpoint::open(dir, &dummy()).unwrap().build(limits).unwrap()
}

/// Places of tensors, without tables, in the order in which the model asks for them.
fn tensors(model: &dyn Vlm) -> Vec<Span> {
    model.placements().iter().filter(|p| p.random().is_some()).map(|p| p.dst).collect()
}

/// Where the tensors of a checkpoint go, random ones go, and all of them are filled.
#[test]
fn every_tensor_that_a_checkpoint_has_is_filled() {
    let limits = LIMITS;
    let stored = Checkpoint::open(Path::new(MODEL), &Options::default()).unwrap().build(limits).unwrap();
    let model = model(settings(MODEL).path(), limits);
    let places = |model: &dyn Vlm| model.placements().iter().map(|p| p.dst).collect::<Vec<_>>();
    assert_eq!(places(&*model), places(&*stored));
    let tensors = tensors(&*model);
    let (mut done, total) = (0, model.placements().iter().map(|p| p.dst.bytes()).sum::<u64>());
    let runner = Runner::new(Cpu::new(model.regions()).unwrap(), model, |bytes| done += bytes).unwrap();
    assert_eq!(done, total);
    for span in tensors {
        let bytes = runner.backend().snapshot(span).unwrap();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        assert!(values.iter().all(|v| *v != 0.0 && v.abs() < 1.1), "{span:?}");
    }
}

/// A longer context moves every tensor behind the table of angles, and changes no logit.
#[test]
fn numbers_do_not_depend_on_the_layout() {
    let dir = settings(MODEL);
    let logits = |max_model_len| {
        let model = model(dir.path(), Limits { max_model_len, ..LIMITS });
        let places = tensors(&*model);
        let mut runner = Runner::new(Cpu::new(model.regions()).unwrap(), model, |_| ()).unwrap();
        let ids = [1, 40, 41, 42];
        let step = SequenceStep { ids: &ids, cached: 0, first_angle: 0, blocks: &[0], sampling: SamplingRow::GREEDY };
        runner.step(&[step], LogitRows::All).unwrap();
        (places, runner.logits(4).unwrap())
    };
    let ((short, expected), (long, found)) = (logits(32), logits(64));
    assert_ne!(short, long);
    assert_eq!(found, expected);
}

/// As transformers writes it, a tied embedding is one tensor.
#[test]
fn tied_embeddings_are_one_tensor() {
    let dir = settings(MODEL);
    let untied = tensors(&*model(dir.path(), LIMITS)).len();
    let file = dir.path().join("config.json");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replacen('{', "{\"tie_word_embeddings\": true,", 1)).unwrap();
    assert_eq!(tensors(&*model(dir.path(), LIMITS)).len(), untied - 1);
    assert_eq!(answer(dir.path(), &dummy()).outputs[0].token_ids.len(), 24);
}

/// A figure, not a promise: what the host does to build and resolve the plan of a step with a prompt in it, for a language
/// model of 32 layers. What a driver adds to it is not in it.
#[test]
fn what_the_plan_of_a_mixed_step_takes() {
    let dir = settings(MODEL);
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let text = config["text_config"].as_object_mut().unwrap();
    text.remove("head_dim");
    for (name, value) in [
        ("num_hidden_layers", 32),
        ("hidden_size", 4096),
        ("intermediate_size", 11008),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 32),
    ] {
        text.insert(name.into(), json!(value));
    }
    fs::write(&file, config.to_string()).unwrap();
    let limits = Limits { max_num_seqs: 256, max_num_batched_tokens: 8192, max_logit_rows: 256, ..LIMITS };
    let options = Options { dtype: Some(DType::F16), ..dummy() };
    let model = Checkpoint::open(dir.path(), &options).unwrap().build(limits).unwrap();
    let shape = StepShape { decode: 100, prefill_seqs: 3, prefill_tokens: 1900, logit_rows: 103, context: 64 };
    let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: true };
    let at = Bases::new([0x1000, 0x2000, 0x3000, 0x4000]);
    let mut times: Vec<[f64; 2]> = (0..100)
        .map(|_| {
            let start = Instant::now();
            let plan = model.step_plan(shape);
            let built = start.elapsed();
            let params: usize = plan.steps().iter().map(|s| s.clone().op.launched(&at, &gpu).params().len()).sum();
            assert!(plan.steps().len() > 32 * 9 && params > 0);
            [built, start.elapsed() - built].map(|t| 1e6 * t.as_secs_f64())
        })
        .collect();
    times.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [built, resolved] = times[times.len() / 2];
    println!("a mixed step of 32 layers: {built:.0} us to build its plan, {resolved:.0} us to resolve it");
}
