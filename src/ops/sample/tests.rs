//! Each knob alone, against what it is defined to do, over the exact distribution where it draws.

use super::*;
use crate::mem::{DType, Layout, Region};

const GREEDY: SamplingRow = SamplingRow { seed: [7, 0], ..SamplingRow::GREEDY };

/// How often each token is drawn in `n` steps.
fn histogram(scores: &[f32], row: SamplingRow, n: u32) -> Vec<u32> {
    let mut counts = vec![0; scores.len()];
    for step in 0..n {
        counts[choose(scores, &SamplingRow { step, ..row }).unwrap()] += 1;
    }
    counts
}

/// Pearson's statistic of `counts` against `probabilities`; every token of probability 0 must not occur.
fn chi_square(counts: &[u32], probabilities: &[f64]) -> f64 {
    let n: f64 = counts.iter().map(|&c| f64::from(c)).sum();
    let mut total = 0.0;
    for (&c, &p) in counts.iter().zip(probabilities) {
        if p == 0.0 {
            assert_eq!(c, 0, "a dropped token was drawn");
        } else {
            total += (f64::from(c) - n * p).powi(2) / (n * p);
        }
    }
    total
}

fn softmax(scores: &[f32], temperature: f64, kept: &[usize]) -> Vec<f64> {
    let e: Vec<f64> = (0..scores.len())
        .map(|i| if kept.contains(&i) { (f64::from(scores[i]) / temperature).exp() } else { 0.0 })
        .collect();
    let total: f64 = e.iter().sum();
    e.iter().map(|v| v / total).collect()
}

/// 99.99 % quantiles of chi-square for 1 to 5 degrees of freedom: the seed is fixed, so the test never flickers.
const QUANTILE: [f64; 6] = [0.0, 15.14, 18.42, 21.11, 23.51, 25.74];
const SCORES: [f32; 6] = [1.0, 2.5, 0.0, 2.0, -1.0, 2.2];
const DRAWS: u32 = 20_000;

fn assert_distribution(row: SamplingRow, kept: &[usize]) {
    let p = softmax(&SCORES, f64::from(row.temperature), kept);
    let x = chi_square(&histogram(&SCORES, row, DRAWS), &p);
    assert!(x < QUANTILE[kept.len() - 1], "chi-square {x} with {} tokens kept", kept.len());
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    assert_eq!(choose(&[0.0, 3.0, 3.0, 1.0], &GREEDY), Some(1));
}

#[test]
fn temperature_shapes_the_distribution() {
    for temperature in [0.5, 1.0, 2.0] {
        assert_distribution(SamplingRow { temperature, ..GREEDY }, &[0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn top_k_keeps_k_and_those_equal_to_the_last() {
    assert_distribution(SamplingRow { temperature: 1.0, top_k: 3, ..GREEDY }, &[1, 3, 5]);
    let mut tied = [1.0, 2.0, 1.0, 0.0];
    keep_top_k(&mut tied, 2);
    assert_eq!(tied, [1.0, 2.0, 1.0, f32::NEG_INFINITY]);
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_p() {
    // Probabilities of tokens 0 to 5: 0.083 0.373 0.031 0.226 0.011 0.276. Tokens 1 and 5 reach 0.649, with 3 it is 0.875.
    assert_distribution(SamplingRow { temperature: 1.0, top_p: 0.64, ..GREEDY }, &[1, 5]);
    assert_distribution(SamplingRow { temperature: 1.0, top_p: 0.8, ..GREEDY }, &[1, 3, 5]);
    let mut one = SCORES;
    keep_top_p(&mut one, 1e-6);
    assert_eq!(one.iter().filter(|s| s.is_finite()).count(), 1);
}

#[test]
fn min_p_drops_what_is_small_beside_the_largest() {
    // Relative to token 1: 0.22 1 0.08 0.61 0.03 0.74.
    assert_distribution(SamplingRow { temperature: 1.0, min_p: 0.5, ..GREEDY }, &[1, 3, 5]);
    assert_distribution(SamplingRow { temperature: 1.0, min_p: 0.1, ..GREEDY }, &[0, 1, 3, 5]);
}

#[test]
fn the_draw_depends_on_seed_and_step_alone() {
    let row = SamplingRow { temperature: 1.0, ..GREEDY };
    let draws = |row| (0..64).map(|step| choose(&SCORES, &SamplingRow { step, ..row })).collect::<Vec<_>>();
    assert_eq!(draws(row), draws(row));
    assert_ne!(draws(row), draws(SamplingRow { seed: [8, 0], ..row }));
    assert_ne!(draws(row), draws(SamplingRow { seed: [7, 1], ..row }));
}

#[test]
fn penalties_follow_the_openai_order() {
    let row = SamplingRow { repetition_penalty: 2.0, frequency_penalty: 0.25, presence_penalty: 0.5, ..GREEDY };
    // Unseen; in the prompt; generated twice; both; generated once with a negative score.
    let scores = penalised(&[4.0, 4.0, 4.0, 4.0, -4.0], &[0, IN_PROMPT, 2, IN_PROMPT | 2, 1], &row);
    assert_eq!(scores, [4.0, 2.0, 1.0, 1.0, -8.75]);
}

#[test]
fn a_row_without_a_finite_score_yields_nothing() {
    assert_eq!(choose(&[1.0, f32::NAN], &GREEDY), None);
    assert_eq!(choose(&[f32::NEG_INFINITY; 3], &GREEDY), None);
    assert_eq!(choose(&[f32::INFINITY, 0.0], &GREEDY), None);
}

#[test]
fn logprobs_are_of_the_raw_logits_and_tokens_are_counted() {
    let mut io = Layout::new(Region::Io, DType::F32);
    let vocab = SCORES.len();
    let op = Sample {
        token: io.take(2),
        logprobs: io.take(2 * (1 + MAX_TOP_LOGPROBS)),
        top: io.take(2 * MAX_TOP_LOGPROBS),
        hash: io.take(2 * 8),
        logits: io.take(2 * vocab),
        params: io.take(2 * size_of::<SamplingRow>()),
        biases: io.take(0),
        counts: io.take(vocab),
        rows: 2,
        vocab,
    };
    let m = HostMem::new([0, 0, 0, io.bytes()]).unwrap();
    m.store(op.logits, &[SCORES, [f32::NAN; 6]].concat());
    // The penalty makes token 3 the best; its log-probability is still that of the raw logits.
    let row = SamplingRow { state: 0, presence_penalty: 1.0, top_logprobs: 2, ..GREEDY };
    m.bytes_mut(op.params.span()).copy_from_slice(bytemuck::bytes_of(&[row, row]));
    m.bytes_mut(op.counts.span()).copy_from_slice(bytemuck::bytes_of(&[0, 1, 0, 0, 0, 1]));
    op.reference(&m);
    assert_eq!(m.read(op.token), [3, -1]);
    assert_eq!(m.read(op.counts), [0, 1, 0, 1, 0, 1]);
    assert_eq!(m.read(op.top)[..2], [1, 5]);
    assert_eq!(m.read(op.hash), [logits_hash(&SCORES).to_le_bytes(), [0; 8]].concat(), "of rows that have a token");
    let p = softmax(&SCORES, 1.0, &[0, 1, 2, 3, 4, 5]);
    for (found, token) in m.load(op.logprobs).iter().zip([3, 1, 5]) {
        assert!((f64::from(*found) - p[token].ln()).abs() < 1e-6);
    }
}

/// Against the first numbers of SplitMix64 from 0, as its authors print them.
#[test]
fn logits_are_hashed_by_their_bits_and_places() {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let expected = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
    assert_eq!([1u64, 2, 3].map(|n| mix(GAMMA.wrapping_mul(n))), expected);
    let one = |token: u64, x: f32| mix(token << 32 | u64::from(x.to_bits()));
    assert_eq!(logits_hash(&[1.5, -2.0]), one(0, 1.5).wrapping_add(one(1, -2.0)));
    assert_ne!(logits_hash(&[1.5, -2.0]), logits_hash(&[-2.0, 1.5]));
    assert_ne!(logits_hash(&[0.0]), logits_hash(&[-0.0]));
}

#[test]
fn scores_live_in_shared_memory_where_they_fit() {
    for (vocab, max_smem, smem) in [(32_064, 232_448, 128_256), (32_064, 101_376, 0), (128_256, 232_448, 0)] {
        let mut io = Layout::new(Region::Io, DType::F32);
        let op = Sample {
            token: io.take(3),
            logprobs: io.take(3 * (1 + MAX_TOP_LOGPROBS)),
            top: io.take(3 * MAX_TOP_LOGPROBS),
            hash: io.take(3 * 8),
            logits: io.take(3 * vocab),
            params: io.take(3 * size_of::<SamplingRow>()),
            biases: io.take(0),
            counts: io.take(vocab),
            rows: 3,
            vocab,
        };
        let g = op.geometry(&GpuInfo { compute_capability: (9, 0), sms: 132, max_smem, sm_90a: false });
        assert_eq!((g.symbol, g.grid, g.block, g.smem), ("sample_f32", [3, 1, 1], [1024, 1, 1], smem));
    }
}
