//! Tiny random checkpoints with what transformers computed with them, on any backend.

use std::fs;
use std::path::PathBuf;

use ocelli::config::ProcessorKwargs;
use ocelli::engine::{Checkpoint, LogitRows, Options, Runner, SequenceStep};
use ocelli::image::{self, Alpha, Limits};
use ocelli::mem::{DType, Span};
use ocelli::models;
use ocelli::ops::SamplingRow;
use ocelli::plan::{Backend, Plan};
use safetensors::SafeTensors;
use serde_json::Value;

const GREEDY_TOKENS: usize = 64;
/// Sequences that a model is laid out for.
pub const SEQUENCES: usize = 3;
pub const GREEDY: SamplingRow = SamplingRow::GREEDY;

pub fn goldens() -> PathBuf {
    PathBuf::from("tests/goldens")
}

/// A checkpoint, its model on a backend, and what transformers computed with it.
pub struct Golden<B: Backend> {
    pub checkpoint: Checkpoint,
    pub runner: Runner<B>,
    tensors: Vec<u8>,
    cases: Value,
}

impl<B: Backend> Golden<B> {
    /// `backend` makes one with regions of the sizes that it is given.
    pub fn open(folder: &str, dtype: Option<DType>, backend: impl Fn([usize; 4]) -> B) -> Golden<B> {
        let dir = goldens().join(folder);
        let checkpoint = Checkpoint::open(&dir, &Options { dtype, ..Options::default() }).unwrap();
        let len = checkpoint.max_model_len.min(256);
        let limits = models::Limits {
            max_model_len: len,
            max_num_seqs: SEQUENCES,
            max_num_batched_tokens: len,
            max_logit_rows: len,
            max_tiles: 2,
            kept_tiles: 0,
            kv_blocks: SEQUENCES * len.div_ceil(16),
        };
        let model = checkpoint.build(limits).unwrap();
        let runner = Runner::new(backend(model.regions()), model, |_| ()).unwrap();
        let tensors = fs::read(dir.join("golden.safetensors")).unwrap();
        let cases = serde_json::from_slice(&fs::read(dir.join("cases.json")).unwrap()).unwrap();
        Golden { checkpoint, runner, tensors, cases }
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).is_ok()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).unwrap().data())
    }

    pub fn ids(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).unwrap().data())
    }

    pub fn case_names(&self) -> Vec<String> {
        self.cases["cases"].as_object().unwrap().keys().cloned().collect()
    }

    pub fn picture_names(&self) -> Vec<String> {
        self.cases["pictures"].as_object().unwrap().keys().cloned().collect()
    }

    /// Encode the named pictures and return what the step whose label ends in `label` wrote.
    pub fn encode(&mut self, pictures: &[&str], label: &str) -> Vec<f32> {
        let tiles: Vec<_> = pictures
            .iter()
            .map(|name| {
                let bytes = fs::read(goldens().join(format!("pictures/{name}.png"))).unwrap();
                let rgb = image::decode(&bytes, Alpha::Drop, &Limits::default()).unwrap();
                self.runner.model().processor(&ProcessorKwargs::new()).unwrap().prepare(&rgb).unwrap()
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
    pub fn prompt(&mut self, case: &str) -> Vec<i32> {
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
    pub fn logits(&mut self, ids: &[i32], chunk: usize) -> Vec<f32> {
        let blocks = self.blocks();
        let mut logits = Vec::new();
        for (i, ids) in ids.chunks(chunk).enumerate() {
            let step = SequenceStep { ids, cached: i * chunk, first_angle: 0, blocks: &blocks, sampling: GREEDY };
            let shape = self.runner.step(&[step], LogitRows::All, None).unwrap();
            logits.extend(self.runner.logits(shape.logit_rows).unwrap());
        }
        logits
    }

    /// Blocks of the one sequence, out of order on purpose.
    pub fn blocks(&self) -> Vec<i32> {
        (0..self.checkpoint.max_model_len.min(256).div_ceil(16) as i32).rev().collect()
    }

    /// Log-probabilities of `tokens` when they follow `prompt`, one step each.
    pub fn forced(&mut self, prompt: &[i32], tokens: &[i32]) -> Vec<f32> {
        let blocks = self.blocks();
        let (mut next, mut cached, mut logprobs) = (prompt.to_vec(), 0, Vec::new());
        for &token in tokens {
            let step = SequenceStep { ids: &next, cached, first_angle: 0, blocks: &blocks, sampling: GREEDY };
            self.runner.step(&[step], LogitRows::Last, None).unwrap();
            logprobs.push(log_softmax(&self.runner.logits(1).unwrap(), token));
            cached += next.len();
            next = vec![token];
        }
        logprobs
    }

    /// Greedy tokens and their log-probabilities.
    pub fn greedy(&mut self, prompt: &[i32]) -> (Vec<i32>, Vec<f32>) {
        let blocks = self.blocks();
        let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
        let (mut next, mut cached) = (prompt.to_vec(), 0);
        while tokens.len() < GREEDY_TOKENS {
            let step = SequenceStep { ids: &next, cached, first_angle: 0, blocks: &blocks, sampling: GREEDY };
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

pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e))).sum();
    let norm: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    (difference / norm).sqrt()
}

pub fn max_abs(found: &[f32], expected: &[f32]) -> f64 {
    found.iter().zip(expected).map(|(f, e)| f64::from((f - e).abs())).fold(0.0, f64::max)
}

/// Assert `value <= bound`, and show how much of the bound was used.
pub fn hold(what: &str, value: f64, bound: f64) {
    println!("{what}: {value:.2e}, {:.0} % of {bound:.1e}", 100.0 * value / bound);
    assert!(value <= bound, "{what}: {value:e} is above {bound:e}");
}

impl<B: Backend> Golden<B> {
    /// Hold a half-precision checkpoint to transformers' f32 run, within twice of what transformers' own run in that
    /// type differs by.
    pub fn is_as_close_as_transformers(&mut self, folder: &str) {
        let g = self;
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
