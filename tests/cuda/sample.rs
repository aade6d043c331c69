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

use ocelli::mem::{DType, Region};
use ocelli::ops::{IN_PROMPT, MAX_TOP_LOGPROBS, ONLY_LISTED, REPORT_GIVEN, Sample, SamplingRow, TokenBias};
use ocelli::plan::Backend;

use crate::parity::{Pair, Stage, Written, normal};
use crate::{gpu, timing};

const U: f64 = 1.0 / (1 << 24) as f64;
const WIDTH: usize = 1 + MAX_TOP_LOGPROBS;

const PLAIN: SamplingRow = SamplingRow { seed: [1, 2], temperature: 1.0, ..SamplingRow::GREEDY };

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

/// Every knob with a list, and rows whose token is given. `first_bias` is the number of a list of [`lists`], and `biases` 1
/// for a row that has one.
const LISTED: [SamplingRow; 10] = [
    SamplingRow { temperature: 0.0, top_logprobs: 20, biases: 1, ..PLAIN },
    SamplingRow { biases: 1, ..PLAIN },
    SamplingRow { temperature: 0.0, biases: 1, flags: ONLY_LISTED, ..PLAIN },
    SamplingRow { first_bias: 1, biases: 1, flags: ONLY_LISTED, top_logprobs: 4, ..PLAIN },
    SamplingRow { first_bias: 2, biases: 1, flags: ONLY_LISTED, temperature: 0.7, ..PLAIN },
    SamplingRow { first_bias: 1, biases: 1, top_k: 40, top_p: 0.95, min_p: 0.02, temperature: 0.8, ..PLAIN },
    SamplingRow { biases: 1, top_p: 0.9, flags: ONLY_LISTED, top_k: 50, ..PLAIN },
    SamplingRow { first_bias: 1, biases: 1, ..KNOBS[11] },
    SamplingRow { top_logprobs: 20, flags: REPORT_GIVEN, ..PLAIN },
    SamplingRow { state: 0, biases: 1, top_logprobs: 2, flags: REPORT_GIVEN | ONLY_LISTED, ..KNOBS[10] },
];

/// A third of the vocabulary, all of it, and one token; token 0, which has a finite logit in every kind of row, is in
/// all of them and never forbidden.
fn lists(vocab: usize) -> [Vec<TokenBias>; 3] {
    let bias = |i: usize| [0.5, f32::NEG_INFINITY, 0.0, -100.0, 1.25, 100.0, -0.75][i % 7];
    let every = |step: usize| (0..vocab).step_by(step).enumerate();
    let list = |step| every(step).map(|(i, token)| TokenBias { token: token as u32, bias: bias(i) }).collect();
    [list(3), list(1), list(vocab)]
}

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
    list: &'a [TokenBias],
    params: &'a SamplingRow,
}

impl Row<'_> {
    /// Scores after the row's list.
    fn biased(&self) -> Vec<f32> {
        let only = self.params.flags & ONLY_LISTED != 0;
        let mut scores = if only { vec![f32::NEG_INFINITY; self.raw.len()] } else { self.raw.to_vec() };
        for entry in self.list {
            scores[entry.token as usize] = self.raw[entry.token as usize] + entry.bias;
        }
        scores
    }

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
        self.biased().iter().enumerate().map(one).collect()
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
        if self.params.flags & REPORT_GIVEN != 0 {
            return vec![self.params.given as usize];
        }
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
    biases: Vec<TokenBias>,
    counts: Vec<i32>,
}

impl Batch {
    /// Rows whose `state` is not -1 get a row of counts of their own.
    fn new(vocab: usize, logits: Vec<f32>, params: Vec<SamplingRow>) -> Batch {
        Batch::listed(vocab, logits, params, Vec::new())
    }

    /// The same with [`lists`], for rows like those of [`LISTED`]: given tokens are spread over the vocabulary.
    fn with_lists(vocab: usize, logits: Vec<f32>, mut params: Vec<SamplingRow>) -> Batch {
        let lists = lists(vocab);
        let first = [0, lists[0].len(), lists[0].len() + lists[1].len()];
        for (r, row) in params.iter_mut().enumerate() {
            row.given = (r * r * 37 % vocab) as u32;
            if row.biases > 0 {
                let list = row.first_bias as usize;
                (row.first_bias, row.biases) = (first[list] as u32, lists[list].len() as u32);
            }
        }
        Batch::listed(vocab, logits, params, lists.concat())
    }

    fn listed(vocab: usize, logits: Vec<f32>, mut params: Vec<SamplingRow>, biases: Vec<TokenBias>) -> Batch {
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
            hash: stage.take(Region::Io, rows * 8),
            logits: stage.take(Region::Scratch, rows * vocab),
            params: stage.take(Region::Io, rows * size_of::<SamplingRow>()),
            biases: stage.take(Region::Io, size_of_val(&biases[..])),
            counts: stage.take(Region::Io, counts.len()),
            rows,
            vocab,
        };
        let pair = stage.open();
        pair.write(op.token, &vec![-77; rows]);
        pair.write(op.logprobs, &vec![77.0f32; rows * WIDTH]);
        pair.write(op.top, &vec![-77; rows * MAX_TOP_LOGPROBS]);
        pair.write(op.hash, &vec![77u8; rows * 8]);
        pair.write(op.logits, &logits);
        pair.write(op.params, bytemuck::cast_slice::<_, u8>(&params));
        pair.write(op.biases, bytemuck::cast_slice::<_, u8>(&biases));
        pair.write(op.counts, &counts);
        Batch { op, pair, logits, params, biases, counts }
    }

    fn row(&self, r: usize) -> Row<'_> {
        let (vocab, params) = (self.op.vocab, &self.params[r]);
        let state = usize::try_from(params.state).ok();
        let counts = state.map_or(&[][..], |s| &self.counts[s * vocab..(s + 1) * vocab]);
        let list = &self.biases[params.first_bias as usize..][..params.biases as usize];
        Row { raw: &self.logits[r * vocab..][..vocab], counts, list, params }
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
    let [token, logprobs, top, hash, _]: [Written; 5] =
        batch.pair.run(batch.op).try_into().unwrap_or_else(|_| panic!("five outputs"));
    assert_eq!(top.found, top.expected, "alternatives");
    assert_eq!(hash.found, hash.expected, "hashes of the logits");
    let mut expected_counts = batch.counts.clone();
    for r in 0..batch.op.rows {
        let (row, chosen, reference) = (batch.row(r), token.found[r], token.expected[r]);
        let allowed = row.allowed();
        let at = format!("vocab {}, row {r}, {:?}", batch.op.vocab, row.params);
        assert!(chosen >= 0.0 && allowed.contains(&(chosen as usize)), "{at}: {chosen} is not one of {allowed:?}");
        tally.rows += 1;
        tally.open += usize::from(allowed.len() > 1);
        tally.differ += usize::from(chosen != reference);
        if row.params.state >= 0 && row.params.flags & REPORT_GIVEN == 0 {
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
    compare_all(&KNOBS, Batch::new);
}

#[test]
fn lists_and_given_tokens_are_those_of_the_reference() {
    let Some(_device) = gpu::device() else { return };
    compare_all(&LISTED, Batch::with_lists);
}

/// `knobs` on every kind of logits, over vocabularies of all sorts.
fn compare_all(knobs: &[SamplingRow], batch: impl Fn(usize, Vec<f32>, Vec<SamplingRow>) -> Batch) {
    // 60001 scores do not fit into shared memory: they are computed again in each pass.
    for (vocab, rounds) in [(2, 4), (19, 8), (21, 8), (1003, 12), (12_000, 4), (32_064, 8), (60_001, 2)] {
        let mut tally = Tally::default();
        for round in 0..rounds {
            let params = (0..5 * knobs.len()).map(|r| SamplingRow {
                seed: [r as u32 * 7 + 1, round],
                step: round * 31 + r as u32 % 3,
                ..knobs[r / 5]
            });
            let params: Vec<SamplingRow> = params.collect();
            let batch = batch(vocab, logits(params.len(), vocab, u64::from(round) + 1), params);
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
    let vocab = 32_064;
    for (knobs, batch) in [(&KNOBS[..], Batch::new as fn(_, _, _) -> Batch), (&LISTED, Batch::with_lists)] {
        let params: Vec<SamplingRow> = knobs.iter().map(|row| SamplingRow { state: -1, ..*row }).collect();
        alike(&batch(vocab, logits(params.len(), vocab, 9), params));
    }
}

/// Each row of a batch for itself against the whole.
fn alike(batch: &Batch) {
    let (vocab, rows) = (batch.op.vocab, batch.op.rows);
    let outputs = |op: Sample| batch.pair.run(op).into_iter().map(|w| w.found).collect::<Vec<_>>();
    let all = outputs(batch.op);
    for r in 0..rows {
        let (op, record) = (batch.op, size_of::<SamplingRow>());
        let alone = outputs(Sample {
            token: op.token.slice(r..r + 1),
            logprobs: op.logprobs.slice(r * WIDTH..(r + 1) * WIDTH),
            top: op.top.slice(r * MAX_TOP_LOGPROBS..(r + 1) * MAX_TOP_LOGPROBS),
            hash: op.hash.slice(r * 8..(r + 1) * 8),
            logits: op.logits.slice(r * vocab..(r + 1) * vocab),
            params: op.params.slice(r * record..(r + 1) * record),
            rows: 1,
            ..op
        });
        assert_eq!(alone[0][..], all[0][r..r + 1]);
        assert_eq!(alone[1][..], all[1][r * WIDTH..(r + 1) * WIDTH]);
        assert_eq!(alone[3][..], all[3][r * 8..(r + 1) * 8]);
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

/// A list does not hide a NaN or an infinity, and may leave no token at all.
#[test]
fn a_row_that_a_list_leaves_without_a_finite_score_yields_minus_one() {
    let Some(_device) = gpu::device() else { return };
    // 60001 scores do not fit into shared memory.
    for vocab in [7, 32_064, 60_001] {
        let biases = vec![
            TokenBias { token: 1, bias: f32::NEG_INFINITY },
            TokenBias { token: vocab as u32 - 1, bias: f32::NEG_INFINITY },
            TokenBias { token: 2, bias: 0.5 },
        ];
        let mut x = logits(5, vocab, 3);
        x.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = -9.0);
        x[vocab - 1] = f32::NAN;
        x[vocab + 3] = f32::NAN;
        x[2 * vocab + 3] = f32::INFINITY;
        for temperature in [0.0, 1.0] {
            let row = |first_bias, biases, flags| SamplingRow { temperature, first_bias, biases, flags, ..PLAIN };
            let params = [
                row(0, 2, 0),
                row(2, 1, ONLY_LISTED),
                row(2, 1, ONLY_LISTED),
                row(0, 2, ONLY_LISTED),
                row(2, 1, ONLY_LISTED),
            ];
            let batch = Batch::listed(vocab, x.clone(), params.to_vec(), biases.clone());
            let written = batch.pair.run(batch.op);
            assert_eq!(written[0].expected, [-1.0, -1.0, -1.0, -1.0, 2.0]);
            assert_eq!(written[0].found, written[0].expected);
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
    let report = SamplingRow { top_logprobs: 20, flags: REPORT_GIVEN, ..PLAIN };
    for (what, row, entries) in [
        ("greedy with 16 biases", SamplingRow { temperature: 0.0, ..PLAIN }, 16),
        ("greedy with 2048 biases", SamplingRow { temperature: 0.0, ..PLAIN }, 2048),
        ("temperature 1 with 300 biases", PLAIN, 300),
        ("temperature 1 of 2048 allowed", SamplingRow { flags: ONLY_LISTED, ..PLAIN }, 2048),
        ("a given token with 20 alternatives", report, 0),
    ] {
        let entry = |i: usize| TokenBias { token: (i * vocab / entries) as u32, bias: (i % 3) as f32 };
        let biases: Vec<TokenBias> = (0..entries).map(entry).collect();
        for rows in [1, 64, 256] {
            let params = vec![SamplingRow { biases: entries as u32, ..row }; rows];
            let batch = Batch::listed(vocab, logits(rows, vocab, 5), params, biases.clone());
            timing::print(&batch.pair.cuda, DType::F16, &format!("{rows} rows, {what}"), batch.op);
        }
    }
}
