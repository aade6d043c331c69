//! What a request's words and ids become at each step.

use super::*;

const VOCAB: usize = 50;
const EOS: [u32; 2] = [2, 40];
const NEVER: f32 = f32::NEG_INFINITY;

/// Letters are their places in the alphabet; a space makes the letter behind it another token.
fn encode(text: &str) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for (i, c) in text.char_indices().filter(|(_, c)| *c != ' ') {
        ids.push(u32::from(c) - u32::from('a') + if text[..i].ends_with(' ') { 20 } else { 0 });
    }
    Ok(ids)
}

fn sampler(sampling: &Sampling) -> Result<Sampler> {
    Sampler::new(sampling, 9, &EOS, VOCAB, encode)
}

/// The list of the step after `generated`.
fn list(sampling: &Sampling, generated: &[u32]) -> Vec<(u32, f32)> {
    let mut list = vec![TokenBias { token: 77, bias: 7.0 }];
    let row = sampler(sampling).unwrap().row(generated, 0, 3, &mut list);
    assert_eq!(row.step as usize, generated.len());
    assert_eq!(row.flags, if sampling.allowed_token_ids.is_some() { ONLY_LISTED } else { 0 });
    assert!(list.is_sorted_by(|a, b| a.token < b.token), "{list:?}");
    list.iter().map(|entry| (entry.token, entry.bias)).collect()
}

fn base() -> Sampling {
    Sampling::default()
}

#[test]
fn a_request_without_lists_brings_none() {
    assert_eq!(list(&base(), &[]), []);
    let stops = Sampling { stop_token_ids: vec![3], logit_bias: [(4, 0.0)].into(), ..base() };
    assert_eq!(list(&stops, &[3, 3]), []);
    let row = sampler(&base()).unwrap().row(&[1], 0, 0, &mut Vec::new());
    assert_eq!(row, SamplingRow { temperature: 1.0, seed: [9, 0], step: 1, ..SamplingRow::GREEDY });
}

#[test]
fn biases_are_clamped_and_ordered() {
    let bias = Sampling { logit_bias: [(9, 101.0), (3, -f64::INFINITY), (5, 0.5)].into(), ..base() };
    assert_eq!(list(&bias, &[]), [(3, -100.0), (5, 0.5), (9, 100.0)]);
}

#[test]
fn allowed_tokens_carry_their_biases_and_nothing_else_is_listed() {
    let allowed = Some(vec![7, 5, 7, 2]);
    let sampling = Sampling { allowed_token_ids: allowed, logit_bias: [(7, 1.0), (8, 2.0)].into(), ..base() };
    assert_eq!(list(&sampling, &[]), [(2, 0.0), (5, 0.0), (7, 1.0)]);
    let sampling = Sampling { min_tokens: 1, bad_words: vec!["h".into()], ..sampling };
    assert_eq!(list(&sampling, &[]), [(2, NEVER), (5, 0.0), (7, NEVER)]);
    assert_eq!(list(&sampling, &[5]), [(2, 0.0), (5, 0.0), (7, NEVER)]);
}

#[test]
fn what_ends_an_answer_is_forbidden_until_it_is_long_enough() {
    let sampling = Sampling { min_tokens: 2, stop_token_ids: vec![11], logit_bias: [(11, 4.0)].into(), ..base() };
    let early = [(2, NEVER), (11, NEVER), (40, NEVER)];
    assert_eq!([&[][..], &[5]].map(|generated| list(&sampling, generated)), [early, early]);
    assert_eq!(list(&sampling, &[5, 5]), [(11, 4.0)]);
    // vLLM forbids end-of-sequence tokens even where they would be ignored.
    assert_eq!(list(&Sampling { ignore_eos: true, ..sampling }, &[]), early);
}

/// With tokens that are not known yet, a record is that of an answer of the same length.
#[test]
fn tokens_that_are_not_known_yet_count() {
    let sampling = Sampling { min_tokens: 2, stop_token_ids: vec![11], ..base() };
    let sampler = sampler(&sampling).unwrap();
    assert!(!sampler.looks_back());
    for (known, ahead, all) in [(&[5][..], 0, &[5][..]), (&[5], 1, &[5, 9]), (&[], 1, &[7])] {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        let row = sampler.row(known, ahead, 3, &mut found);
        assert_eq!(row, sampler.row(all, 0, 3, &mut expected));
        assert_eq!((found, row.step as usize), (expected, all.len()));
    }
    let word = |word: &str| Sampling { bad_words: vec![word.into()], ..base() };
    assert_eq!(["b", "ca"].map(|w| self::sampler(&word(w)).unwrap().looks_back()), [false, true]);
}

#[test]
fn an_answer_ends_at_the_stop_ids_and_the_models_own_unless_ignored() {
    let ends = |ignore_eos| {
        let sampler = sampler(&Sampling { ignore_eos, stop_token_ids: vec![11], ..base() }).unwrap();
        [2, 11, 12, 40].map(|token| sampler.ends(token))
    };
    assert_eq!(ends(false), [true, true, false, true]);
    assert_eq!(ends(true), [false, true, false, false]);
}

/// Against a search that knows nothing of lists: after every answer, a word is forbidden exactly where the token would
/// complete one of its spellings.
#[test]
fn bad_words_are_forbidden_where_they_would_be_completed() {
    let sampling = Sampling { bad_words: vec!["b".into(), "  ca".into(), "aaa".into()], ..base() };
    let spellings: [&[u32]; 6] = [&[1], &[21], &[2, 0], &[22, 0], &[0, 0, 0], &[20, 0, 0]];
    for generated in [&[][..], &[0], &[2], &[22], &[5, 2], &[2, 5], &[0, 0], &[20, 0], &[0, 20, 0], &[3, 0, 0, 0]] {
        let completes = |&token: &u32| {
            let answer = [generated, &[token]].concat();
            spellings.iter().any(|word| answer.ends_with(word))
        };
        let expected: Vec<(u32, f32)> = (0..VOCAB as u32).filter(completes).map(|token| (token, NEVER)).collect();
        assert_eq!(list(&sampling, generated), expected, "after {generated:?}");
    }
}

/// Behind a space the word may fall into more tokens, or begin with the same one: then the bare spelling is enough.
#[test]
fn a_word_behind_a_space_counts_where_it_is_another_word_of_the_same_length() {
    let spelt = |spaced: &'static [u32]| {
        let encode = move |text: &str| Ok(if text.starts_with(' ') { spaced.to_vec() } else { vec![5, 6] });
        bad_words(&["x".into()], encode).unwrap()
    };
    assert_eq!(spelt(&[7, 6]), [vec![7, 6], vec![5, 6]]);
    assert_eq!(spelt(&[5, 9]), [[5, 6]]);
    assert_eq!(spelt(&[7, 5, 6]), [[5, 6]]);
    let nothing = bad_words(&["x".into()], |_| Ok(vec![])).unwrap_err().to_string();
    assert_eq!(nothing, "bad_words has \"x\", of which the tokenizer makes no token");
}

#[test]
fn rows_of_the_prompt_report_the_token_that_follows() {
    let sampler = sampler(&Sampling { prompt_logprobs: Some(3), ..base() }).unwrap();
    assert_eq!(sampler.prompt_row(8), Some(SamplingRow::report(8, 3)));
    assert_eq!(sampler.prompt_row(-1), None);
    assert_eq!(self::sampler(&base()).unwrap().prompt_row(8), None);
}

#[test]
fn lists_that_cannot_be_are_refused_by_name_and_number() {
    let vocab = 4000;
    let many = |n: u32| Some((100..100 + n).collect::<Vec<u32>>());
    let bias = |n: u32| (100..100 + n).map(|id| (id, 1.0)).collect();
    let repeated = vec![1; MAX_TOKEN_BIASES + 1];
    let refused = [
        (Sampling { stop_token_ids: repeated.clone(), ..Sampling::default() }, "stop_token_ids has 2049 entries"),
        (Sampling { allowed_token_ids: Some(repeated), ..Sampling::default() }, "allowed_token_ids has 2049 entries"),
        (Sampling { bad_words: vec!["b".into(); 2049], ..Sampling::default() }, "bad_words has 2049 entries"),
        (Sampling { bad_words: vec!["b".repeat(1025)], ..Sampling::default() }, "bad_words[0] has 1025 bytes"),
        (Sampling { logit_bias: [(4000, 1.0)].into(), ..base() }, "logit_bias has token 4000; the vocabulary has 4000"),
        (Sampling { allowed_token_ids: Some(vec![9000]), ..base() }, "allowed_token_ids has token 9000"),
        (Sampling { stop_token_ids: vec![u32::MAX], ..base() }, "stop_token_ids has token 4294967295"),
        (Sampling { top_p: 2.0, ..base() }, "top_p is 2.0"),
        (
            Sampling { logit_bias: bias(2048), bad_words: vec!["ab".into()], ..base() },
            "allowed_token_ids, logit_bias, bad_words and, with min_tokens, the tokens that end an answer are 2049 tokens \
             together; at most 2048 can be listed",
        ),
        (Sampling { logit_bias: bias(2047), min_tokens: 1, ..base() }, "allowed_token_ids, logit_bias"),
        (
            Sampling { allowed_token_ids: Some(vec![40, 2]), min_tokens: 1, ..base() },
            "no token is left to choose: bad_words and min_tokens forbid all 2 that may be chosen",
        ),
        (Sampling { allowed_token_ids: Some(vec![1]), bad_words: vec!["ab".into()], ..base() }, "no token is left"),
    ];
    for (sampling, expected) in refused {
        let error = Sampler::new(&sampling, 0, &EOS, vocab, encode).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error:?} does not begin with {expected:?}");
    }
    for sampling in [
        Sampling { allowed_token_ids: many(2048), ..base() },
        Sampling { logit_bias: bias(2046), min_tokens: 1, ..base() },
        Sampling { allowed_token_ids: Some(vec![40, 2, 3]), min_tokens: 1, ..base() },
    ] {
        Sampler::new(&sampling, 0, &EOS, vocab, encode).unwrap();
    }
    let tiny = Sampling { bad_words: vec!["a".into(), "b".into()], ..base() };
    assert!(Sampler::new(&tiny, 0, &[], 2, |text| Ok(vec![u32::from(text.trim() == "b")])).is_err());
}
