//! The engine on a GPU: whatever runs beside a request, however its prompt is cut, whether it was preempted, whether it
//! found something in a cache, and whether steps are enqueued before the tokens of the ones before them are known, its
//! tokens stay those of transformers.
//!
//! Which kernels run depends on the rows of a step, so the last bits of logits do, too. The demo is trained: its choices
//! leave no doubt. Those of the random checkpoints are held as far as transformers' margins decide them. One request after
//! another has the same bits with a step ahead as without.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ocelli::engine::{Device, Engine, Event, ImageInput, Options, Output, Prompt, Request, Sampling};
use ocelli::mem::DType;
use ocelli::text::{Message, Role};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::gpu;
use crate::settled::settled;

const GPU: Device = Device::Cuda(0);
/// With the tokens of every step known before the next one is planned, and one step ahead.
const AHEAD: [Option<bool>; 2] = [Some(false), Some(true)];

/// Without caches, and with a small pool: engines are opened many times.
fn plain(dtype: Option<DType>) -> Options {
    Options {
        device: GPU,
        dtype,
        max_num_seqs: Some(1),
        num_kv_blocks: Some(1024),
        prefix_caching: false,
        encoder_caching: false,
        ..Options::default()
    }
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() }
}

/// Requests, and the tokens that each answer must begin with.
struct Suite {
    folder: PathBuf,
    requests: Vec<Request>,
    expected: Vec<Vec<u32>>,
}

/// The first questions of a demo, with transformers' whole answers.
fn demo(folder: &str, pictures: &str, questions: usize) -> Suite {
    let expected: Value = serde_json::from_slice(&fs::read(format!("{pictures}/expected.json")).unwrap()).unwrap();
    let (requests, expected) = expected["items"].as_array().unwrap()[..questions]
        .iter()
        .map(|item| {
            let question = item["question"].as_str().unwrap();
            let files = item["pictures"].as_array().cloned().unwrap_or_else(|| vec![item["file"].clone()]);
            let file = |file: &Value| Path::new(pictures).join(file.as_str().unwrap()).into();
            let images: Vec<ImageInput> = files.iter().map(file).collect();
            let request = Request {
                prompt: Prompt::Chat(vec![Message::with_images(Role::User, images.len(), question)]),
                images,
                sampling: greedy(),
                ..Request::default()
            };
            (request, serde_json::from_value::<Vec<u32>>(item["token_ids"].clone()).unwrap())
        })
        .unzip();
    Suite { folder: folder.into(), requests, expected }
}

/// The cases of a random checkpoint over and over, with transformers' tokens as far as they are decided: where two logits
/// are closer than both may err, within twice of what transformers' own run in the checkpoint's type differs by, either
/// token is right, and all that follows differs.
fn tiny(folder: &str) -> Suite {
    let dir = Path::new("tests/goldens").join(folder);
    let cases: Value = serde_json::from_slice(&fs::read(dir.join("cases.json")).unwrap()).unwrap();
    let golden = fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let tensor = |case: &str, what: &str| golden.tensor(&format!("case/{case}/{what}")).unwrap().data().to_vec();
    let mut suite = Suite { folder: dir, requests: Vec::new(), expected: Vec::new() };
    for (case, entry) in cases["cases"].as_object().unwrap() {
        let picture =
            |name: &Value| ImageInput::Path(format!("tests/goldens/pictures/{}.png", name.as_str().unwrap()).into());
        suite.requests.push(Request {
            prompt: Prompt::Raw(entry["prompt"].as_str().unwrap().into()),
            images: entry["pictures"].as_array().unwrap().iter().map(picture).collect(),
            mm_processor_kwargs: entry
                .get("num_crops")
                .map(|n| ("num_crops".to_owned(), n.clone()))
                .into_iter()
                .collect(),
            sampling: Sampling { ignore_eos: true, ..greedy() },
            ..Request::default()
        });
        let may_err = 2.0 * entry["native_against_f32"]["max_abs"].as_f64().unwrap();
        let margins: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor(case, "greedy_margins"));
        let sure = margins.iter().take_while(|m| f64::from(**m) > 2.0 * may_err).count();
        assert!(sure > 0, "{folder} {case}: no token is decided");
        let tokens: Vec<u32> = bytemuck::pod_collect_to_vec(&tensor(case, "greedy_ids"));
        suite.expected.push(tokens[..sure].to_vec());
    }
    suite.requests = suite.requests.iter().cycle().take(16).cloned().collect();
    suite.expected = suite.expected.iter().cycle().take(16).cloned().collect();
    suite
}

/// Every suite with the types it is held in.
fn suites() -> Vec<(Suite, Option<DType>)> {
    let llava = || demo("demo/llava-shapes", "demo/images", 16);
    let both = [DType::F16, DType::Bf16].map(|dtype| (llava(), Some(dtype)));
    let tiny = ["llava-tiny-gqa-f16", "llava-tiny-gqa-bf16"].map(|folder| (tiny(folder), None));
    let pairs = (demo("demo/phi3v-shapes", "demo/pairs", 16), None);
    both.into_iter().chain(tiny).chain([pairs]).collect()
}

impl Suite {
    fn open(&self, options: Options) -> Engine {
        let engine = Engine::open(&self.folder, &options, |_, _| ()).unwrap();
        assert_eq!(engine.memory().kv_blocks, options.num_kv_blocks.unwrap());
        engine
    }

    fn hold(&self, i: usize, output: &Output, how: &str) {
        let (expected, output) = (&self.expected[i], &output.outputs[0]);
        let what = format!("{} request {i}, {how}: {:?}", self.folder.display(), output.text);
        assert!(output.token_ids.starts_with(expected), "{what}: {:?}, not {expected:?}", output.token_ids);
        let whole = self.requests[i].sampling.ignore_eos || output.token_ids.len() == expected.len();
        assert!(whole, "{what} goes on");
    }

    /// All requests at once, in this order.
    fn ask(&self, engine: &Engine, order: impl Iterator<Item = usize>, how: &str) -> Vec<Output> {
        let order: Vec<_> = order.collect();
        let requests: Vec<_> = order.iter().map(|&i| self.requests[i].clone()).collect();
        let outputs: Vec<_> = engine.generate(&requests).into_iter().map(Result::unwrap).collect();
        outputs.iter().zip(order).for_each(|(output, i)| self.hold(i, output, how));
        outputs
    }
}

/// How many of some answers have the bits of the same requests' answers alone, and the largest difference between
/// log-probabilities of tokens that both have.
fn against(alone: &[Output], outputs: &[Output]) -> (usize, f32) {
    let pairs = || alone.iter().zip(outputs).map(|(a, b)| (&a.outputs[0], &b.outputs[0]));
    let same = pairs().filter(|(a, b)| a.logprobs == b.logprobs && a.logits_hash == b.logits_hash).count();
    let both = pairs().flat_map(|(a, b)| {
        let shared = a.token_ids.iter().zip(&b.token_ids).take_while(|(a, b)| a == b).count();
        a.logprobs[..shared].iter().zip(&b.logprobs[..shared])
    });
    (same, both.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}

#[test]
fn tokens_do_not_depend_on_the_batch_nor_on_the_row() {
    if gpu::device().is_none() {
        return;
    }
    for (suite, dtype) in suites() {
        let one = suite.open(Options { max_num_seqs: Some(1), ..plain(dtype) });
        let alone = suite.ask(&one, 0..16, "alone");
        drop(one);
        for (size, ahead) in [1, 2, 3, 7, 8, 16].into_iter().flat_map(|size| AHEAD.map(|ahead| (size, ahead))) {
            let engine = suite.open(Options { max_num_seqs: Some(size), async_scheduling: ahead, ..plain(dtype) });
            let outputs = suite.ask(&engine, 0..size, &format!("{size} at once, {ahead:?}"));
            let (same, most) = against(&alone, &outputs);
            suite.ask(&engine, (0..16).rev().take(size), &format!("{size} in reverse, {ahead:?}"));
            let stats = settled(&engine);
            let us = |ms: f64| 1e3 * ms / stats.steps as f64;
            println!(
                "{} {}, {size} at once, ahead {ahead:?}: {same} of {size} with the bits of alone, log-probabilities off by at \
                 most {most:.2e}; {} steps of schedule {:.0}, enqueue {:.0}, wait {:.0}, deliver {:.0} us",
                engine.model_name(),
                engine.dtype(),
                stats.steps,
                us(stats.schedule_ms),
                us(stats.enqueue_ms),
                us(stats.wait_ms),
                us(stats.deliver_ms)
            );
        }
    }
}

/// Steps of so few tokens cut pictures, too.
#[test]
fn tokens_do_not_depend_on_chunks() {
    if gpu::device().is_none() {
        return;
    }
    for (suite, dtype) in suites() {
        let sizes = [(1, 1), (1, 50), (3, 7), (8, 64), (16, 16), (16, 200)];
        for ((seqs, tokens), ahead) in sizes.into_iter().flat_map(|size| AHEAD.map(|ahead| (size, ahead))) {
            let (max_num_seqs, max_num_batched_tokens) = (Some(seqs), Some(tokens));
            let options = Options { max_num_seqs, max_num_batched_tokens, async_scheduling: ahead, ..plain(dtype) };
            suite.ask(&suite.open(options), 0..16, &format!("{seqs} with {tokens} tokens a step, {ahead:?}"));
        }
    }
}

#[test]
fn tokens_do_not_depend_on_preemption() {
    if gpu::device().is_none() {
        return;
    }
    for (mut suite, dtype) in suites() {
        let mut preemptions = 0;
        // They go on behind their ends, so that they grow: those of the demo from 11 or 12 blocks by three. There is room
        // for one alone, or for a few that get into each other's way.
        suite.requests.iter_mut().for_each(|r| r.sampling = Sampling { ignore_eos: true, ..greedy() });
        let pools: &[usize] =
            if suite.folder.starts_with("demo") { &[16, 24, 26, 28, 37, 40, 50] } else { &[8, 9, 12, 17, 24, 33] };
        for (blocks, ahead) in pools.iter().flat_map(|n| AHEAD.map(|ahead| (*n, ahead))) {
            let options = Options {
                max_num_seqs: Some(8),
                num_kv_blocks: Some(blocks),
                async_scheduling: ahead,
                prefix_caching: blocks % 2 == 0,
                max_model_len: Some(16 * pools[0]),
                ..plain(dtype)
            };
            let engine = suite.open(options);
            suite.ask(&engine, 0..16, &format!("{blocks} blocks, {ahead:?}"));
            preemptions += settled(&engine).scheduler.preemptions;
        }
        println!("{}: {preemptions} preemptions", suite.folder.display());
        assert!(preemptions > 0, "{}: the pools were too large to show anything", suite.folder.display());
    }
}

#[test]
fn tokens_do_not_depend_on_what_is_found_in_a_cache() {
    if gpu::device().is_none() {
        return;
    }
    for (suite, dtype) in suites() {
        for (prefix_caching, ahead) in [false, true].into_iter().flat_map(|prefix| AHEAD.map(|ahead| (prefix, ahead))) {
            let options = Options { max_num_seqs: Some(5), async_scheduling: ahead, ..plain(dtype) };
            let engine = suite.open(Options { prefix_caching, encoder_caching: true, ..options });
            for round in 0..3 {
                suite.ask(&engine, 0..8, &format!("round {round}, prefixes {prefix_caching}, {ahead:?}"));
            }
            let stats = settled(&engine);
            let hits = if prefix_caching { stats.scheduler.prefix_hits } else { stats.pictures.hits };
            assert!(hits > 10, "{stats:?}");
        }
    }
}

/// A victim that goes away after 0, 1, 2, ... of its tokens beside three that stay.
#[test]
fn whoever_is_cancelled_whenever_the_neighbours_stay_the_same_and_the_pool_comes_back() {
    const STEPS: usize = 16;
    if gpu::device().is_none() {
        return;
    }
    for (suite, dtype) in suites() {
        let victim = Request { sampling: Sampling { ignore_eos: true, ..greedy() }, ..suite.requests[0].clone() };
        for ahead in AHEAD {
            let engine = suite.open(Options { max_num_seqs: Some(4), async_scheduling: ahead, ..plain(dtype) });
            for step in 0..=STEPS {
                let mut victim = engine.submit(victim.clone());
                let mut streams = [1, 2, 3].map(|i| engine.submit(suite.requests[i].clone()));
                let pieces = victim.by_ref().take(step).filter(|e| matches!(e, Event::Piece(_))).count();
                assert_eq!(pieces, step);
                drop(victim);
                for (stream, i) in streams.iter_mut().zip([1, 2, 3]) {
                    suite.hold(i, &stream.output().unwrap(), &format!("beside one cancelled after {step}, {ahead:?}"));
                }
                settled(&engine);
            }
            let stats = settled(&engine);
            assert_eq!(stats.finished + stats.cancelled, 4 * (STEPS as u64 + 1), "{stats:?}");
        }
    }
}

/// Greedy, drawn, with penalties, with stop tokens, with words that each token has to be known for, with the prompt
/// reported: one after another, the same steps run with a step ahead as without.
#[test]
fn a_step_ahead_changes_no_bit() {
    if gpu::device().is_none() {
        return;
    }
    let base = || Sampling { ignore_eos: true, max_tokens: Some(40), top_logprobs: 5, ..greedy() };
    let drawn = || Sampling { temperature: 1.0, seed: Some(5), ..base() };
    let penalised = Sampling { repetition_penalty: 1.3, frequency_penalty: 0.4, presence_penalty: 0.3, ..base() };
    let samplings = [
        base(),
        drawn(),
        Sampling { top_p: 0.9, top_k: 20, ..drawn() },
        penalised,
        Sampling { stop_token_ids: (0..300).step_by(11).collect(), min_tokens: 5, ..drawn() },
        Sampling { bad_words: vec!["the".into(), "moon".into(), "ab".into()], ..base() },
        Sampling { prompt_logprobs: Some(3), ..base() },
        Sampling { logit_bias: [(7, 2.0), (40, -50.0)].into(), ..drawn() },
    ];
    for (suite, dtype) in suites() {
        let answers = AHEAD.map(|ahead| {
            let engine = suite.open(Options { async_scheduling: ahead, ..plain(dtype) });
            let answer = |(sampling, request): (&Sampling, &Request)| {
                let request = Request { sampling: sampling.clone(), ..request.clone() };
                bits(&engine.answer(&request, |_| ControlFlow::Continue(())).unwrap())
            };
            samplings.iter().zip(&suite.requests).map(answer).collect::<Vec<_>>()
        });
        let [without, with] = answers;
        for (i, (without, with)) in without.iter().zip(&with).enumerate() {
            assert_eq!(without, with, "{} sampling {i}", suite.folder.display());
        }
        println!("{} {dtype:?}: {} answers with the same bits", suite.folder.display(), with.len());
    }
}

/// All of an answer that must not change.
#[derive(Debug, PartialEq)]
struct Bits {
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
    alternatives: Vec<(u32, u32)>,
    prompt: Vec<u32>,
    logits: String,
}

fn bits(output: &Output) -> Bits {
    let (reported, output) = (output.prompt_logprobs.iter().flatten(), &output.outputs[0]);
    Bits {
        tokens: output.token_ids.clone(),
        logprobs: output.logprobs.iter().map(|l| l.to_bits()).collect(),
        alternatives: output.top_logprobs.iter().flatten().map(|(id, l)| (*id, l.to_bits())).collect(),
        prompt: reported.map(|report| report.logprob.to_bits()).collect(),
        logits: output.logits_hash.clone(),
    }
}

/// Pictures in several tiles, tiles of floats among those of bytes, and sequences that grow past the short rotary factors:
/// alone and all at once, in small chunks, with a step ahead and without.
#[test]
fn the_family_answers_as_transformers_does() {
    if gpu::device().is_none() {
        return;
    }
    for folder in ["next-tiny-llama", "next-tiny-mistral", "phi3-tiny", "phi35-tiny"] {
        let suite = tiny(folder);
        for async_scheduling in AHEAD {
            let options = Options { async_scheduling, max_num_seqs: Some(8), ..plain(None) };
            let chunks = Options {
                max_num_batched_tokens: Some(24),
                prefix_caching: true,
                encoder_caching: true,
                ..options.clone()
            };
            for (options, how) in [(options, "all at once"), (chunks, "in chunks")] {
                let engine = suite.open(options);
                for (i, output) in engine.generate(&suite.requests).into_iter().enumerate() {
                    suite.hold(i, &output.unwrap(), how);
                }
                assert_eq!(engine.stats().scheduler.rope_switches > 0, folder.starts_with("phi"));
            }
        }
    }
}

/// All that was asked of the demos under transformers.
#[test]
fn both_demos_answer_all_forty_questions() {
    if gpu::device().is_none() {
        return;
    }
    for (folder, pictures) in [("demo/llava-shapes", "demo/images"), ("demo/phi3v-shapes", "demo/pairs")] {
        let suite = demo(folder, pictures, 40);
        for dtype in [DType::F16, DType::Bf16] {
            let engine = suite.open(Options { max_num_seqs: Some(16), ..plain(Some(dtype)) });
            for (i, output) in engine.generate(&suite.requests).into_iter().enumerate() {
                suite.hold(i, &output.unwrap(), "all at once");
            }
        }
    }
}
