//! Sample with lists of tokens, with penalties and with tokens that are given: against the whole definition in f64, from
//! logits to the probability of every token.

use std::collections::HashMap;

use ocelli::ops::{IN_PROMPT, MAX_TOP_LOGPROBS, ONLY_LISTED, REPORT_GIVEN, SamplingRow, TokenBias};
use proptest::prelude::*;

use crate::sample::{Sampled, log_softmax, sample_listed};

const PLAIN: SamplingRow = SamplingRow { seed: [3, 4], temperature: 1.0, ..SamplingRow::GREEDY };
const GREEDY: SamplingRow = SamplingRow::GREEDY;
const NEVER: f32 = f32::NEG_INFINITY;

fn entry(token: u32, bias: f32) -> TokenBias {
    TokenBias { token, bias }
}

/// Scores after the list and the penalties, in the order in which vLLM applies them.
fn scores(logits: &[f64], counts: &[i32], row: &SamplingRow, list: &[TokenBias]) -> Vec<f64> {
    let bias: HashMap<u32, f64> = list.iter().map(|e| (e.token, f64::from(e.bias))).collect();
    let score = |(token, &logit): (usize, &f64)| {
        let s = match bias.get(&(token as u32)) {
            Some(bias) => logit + bias,
            None if row.flags & ONLY_LISTED != 0 => f64::NEG_INFINITY,
            None => logit,
        };
        let (seen, said) = (counts[token] != 0, f64::from(counts[token] & (IN_PROMPT - 1)));
        let r = f64::from(row.repetition_penalty);
        let s = if !seen {
            s
        } else if s < 0.0 {
            s * r
        } else {
            s / r
        };
        let presence = if said > 0.0 { f64::from(row.presence_penalty) } else { 0.0 };
        s - f64::from(row.frequency_penalty) * said - presence
    };
    logits.iter().enumerate().map(score).collect()
}

/// The probability of every token: temperature, top-k, top-p, min-p and the softmax of what they leave.
fn distribution(scores: &[f64], row: &SamplingRow) -> Vec<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let best = scores[order[0]];
    let weight = |s: f64| ((s - best) / f64::from(row.temperature)).exp();
    let mut weights: Vec<f64> = scores.iter().map(|&s| weight(s)).collect();
    if row.top_k > 0 && (row.top_k as usize) < scores.len() {
        let least = scores[order[row.top_k as usize - 1]];
        weights.iter_mut().zip(scores).filter(|(_, s)| **s < least).for_each(|(w, _)| *w = 0.0);
    }
    // A token stays while those before it have less than top-p together.
    let total: f64 = weights.iter().sum();
    let mut before = 0.0;
    for &token in &order {
        let own = weights[token];
        if before >= f64::from(row.top_p) * total {
            weights[token] = 0.0;
        }
        before += own;
    }
    weights.iter_mut().filter(|w| **w < f64::from(row.min_p)).for_each(|w| *w = 0.0);
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

const LOGITS: [f64; 8] = [1.0, 2.5, 0.0, 2.0, -1.0, 2.25, -2.0, 1.5];
/// Tokens 1, 4 and 6 are in the prompt, 3 was said once, 5 twice, 6 three times.
const COUNTS: [i32; 8] = [0, IN_PROMPT, 0, 1, IN_PROMPT, 2, IN_PROMPT | 3, 0];
/// 99.99 % quantiles of chi-square for 1 to 7 degrees of freedom. Seeds are fixed, so the test never flickers.
const QUANTILE: [f64; 8] = [0.0, 15.14, 18.42, 21.11, 23.51, 25.74, 27.86, 29.88];
const DRAWS: u32 = 20_000;

/// Pearson's statistic of 20,000 draws of `row` against the distribution in f64 stays below its 99.99 % quantile, and
/// what has no probability is never drawn.
fn assert_distribution(what: &str, row: SamplingRow, list: &[TokenBias]) {
    let (n, vocab) = (DRAWS as usize, LOGITS.len());
    // The list lies behind another row's.
    let biases = [&[entry(0, NEVER); 3][..], list].concat();
    let row = SamplingRow { first_bias: 3, biases: list.len() as u32, ..row };
    let params: Vec<SamplingRow> = (0..DRAWS).map(|step| SamplingRow { step, state: step as i32, ..row }).collect();
    let sampled = sample_listed(&vec![LOGITS.to_vec(); n], &params, &biases, &COUNTS.repeat(n));
    let mut found = vec![0u32; vocab];
    sampled.tokens.iter().for_each(|&t| found[t as usize] += 1);
    let expected = distribution(&scores(&LOGITS, &COUNTS, &row, list), &row);
    let (mut statistic, mut kept) = (0.0, 0);
    for (token, (&found, &p)) in found.iter().zip(&expected).enumerate() {
        if p == 0.0 {
            assert_eq!(found, 0, "{what}: token {token} was drawn");
        } else {
            let expected = p * f64::from(DRAWS);
            assert!(expected >= 5.0, "{what}: token {token} is too rare for the statistic");
            statistic += (f64::from(found) - expected).powi(2) / expected;
            kept += 1;
        }
    }
    assert!(statistic <= QUANTILE[kept - 1], "{what}: chi-square {statistic} with {kept} tokens");
    println!("{what}: chi-square {statistic:.2} with {kept} tokens, limit {}", QUANTILE[kept - 1]);
}

#[test]
fn draws_follow_the_distribution_that_each_knob_leaves() {
    let bias = [entry(1, -1.5), entry(4, 3.0), entry(7, 0.5)];
    let bad = [entry(1, NEVER), entry(5, NEVER)];
    let allowed = [entry(0, 0.0), entry(2, 0.0), entry(3, 0.0), entry(6, 4.0)];
    let only = SamplingRow { flags: ONLY_LISTED, ..PLAIN };
    for (what, row, list) in [
        ("nothing", PLAIN, &[][..]),
        ("temperature", SamplingRow { temperature: 0.75, ..PLAIN }, &[]),
        ("top-k", SamplingRow { top_k: 4, ..PLAIN }, &[]),
        ("top-p", SamplingRow { top_p: 0.8, ..PLAIN }, &[]),
        ("min-p", SamplingRow { min_p: 0.2, ..PLAIN }, &[]),
        ("repetition penalty", SamplingRow { repetition_penalty: 1.5, ..PLAIN }, &[]),
        ("presence penalty", SamplingRow { presence_penalty: 0.7, ..PLAIN }, &[]),
        ("frequency penalty", SamplingRow { frequency_penalty: -0.4, ..PLAIN }, &[]),
        ("logit bias", PLAIN, &bias),
        ("bad tokens", PLAIN, &bad),
        ("allowed tokens", only, &allowed),
        ("one allowed token", only, &bias[1..2]),
        ("allowed, penalties, top-k", SamplingRow { repetition_penalty: 0.8, top_k: 3, ..only }, &allowed),
        (
            "everything",
            SamplingRow {
                temperature: 1.25,
                top_k: 6,
                top_p: 0.9,
                min_p: 0.05,
                repetition_penalty: 1.2,
                presence_penalty: 0.3,
                frequency_penalty: 0.2,
                ..PLAIN
            },
            &bias,
        ),
    ] {
        assert_distribution(what, row, list);
    }
}

/// Which of two tokens is better may turn on a rounding of their scores.
fn near_the_best(scores: &[f64]) -> Vec<usize> {
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // The list, each penalty and their sum round once each, to 2^-24 of numbers below 2^8.
    let off = 8.0 * 2f64.powi(-24 + 8);
    (0..scores.len()).filter(|&token| scores[token] >= best - off).collect()
}

/// Log-probabilities of row `r` and of its alternatives are the log-softmax of the logits as they came.
fn assert_reports(sampled: &Sampled, r: usize, logits: &[f64], n: usize) {
    let exact = log_softmax(logits);
    let n = n.min(logits.len());
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let top: Vec<usize> = sampled.top(r)[..n].iter().map(|&t| t as usize).collect();
    assert_eq!(top, order[..n], "alternatives of row {r}");
    let tokens = std::iter::once(sampled.tokens[r] as usize).chain(top);
    for (found, token) in sampled.logprobs(r).into_iter().zip(tokens) {
        let wanted = exact[token];
        let error = (found - wanted.value).abs();
        assert!(error <= wanted.error, "log-probability of {token}: {found}, not {}", wanted.value);
    }
}

fn any_list(vocab: u32) -> impl Strategy<Value = Vec<TokenBias>> {
    let bias = prop_oneof![1 => Just(NEVER), 2 => -100f32..100.0, 1 => Just(0.0)];
    prop::collection::btree_map(0..vocab, bias, 0..vocab as usize + 1)
        .prop_map(|map| map.into_iter().map(|(token, bias)| entry(token, bias)).collect())
}

fn any_row() -> impl Strategy<Value = SamplingRow> {
    let penalties = (0.5f32..2.0, -2f32..2.0, -2f32..2.0);
    let cuts = (0u32..6, prop_oneof![Just(1.0f32), 0.1f32..1.0], prop_oneof![Just(0.0f32), 0.0f32..0.5]);
    (prop_oneof![Just(0.0f32), 0.1f32..2.0], penalties, cuts, 0u32..=20, any::<bool>(), any::<u32>()).prop_map(
        |(temperature, (repetition, presence, frequency), (top_k, top_p, min_p), top_logprobs, only, seed)| {
            SamplingRow {
                seed: [seed, 1],
                state: 0,
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty: repetition,
                presence_penalty: presence,
                frequency_penalty: frequency,
                top_logprobs,
                flags: if only { ONLY_LISTED } else { 0 },
                ..PLAIN
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the knobs: a forbidden token is never chosen, a greedy choice is the best by f64, a draw has a
    /// probability, what is reported is of the logits as they came, and the token and nothing else is counted.
    #[test]
    fn knobs_hold_in_every_combination(
        row in any_row(), list in any_list(23), logits in prop::collection::vec(-20f32..20.0, 23),
        counts in prop::collection::vec(prop_oneof![Just(0), Just(IN_PROMPT), 0..4, Just(IN_PROMPT | 2)], 23),
    ) {
        let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let row = SamplingRow { biases: list.len() as u32, ..row };
        let sampled = sample_listed(std::slice::from_ref(&logits), &[row], &list, &counts);
        let scores = scores(&logits, &counts, &row, &list);
        if scores.iter().all(|s| *s == f64::NEG_INFINITY) {
            prop_assert_eq!(sampled.tokens[0], -1);
            prop_assert_eq!(sampled.sequence(0), counts);
            return Ok(());
        }
        let token = sampled.tokens[0] as usize;
        prop_assert!(scores[token] > f64::NEG_INFINITY, "token {} is forbidden", token);
        if row.temperature == 0.0 {
            prop_assert!(near_the_best(&scores).contains(&token), "{} of {:?}", token, scores);
        } else {
            // A cut may fall on either side of a token whose sum is within a rounding of it.
            let wider = SamplingRow { top_p: (row.top_p + 1e-5).min(1.0), min_p: row.min_p * (1.0 - 1e-5), ..row };
            let mut descending = scores.clone();
            descending.sort_by(|a, b| b.total_cmp(a));
            let last = (row.top_k as usize).checked_sub(1).map(|k| descending[k]);
            let tie = last.is_some_and(|last| (scores[token] - last).abs() < 1e-3);
            prop_assert!(tie || distribution(&scores, &wider)[token] > 0.0, "token {} was cut", token);
        }
        assert_reports(&sampled, 0, &logits, row.top_logprobs as usize);
        let mut expected = counts;
        expected[token] += 1;
        prop_assert_eq!(sampled.sequence(0), expected);
    }

    /// Where the lists of other rows lie, and that there are other rows, changes nothing.
    #[test]
    fn a_row_reads_its_own_list(
        rows in prop::collection::vec((any_row(), any_list(11), prop::collection::vec(-5f64..5.0, 11)), 1..5),
    ) {
        let (mut biases, mut params, mut alone) = (vec![], vec![], vec![]);
        for (i, (row, list, logits)) in rows.iter().enumerate() {
            let row = SamplingRow { biases: list.len() as u32, ..*row };
            alone.push(sample_listed(std::slice::from_ref(logits), &[row], list, &[0; 11]).tokens[0]);
            params.push(SamplingRow { first_bias: biases.len() as u32, state: i as i32, ..row });
            biases.extend_from_slice(list);
        }
        let logits: Vec<Vec<f64>> = rows.into_iter().map(|(_, _, logits)| logits).collect();
        prop_assert_eq!(sample_listed(&logits, &params, &biases, &vec![0; 11 * params.len()]).tokens, alone);
    }
}

/// A list of zeros is no list, and allowing all tokens is allowing any: the same draws.
#[test]
fn lists_that_change_nothing_change_nothing() {
    let n = 300;
    let zeros: Vec<TokenBias> = (0..8).map(|token| entry(token, 0.0)).collect();
    let draws = |row: SamplingRow, list: &[TokenBias]| {
        let params: Vec<SamplingRow> = (0..n).map(|step| SamplingRow { step, ..row }).collect();
        sample_listed(&vec![LOGITS.to_vec(); n as usize], &params, list, &[]).tokens
    };
    let plain = draws(PLAIN, &[]);
    assert_eq!(draws(SamplingRow { biases: 8, ..PLAIN }, &zeros), plain);
    assert_eq!(draws(SamplingRow { biases: 8, flags: ONLY_LISTED, ..PLAIN }, &zeros), plain);
}

/// Row by row: the given token, whatever the other knobs say, its rank in the list of alternatives, and no count.
#[test]
fn a_given_token_is_reported_and_neither_sampled_nor_counted() {
    let vocab = 30;
    let logits: Vec<f64> = (0..vocab).map(|i| f64::from(i * 7 % 30) / 4.0).collect();
    let given = [0, 29, 13];
    let list = [entry(0, NEVER), entry(13, NEVER)];
    let params = given.map(|token| SamplingRow {
        state: 0,
        temperature: 1.0,
        repetition_penalty: 2.0,
        biases: 2,
        flags: REPORT_GIVEN | ONLY_LISTED,
        ..SamplingRow::report(token, MAX_TOP_LOGPROBS as u32)
    });
    let counts: Vec<i32> = (0..vocab).map(|i| i % 3).collect();
    let sampled = sample_listed(&vec![logits.clone(); 3], &params, &list, &counts);
    assert_eq!(sampled.tokens, given.map(|token| token as i32));
    assert_eq!(sampled.sequence(0), counts);
    (0..3).for_each(|r| assert_reports(&sampled, r, &logits, MAX_TOP_LOGPROBS));
}

/// A broken logit shows even where a list would hide it: its row could report nothing.
#[test]
fn a_list_does_not_hide_a_broken_row() {
    let list = [entry(1, NEVER), entry(2, 0.0)];
    let rows = [
        (vec![0.0, f64::NAN, 1.0, 2.0], 0),
        (vec![f64::NAN, 0.0, 1.0, 2.0], ONLY_LISTED),
        (vec![f64::INFINITY, 0.0, 1.0, 2.0], ONLY_LISTED),
        (vec![0.0, f64::INFINITY, 1.0, 2.0], 0),
        (vec![0.0, 1.0, f64::NAN, 2.0], REPORT_GIVEN),
        // Only what is forbidden has a score.
        (vec![0.0, 1.0, f64::NEG_INFINITY, 2.0], ONLY_LISTED),
        (vec![0.0, 1.0, f64::NEG_INFINITY, 2.0], 0),
    ];
    for temperature in [0.0, 1.0] {
        let params: Vec<SamplingRow> =
            rows.iter().map(|&(_, flags)| SamplingRow { flags, biases: 2, temperature, ..GREEDY }).collect();
        let logits: Vec<Vec<f64>> = rows.iter().map(|(logits, _)| logits.clone()).collect();
        let tokens = sample_listed(&logits, &params, &list, &[]).tokens;
        assert_eq!(tokens[..6], [-1; 6]);
        assert!([0, 3].contains(&tokens[6]));
    }
}
