//! Tiny random checkpoints with what transformers computed with them, on any backend.

use std::fs;
use std::path::PathBuf;

use ocelli::config::ProcessorKwargs;
use ocelli::engine::{Checkpoint, LogitRows, Options, Prompt, Request, Runner, Sampling, SequenceStep};
use ocelli::image::{self, Alpha, Limits, Rgb};
use ocelli::mem::{DType, Span};
use ocelli::models::{self, Areas, ImageRow, Tiles};
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
            max_tiles: 2 * checkpoint.facts().pictures.max_tiles,
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

    /// A picture of the goldens, `NAME` or `NAME@CROPS`, made ready.
    pub fn tiles(&self, name: &str) -> Tiles {
        let (name, crops) =
            name.split_once('@').map_or((name, None), |(name, crops)| (name, crops.parse::<u32>().ok()));
        let kwargs: ProcessorKwargs = crops.map(|n| ("num_crops".to_owned(), n.into())).into_iter().collect();
        self.runner.model().processor(&kwargs).unwrap().prepare(&picture(name)).unwrap()
    }

    /// Encode the named pictures and return what the step whose label ends in `label` wrote.
    pub fn encode(&mut self, pictures: &[&str], label: &str) -> Vec<f32> {
        let tiles: Vec<_> = pictures.iter().map(|name| self.tiles(name)).collect();
        self.runner.encode(&tiles).unwrap();
        let plan = self.runner.model().encode_plan(tiles.iter().map(|t| t.tiles).sum());
        self.read(last_write(&plan, label))
    }

    /// What stands at the places of a picture, `[tokens, hidden]`.
    pub fn rows(&mut self, name: &str) -> Vec<f32> {
        let tiles = self.tiles(name);
        self.runner.encode(&[&tiles]).unwrap();
        let areas = self.runner.model().areas();
        let places = (0..tiles.tokens()).map(|i| image_row(areas, &tiles, i, 0));
        places.flat_map(|row| self.read(areas.rows(row, 1).span())).collect()
    }

    /// Row of the rotary table for position 0 of a sequence of `len` tokens.
    fn first_angle(&self, len: usize) -> usize {
        self.runner.model().long_rope().filter(|rope| len > rope.switch).map_or(0, |rope| rope.first_row)
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
        let names: Vec<String> = self.pictures(case);
        let tiles: Vec<Tiles> = names.iter().map(|name| self.tiles(name)).collect();
        self.runner.encode(&tiles).unwrap();
        let mut ids = self.ids(&format!("case/{case}/input_ids"));
        let (areas, mut first) = (self.runner.model().areas(), 0);
        for (span, tiles) in entry["image_spans"].as_array().unwrap().iter().zip(&tiles) {
            let (start, len) = (span[0].as_u64().unwrap() as usize, span[1].as_u64().unwrap() as usize);
            assert_eq!(len, tiles.tokens(), "{case}");
            for i in 0..len {
                ids[start + i] = -1 - image_row(areas, tiles, i, first) as i32;
            }
            first += tiles.rows.encoded();
        }
        ids
    }

    /// Names of a case's pictures, with the crops that it asks for.
    fn pictures(&self, case: &str) -> Vec<String> {
        let entry = &self.cases["cases"][case];
        let crops = entry["num_crops"].as_u64().map_or_else(String::new, |crops| format!("@{crops}"));
        entry["pictures"].as_array().unwrap().iter().map(|p| format!("{}{crops}", p.as_str().unwrap())).collect()
    }

    /// What a case asks of an engine.
    pub fn request(&self, case: &str) -> Request {
        let entry = &self.cases["cases"][case];
        let crops = entry.get("num_crops").map(|crops| ("num_crops".to_owned(), crops.clone()));
        let file = |name: &Value| goldens().join(format!("pictures/{}.png", name.as_str().unwrap())).into();
        Request {
            prompt: Prompt::Raw(entry["prompt"].as_str().unwrap().to_owned()),
            images: entry["pictures"].as_array().unwrap().iter().map(file).collect(),
            mm_processor_kwargs: crops.into_iter().collect(),
            sampling: Sampling {
                temperature: 0.0,
                max_tokens: Some(GREEDY_TOKENS),
                ignore_eos: true,
                ..Sampling::default()
            },
            ..Request::default()
        }
    }

    /// Feed `ids` in chunks and return the logits of every row.
    pub fn logits(&mut self, ids: &[i32], chunk: usize) -> Vec<f32> {
        let (blocks, first_angle) = (self.blocks(), self.first_angle(ids.len()));
        let mut logits = Vec::new();
        for (i, ids) in ids.chunks(chunk).enumerate() {
            let step = SequenceStep { ids, cached: i * chunk, first_angle, blocks: &blocks, sampling: GREEDY };
            let shape = self.runner.step(&[step], LogitRows::All).unwrap();
            logits.extend(self.runner.logits(shape.logit_rows).unwrap());
        }
        logits
    }

    /// The recorded name of the rows of a picture: `projected` where they are the projector's, as they are.
    pub fn rows_name(&self, name: &str) -> String {
        let rows = format!("picture/{name}/rows");
        if self.has(&rows) { rows } else { format!("picture/{name}/projected") }
    }

    /// The logits of a prompt, of as many of its last rows as are recorded.
    pub fn prompt_logits(&mut self, case: &str, prompt: &[i32]) -> Vec<f32> {
        let logits = self.logits(prompt, prompt.len());
        let from = self.cases["cases"][case]["logits_from"].as_u64().unwrap_or(0) as usize;
        logits[from * (logits.len() / prompt.len())..].to_vec()
    }

    /// What is recorded of a picture.
    pub fn described(&self, name: &str) -> &Value {
        &self.cases["pictures"][name]
    }

    /// Blocks of the one sequence, out of order on purpose.
    pub fn blocks(&self) -> Vec<i32> {
        (0..self.checkpoint.max_model_len.min(256).div_ceil(16) as i32).rev().collect()
    }

    /// Feed what follows the first `cached` of `ids`; all of them, where those turned by other angles.
    fn feed(&mut self, ids: &[i32], cached: usize) {
        let (blocks, first_angle) = (self.blocks(), self.first_angle(ids.len()));
        let cached = if self.first_angle(cached) == first_angle { cached } else { 0 };
        let step = SequenceStep { ids: &ids[cached..], cached, first_angle, blocks: &blocks, sampling: GREEDY };
        self.runner.step(&[step], LogitRows::Last).unwrap();
    }

    /// Log-probabilities of `tokens` when they follow `prompt`, one step each.
    pub fn forced(&mut self, prompt: &[i32], tokens: &[i32]) -> Vec<f32> {
        let (mut ids, mut cached, mut logprobs) = (prompt.to_vec(), 0, Vec::new());
        for &token in tokens {
            self.feed(&ids, cached);
            logprobs.push(log_softmax(&self.runner.logits(1).unwrap(), token));
            cached = ids.len();
            ids.push(token);
        }
        logprobs
    }

    /// Greedy tokens and their log-probabilities.
    pub fn greedy(&mut self, prompt: &[i32]) -> (Vec<i32>, Vec<f32>) {
        let (mut ids, mut cached, mut logprobs) = (prompt.to_vec(), 0, Vec::new());
        while logprobs.len() < GREEDY_TOKENS {
            self.feed(&ids, cached);
            let sampled = self.runner.sampled(1, 0).unwrap().remove(0);
            cached = ids.len();
            ids.push(sampled.token.unwrap() as i32);
            logprobs.push(sampled.logprob);
        }
        (ids.split_off(prompt.len()), logprobs)
    }
}

/// Log-softmax of a row of logits at `id`.
fn log_softmax(logits: &[f32], id: i32) -> f32 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let total: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    logits[id as usize] - max - total.ln() as f32
}

/// A picture of the goldens.
pub fn picture(name: &str) -> Rgb {
    let bytes = fs::read(goldens().join(format!("pictures/{name}.png"))).unwrap();
    image::decode(&bytes, Alpha::Drop, &Limits::default()).unwrap()
}

/// The image row at place `i` of a picture whose encoded rows begin at `first`.
fn image_row(areas: &Areas, tiles: &Tiles, i: usize, first: usize) -> usize {
    match tiles.rows.at(i) {
        ImageRow::Encoded(row) => first + row,
        ImageRow::Constant(row) => areas.constant_row + row,
    }
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
            let projected = g.rows(&name);
            let bound = 2.0 * g.cases["pictures"][&name]["native_projected"]["relative_l2"].as_f64().unwrap();
            let expected = g.floats(&g.rows_name(&name));
            hold(&format!("{folder} {name} projected"), relative_l2(&projected, &expected), bound);
        }
        for case in g.case_names() {
            let prompt = g.prompt(&case);
            let logits = g.prompt_logits(&case, &prompt);
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
