//! Whole models on a GPU: step by step against the references, and the demo's answers word for word.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use ocelli::backend::Cpu;
use ocelli::backend::cuda::Cuda;
use ocelli::config::ProcessorKwargs;
use ocelli::engine::{Checkpoint, Device, Engine, LogitRows, Options, Prompt, Request, Runner, Sampling, SequenceStep};
use ocelli::image::{self, Alpha};
use ocelli::mem::{DType, Region};
use ocelli::models::{Limits, StepShape, Tiles};
use ocelli::ops::SamplingRow;
use ocelli::plan::{Backend, Plan, bisect};
use ocelli::text::{Message, Role};
use ocelli::trace::Detail;
use serde_json::Value;

use crate::gpu;

const GREEDY: SamplingRow = SamplingRow::GREEDY;

/// The same model on both backends.
struct Both {
    cpu: Runner<Cpu>,
    cuda: Runner<Cuda>,
}

impl Both {
    fn open(folder: &str, dtype: DType) -> Both {
        let dir = Path::new("tests/goldens").join(folder);
        let checkpoint = Checkpoint::open(&dir, &Options { dtype: Some(dtype), ..Options::default() }).unwrap();
        let limits = Limits {
            max_model_len: 128,
            max_num_seqs: 3,
            max_num_batched_tokens: 128,
            max_logit_rows: 128,
            max_tiles: 2,
            kept_tiles: 0,
            kv_blocks: 24,
        };
        let [a, b] = [(); 2].map(|()| checkpoint.build(limits).unwrap());
        let (cpu, cuda) = (Cpu::new(a.regions()).unwrap(), Cuda::new(0, b.regions(), 0).unwrap());
        Both { cpu: Runner::new(cpu, a, |_| ()).unwrap(), cuda: Runner::new(cuda, b, |_| ()).unwrap() }
    }

    /// Give both the same inputs by running a step on each, then compare the plan of that step op by op.
    fn step(&mut self, sequences: &[SequenceStep<'_>], tolerance: f64) {
        let shape = self.cpu.step(sequences, LogitRows::All).unwrap();
        self.cuda.step(sequences, LogitRows::All).unwrap();
        let plan = self.cpu.model().step_plan(shape);
        // What either has cached of this step differs by the rounding of all layers before. A step that writes to the
        // cache is compared with all of it, so both start from the same.
        for span in plan.steps().iter().flat_map(|s| s.op.writes()).filter(|s| s.region == Region::Kv) {
            let cached = self.cpu.backend().snapshot(span).unwrap();
            self.cuda.backend().restore(span, &cached).unwrap();
        }
        self.compare(&plan, tolerance);
        let StepShape { decode, prefill_seqs, prefill_tokens, .. } = shape;
        println!("{decode} decode rows and {prefill_tokens} prompt rows of {prefill_seqs} sequences agree");
    }

    fn compare(&self, plan: &Plan, tolerance: f64) {
        let found = bisect(plan, self.cpu.backend(), self.cuda.backend(), tolerance).unwrap();
        assert!(found.is_none(), "{}", found.unwrap());
    }
}

/// Every op of every layer, each fed with the reference's output of the one before. One op rounds its result once more
/// or at another place than the reference, and attention rounds its weights: a few units in the last place.
#[test]
fn every_step_of_tiny_models_agrees_with_the_references() {
    if gpu::device().is_none() {
        return;
    }
    for (folder, dtype, tolerance) in [
        ("llava-tiny-gqa-f16", DType::F16, 2f64.powi(-9)),
        ("llava-tiny-gqa-bf16", DType::Bf16, 2f64.powi(-6)),
        ("llava-tiny-mha", DType::F16, 2f64.powi(-9)),
        ("llava-tiny-mha", DType::Bf16, 2f64.powi(-6)),
    ] {
        let mut both = Both::open(folder, dtype);
        let pictures = ["wide", "tall"].map(|name| {
            let bytes = fs::read(format!("tests/goldens/pictures/{name}.png")).unwrap();
            let rgb = image::decode(&bytes, Alpha::White, &image::Limits::default()).unwrap();
            both.cpu.model().processor(&ProcessorKwargs::new()).unwrap().prepare(&rgb).unwrap()
        });
        both.cpu.encode(&pictures).unwrap();
        both.cuda.encode(&pictures).unwrap();
        both.compare(&both.cpu.model().encode_plan(2), tolerance);
        let rows: i32 = pictures.iter().map(|p| p.tokens() as i32).sum();
        let prompt: Vec<i32> = [1, 40, 41].into_iter().chain((1..=rows).map(|row| -row)).chain([50, 51, 52]).collect();
        let blocks: [Vec<i32>; 3] = [0, 1, 2].map(|s| (0..24).rev().filter(|b| b % 3 == s).collect());
        let whole = SequenceStep { ids: &prompt, cached: 0, first_angle: 0, blocks: &blocks[0], sampling: GREEDY };
        both.step(&[whole], tolerance);
        let text =
            SequenceStep { ids: &[1, 60, 61, 62, 63], cached: 0, first_angle: 0, blocks: &blocks[1], sampling: GREEDY };
        both.step(&[text], tolerance);
        let mixed = [
            SequenceStep { ids: &[70], cached: prompt.len(), first_angle: 0, blocks: &blocks[0], sampling: GREEDY },
            SequenceStep { ids: &[71], cached: 5, first_angle: 0, blocks: &blocks[1], sampling: GREEDY },
            SequenceStep { ids: &prompt[..20], cached: 0, first_angle: 0, blocks: &blocks[2], sampling: GREEDY },
        ];
        both.step(&mixed, tolerance);
        println!("{folder} in {dtype}: encode and steps agree");
    }
}

/// The demo in memory whose every byte was `fill`.
fn filled(fill: u8, dtype: DType) -> Runner<Cuda> {
    let dir = Path::new("demo/llava-shapes");
    let checkpoint = Checkpoint::open(dir, &Options { dtype: Some(dtype), ..Options::default() }).unwrap();
    let limits = Limits {
        max_model_len: 256,
        max_num_seqs: 4,
        max_num_batched_tokens: 256,
        max_logit_rows: 4,
        max_tiles: 2,
        kept_tiles: 0,
        kv_blocks: 64,
    };
    let model = checkpoint.build(limits).unwrap();
    let cuda = Cuda::new(0, model.regions(), fill).unwrap();
    Runner::new(cuda, model, |_| ()).unwrap()
}

/// Runs the same things in memory of zeros and in memory of NaNs, recorded and launch by launch: the bits of the logits
/// must be the same four times.
struct Four {
    runners: [Runner<Cuda>; 4],
    logits: usize,
}

impl Four {
    fn open(dtype: DType) -> Four {
        let mut runners = [0, 0, 0xff, 0xff].map(|fill| filled(fill, dtype));
        // Where launches are timed, they run one by one and nothing is replayed.
        for apart in [1, 3] {
            runners[apart].watch(Some(Detail::Launches)).unwrap();
        }
        Four { runners, logits: 0 }
    }

    fn encode(&mut self, picture: &Tiles) {
        for runner in &mut self.runners {
            runner.encode(std::slice::from_ref(picture)).unwrap();
        }
        self.compare(&self.runners[0].model().encode_plan(1));
    }

    fn step(&mut self, sequences: &[SequenceStep<'_>]) {
        let run = |runner: &mut Runner<Cuda>| {
            let shape = runner.step(sequences, LogitRows::Last).unwrap();
            let logits = runner.logits(sequences.len()).unwrap();
            (shape, logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>())
        };
        let four: Vec<_> = self.runners.iter_mut().map(run).collect();
        let (shape, zeros) = &four[0];
        assert!(zeros.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        if four.iter().any(|(_, bits)| bits != zeros) {
            self.compare(&self.runners[0].model().step_plan(*shape));
            panic!("the logits of {shape:?} differ, and no op alone does: attention reads slots of nobody");
        }
        self.logits += zeros.len();
    }

    /// Op by op, from the same inputs, the same caches and the same counts of tokens.
    fn compare(&self, plan: &Plan) {
        let zeros = self.runners[0].backend();
        for other in &self.runners[1..] {
            let writes = plan.steps().iter().flat_map(|step| step.op.writes());
            for kept in writes.filter(|span| matches!(span.region, Region::Kv | Region::Io)) {
                other.backend().restore(kept, &zeros.snapshot(kept).unwrap()).unwrap();
            }
            let found = bisect(plan, zeros, other.backend(), 0.0).unwrap();
            assert!(found.is_none(), "{}", found.unwrap());
        }
    }
}

/// What lies in memory that nobody wrote must not matter, nor how launches reach the device.
#[test]
fn zeros_and_nans_in_fresh_memory_give_the_same_bits_and_so_do_recorded_and_plain_launches() {
    if gpu::device().is_none() {
        return;
    }
    for dtype in [DType::F16, DType::Bf16] {
        let mut four = Four::open(dtype);
        let bytes = fs::read("demo/images/shapes.jpg").unwrap();
        let rgb = image::decode(&bytes, Alpha::White, &image::Limits::default()).unwrap();
        let picture = four.runners[0].model().processor(&ProcessorKwargs::new()).unwrap().prepare(&rgb).unwrap();
        let rows = picture.tokens() as i32;
        four.encode(&picture);
        let prompt: Vec<i32> = [1, 40].into_iter().chain((1..=rows).map(|row| -row)).chain([50, 51]).collect();
        let blocks: [Vec<i32>; 3] = [0, 1, 2].map(|s| (0..48).filter(|b| b % 3 == s).collect());
        for blocks in &blocks {
            four.step(&[SequenceStep { ids: &prompt, cached: 0, first_angle: 0, blocks, sampling: GREEDY }]);
        }
        for step in 0..6 {
            // One sequence, then two, then three, which a row of nobody fills up to four.
            let running = blocks[..1 + step / 2].iter().enumerate();
            let sequences: Vec<_> = running
                .map(|(i, blocks)| {
                    let cached = prompt.len() + step - 2 * i;
                    SequenceStep { ids: &[60], cached, first_angle: 0, blocks, sampling: GREEDY }
                })
                .collect();
            four.step(&sequences);
        }
        println!("{dtype}: {} logits with the same bits four times", four.logits);
    }
}

fn ask(engine: &Engine, file: &str, question: &str) -> (String, String) {
    let request = Request {
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, question)]),
        images: vec![Path::new("demo/images").join(file).into()],
        sampling: Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() },
        ..Request::default()
    };
    let output = engine.answer(&request, |_| ControlFlow::Continue(())).unwrap();
    (output.outputs[0].text.clone(), output.outputs[0].logits_hash.clone())
}

#[test]
fn the_demo_answers_as_on_the_cpu_and_every_run_has_the_same_bits() {
    if gpu::device().is_none() {
        return;
    }
    let expected: Value = serde_json::from_slice(&fs::read("demo/images/expected.json").unwrap()).unwrap();
    for dtype in [DType::F16, DType::Bf16] {
        let options = Options { device: Device::Cuda(0), dtype: Some(dtype), ..Options::default() };
        let engine = Engine::open(Path::new("demo/llava-shapes"), &options, |_, _| ()).unwrap();
        assert_eq!(engine.backend_name(), "cuda");
        let items = expected["items"].as_array().unwrap();
        for item in items {
            let (file, question) = (item["file"].as_str().unwrap(), item["question"].as_str().unwrap());
            let (text, _) = ask(&engine, file, question);
            assert_eq!(text, item["text"].as_str().unwrap(), "{file}: {question}");
        }
        let first = ask(&engine, "shapes.jpg", "What is in this picture?");
        for _ in 1..20 {
            assert_eq!(ask(&engine, "shapes.jpg", "What is in this picture?"), first);
        }
        println!("{dtype}: {} answers as transformers gives them, 20 runs with the same bits", items.len());
    }
}
