//! The whole model against transformers, on tiny random checkpoints: pixels, vision features, projected rows, logits at
//! every position of the prompt, and 64 greedy tokens with their log-probabilities.
//!
//! Bounds come from transformers' own runs, recorded in `tests/goldens/`: its f32 run differs from its f64 run by 6.4e-7
//! relative L2 on logits, while the smallest wrong detail that was tried makes 4e-5, so f32 is held to 1e-5 (and, element
//! by element, to 1e-4 of the largest logit). Its f16 and bf16 runs differ from its f32 run by what
//! `native_against_f32` records; another correct order of roundings lies as far away, hence twice that.

#![allow(clippy::print_stdout, reason = "how much of a bound was used is worth seeing")]

use std::fs;
use std::path::PathBuf;

use ocelli::backend::Cpu;
use ocelli::engine::{Checkpoint, LogitRows, Options, Runner, SequenceStep};
use ocelli::image::{self, Alpha, Limits};
use ocelli::mem::{DType, Span};
use ocelli::models::{self, clip_processor};
use ocelli::ops::SamplingRow;
use ocelli::plan::{Backend, Plan};
use safetensors::SafeTensors;
use serde_json::Value;

const F32_RELATIVE_L2: f64 = 1e-5;
const F32_ELEMENT: f64 = 1e-4;
const GREEDY_TOKENS: usize = 64;
/// Sequences that a model is laid out for.
const SEQUENCES: usize = 3;
const GREEDY: SamplingRow = SamplingRow::GREEDY;

fn goldens() -> PathBuf {
    PathBuf::from("tests/goldens")
}

/// A checkpoint, its model on the CPU, and what transformers computed with it.
struct Golden {
    checkpoint: Checkpoint,
    runner: Runner<Cpu>,
    tensors: Vec<u8>,
    cases: Value,
}

impl Golden {
    fn open(folder: &str, dtype: Option<DType>) -> Golden {
        let dir = goldens().join(folder);
        let checkpoint = Checkpoint::open(&dir, &Options { dtype, ..Options::default() }).unwrap();
        let len = checkpoint.max_model_len.min(256);
        let limits = models::Limits {
            max_model_len: len,
            max_num_seqs: SEQUENCES,
            max_num_batched_tokens: len,
            max_logit_rows: len,
            max_tiles: 2,
            kv_blocks: SEQUENCES * len.div_ceil(16),
        };
        let model = checkpoint.build(limits).unwrap();
        let runner = Runner::new(Cpu::new(model.regions()).unwrap(), model, |_| ()).unwrap();
        let tensors = fs::read(dir.join("golden.safetensors")).unwrap();
        let cases = serde_json::from_slice(&fs::read(dir.join("cases.json")).unwrap()).unwrap();
        Golden { checkpoint, runner, tensors, cases }
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).is_ok()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).unwrap().data())
    }

    fn ids(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).unwrap().data())
    }

    fn case_names(&self) -> Vec<String> {
        self.cases["cases"].as_object().unwrap().keys().cloned().collect()
    }

    fn picture_names(&self) -> Vec<String> {
        self.cases["pictures"].as_object().unwrap().keys().cloned().collect()
    }

    /// Encode the named pictures and return what the step whose label ends in `label` wrote.
    fn encode(&mut self, pictures: &[&str], label: &str) -> Vec<f32> {
        let tiles: Vec<_> = pictures
            .iter()
            .map(|name| {
                let bytes = fs::read(goldens().join(format!("pictures/{name}.png"))).unwrap();
                let rgb = image::decode(&bytes, Alpha::Drop, &Limits::default()).unwrap();
                self.runner.model().prepare(&rgb).unwrap()
            })
            .collect();
        self.runner.encode(&tiles, None).unwrap();
        let plan = self.runner.model().encode_plan(tiles.len());
        self.read(last_write(&plan, label))
    }

    fn read(&self, span: Span) -> Vec<f32> {
        let bytes = self.runner.backend().snapshot(span).unwrap();
        match span.dtype {
            DType::F16 => bytemuck::pod_collect_to_vec::<u8, half::f16>(&bytes).iter().map(|v| v.to_f32()).collect(),
            DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, half::bf16>(&bytes).iter().map(|v| v.to_f32()).collect(),
            _ => bytemuck::pod_collect_to_vec(&bytes),
        }
    }

    /// The ids of a case as the model reads them, with its pictures encoded.
    fn prompt(&mut self, case: &str) -> Vec<i32> {
        let entry = self.cases["cases"][case].clone();
        let pictures: Vec<&str> = entry["pictures"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        if !pictures.is_empty() {
            self.encode(&pictures, "gemm");
        }
        let mut ids = self.ids(&format!("case/{case}/input_ids"));
        let mut row = 0;
        for span in entry["image_spans"].as_array().unwrap() {
            let (start, len) = (span[0].as_u64().unwrap() as usize, span[1].as_u64().unwrap() as usize);
            for id in &mut ids[start..start + len] {
                row += 1;
                *id = -row;
            }
        }
        ids
    }

    /// Feed `ids` in chunks and return the logits of every row.
    fn logits(&mut self, ids: &[i32], chunk: usize) -> Vec<f32> {
        let blocks = self.blocks();
        let mut logits = Vec::new();
        for (i, ids) in ids.chunks(chunk).enumerate() {
            let step = SequenceStep { ids, cached: i * chunk, blocks: &blocks, sampling: GREEDY };
            let shape = self.runner.step(&[step], LogitRows::All, None).unwrap();
            logits.extend(self.runner.logits(shape.logit_rows).unwrap());
        }
        logits
    }

    /// Blocks of the one sequence, out of order on purpose.
    fn blocks(&self) -> Vec<i32> {
        (0..self.checkpoint.max_model_len.min(256).div_ceil(16) as i32).rev().collect()
    }

    /// Log-probabilities of `tokens` when they follow `prompt`, one step each.
    fn forced(&mut self, prompt: &[i32], tokens: &[i32]) -> Vec<f32> {
        let blocks = self.blocks();
        let (mut next, mut cached, mut logprobs) = (prompt.to_vec(), 0, Vec::new());
        for &token in tokens {
            let step = SequenceStep { ids: &next, cached, blocks: &blocks, sampling: GREEDY };
            self.runner.step(&[step], LogitRows::Last, None).unwrap();
            logprobs.push(log_softmax(&self.runner.logits(1).unwrap(), token));
            cached += next.len();
            next = vec![token];
        }
        logprobs
    }

    /// Greedy tokens and their log-probabilities.
    fn greedy(&mut self, prompt: &[i32]) -> (Vec<i32>, Vec<f32>) {
        let blocks = self.blocks();
        let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
        let (mut next, mut cached) = (prompt.to_vec(), 0);
        while tokens.len() < GREEDY_TOKENS {
            let step = SequenceStep { ids: &next, cached, blocks: &blocks, sampling: GREEDY };
            self.runner.step(&[step], LogitRows::Last, None).unwrap();
            let sampled = self.runner.sampled(1, 0).unwrap().remove(0);
            cached += next.len();
            next = vec![sampled.token.unwrap() as i32];
            tokens.push(next[0]);
            logprobs.push(sampled.logprob);
        }
        (tokens, logprobs)
    }
}

/// Log-softmax of a row of logits at `id`.
fn log_softmax(logits: &[f32], id: i32) -> f32 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let total: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    logits[id as usize] - max - total.ln() as f32
}

fn last_write(plan: &Plan, label: &str) -> Span {
    let step = plan.steps().iter().rfind(|s| s.label.as_str().ends_with(label)).unwrap();
    step.op.writes()[0]
}

fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e))).sum();
    let norm: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    (difference / norm).sqrt()
}

fn max_abs(found: &[f32], expected: &[f32]) -> f64 {
    found.iter().zip(expected).map(|(f, e)| f64::from((f - e).abs())).fold(0.0, f64::max)
}

/// Assert `value <= bound`, and show how much of the bound was used.
fn hold(what: &str, value: f64, bound: f64) {
    println!("{what}: {value:.2e}, {:.0} % of {bound:.1e}", 100.0 * value / bound);
    assert!(value <= bound, "{what}: {value:e} is above {bound:e}");
}

#[test]
fn f32_is_transformers() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa"] {
        let mut g = Golden::open(folder, None);
        assert_eq!(g.checkpoint.dtype, DType::F32);
        for name in g.picture_names() {
            let features = g.encode(&[&name], "gather");
            hold(
                &format!("{folder} {name} features"),
                relative_l2(&features, &g.floats(&format!("picture/{name}/vision_features"))),
                F32_RELATIVE_L2,
            );
            let projected = g.encode(&[&name], "gemm");
            hold(
                &format!("{folder} {name} projected"),
                relative_l2(&projected, &g.floats(&format!("picture/{name}/projected"))),
                F32_RELATIVE_L2,
            );
        }
        for case in g.case_names() {
            let prompt = g.prompt(&case);
            let logits = g.logits(&prompt, prompt.len());
            let expected = g.floats(&format!("case/{case}/logits"));
            hold(&format!("{folder} {case} logits"), relative_l2(&logits, &expected), F32_RELATIVE_L2);
            let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
            hold(
                &format!("{folder} {case} worst logit"),
                max_abs(&logits, &expected) / f64::from(largest),
                F32_ELEMENT,
            );
            let (tokens, logprobs) = g.greedy(&prompt);
            assert_eq!(tokens, g.ids(&format!("case/{case}/greedy_ids")), "{folder} {case}");
            hold(
                &format!("{folder} {case} logprobs"),
                max_abs(&logprobs, &g.floats(&format!("case/{case}/greedy_logprobs"))),
                1e-4,
            );
        }
    }
}

#[test]
fn half_precision_is_as_close_as_transformers_is() {
    for (folder, dtype) in [("llava-tiny-gqa-f16", DType::F16), ("llava-tiny-gqa-bf16", DType::Bf16)] {
        let mut g = Golden::open(folder, None);
        assert_eq!(g.checkpoint.dtype, dtype);
        for name in g.picture_names() {
            let projected = g.encode(&[&name], "gemm");
            let bound = 2.0 * g.cases["pictures"][&name]["native_projected"]["relative_l2"].as_f64().unwrap();
            let expected = g.floats(&format!("picture/{name}/projected"));
            hold(&format!("{folder} {name} projected"), relative_l2(&projected, &expected), bound);
        }
        for case in g.case_names() {
            let prompt = g.prompt(&case);
            let logits = g.logits(&prompt, prompt.len());
            let expected = g.floats(&format!("case/{case}/logits"));
            let recorded = g.cases["cases"][&case]["native_against_f32"].clone();
            let bound = |what: &str| 2.0 * recorded[what].as_f64().unwrap();
            hold(&format!("{folder} {case} logits"), relative_l2(&logits, &expected), bound("relative_l2"));
            hold(&format!("{folder} {case} worst logit"), max_abs(&logits, &expected), bound("max_abs"));
            // Where two logits are closer than both may err, either token is right, and all that follows differs.
            let margins = g.floats(&format!("case/{case}/greedy_margins"));
            let sure = margins.iter().take_while(|m| f64::from(**m) > 2.0 * bound("max_abs")).count();
            assert!(sure > 0, "{folder} {case}: no token is decided");
            let (tokens, _) = g.greedy(&prompt);
            let greedy = g.ids(&format!("case/{case}/greedy_ids"));
            assert_eq!(tokens[..sure], greedy[..sure], "{folder} {case}");
            println!("{folder} {case}: {sure} of {GREEDY_TOKENS} tokens are decided");
            // All 64 are compared along the f32 run's tokens: a logit and the normaliser may err by the bound each.
            let logprobs = g.forced(&prompt, &greedy);
            let expected = g.floats(&format!("case/{case}/greedy_logprobs"));
            hold(&format!("{folder} {case} forced logprobs"), max_abs(&logprobs, &expected), 2.0 * bound("max_abs"));
        }
    }
}

/// Weights are rounded when they are loaded in a narrower type, and widened exactly in a wider one.
#[test]
fn a_checkpoint_in_another_type_is_the_checkpoint_of_that_type() {
    for (folder, dtype) in [("llava-tiny-gqa-f16", DType::F16), ("llava-tiny-gqa-bf16", DType::Bf16)] {
        let mut converted = Golden::open("llava-tiny-gqa", Some(dtype));
        let mut stored = Golden::open(folder, None);
        let mut widened = Golden::open(folder, Some(DType::F32));
        for case in stored.case_names() {
            let prompt = stored.prompt(&case);
            assert_eq!(prompt, converted.prompt(&case));
            let logits = stored.logits(&prompt, prompt.len());
            assert_eq!(logits, converted.logits(&prompt, prompt.len()), "{folder} {case}");
            let prompt = widened.prompt(&case);
            let logits = widened.logits(&prompt, prompt.len());
            let expected = stored.floats(&format!("case/{case}/logits"));
            hold(&format!("{folder} as f32, {case} logits"), relative_l2(&logits, &expected), F32_RELATIVE_L2);
        }
    }
}

#[test]
fn a_prompt_in_chunks_has_the_same_bits() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa-f16"] {
        let mut g = Golden::open(folder, None);
        for case in ["two_pictures", "text"] {
            let prompt = g.prompt(case);
            let whole = g.logits(&prompt, prompt.len());
            for chunk in [1, 3, 16, 17] {
                assert_eq!(whole, g.logits(&prompt, chunk), "{folder} {case} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn pixels_are_transformers_bit_for_bit() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa"] {
        let g = Golden::open(folder, None);
        let processor = clip_processor(&g.checkpoint.config.preprocessor);
        for name in g.picture_names() {
            let tensor = format!("picture/{name}/pixel_values");
            assert!(g.has(&tensor));
            let bytes = fs::read(goldens().join(format!("pictures/{name}.png"))).unwrap();
            let rgb = image::decode(&bytes, Alpha::Drop, &Limits::default()).unwrap();
            let found = processor.normalise(&processor.apply(&rgb).unwrap());
            assert!(found == g.floats(&tensor), "{folder} {name}");
        }
    }
}

/// Two sequences that decode and one that brings a chunk of its prompt, in one step, over blocks that are dealt out in turn:
/// each row has the bits that it has alone.
#[test]
fn a_mixed_step_has_the_bits_of_its_parts() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa-bf16"] {
        let mut g = Golden::open(folder, None);
        let prompts = ["text", "two_pictures", "picture_start"].map(|case| g.ids(&format!("case/{case}/input_ids")));
        let alone = prompts.clone().map(|prompt| g.logits(&prompt, prompt.len()));
        let total = (SEQUENCES * g.checkpoint.max_model_len.min(256).div_ceil(16)) as i32;
        let blocks: [Vec<i32>; 3] = [0, 1, 2].map(|s| (0..total).rev().filter(|b| b % 3 == s).collect());
        // All but the last token of two prompts, and the first ten of the third.
        let cached = [prompts[0].len() - 1, prompts[1].len() - 1, 10];
        for (s, (prompt, &cached)) in prompts.iter().zip(&cached).enumerate() {
            let step = SequenceStep { ids: &prompt[..cached], cached: 0, blocks: &blocks[s], sampling: GREEDY };
            g.runner.step(&[step], LogitRows::Last, None).unwrap();
        }
        let mixed: Vec<_> = (0..3)
            .map(|s| SequenceStep {
                ids: &prompts[s][cached[s]..],
                cached: cached[s],
                blocks: &blocks[s],
                sampling: GREEDY,
            })
            .collect();
        let shape = g.runner.step(&mixed, LogitRows::All, None).unwrap();
        assert_eq!((shape.decode, shape.prefill_seqs, shape.prefill_tokens), (2, 1, prompts[2].len() - 10));
        let logits = g.runner.logits(shape.logit_rows).unwrap();
        let vocab = logits.len() / shape.logit_rows;
        let expected =
            [&alone[0][cached[0] * vocab..], &alone[1][cached[1] * vocab..], &alone[2][10 * vocab..]].concat();
        assert_eq!(logits, expected, "{folder}");

        let shape = g.runner.step(&mixed, LogitRows::Last, None).unwrap();
        assert_eq!(shape.logit_rows, 3);
        let last = g.runner.logits(3).unwrap();
        for (s, row) in last.chunks_exact(vocab).enumerate() {
            assert_eq!(row, &alone[s][alone[s].len() - vocab..], "{folder} sequence {s}");
        }
    }
}

/// Sequences that bring one token come first; anything else is refused before a buffer is written.
#[test]
fn a_step_that_cannot_be_is_refused() {
    let mut g = Golden::open("llava-tiny-mha", None);
    let blocks = g.blocks();
    let step = |ids, blocks| SequenceStep { ids, cached: 0, blocks, sampling: GREEDY };
    let cases: [(&[SequenceStep<'_>], &str); 3] = [
        (&[step(&[1, 2], &blocks[..1]), step(&[1], &blocks[1..2])], "sequence 1 is out of order"),
        (&[step(&[], &blocks[..1])], "sequence 0 is out of order"),
        (&[step(&[1; 17], &blocks[..1])], "sequence 0 has 17 tokens and 1 blocks"),
    ];
    for (steps, expected) in cases {
        let error = g.runner.step(steps, LogitRows::Last, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The picture that stands for the worst case costs what the model says the worst case is.
#[test]
fn the_dummy_image_costs_the_most_tokens() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa"] {
        let g = Golden::open(folder, None);
        let model = g.runner.model();
        let tiles = model.prepare(&model.dummy_image().unwrap()).unwrap();
        assert_eq!(tiles.tokens, model.max_image_tokens());
        assert_eq!(tiles.tokens, g.checkpoint.llava().image_tokens());
    }
}
