//! Many requests at once on a tiny random checkpoint: whatever runs beside a request, however its prompt is cut, whether
//! it was preempted, whether it found something in a cache, and whether steps are enqueued before the tokens of the ones
//! before them are known, its tokens, the log-probabilities of all its tokens and their alternatives, and its last logits
//! are the same to the bit.

#![allow(clippy::print_stdout, reason = "what the runs came across is worth seeing")]

mod settled;

use std::future::Future;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ocelli::Error;
use ocelli::engine::{Engine, Event, FinishReason, Options, Output, Prompt, Request, Sampling};
use settled::settled;

fn goldens() -> PathBuf {
    PathBuf::from("tests/goldens")
}

fn engine(options: Options) -> Engine {
    Engine::open(&goldens().join("llava-tiny-mha"), &options, |_, _| ()).unwrap()
}

fn alone() -> Options {
    Options { max_num_seqs: Some(1), prefix_caching: false, encoder_caching: false, ..Options::default() }
}

fn request(text: &str, pictures: &[&str], sampling: Sampling) -> Request {
    let picture = |name: &&str| goldens().join(format!("pictures/{name}.png")).into();
    let images = pictures.iter().map(picture).collect();
    Request { prompt: Prompt::Raw(text.into()), images, sampling, ..Request::default() }
}

fn greedy(tokens: usize) -> Sampling {
    Sampling { temperature: 0.0, max_tokens: Some(tokens), ignore_eos: true, top_logprobs: 20, ..Sampling::default() }
}

/// With the tokens of every step known before the next one is planned, and one step ahead.
const AHEAD: [Option<bool>; 2] = [Some(false), Some(true)];

/// Sixteen requests, no two alike: text alone, one picture or two, greedy, drawn, with penalties, with a stop string, with
/// stop tokens, with words that each token has to be known for.
fn requests() -> Vec<Request> {
    let drawn = |seed| Sampling { seed: Some(seed), temperature: 1.0, ..greedy(24) };
    let penalised = Sampling { repetition_penalty: 1.3, frequency_penalty: 0.4, presence_penalty: 0.3, ..greedy(28) };
    let stops = |sampling| Sampling { stop_token_ids: (0..331).step_by(11).collect(), min_tokens: 5, ..sampling };
    let words = |sampling| Sampling { bad_words: vec!["the".into(), "moon".into(), "ab".into()], ..sampling };
    let look = "USER: <image>\nwhat is this? ASSISTANT:";
    let compare = "USER: <image><image>\ncompare the first with the second. ASSISTANT:";
    let long = format!("USER: <image>\n{} ASSISTANT:", "the picture is of the moon and what is ".repeat(3));
    vec![
        request(look, &["wide"], greedy(20)),
        request("a", &[], greedy(40)),
        request(look, &["tall"], drawn(1)),
        request(compare, &["wide", "tall"], greedy(17)),
        request(&long, &["square"], Sampling { prompt_logprobs: Some(3), ..greedy(9) }),
        request(look, &["wide"], words(penalised.clone())),
        request("what is the moon?", &[], Sampling { stop: vec!["e".into()], ..greedy(30) }),
        request(&long, &["wide"], drawn(7)),
        request(look, &["square"], Sampling { temperature: 0.7, top_p: 0.9, ..drawn(3) }),
        request("what is the moon?", &[], penalised.clone()),
        request(compare, &["tall", "tall"], greedy(12)),
        request("USER: hello ASSISTANT:", &[], stops(drawn(11))),
        request(&long, &["square"], stops(penalised)),
        request(look, &["tall"], greedy(1)),
        request(compare, &["square", "wide"], drawn(5)),
        request("USER: hello there, what is the picture? ASSISTANT:", &[], words(greedy(33))),
    ]
}

/// All of an answer that must not change.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
    alternatives: Vec<Vec<(u32, u32)>>,
    prompt: Vec<Option<(u32, u32)>>,
    logits: String,
    reason: FinishReason,
}

impl Answer {
    fn of(output: &Output) -> Answer {
        let bits = |top: &Vec<(u32, f32)>| top.iter().map(|(id, l)| (*id, l.to_bits())).collect();
        Answer {
            text: output.outputs[0].text.clone(),
            tokens: output.outputs[0].token_ids.clone(),
            logprobs: output.outputs[0].logprobs.iter().map(|l| l.to_bits()).collect(),
            alternatives: output.outputs[0].top_logprobs.iter().map(bits).collect(),
            prompt: output
                .prompt_logprobs
                .iter()
                .map(|p| Some((p.as_ref()?.token?, p.as_ref()?.logprob.to_bits())))
                .collect(),
            logits: output.outputs[0].logits_hash.clone(),
            reason: output.outputs[0].finish_reason,
        }
    }
}

/// Every request by itself, without caches: what all other ways must equal.
fn expected() -> Vec<Answer> {
    let engine = engine(alone());
    requests().iter().map(|r| Answer::of(&engine.answer(r, |_| ControlFlow::Continue(())).unwrap())).collect()
}

fn same(engine: &Engine, requests: &[Request], expected: &[Answer], how: &str) {
    for (i, (output, expected)) in engine.generate(requests).iter().zip(expected).enumerate() {
        assert_eq!(Answer::of(output.as_ref().unwrap()), *expected, "request {i}, {how}");
    }
}

#[test]
fn a_batch_of_any_size_changes_no_bit() {
    let (requests, expected) = (requests(), expected());
    for (size, ahead) in [1, 2, 3, 7, 8, 16].into_iter().flat_map(|size| AHEAD.map(|ahead| (size, ahead))) {
        let engine = engine(Options { max_num_seqs: Some(size), async_scheduling: ahead, ..alone() });
        same(&engine, &requests[..size], &expected[..size], &format!("{size} at once, {ahead:?}"));
        // Other rows, other neighbours.
        let turned: Vec<_> = requests.iter().rev().take(size).cloned().collect();
        for (output, i) in engine.generate(&turned).iter().zip((0..16).rev()) {
            assert_eq!(Answer::of(output.as_ref().unwrap()), expected[i], "request {i} of {size} in reverse");
        }
        settled(&engine);
    }
}

#[test]
fn chunks_change_no_bit_even_where_they_cut_a_picture() {
    let (requests, expected) = (requests(), expected());
    let sizes = [(1, 1), (1, 5), (3, 7), (8, 13), (16, 16), (16, 50)];
    for ((seqs, tokens), ahead) in sizes.into_iter().flat_map(|size| AHEAD.map(|ahead| (size, ahead))) {
        let (max_num_seqs, max_num_batched_tokens) = (Some(seqs), Some(tokens));
        let options = Options { max_num_seqs, max_num_batched_tokens, async_scheduling: ahead, ..alone() };
        let engine = engine(options);
        same(&engine, &requests, &expected, &format!("{seqs} sequences and {tokens} tokens a step"));
        settled(&engine);
    }
}

#[test]
fn preemption_changes_no_bit() {
    let (requests, expected) = (requests(), expected());
    let mut preemptions = 0;
    let pools = [8, 9, 10, 11, 12, 14, 17].into_iter().flat_map(|n| [(n, false), (n, true)]);
    for ((blocks, caches), ahead) in pools.flat_map(|pool| AHEAD.map(|ahead| (pool, ahead))) {
        let options = Options {
            max_num_seqs: Some(8),
            num_kv_blocks: Some(blocks),
            async_scheduling: ahead,
            prefix_caching: caches,
            encoder_caching: caches,
            ..Options::default()
        };
        let engine = engine(options);
        same(&engine, &requests, &expected, &format!("{blocks} blocks, caches {caches}, {ahead:?}"));
        let stats = settled(&engine);
        println!(
            "{blocks} blocks, caches {caches}, {ahead:?}: {} preemptions, {} steps",
            stats.scheduler.preemptions, stats.steps
        );
        preemptions += stats.scheduler.preemptions;
    }
    assert!(preemptions > 10, "{preemptions} preemptions: the pools were too large to show anything");
}

#[test]
fn what_is_found_in_a_cache_changes_no_bit() {
    let (requests, expected) = (requests(), expected());
    for ahead in AHEAD {
        let engine = engine(Options { max_num_seqs: Some(5), async_scheduling: ahead, ..Options::default() });
        for round in 0..3 {
            same(&engine, &requests, &expected, &format!("round {round}, {ahead:?}"));
        }
        let stats = settled(&engine);
        println!("{:?} {:?} {:?}", stats.scheduler, stats.pictures, stats.blocks);
        assert!(stats.scheduler.prefix_hits > 500, "{stats:?}");
        assert_eq!(stats.pictures.misses, 3, "three pictures, each encoded once");
        assert!(stats.pictures.hits > 5, "{stats:?}");
        assert_eq!(stats.finished, 48);
    }
}

/// A step ahead costs nothing where an answer ends at its length, and one step where nobody could know.
#[test]
fn only_ends_that_cannot_be_foreseen_cost_a_step() {
    let plain = request("what is the moon?", &[], greedy(12));
    let steps = |request: &Request, ahead| {
        let engine = engine(Options { async_scheduling: ahead, ..alone() });
        let output = engine.answer(request, |_| ControlFlow::Continue(())).unwrap();
        // What was published before the request came looks settled, too.
        while engine.stats().finished == 0 {
            thread::yield_now();
        }
        (output.outputs[0].token_ids.clone(), settled(&engine).steps)
    };
    let (tokens, taken) = steps(&plain, Some(false));
    assert_eq!((tokens.len(), taken), (12, 12));
    assert_eq!(steps(&plain, Some(true)), (tokens.clone(), 12));
    let stop = Sampling { stop_token_ids: vec![tokens[6]], ..greedy(12) };
    let stopped = request("what is the moon?", &[], stop);
    let (tokens, taken) = steps(&stopped, Some(false));
    assert!(tokens.len() <= 7 && taken == tokens.len() as u64);
    assert_eq!(steps(&stopped, Some(true)), (tokens, taken + 1));
}

#[test]
fn one_picture_in_many_requests_is_encoded_once() {
    let engine = engine(Options { prefix_caching: false, ..Options::default() });
    let requests = vec![request("USER: <image>\nwhat is this? ASSISTANT:", &["wide"], greedy(3)); 100];
    let outputs = engine.generate(&requests);
    let first = Answer::of(outputs[0].as_ref().unwrap());
    assert!(outputs.iter().all(|o| Answer::of(o.as_ref().unwrap()) == first));
    let stats = settled(&engine);
    assert_eq!((stats.pictures.misses, stats.pictures.hits), (1, 99));
}

#[test]
fn requests_with_different_salts_share_nothing() {
    let engine = engine(Options { max_num_seqs: Some(1), ..Options::default() });
    let base = request(&"what is the moon and ".repeat(10), &[], greedy(2));
    let ask = |salt: Option<&str>| {
        let request = Request { cache_salt: salt.map(Into::into), ..base.clone() };
        engine.answer(&request, |_| ControlFlow::Continue(())).unwrap().cached_tokens
    };
    assert_eq!(ask(None), 0);
    assert!(ask(None) >= 16);
    assert_eq!(ask(Some("mine")), 0);
    assert!(ask(Some("mine")) >= 16);
    assert_eq!(ask(Some("yours")), 0);
}

/// Many more than may be under way at once: the pictures of the later ones are not decoded before the first are done.
#[test]
fn a_long_list_is_answered_in_its_order() {
    let (requests, expected) = (requests(), expected());
    let engine = engine(Options { max_num_seqs: Some(3), ..Options::default() });
    let list: Vec<_> = requests.iter().cycle().take(60).cloned().collect();
    let (mut told, mut most) = (Vec::new(), 0);
    let outputs = engine.generate_with(&list, |i, _| {
        told.push(i);
        let stats = engine.stats();
        most = most.max(stats.running + stats.waiting);
    });
    assert!(told.into_iter().eq(0..60));
    for (i, output) in outputs.iter().enumerate() {
        assert_eq!(Answer::of(output.as_ref().unwrap()), expected[i % 16], "request {i}");
    }
    assert!(most <= 6, "{most} were under way");
}

/// A victim that goes away after 0, 1, 2, ... of its tokens, by dropping its stream, beside three that stay.
#[test]
fn whoever_is_cancelled_whenever_the_neighbours_stay_the_same_and_the_pool_comes_back() {
    const STEPS: usize = 18;
    let (requests, expected) = (requests(), expected());
    let neighbours = [1, 3, 8];
    // Much longer than it is listened to, so that on no machine it ends before it is noticed.
    let victim = Request { sampling: greedy(300), ..requests[0].clone() };
    for (tokens, ahead) in [6, 64].into_iter().flat_map(|tokens| AHEAD.map(|ahead| (tokens, ahead))) {
        let engine = engine(Options {
            max_num_seqs: Some(4),
            max_num_batched_tokens: Some(tokens),
            async_scheduling: ahead,
            ..Options::default()
        });
        for step in 0..=STEPS {
            let mut victim = engine.submit(victim.clone());
            let streams: Vec<_> = neighbours.iter().map(|&i| engine.submit(requests[i].clone())).collect();
            let pieces = victim.by_ref().take(step).filter(|e| matches!(e, Event::Piece(_))).count();
            assert_eq!(pieces, step);
            drop(victim);
            for (mut stream, i) in streams.into_iter().zip(neighbours) {
                let output = stream.output().unwrap();
                assert_eq!(Answer::of(&output), expected[i], "request {i}, cancelled after {step} of {tokens}");
            }
            settled(&engine);
        }
        let stats = settled(&engine);
        assert_eq!(stats.finished + stats.cancelled, 4 * (STEPS as u64 + 1));
        assert_eq!(stats.cancelled, STEPS as u64 + 1, "{stats:?}");
    }
}

#[test]
fn a_storm_of_cancellations_leaves_an_engine_that_answers_at_once() {
    let expected = expected();
    let engine = engine(Options { max_num_seqs: Some(16), async_scheduling: Some(true), ..Options::default() });
    let long = Sampling { max_tokens: None, ..greedy(1) };
    let streams: Vec<_> = (0..200).map(|i| engine.submit(request(&format!("{i} a"), &[], long.clone()))).collect();
    drop(streams);
    let start = Instant::now();
    same(&engine, &requests()[..1], &expected[..1], "after the storm");
    assert!(start.elapsed() < Duration::from_secs(5));
    let stats = settled(&engine);
    assert_eq!(stats.cancelled + stats.finished, 201, "{stats:?}");
}

#[test]
fn a_bad_request_among_good_ones_spoils_none() {
    let (mut requests, expected) = (requests(), expected());
    requests[2].images[0] = vec![0; 100].into();
    requests[4].sampling.top_p = 7.0;
    requests[6].prompt = Prompt::Raw("word ".repeat(5000));
    requests[9].images.push(vec![0; 10].into());
    let engine = engine(Options { async_scheduling: Some(true), ..Options::default() });
    let mut told = Vec::new();
    let outputs = engine.generate_with(&requests, |i, output| told.push((i, output.is_ok())));
    for (i, (output, expected)) in outputs.iter().zip(&expected).enumerate() {
        match output {
            Ok(output) => assert_eq!(Answer::of(output), *expected, "request {i}"),
            Err(error) => assert!(matches!(error, Error::Request(_)) && [2, 4, 6, 9].contains(&i), "{i}: {error}"),
        }
        assert_eq!(told[i], (i, output.is_ok()));
    }
    assert_eq!(outputs.iter().filter(|o| o.is_err()).count(), 4);
}

#[test]
fn a_request_that_the_pool_cannot_hold_is_refused_and_others_are_served() {
    let (requests, expected) = (requests(), expected());
    let engine = engine(Options { num_kv_blocks: Some(5), ..Options::default() });
    let error = engine.submit(request("a", &[], greedy(100))).output().unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Capacity(_)), "{message}");
    assert!(message.contains("need 7 cache blocks of 16 tokens, and there are 5"), "{message}");
    assert!(message.contains("--num-gpu-blocks-override"), "{message}");
    same(&engine, &requests[..1], &expected[..1], "after the refusal");
    // Without a wish, an answer is as long as there is room for: 5 blocks, and the last token, which takes none.
    let free = engine.submit(request("a", &[], Sampling { max_tokens: None, ..greedy(1) })).output().unwrap();
    assert_eq!(free.prompt_token_ids.len() + free.outputs[0].token_ids.len(), 81);
}

#[test]
fn dropping_the_engine_finishes_what_was_asked() {
    let (requests, expected) = (requests(), expected());
    let engine = engine(Options { max_num_seqs: Some(2), async_scheduling: Some(true), ..Options::default() });
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone())).collect();
    let other = engine.clone();
    drop(engine);
    assert!(other.submit(requests[13].clone()).output().is_ok(), "one handle is left");
    drop(other);
    for (i, (mut stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
        assert_eq!(Answer::of(&stream.output().unwrap()), *expected, "request {i}");
        assert!(Iterator::next(&mut stream).is_none(), "there is one last event");
    }
}

#[test]
fn any_thread_may_ask_and_any_runtime_may_wait() {
    let (requests, expected) = (requests(), expected());
    let engine = engine(Options::default());
    thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected) {
            let engine = engine.clone();
            scope.spawn(move || {
                let mut stream = engine.submit(request.clone());
                let output = block_on(async move {
                    let (mut text, mut tokens) = (String::new(), Vec::new());
                    while let Some(event) = stream.next().await {
                        match event {
                            Event::Piece(piece) => {
                                text += &piece.text;
                                tokens.push(piece.token_id);
                            }
                            Event::Done(output) => {
                                assert!(
                                    output.outputs[0].text.starts_with(&text) && output.outputs[0].token_ids == tokens
                                );
                                return *output;
                            }
                            Event::Failed(error) => panic!("{error}"),
                        }
                    }
                    panic!("no last event")
                });
                assert_eq!(Answer::of(&output), *expected);
            });
        }
    });
}

/// The smallest of all async runtimes.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn a_handle_goes_wherever_it_is_needed() {
    fn anywhere<T: Send + Sync + Clone + 'static>(_: &T) {}
    anywhere(&engine(alone()));
}

#[test]
fn impossible_options_name_their_flags() {
    let open = |options: Options| {
        let error = Engine::open(&goldens().join("llava-tiny-mha"), &options, |_, _| ()).err().unwrap();
        assert!(matches!(error, Error::Request(_)), "{error}");
        error.to_string()
    };
    let default = Options::default;
    assert!(open(Options { max_num_seqs: Some(0), ..default() }).contains("--max-num-seqs"));
    assert!(open(Options { gpu_memory_utilization: 1.5, ..default() }).contains("gpu_memory_utilization is 1.5"));
    assert!(open(Options { gpu_memory_utilization: f64::NAN, ..default() }).contains("--gpu-memory-utilization"));
    let few = Options { max_num_seqs: Some(9), max_num_batched_tokens: Some(8), ..default() };
    assert!(open(few).contains("max_num_seqs is 9 and max_num_batched_tokens is 8"));
}

#[test]
fn the_memory_plan_adds_up() {
    let engine = Engine::builder(goldens().join("llava-tiny-mha")).max_num_seqs(4).max_model_len(64).open().unwrap();
    let memory = engine.memory();
    assert_eq!((memory.kv_blocks, memory.kv_tokens, memory.max_num_seqs), (16, 256, 4));
    assert_eq!(memory.max_num_batched_tokens, 256, "as many as all sequences have together");
    assert_eq!(engine.stats().blocks.total, 16);
}
