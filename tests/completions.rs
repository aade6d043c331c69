//! Several answers to one request, on a tiny random checkpoint.

mod settled;

use std::ops::ControlFlow;
use std::path::Path;

use ocelli::Error;
use ocelli::engine::{
    Completion, End, Engine, Event, FinishReason, ImageInput, Options, Output, Prompt, Request, Sampling, StopReason,
};
use settled::settled;

const QUESTION: &str = "USER: <image>\nwhat is this picture of the moon? ASSISTANT:";

fn engine(options: Options) -> Engine {
    Engine::open(Path::new("tests/goldens/llava-tiny-mha"), &options, |_, _| ()).unwrap()
}

fn request(n: usize, seed: Option<u64>) -> Request {
    let sampling = Sampling { n, seed, max_tokens: Some(24), ignore_eos: true, top_logprobs: 2, ..Sampling::default() };
    let images = vec![ImageInput::Path("tests/goldens/pictures/wide.png".into())];
    Request { prompt: Prompt::Raw(QUESTION.into()), images, sampling, ..Request::default() }
}

fn answer(engine: &Engine, request: &Request) -> Output {
    engine.answer(request, |_| ControlFlow::Continue(())).unwrap()
}

/// All of an answer but its index.
fn said(completion: &Completion) -> (String, Vec<u32>, Vec<u32>, String, FinishReason) {
    let Completion { text, token_ids, logprobs, logits_hash, finish_reason, .. } = completion.clone();
    (text, token_ids, logprobs.iter().map(|l| l.to_bits()).collect(), logits_hash, finish_reason)
}

/// Answer `i` is the one answer of a request with the seed `seed + i`: alone or beside others, with caches or without,
/// in a pool where some of them must be computed again.
#[test]
fn each_answer_is_that_of_a_request_with_its_own_seed() {
    let alone = engine(Options { max_num_seqs: Some(1), prefix_caching: false, ..Options::default() });
    let one = |seed| said(&answer(&alone, &request(1, Some(seed))).outputs[0]);
    let expected: Vec<_> = (7..12).map(one).collect();
    assert!((1..5).all(|i| expected[i] != expected[0]), "drawn alike: {expected:?}");
    let small = Options { num_kv_blocks: Some(9), max_num_seqs: Some(4), ..Options::default() };
    let bare = Options { prefix_caching: false, encoder_caching: false, ..Options::default() };
    for (how, options) in [("caches", Options::default()), ("none", bare), ("a small pool", small)] {
        let engine = engine(options);
        let outputs = engine.generate(&[request(5, Some(7)), request(2, None), request(3, Some(9))]);
        for (output, first) in [(&outputs[0], 0), (&outputs[2], 2)] {
            let outputs = &output.as_ref().unwrap().outputs;
            assert!(outputs.iter().enumerate().all(|(i, o)| o.index == i));
            let answers: Vec<_> = outputs.iter().map(said).collect();
            assert_eq!(answers, expected[first..first + answers.len()], "{how}");
        }
        let free = &outputs[1].as_ref().unwrap().outputs;
        assert_ne!(free[0].token_ids, free[1].token_ids, "{how}");
        settled(&engine);
    }
    // The last seed is followed by the first.
    let turned = answer(&alone, &request(2, Some(u64::MAX)));
    assert_eq!(said(&turned.outputs[1]), one(0));
}

#[test]
fn answers_share_the_picture_and_the_prompt() {
    let engine = engine(Options::default());
    let output = answer(&engine, &request(8, Some(1)));
    let (prompt, stats) = (output.prompt_token_ids.len(), settled(&engine));
    assert!(prompt > 32, "{prompt} tokens fill no block to share");
    assert_eq!(output.cached_tokens, 0, "what its other answers find is its own");
    assert_eq!(stats.pictures.misses, 1);
    // The last block of a prompt is each one's own.
    let computed = stats.prompt_tokens as usize;
    assert!(computed <= prompt + 7 * 16, "{computed} tokens of a prompt of {prompt} were computed");
    assert_eq!((stats.finished, stats.generation_tokens), (8, 8 * 24));
    let t = output.timings;
    assert!(t.ttft_ms > 0.0 && t.decode_ms > 0.0 && t.tokens_per_s > 0.0, "{t:?}");
    assert!(t.queue_ms > 0.0 && t.prefill_ms > 0.0, "{t:?}");
    assert!((t.prepare_ms + t.queue_ms + t.prefill_ms - t.ttft_ms).abs() < 1e-6, "{t:?}");
}

#[test]
fn events_say_which_answer_they_belong_to() {
    let engine = engine(Options::default());
    let (mut texts, mut tokens) = (vec![String::new(); 3], vec![Vec::new(); 3]);
    let (mut last, mut ends) = (None, vec![None; 3]);
    for event in engine.submit(request(3, Some(5))) {
        assert!(last.is_none(), "something came after the last event");
        match event {
            Event::Piece(piece) => {
                texts[piece.index] += &piece.text;
                assert_eq!(ends[piece.index], None, "a token behind the end");
                tokens[piece.index].push(piece.token_id);
                ends[piece.index] = piece.end;
            }
            Event::Done(output) => last = Some(output),
            Event::Failed(error) => panic!("{error}"),
        }
    }
    let output = last.unwrap();
    for (completion, (text, tokens)) in output.outputs.iter().zip(texts.iter().zip(&tokens)) {
        assert!(completion.text == *text && completion.token_ids == *tokens);
    }
    for (completion, end) in output.outputs.iter().zip(ends) {
        let (finish_reason, stop_reason) = (completion.finish_reason, completion.stop_reason.clone());
        assert_eq!(end, Some(End { finish_reason, stop_reason }));
    }
    let mut streamed = String::new();
    let all = engine.answer(&request(3, Some(5)), |text| {
        streamed += text;
        ControlFlow::Continue(())
    });
    let all = all.unwrap();
    assert_eq!(streamed, all.outputs[0].text, "the first is streamed");
    assert_eq!(all.outputs.iter().map(said).collect::<Vec<_>>(), output.outputs.iter().map(said).collect::<Vec<_>>());
    // The prompt is reported once, and changes no answer.
    let mut reported = request(3, Some(5));
    reported.sampling.prompt_logprobs = Some(2);
    let reported = answer(&engine, &reported);
    assert_eq!(reported.prompt_logprobs.iter().flatten().count(), reported.prompt_token_ids.len() - 17);
    assert_eq!(
        reported.outputs.iter().map(said).collect::<Vec<_>>(),
        output.outputs.iter().map(said).collect::<Vec<_>>()
    );
}

#[test]
fn an_answer_that_ends_says_so_while_others_go_on() {
    let engine = engine(Options::default());
    let plain = answer(&engine, &request(3, Some(5))).outputs;
    let later = |token: &u32| {
        plain[1..].iter().all(|o| o.token_ids.iter().position(|other| other == token).is_none_or(|at| at > 8))
    };
    let stop = *plain[0].token_ids[..4].iter().find(|token| later(token)).expect("a token of the first answer alone");
    let mut stopped = request(3, Some(5));
    stopped.sampling.stop_token_ids = vec![stop];
    let pieces = engine.submit(stopped).filter_map(|event| match event {
        Event::Piece(piece) => Some(piece),
        _ => None,
    });
    let pieces: Vec<_> = pieces.collect();
    let at = pieces.iter().position(|p| p.end.is_some()).unwrap();
    let end = End { finish_reason: FinishReason::Stop, stop_reason: Some(StopReason::Token(stop)) };
    assert_eq!((pieces[at].index, pieces[at].token_id, pieces[at].end.clone()), (0, stop, Some(end)));
    let after = pieces[at + 1..].iter().filter(|p| p.index != 0 && p.end.is_none()).count();
    assert!(after >= 8, "{after} tokens came behind the first end");
}

#[test]
fn all_are_asked_or_none_is() {
    let engine = engine(Options::default());
    let (good, mut bad) = (request(1, Some(5)), request(1, Some(6)));
    bad.sampling.temperature = -1.0;
    let (at, error) = engine.submit_all(&[good.clone(), bad]).err().unwrap();
    assert!(at == 1 && error.to_string().contains("temperature is -1"), "{at} {error}");
    assert_eq!(settled(&engine).finished, 0);
    let expected = answer(&engine, &good);
    for mut stream in engine.submit_all(&[good.clone(), good.clone()]).unwrap() {
        assert_eq!(stream.prompt_tokens(), expected.prompt_token_ids.len());
        assert_eq!(said(&stream.output().unwrap().outputs[0]), said(&expected.outputs[0]));
    }
    let prompt = engine.prompt_tokens(&good).unwrap();
    assert_eq!((prompt.ids, prompt.image_tokens), (expected.prompt_token_ids, expected.image_tokens));
}

/// At every number of tokens, by dropping the stream and by asking for no more, beside a neighbour that stays.
#[test]
fn who_goes_away_gives_up_all_answers() {
    let neighbour = request(1, Some(3));
    let expected = said(&answer(&engine(Options::default()), &neighbour).outputs[0]);
    let engine = engine(Options { max_num_seqs: Some(3), ..Options::default() });
    let whole = answer(&engine, &request(4, Some(11)));
    for step in 0..30 {
        let mut stays = engine.submit(neighbour.clone());
        let mut dropped = engine.submit(request(4, Some(11)));
        for _ in 0..step {
            assert!(matches!(Iterator::next(&mut dropped), Some(Event::Piece(_))));
        }
        drop(dropped);
        let mut cancelled = engine.submit(request(4, Some(11)));
        for _ in 0..step {
            assert!(matches!(Iterator::next(&mut cancelled), Some(Event::Piece(_))));
        }
        cancelled.cancel();
        let output = cancelled.output().unwrap();
        assert_eq!(output.outputs.len(), 4);
        for (part, whole) in output.outputs.iter().zip(&whole.outputs) {
            // The engine may be ahead of whoever listens.
            let ended = part.token_ids.len() == 24;
            assert_eq!(part.finish_reason == FinishReason::Cancelled, !ended, "after {step}");
            assert!(whole.token_ids.starts_with(&part.token_ids), "after {step}");
        }
        assert_eq!(said(&stays.output().unwrap().outputs[0]), expected, "beside {step}");
        settled(&engine);
    }
}

#[test]
fn counts_that_make_no_sense_are_refused() {
    let engine = engine(Options::default());
    let greedy = |n| {
        let mut request = request(n, None);
        request.sampling.temperature = 0.0;
        request
    };
    for (request, expected) in [
        (request(0, None), "n is 0; it must lie in 1 to 128"),
        (request(usize::MAX, None), "it must lie in 1 to 128"),
        (greedy(2), "n is 2 and temperature 0"),
    ] {
        match engine.answer(&request, |_| ControlFlow::Continue(())) {
            Err(error @ Error::Request(_)) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(answer(&engine, &request(128, Some(1))).outputs.len(), 128);
}
