//! Every sampling parameter of a request, through the engine, on a tiny random checkpoint.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use ocelli::Error;
use ocelli::engine::{Engine, Event, FinishReason, Options, Output, Prompt, Request, Sampling, StopReason};
use ocelli::text::{Special, Tokenizer};

const MODEL: &str = "tests/goldens/llava-tiny-mha";
const VOCAB: u32 = 331;

fn engine() -> Engine {
    Engine::open(Path::new(MODEL), &Options::default(), |_, _| ()).unwrap()
}

fn greedy(tokens: usize) -> Sampling {
    Sampling { temperature: 0.0, max_tokens: Some(tokens), ignore_eos: true, ..Sampling::default() }
}

fn request(text: &str, pictures: usize, sampling: Sampling) -> Request {
    let picture = || fs::read("tests/goldens/pictures/wide.png").unwrap();
    Request {
        prompt: Prompt::Raw(text.into()),
        images: (0..pictures).map(|_| picture().into()).collect(),
        sampling,
        ..Request::default()
    }
}

fn ask(engine: &Engine, request: &Request) -> Result<Output, Error> {
    engine.answer(request, |_| ControlFlow::Continue(()))
}

fn answer(engine: &Engine, sampling: Sampling) -> Output {
    ask(engine, &request("what is the moon?", 0, sampling)).unwrap()
}

#[test]
fn a_bias_makes_a_token_certain_or_impossible() {
    let engine = engine();
    let plain = answer(&engine, greedy(12)).outputs[0].token_ids.clone();
    let liked = answer(&engine, Sampling { logit_bias: [(77, 100.0)].into(), ..greedy(12) });
    assert_eq!(liked.outputs[0].token_ids, [77; 12]);
    // The log-probability is still that of the logits as the model gave them.
    assert!(liked.outputs[0].logprobs.iter().all(|l| *l < -0.5), "{:?}", liked.outputs[0].logprobs);
    let disliked = answer(&engine, Sampling { logit_bias: [(plain[0], -100.0)].into(), ..greedy(12) });
    assert!(!disliked.outputs[0].token_ids.contains(&plain[0]));
}

#[test]
fn only_allowed_tokens_are_said() {
    let engine = engine();
    let allowed: HashSet<u32> = (100..140).collect();
    let sampling = Sampling {
        allowed_token_ids: Some(allowed.iter().copied().collect()),
        temperature: 2.0,
        seed: Some(5),
        ..greedy(60)
    };
    let said: HashSet<u32> = answer(&engine, sampling).outputs[0].token_ids.iter().copied().collect();
    assert!(said.is_subset(&allowed) && said.len() > 5, "{said:?}");
}

/// A word of one token is never said; one of several is not completed, and what leads up to it stays as it was.
#[test]
fn bad_words_are_not_said() {
    let engine = engine();
    let tokenizer = Tokenizer::open(Path::new(MODEL)).unwrap();
    let plain = answer(&engine, greedy(40)).outputs[0].token_ids.clone();
    for length in [1, 2] {
        let spelt = |at: &usize| {
            let text = tokenizer.decode(&plain[*at..at + length], false).unwrap();
            let own = tokenizer.encode(&text, Special::Parse, false).unwrap();
            (own == plain[*at..at + length] && !text.trim().is_empty()).then_some((*at, text))
        };
        let (at, word) = (0..plain.len() - length).find_map(|at| spelt(&at)).expect("a word that is its own spelling");
        let held =
            answer(&engine, Sampling { bad_words: vec![word.clone()], ..greedy(40) }).outputs[0].token_ids.clone();
        assert!(!held.windows(length).any(|w| w == &plain[at..at + length]), "{word:?} in {held:?}");
        assert_eq!(held[..at + length - 1], plain[..at + length - 1], "before {word:?}");
    }
}

#[test]
fn an_answer_ends_at_a_stop_token_once_it_is_long_enough() {
    let engine = engine();
    let plain = answer(&engine, greedy(24)).outputs[0].token_ids.clone();
    let stop = plain[3];
    let first = plain.iter().position(|&token| token == stop).unwrap();
    let sampling = Sampling { stop_token_ids: vec![stop], ..greedy(24) };
    let ended = answer(&engine, sampling.clone());
    assert_eq!(
        (&ended.outputs[0].token_ids[..], ended.outputs[0].finish_reason),
        (&plain[..=first], FinishReason::Stop)
    );

    let longer = answer(&engine, Sampling { min_tokens: 10, ..sampling });
    assert_eq!(longer.outputs[0].token_ids[..first], plain[..first]);
    assert!(
        longer.outputs[0].token_ids.len() >= 10 && !longer.outputs[0].token_ids[..10].contains(&stop),
        "{:?}",
        longer.outputs[0].token_ids
    );

    // The model's own end is held back as well.
    let ends = Sampling { allowed_token_ids: Some(vec![2, 50]), ignore_eos: false, ..greedy(9) };
    let ends = Sampling { logit_bias: [(2, 50.0)].into(), ..ends };
    assert_eq!(answer(&engine, ends.clone()).outputs[0].token_ids, [2]);
    let long = answer(&engine, Sampling { min_tokens: 4, ..ends });
    assert_eq!(
        (&long.outputs[0].token_ids[..], long.outputs[0].finish_reason),
        (&[50, 50, 50, 50, 2][..], FinishReason::Stop)
    );
}

/// Against a search in the answer without stop strings: the first that is complete behind the text of the first
/// `min_tokens` tokens ends the answer.
#[test]
fn a_stop_string_counts_once_the_answer_is_long_enough() {
    let engine = engine();
    let mut ends = vec![0];
    let mut whole = String::new();
    for event in engine.submit(request("what is the moon?", 0, greedy(40))) {
        match event {
            Event::Piece(piece) => {
                whole += &piece.text;
                ends.push(whole.len());
            }
            Event::Done(output) => whole = output.outputs[0].text.clone(),
            Event::Failed(error) => panic!("{error}"),
        }
    }
    let mut ended = 0;
    for (first, width) in [(0, 1), (0, 3), (3, 2), (6, 1), (9, 3)] {
        let stop: String = whole.chars().skip(first).take(width).collect();
        for min_tokens in (0..=20).chain([30, 40]) {
            let early = ends[min_tokens];
            let found = |at: &usize| whole.is_char_boundary(*at) && whole[*at..].starts_with(&stop);
            let at = (0..whole.len()).filter(found).find(|at| at + stop.len() > early);
            for include in [false, true] {
                let sampling = Sampling {
                    stop: vec![stop.clone()],
                    min_tokens,
                    include_stop_str_in_output: include,
                    ..greedy(40)
                };
                let output = answer(&engine, sampling).outputs.remove(0);
                let end = at.map_or(whole.len(), |at| if include { at + stop.len() } else { at });
                assert_eq!(output.text, whole[..end], "{stop:?} after {min_tokens}");
                let reason = at.map(|_| StopReason::Text(stop.clone()));
                assert_eq!((output.stop_reason, output.finish_reason == FinishReason::Stop), (reason, at.is_some()));
                assert!(output.token_ids.len() >= min_tokens);
                ended += usize::from(at.is_some());
            }
        }
    }
    assert!(ended > 20, "only {ended} answers were ended");
}

/// Of a short prompt, of one that takes several steps, and of one with a picture amid it. The answer is the same.
#[test]
fn prompts_are_reported_token_by_token() {
    let engine = engine();
    let long = "a moon over the sea and a cat on a roof. ".repeat(4);
    for (text, pictures) in [("a cat", 0), (&long[..], 0), ("USER: <image>\nwhat is this? ASSISTANT:", 1)] {
        let report = |prompt_logprobs| {
            let sampling = Sampling { prompt_logprobs, top_logprobs: 2, ..greedy(5) };
            ask(&engine, &request(text, pictures, sampling)).unwrap()
        };
        let (plain, asked) = (report(None), report(Some(3)));
        assert!(plain.prompt_logprobs.is_empty());
        assert_eq!(
            (&asked.outputs[0].token_ids, &asked.outputs[0].logprobs),
            (&plain.outputs[0].token_ids, &plain.outputs[0].logprobs),
            "{text}"
        );
        assert_eq!(asked.outputs[0].top_logprobs, plain.outputs[0].top_logprobs);

        assert_eq!(asked.prompt_logprobs.len(), asked.prompt_token_ids.len());
        let none = asked.prompt_logprobs.iter().filter(|report| report.is_none()).count();
        assert_eq!(none, 1 + asked.image_tokens.iter().sum::<usize>());
        assert!(asked.prompt_logprobs[0].is_none());
        for (report, &id) in asked.prompt_logprobs.iter().zip(&asked.prompt_token_ids) {
            let Some(report) = report else { continue };
            assert_eq!((report.token, report.top.len()), (Some(id), 3));
            assert!(report.logprob <= report.top[0].1 && report.top.is_sorted_by(|a, b| a.1 >= b.1));
            assert!(report.top.iter().all(|(token, l)| *token != id || *l == report.logprob));
        }
        let only = report(Some(0));
        assert!(only.prompt_logprobs.iter().flatten().all(|report| report.top.is_empty()));
    }
}

/// What is reported of a token is what an answer of that token would report.
#[test]
fn a_prompts_log_probabilities_are_those_of_an_answer() {
    let engine = engine();
    let said = answer(&engine, Sampling { top_logprobs: 4, ..greedy(1) });
    let tokenizer = Tokenizer::open(Path::new(MODEL)).unwrap();
    let token = said.outputs[0].token_ids[0];
    let text = format!("what is the moon?{}", tokenizer.id_to_token(token).unwrap().replace('\u{2581}', " "));
    let sampling = Sampling { prompt_logprobs: Some(4), ..greedy(1) };
    let asked = ask(&engine, &request(&text, 0, sampling)).unwrap();
    let same = asked.prompt_token_ids == [&said.prompt_token_ids[..], &[token]].concat();
    assert!(same, "the test's token must stand alone: {:?} and {token}", asked.prompt_token_ids);
    let report = asked.prompt_logprobs.last().unwrap().clone().unwrap();
    assert_eq!(
        (report.token, report.logprob, report.top),
        (Some(token), said.outputs[0].logprobs[0], said.outputs[0].top_logprobs[0].clone())
    );
}

#[test]
fn impossible_lists_are_refused_as_requests() {
    let engine = engine();
    for (sampling, expected) in [
        (
            Sampling { logit_bias: [(VOCAB, 1.0)].into(), ..greedy(1) },
            "logit_bias has token 331; the vocabulary has 331",
        ),
        (Sampling { allowed_token_ids: Some(vec![]), ..greedy(1) }, "allowed_token_ids is empty"),
        (Sampling { allowed_token_ids: Some(vec![2]), min_tokens: 1, ..greedy(1) }, "no token is left to choose"),
        (Sampling { prompt_logprobs: Some(21), ..greedy(1) }, "prompt_logprobs is 21; at most 20"),
        (Sampling { min_tokens: 2, ..greedy(1) }, "min_tokens is 2; max_tokens is 1"),
    ] {
        match ask(&engine, &request("a", 0, sampling)) {
            Err(error @ Error::Request(_)) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(answer(&engine, greedy(3)).outputs[0].token_ids.len(), 3);
}
