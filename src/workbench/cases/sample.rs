//! From logits to tokens.

use super::{Case, Size, Tolerance, U};
use crate::kernel::Kernel;
use crate::mem::Region;
use crate::ops::{IN_PROMPT, MAX_TOP_LOGPROBS, ONLY_LISTED, Sample, SamplingRow, TokenBias};
use crate::workbench::Bed;

/// The most likely token, and with its alternatives; all of the draw; everything at once, on a sequence of its own.
const ROWS: [SamplingRow; 4] = [
    SamplingRow::GREEDY,
    SamplingRow { top_logprobs: 20, ..SamplingRow::GREEDY },
    SamplingRow { temperature: 0.8, seed: [7, 11], step: 3, top_logprobs: 5, ..SamplingRow::GREEDY },
    SamplingRow {
        seed: [1, 2],
        step: 9,
        state: 0,
        temperature: 1.1,
        top_p: 0.9,
        min_p: 0.01,
        top_k: 50,
        repetition_penalty: 1.3,
        presence_penalty: 0.2,
        frequency_penalty: 0.3,
        top_logprobs: 3,
        ..SamplingRow::GREEDY
    },
];

/// Tokens, alternatives and counts are exact. A log-probability is the logarithm of a sum of exponentials: each is off by
/// two units of its own and by the rounding of its argument, which is below 20; the sum by one for every 1024 tokens and
/// 15 more; all of it relative, so absolute in the logarithm.
fn sample(what: &str, size: Size, rows: Vec<SamplingRow>, vocab: usize) -> Case {
    listed(what, size, rows, vocab, Vec::new())
}

/// The same with the lists that the rows point into.
fn listed(what: &str, size: Size, rows: Vec<SamplingRow>, vocab: usize, biases: Vec<TokenBias>) -> Case {
    let arithmetic = (vocab as f64 / 1024.0 + 50.0) * U;
    let tolerance = Tolerance { arithmetic, ulps: 2.0, ..Tolerance::BITS };
    let name = format!("{what} {}x{vocab}", rows.len());
    Case::new(Sample::NAME, name, size, tolerance, move |bed: &mut Bed| {
        // A sequence for every row that has one, with some tokens of the prompt and some of the answer.
        let states = rows.iter().filter(|row| row.state >= 0).count().max(1);
        let count = |i: usize| if i.is_multiple_of(5) { IN_PROMPT } else { i32::from(i.is_multiple_of(7)) };
        let counts: Vec<i32> = (0..states * vocab).map(count).collect();
        let alternatives = vec![-7; rows.len() * MAX_TOP_LOGPROBS];
        Sample {
            token: bed.output(Region::Io, rows.len()),
            // What a row does not ask for is left alone.
            logprobs: bed.uniform(Region::Io, rows.len() * (1 + MAX_TOP_LOGPROBS), 1.0),
            top: bed.ints(&alternatives),
            logits: bed.uniform(Region::Io, rows.len() * vocab, 8.0),
            params: bed.bytes_of(bytemuck::cast_slice(&rows)),
            biases: bed.bytes_of(bytemuck::cast_slice(&biases)),
            counts: bed.ints(&counts),
            rows: rows.len(),
            vocab,
        }
    })
}

/// `n` rows like `row`, each with a seed and, where it has one, a sequence of its own.
fn repeat(row: SamplingRow, n: usize) -> Vec<SamplingRow> {
    let own = |i| SamplingRow { seed: [i, 5], state: if row.state < 0 { -1 } else { i as i32 }, ..row };
    (0..n as u32).map(own).collect()
}

/// Every third token: one in seven of them forbidden, the others biased by -1 to 1.
fn list(vocab: usize) -> Vec<TokenBias> {
    let bias = |token: usize| if token % 7 == 6 { f32::NEG_INFINITY } else { (token % 5) as f32 / 2.0 - 1.0 };
    (0..vocab).step_by(3).map(|token| TokenBias { token: token as u32, bias: bias(token) }).collect()
}

/// A list of the whole, the end of it as the only tokens, with everything else, and a row that reports its last token.
fn with_lists(vocab: usize) -> Vec<SamplingRow> {
    let [_, greedy, draw, everything] = ROWS;
    let biases = list(vocab).len() as u32;
    let half = biases / 2;
    vec![
        SamplingRow { biases, ..greedy },
        SamplingRow { first_bias: half, biases: biases - half, flags: ONLY_LISTED, ..draw },
        SamplingRow { biases, ..everything },
        SamplingRow::report(vocab as u32 - 1, 20),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let [greedy, reported, draw, everything] = ROWS;
    vec![
        sample("every kind", Size::Edge, ROWS.to_vec(), 331),
        sample("two tokens", Size::Edge, repeat(draw, 2), 2),
        sample("odd", Size::Edge, repeat(everything, 3), 1027),
        listed("lists", Size::Edge, with_lists(331), 331, list(331)),
        sample("greedy", Size::Real, repeat(greedy, 1), 32064),
        sample("greedy", Size::Real, repeat(greedy, 8), 32064),
        sample("greedy, 20 alternatives", Size::Real, repeat(reported, 1), 32064),
        sample("draw", Size::Real, repeat(draw, 8), 32064),
        sample("everything", Size::Real, repeat(everything, 8), 32064),
        listed("lists", Size::Real, with_lists(32064), 32064, list(32064)),
    ]
}
