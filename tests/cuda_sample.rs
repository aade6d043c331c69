//! Sample on a GPU: tokens, alternatives and counts against the reference, tokens and log-probabilities against f64.
//!
//! Scores, the threshold of top-k and the random words are exact. Three things round, and there two right answers may
//! differ; [`Row::allowed`] says in f64 which tokens may come out. With `u = 2^-24`:
//!
//! * top-p: a cumulative sum of `n` terms in f32 is off by at most `n u` of itself, an exponential by 2 units in the last
//!   place and by the rounding of its argument. A token whose sum is that near to `1 - p` may stay or go.
//! * min-p: so may one whose exponential is that near to the limit.
//! * The draw: each of the two logarithms is off by at most 2 units in the last place, and their sum with the score is
//!   rounded. Two tokens whose perturbed scores are that near may change places.

#![cfg(feature = "cuda")]
// The helpers of tests print, too.
#![allow(clippy::print_stdout)]

mod gpu;
// Each test uses a part of it.
#[allow(dead_code)]
#[path = "gpu/parity.rs"]
mod parity;
#[path = "gpu/timing.rs"]
mod timing;

use ocelli::mem::{DType, Region};
use ocelli::ops::{IN_PROMPT, MAX_TOP_LOGPROBS, Sample, SamplingRow};
use ocelli::plan::Backend;
use parity::{Pair, Stage, Written, normal};

const U: f64 = 1.0 / (1 << 24) as f64;
const WIDTH: usize = 1 + MAX_TOP_LOGPROBS;

const PLAIN: SamplingRow = SamplingRow {
    seed: [1, 2],
    step: 0,
    state: -1,
    temperature: 1.0,
    top_p: 1.0,
    min_p: 0.0,
    top_k: 0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    top_logprobs: 0,
};

/// Every knob alone and together.
const KNOBS: [SamplingRow; 12] = [
    SamplingRow { temperature: 0.0, top_logprobs: 20, ..PLAIN },
    PLAIN,
    SamplingRow { temperature: 0.7, top_logprobs: 5, ..PLAIN },
    SamplingRow { top_k: 1, ..PLAIN },
    SamplingRow { top_k: 50, temperature: 1.3, ..PLAIN },
    SamplingRow { top_p: 0.9, ..PLAIN },
    SamplingRow { top_p: 0.5, temperature: 2.0, ..PLAIN },
    SamplingRow { top_p: 1e-6, ..PLAIN },
    SamplingRow { min_p: 0.05, ..PLAIN },
    SamplingRow { top_k: 40, top_p: 0.95, min_p: 0.02, temperature: 0.8, ..PLAIN },
    SamplingRow { state: 0, repetition_penalty: 1.3, temperature: 0.0, top_logprobs: 3, ..PLAIN },
    SamplingRow {
        state: 0,
        repetition_penalty: 0.9,
        frequency_penalty: 0.3,
        presence_penalty: -0.4,
        top_p: 0.8,
        temperature: 1.1,
        top_logprobs: 20,
        ..PLAIN
    },
];

/// First word of Philox 4x32-10 for `token`; the known answers are a test of the library.
fn philox(token: usize, row: &SamplingRow) -> u32 {
    let (mut c, mut k) = ([token as u32, row.step, 0, 0], row.seed);
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c[0]
}

/// Which tokens must stay and which may, of those that a limit keeps.
#[derive(Clone, Copy)]
struct Stays {
    surely: bool,
    perhaps: bool,
}

impl Stays {
    /// Of a token that stays while `x` is above `limit`, where `x` is known to `off`.
    fn above(x: f64, limit: f64, off: f64) -> Stays {
        Stays { surely: x > limit + off, perhaps: x > limit - off }
    }

    fn and(self, other: Stays) -> Stays {
        Stays { surely: self.surely && other.surely, perhaps: self.perhaps && other.perhaps }
    }
}

/// One row of logits and how it is sampled; `counts` is empty where penalties are off.
struct Row<'a> {
    raw: &'a [f32],
    counts: &'a [i32],
    params: &'a SamplingRow,
}

impl Row<'_> {
    /// Scores after penalties: f32, each step rounded by itself.
    fn penalised(&self) -> Vec<f32> {
        let p = self.params;
        let one = |(i, &raw): (usize, &f32)| {
            let count = self.counts.get(i).copied().unwrap_or(0);
            let generated = count & (IN_PROMPT - 1);
            let repeated = if raw < 0.0 { raw * p.repetition_penalty } else { raw / p.repetition_penalty };
            let s = if count != 0 { repeated } else { raw };
            if generated > 0 { s - (p.frequency_penalty * generated as f32 + p.presence_penalty) } else { s }
        };
        self.raw.iter().enumerate().map(one).collect()
    }

    fn kept(&self, scores: &[f32]) -> Vec<Stays> {
        let (p, n) = (self.params, scores.len());
        let mut stays = vec![Stays { surely: true, perhaps: true }; n];
        let mut ascending: Vec<usize> = (0..n).collect();
        ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
        let max = f64::from(scores[ascending[n - 1]]);
        if p.top_k > 0 && (p.top_k as usize) < n {
            let threshold = scores[ascending[n - p.top_k as usize]];
            let exact = |s: f32| Stays { surely: s >= threshold, perhaps: s >= threshold };
            stays = scores.iter().map(|&s| exact(s)).collect();
        }
        let weight = |s: f32| (f64::from(s) - max).exp();
        // What an exponential in f32 may be off by: its own 2 units in the last place, and the rounding of its argument,
        // which is a difference to the largest score or to the normaliser.
        let off = |s: f32| (4.0 + 2.0 * (f64::from(s).abs() + max.abs() + 20.0)) * U;
        if p.top_p < 1.0 {
            let weights: Vec<f64> = (0..n).map(|i| if stays[i].surely { weight(scores[i]) } else { 0.0 }).collect();
            let limit = f64::from(1.0 - p.top_p) * weights.iter().sum::<f64>();
            let (mut sum, mut terms) = (0.0, 0.0);
            for &i in &ascending[..n - 1] {
                (sum, terms) = (sum + weights[i], terms + 1.0);
                let near = sum * (terms * U + off(scores[i])) + limit * 60.0 * U;
                stays[i] = stays[i].and(Stays::above(sum, limit, near));
            }
        }
        if p.min_p > 0.0 {
            let min_p = f64::from(p.min_p);
            for i in 0..n {
                stays[i] = stays[i].and(Stays::above(weight(scores[i]), min_p, min_p * off(scores[i])));
            }
        }
        stays
    }

    /// Tokens that a right implementation may choose.
    fn allowed(&self) -> Vec<usize> {
        let penalised = self.penalised();
        if self.params.temperature < 1e-5 {
            let max = penalised.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            return penalised.iter().position(|&s| s == max).into_iter().collect();
        }
        let scores: Vec<f32> = penalised.iter().map(|s| s / self.params.temperature).collect();
        let perturbed = |i: usize| {
            let u = (f64::from(philox(i, self.params) >> 9) + 0.5) * 2f64.powi(-23);
            let noise = -(-u.ln()).ln();
            let sum = f64::from(scores[i]) + noise;
            (sum, (4.0 + 4.0 * noise.abs() + sum.abs()) * U)
        };
        let stays = self.kept(&scores);
        let candidates: Vec<(usize, f64, f64)> = (0..scores.len())
            .filter(|&i| stays[i].perhaps && scores[i] > f32::NEG_INFINITY)
            .map(|i| (i, perturbed(i).0, perturbed(i).1))
            .collect();
        let sure = candidates.iter().filter(|c| stays[c.0].surely);
        let least = sure.map(|c| c.1 - c.2).fold(f64::NEG_INFINITY, f64::max);
        candidates.iter().filter(|c| c.1 + c.2 >= least).map(|c| c.0).collect()
    }

    /// Log of the sum of exponentials of the raw logits, and what f32 may be off by: the arguments' rounding weighted by
    /// the terms, 2 units in the last place an exponential, the additions, the logarithm and the last addition.
    fn normaliser(&self) -> (f64, f64) {
        let max = f64::from(self.raw.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let terms = self.raw.iter().map(|&x| f64::from(x) - max).filter(|d| d.is_finite());
        let (sum, arguments) = terms.fold((0.0, 0.0), |(s, a), d| (s + d.exp(), a + d.exp() * d.abs()));
        let additions = self.raw.len().div_ceil(1024) as f64 + 10.0;
        let log = sum.ln();
        (max + log, (arguments / sum + 4.0 + additions + 2.0 * log.abs() + (max + log).abs()) * U)
    }
}

struct Batch {
    op: Sample,
    pair: Pair,
    logits: Vec<f32>,
    params: Vec<SamplingRow>,
    counts: Vec<i32>,
}

impl Batch {
    /// Rows whose `state` is not -1 get a row of counts of their own.
    fn new(vocab: usize, logits: Vec<f32>, mut params: Vec<SamplingRow>) -> Batch {
        let rows = params.len();
        let mut states = 0;
        for row in params.iter_mut().filter(|row| row.state >= 0) {
            (row.state, states) = (states, states + 1);
        }
        let count = |i: usize| [0, 0, IN_PROMPT, 2, 0, IN_PROMPT | 1, 0][i * i % 7];
        let counts: Vec<i32> = (0..states.max(1) as usize * vocab).map(count).collect();
        let mut stage = Stage::new(DType::F16);
        let op = Sample {
            token: stage.take(Region::Io, rows),
            logprobs: stage.take(Region::Io, rows * WIDTH),
            top: stage.take(Region::Io, rows * MAX_TOP_LOGPROBS),
            logits: stage.take(Region::Scratch, rows * vocab),
            params: stage.take(Region::Io, rows * size_of::<SamplingRow>()),
            counts: stage.take(Region::Io, counts.len()),
            rows,
            vocab,
        };
        let pair = stage.open();
        pair.write(op.token, &vec![-77; rows]);
        pair.write(op.logprobs, &vec![77.0f32; rows * WIDTH]);
        pair.write(op.top, &vec![-77; rows * MAX_TOP_LOGPROBS]);
        pair.write(op.logits, &logits);
        pair.write(op.params, bytemuck::cast_slice::<_, u8>(&params));
        pair.write(op.counts, &counts);
        Batch { op, pair, logits, params, counts }
    }

    fn row(&self, r: usize) -> Row<'_> {
        let (vocab, params) = (self.op.vocab, &self.params[r]);
        let state = usize::try_from(params.state).ok();
        let counts = state.map_or(&[][..], |s| &self.counts[s * vocab..(s + 1) * vocab]);
        Row { raw: &self.logits[r * vocab..][..vocab], counts, params }
    }
}

/// How often something was compared, and how often two right answers differed.
#[derive(Default)]
struct Tally {
    rows: usize,
    open: usize,
    differ: usize,
    logprobs: f64,
}

fn compare(batch: &Batch, tally: &mut Tally) {
    let [token, logprobs, top, _]: [Written; 4] =
        batch.pair.run(batch.op).try_into().unwrap_or_else(|_| panic!("four outputs"));
    assert_eq!(top.found, top.expected, "alternatives");
    let mut expected_counts = batch.counts.clone();
    for r in 0..batch.op.rows {
        let (row, chosen, reference) = (batch.row(r), token.found[r], token.expected[r]);
        let allowed = row.allowed();
        let at = format!("vocab {}, row {r}, {:?}", batch.op.vocab, row.params);
        assert!(chosen >= 0.0 && allowed.contains(&(chosen as usize)), "{at}: {chosen} is not one of {allowed:?}");
        tally.rows += 1;
        tally.open += usize::from(allowed.len() > 1);
        tally.differ += usize::from(chosen != reference);
        if row.params.state >= 0 {
            expected_counts[row.params.state as usize * batch.op.vocab + chosen as usize] += 1;
        }

        let (normaliser, off) = row.normaliser();
        let n = (row.params.top_logprobs as usize).min(batch.op.vocab);
        let alternatives = top.found[r * MAX_TOP_LOGPROBS..][..n].iter();
        for (j, id) in std::iter::once(&chosen).chain(alternatives).enumerate() {
            let (found, exact) = (logprobs.found[r * WIDTH + j], f64::from(row.raw[*id as usize]) - normaliser);
            if exact == f64::NEG_INFINITY {
                assert_eq!(found, f32::NEG_INFINITY, "{at}: log-probability of {id}");
                continue;
            }
            let share = (f64::from(found) - exact).abs() / (off + exact.abs() * U);
            assert!(share <= 1.0, "{at}: log-probability of {id} is {found}, not {exact}");
            tally.logprobs = tally.logprobs.max(share);
        }
        assert!(logprobs.found[r * WIDTH..][1 + n..WIDTH].iter().all(|&v| v == 77.0), "{at}: more than was asked for");
    }
    let mut found = vec![0; expected_counts.len()];
    batch.pair.cuda.read(batch.op.counts, &mut found).unwrap();
    assert_eq!(found, expected_counts, "counts");
}

/// `rows` rows of logits: normal, peaked as a model's are, on a coarse grid with many ties, and partly minus infinity.
fn logits(rows: usize, vocab: usize, seed: u64) -> Vec<f32> {
    let mut x = normal(rows * vocab, seed);
    for (r, row) in x.chunks_exact_mut(vocab).enumerate() {
        for (i, v) in row.iter_mut().enumerate() {
            *v = match r % 5 {
                0 => *v * 3.0,
                1 => *v * 2.0 - 8.0 + if i % 97 == 3 { 14.0 } else { 0.0 },
                2 => (*v * 8.0).round() / 4.0,
                3 if i % 3 == 1 => f32::NEG_INFINITY,
                3 => *v,
                _ => (*v * 1.5).powi(3),
            };
        }
    }
    x
}

#[test]
fn tokens_are_those_of_the_reference() {
    let Some(_device) = gpu::device() else { return };
    // 60001 scores do not fit into shared memory: they are computed again in each pass.
    for (vocab, rounds) in [(2, 4), (19, 8), (21, 8), (1003, 12), (32_064, 8), (60_001, 2)] {
        let mut tally = Tally::default();
        for round in 0..rounds {
            let params = (0..5 * KNOBS.len()).map(|r| SamplingRow {
                seed: [r as u32 * 7 + 1, round],
                step: round * 31 + r as u32 % 3,
                ..KNOBS[r / 5]
            });
            let params: Vec<SamplingRow> = params.collect();
            let batch = Batch::new(vocab, logits(params.len(), vocab, u64::from(round) + 1), params);
            compare(&batch, &mut tally);
        }
        let Tally { rows, open, differ, logprobs } = tally;
        println!(
            "vocab {vocab}: {differ} of {rows} tokens are not the reference's, {open} rows have more than one right \
             answer; log-probabilities use {:.1} % of their bound",
            100.0 * logprobs
        );
        assert!(differ <= open);
    }
}

#[test]
fn a_row_is_sampled_alike_alone_and_among_others() {
    let Some(_device) = gpu::device() else { return };
    let (vocab, rows) = (32_064, KNOBS.len());
    let params: Vec<SamplingRow> = KNOBS.iter().map(|row| SamplingRow { state: -1, ..*row }).collect();
    let batch = Batch::new(vocab, logits(rows, vocab, 9), params);
    let outputs = |op: Sample| batch.pair.run(op).into_iter().map(|w| w.found).collect::<Vec<_>>();
    let all = outputs(batch.op);
    for r in 0..rows {
        let (op, record) = (batch.op, size_of::<SamplingRow>());
        let alone = outputs(Sample {
            token: op.token.slice(r..r + 1),
            logprobs: op.logprobs.slice(r * WIDTH..(r + 1) * WIDTH),
            top: op.top.slice(r * MAX_TOP_LOGPROBS..(r + 1) * MAX_TOP_LOGPROBS),
            logits: op.logits.slice(r * vocab..(r + 1) * vocab),
            params: op.params.slice(r * record..(r + 1) * record),
            rows: 1,
            ..op
        });
        assert_eq!(alone[0][..], all[0][r..r + 1]);
        assert_eq!(alone[1][..], all[1][r * WIDTH..(r + 1) * WIDTH]);
    }
}

#[test]
fn a_row_without_a_finite_score_yields_minus_one_and_nothing_else() {
    let Some(_device) = gpu::device() else { return };
    for vocab in [1, 33, 32_064] {
        let mut x = logits(4, vocab, 3);
        x[vocab - 1] = f32::NAN;
        x[vocab..2 * vocab].fill(f32::NEG_INFINITY);
        x[2 * vocab + vocab / 2] = f32::INFINITY;
        x[3 * vocab] = 40.0;
        for temperature in [0.0, 1.0] {
            let row = SamplingRow { temperature, state: 0, top_logprobs: 2, ..PLAIN };
            let batch = Batch::new(vocab, x.clone(), vec![row; 4]);
            let written = batch.pair.run(batch.op);
            assert_eq!(written[0].found, [-1.0, -1.0, -1.0, 0.0]);
            for w in &written {
                w.within(&format!("vocab {vocab}, {:?}", w.span), |_, e| 1e-5 * (1.0 + e.abs()));
            }
        }
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    let vocab = 32_064;
    for (what, row) in [
        ("greedy", SamplingRow { temperature: 0.0, ..PLAIN }),
        ("greedy with 20 alternatives", SamplingRow { temperature: 0.0, top_logprobs: 20, ..PLAIN }),
        ("temperature 1", PLAIN),
        ("top-p 0.9", SamplingRow { top_p: 0.9, ..PLAIN }),
        ("top-k 50", SamplingRow { top_k: 50, ..PLAIN }),
        ("everything", KNOBS[11]),
        ("top-k 40, top-p 0.95, min-p 0.02", KNOBS[9]),
    ] {
        for rows in [1, 64, 256] {
            let batch = Batch::new(vocab, logits(rows, vocab, 5), vec![row; rows]);
            timing::print(&batch.pair.cuda, DType::F16, &format!("{rows} rows, {what}"), batch.op);
        }
    }
}
