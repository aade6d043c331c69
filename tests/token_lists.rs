//! Lists of tokens and log-probabilities of prompts through whole steps of a tiny model on the CPU: each sequence of a
//! batch gets its own list, and each token of a prompt the log-probability that the logits before it give.

use std::path::Path;

use ocelli::backend::Cpu;
use ocelli::engine::{Checkpoint, LogitRows, Options, Runner, Sampled, SequenceLists, SequenceStep};
use ocelli::mem::DType;
use ocelli::models::{Limits, MAX_TOKEN_BIASES};
use ocelli::ops::{ONLY_LISTED, SamplingRow, TokenBias};

const GREEDY: SamplingRow = SamplingRow::GREEDY;
const BLOCKS: [[i32; 2]; 3] = [[0, 1], [2, 3], [4, 5]];

fn open() -> Runner<Cpu> {
    let options = Options { dtype: Some(DType::F32), ..Options::default() };
    let checkpoint = Checkpoint::open(Path::new("tests/goldens/llava-tiny-gqa"), &options).unwrap();
    let limits = Limits {
        max_model_len: 32,
        max_num_seqs: 3,
        max_num_batched_tokens: 64,
        max_logit_rows: 64,
        max_tiles: 1,
        kept_tiles: 0,
        kv_blocks: 6,
    };
    let model = checkpoint.build(limits).unwrap();
    Runner::new(Cpu::new(model.regions()).unwrap(), model, |_| ()).unwrap()
}

fn prompt(ids: &[i32], sequence: usize) -> SequenceStep<'_> {
    SequenceStep { ids, cached: 0, first_angle: 0, blocks: &BLOCKS[sequence], sampling: GREEDY }
}

fn log_softmax(row: &[f32], token: i32) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    f64::from(row[token as usize]) - max - sum.ln()
}

/// The best token of a row among those that `may` be chosen.
fn best(row: &[f32], may: impl Fn(usize) -> bool) -> u32 {
    let allowed = (0..row.len()).filter(|&token| may(token));
    allowed.max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap() as u32
}

fn close(found: f32, exact: f64) {
    // Some thousand logits of a few units: 100 roundings of numbers below 16 are more than an f32 sum makes here.
    assert!((f64::from(found) - exact).abs() < 100.0 * 16.0 * 2f64.powi(-24), "{found}, not {exact}");
}

#[test]
fn every_sequence_of_a_batch_is_held_to_its_own_list() {
    let mut runner = open();
    let vocab = runner.model().io().vocab;
    let ids: [&[i32]; 3] = [&[1, 20, 21, 22], &[1, 30, 31], &[1, 40, 41, 42, 43]];
    let steps: Vec<SequenceStep<'_>> = (0..3).map(|i| prompt(ids[i], i)).collect();
    runner.step(&steps, LogitRows::Last).unwrap();
    let logits = runner.logits(3).unwrap();
    let rows: Vec<&[f32]> = logits.chunks(vocab).collect();
    let favourites: Vec<u32> = rows.iter().map(|row| best(row, |_| true)).collect();

    // The first may not say its favourite, the second nothing but three tokens, the third anything.
    let forbidden = [TokenBias { token: favourites[0], bias: f32::NEG_INFINITY }];
    let allowed = [3, 50, 77].map(|token| TokenBias { token, bias: 0.0 });
    let lists = [&forbidden[..], &allowed, &[]].map(|biases| SequenceLists { biases, ..SequenceLists::default() });
    let only = SequenceStep { sampling: SamplingRow { flags: ONLY_LISTED, ..GREEDY }, ..steps[1].clone() };
    let steps = [steps[0].clone(), only, steps[2].clone()];
    runner.step_with(&steps, LogitRows::Last, &lists).unwrap();
    let expected = [
        best(rows[0], |token| token as u32 != favourites[0]),
        best(rows[1], |token| [3, 50, 77].contains(&token)),
        favourites[2],
    ];
    for ((sampled, expected), row) in runner.sampled(3, 0).unwrap().into_iter().zip(expected).zip(rows) {
        assert_eq!(sampled.token, Some(expected));
        close(sampled.logprob, log_softmax(row, expected as i32));
    }

    // A list is gone with its step.
    runner.step(&[prompt(ids[0], 0)], LogitRows::Last).unwrap();
    assert_eq!(runner.sampled(1, 0).unwrap()[0].token, Some(favourites[0]));
}

/// Decode rows are filled up to a power of two; their lists stay theirs.
#[test]
fn lists_of_decode_rows_are_their_own_in_a_batch_that_is_filled_up() {
    let mut runner = open();
    let steps: Vec<SequenceStep<'_>> = (0..3).map(|i| prompt(&[60], i)).collect();
    let allowed = [4, 5, 6].map(|token| [TokenBias { token, bias: -3.0 }]);
    let lists = allowed.each_ref().map(|biases| SequenceLists { biases, ..SequenceLists::default() });
    let only = SamplingRow { flags: ONLY_LISTED, temperature: 1.0, ..GREEDY };
    let steps: Vec<SequenceStep<'_>> = steps.into_iter().map(|s| SequenceStep { sampling: only, ..s }).collect();
    runner.step_with(&steps, LogitRows::Last, &lists).unwrap();
    let tokens: Vec<_> = runner.sampled(3, 0).unwrap().into_iter().map(|s| s.token).collect();
    assert_eq!(tokens, [Some(4), Some(5), Some(6)]);
}

/// Log-probabilities of a prompt with a picture's places amid it, whole and in chunks that end in a token, in a picture
/// and behind one.
#[test]
fn a_prompt_reports_the_tokens_that_follow_each_other() {
    let ids = [1, 20, -1, -2, -3, 21, 22, 23, 24];
    let mut runner = open();
    let vocab = runner.model().io().vocab;
    runner.step(&[prompt(&ids, 0)], LogitRows::All).unwrap();
    let logits = runner.logits(ids.len()).unwrap();
    let row = |i: usize| &logits[i * vocab..][..vocab];

    let lists = [SequenceLists { prompt_logprobs: Some(4), ..SequenceLists::default() }; 2];
    let other = prompt(&[1, 30, 31], 1);
    runner.step_with(&[prompt(&ids, 0), other], LogitRows::Last, &[lists[0], SequenceLists::default()]).unwrap();
    // Rows that a token of the vocabulary follows, then the last; the other sequence has but its last.
    let whole: Vec<Sampled> = runner.sampled(7, 4).unwrap();
    let known = [(0, 20), (4, 21), (5, 22), (6, 23), (7, 24)];
    for (sampled, (before, id)) in whole.iter().zip(known) {
        assert_eq!(sampled.token, Some(id as u32));
        close(sampled.logprob, log_softmax(row(before), id));
        assert_eq!(sampled.top[0].0, best(row(before), |_| true));
        assert!(sampled.top.is_sorted_by(|a, b| a.1 >= b.1));
        sampled.top.iter().for_each(|&(token, logprob)| close(logprob, log_softmax(row(before), token as i32)));
    }
    assert_eq!(whole[5].token, Some(best(row(8), |_| true)));

    for cut in [2, 3, 5, 7] {
        let mut rows = Vec::new();
        for (first, end) in [(0, cut), (cut, ids.len())] {
            let next = ids.get(end).and_then(|&id| u32::try_from(id).ok());
            let sampling = next.map_or(GREEDY, |next| SamplingRow::report(next, 4));
            let chunk = SequenceStep { cached: first, sampling, ..prompt(&ids[first..end], 2) };
            runner.step_with(&[chunk], LogitRows::Last, &lists[..1]).unwrap();
            let reported = (first + 1..end).filter(|&i| ids[i] >= 0).count();
            let mut sampled = runner.sampled(reported + 1, 4).unwrap();
            // Before a picture's place there is nothing to report.
            sampled.truncate(reported + usize::from(next.is_some() || end == ids.len()));
            rows.append(&mut sampled);
        }
        let end = [&rows[..5], &[]].concat();
        assert_eq!(end, whole[..5], "cut at {cut}");
        assert_eq!(rows[5].token, whole[5].token);
    }
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let mut runner = open();
    let long: Vec<TokenBias> = (0..=MAX_TOKEN_BIASES as u32).map(|i| TokenBias { token: i % 90, bias: 0.0 }).collect();
    let lists = [SequenceLists { biases: &long, ..SequenceLists::default() }];
    let error = runner.step_with(&[prompt(&[1, 2], 0)], LogitRows::Last, &lists).unwrap_err();
    assert_eq!(error.to_string(), "the token lists of a step have 2049 entries together; there is room for 2048");
    let error = runner.step_with(&[prompt(&[1, 2], 0)], LogitRows::Last, &[lists[0]; 2]).unwrap_err();
    assert_eq!(error.to_string(), "1 sequences have 2 lists");
}
