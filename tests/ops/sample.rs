//! Sample, through memory: what a row of parameters makes of a row of logits, and what is left in the four outputs.

use ocelli::mem::{Buf, DType, Region};
use ocelli::ops::{IN_PROMPT, MAX_TOP_LOGPROBS, Sample, SamplingRow, TokenBias};

use crate::bed::{Bed, Ran, Rng};
use crate::bound::{Account, Exact, SLACK, U};

const GREEDY: SamplingRow = SamplingRow { seed: [1, 2], ..SamplingRow::GREEDY };

pub struct Sampled {
    op: Sample,
    ran: Ran,
    pub tokens: Vec<i32>,
}

/// Sample rows of `logits`; `counts` holds the sequences.
fn sample(logits: &[Vec<f64>], params: &[SamplingRow], counts: &[i32]) -> Sampled {
    sample_listed(logits, params, &[], counts)
}

/// The same with the lists that the rows point into.
pub fn sample_listed(logits: &[Vec<f64>], params: &[SamplingRow], biases: &[TokenBias], counts: &[i32]) -> Sampled {
    let (rows, vocab) = (logits.len(), logits[0].len());
    let mut bed = Bed::new(DType::F32, 51);
    let op = Sample {
        token: bed.ints(&vec![-77; rows]),
        logprobs: bed.random(Region::Io, rows * (1 + MAX_TOP_LOGPROBS), 1.0),
        top: bed.ints(&vec![-77; rows * MAX_TOP_LOGPROBS]),
        hash: bed.bytes(&vec![77; rows * 8]),
        logits: bed.put(Region::Scratch, &logits.concat()),
        params: bed.bytes(bytemuck::cast_slice(params)),
        biases: bed.bytes(bytemuck::cast_slice(biases)),
        counts: bed.ints(counts),
        rows,
        vocab,
    };
    let ran = bed.run(op);
    let tokens = ran.ints(op.token);
    Sampled { op, ran, tokens }
}

impl Sampled {
    pub fn logprobs(&self, row: usize) -> Vec<f64> {
        let width = 1 + MAX_TOP_LOGPROBS;
        self.ran.output(self.op.logprobs.slice(row * width..(row + 1) * width))
    }

    pub fn top(&self, row: usize) -> Vec<i32> {
        self.ran.ints(self.op.top.slice(row * MAX_TOP_LOGPROBS..(row + 1) * MAX_TOP_LOGPROBS))
    }

    pub fn sequence(&self, state: usize) -> Vec<i32> {
        let counts: Buf<i32> = self.op.counts.slice(state * self.op.vocab..(state + 1) * self.op.vocab);
        self.ran.ints(counts)
    }
}

/// The log-softmax of a row. f32 rounds `logit - max`, the normaliser and the last difference; the exponentials and
/// their sum may be f32 too: `(n + 2) u`.
pub fn log_softmax(row: &[f64]) -> Vec<Exact> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = row.iter().copied().fold(f64::INFINITY, f64::min);
    let normaliser = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    let error = (row.len() as f64 + 2.0 + (max - min) + 2.0 * normaliser.abs()) * U * SLACK;
    row.iter().map(|x| Exact { value: x - normaliser, error }).collect()
}

#[test]
fn greedy_rows_report_the_log_softmax_and_the_alternatives_in_order() {
    let mut account = Account::new("sample, logprobs", DType::F32);
    for vocab in [1, 2, 19, 21, 1003] {
        let mut rng = Rng::new(vocab as u64);
        let logits: Vec<Vec<f64>> = (0..3).map(|_| rng.numbers(vocab, 8.0)).collect();
        let asked = [0, 5, MAX_TOP_LOGPROBS];
        let params = asked.map(|n| SamplingRow { top_logprobs: n as u32, ..GREEDY });
        let sampled = sample(&logits, &params, &[]);
        for (i, row) in sampled.ran.input(sampled.op.logits).chunks(vocab).enumerate() {
            let mut order: Vec<usize> = (0..vocab).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let n = asked[i].min(vocab);
            let exact = log_softmax(row);
            assert_eq!(sampled.tokens[i] as usize, order[0], "vocabulary of {vocab}, row {i}");
            let wanted: Vec<Exact> = std::iter::once(0).chain(0..n).map(|rank| exact[order[rank]]).collect();
            account.check(format_args!("vocabulary of {vocab}"), &sampled.logprobs(i)[..1 + n], &wanted);
            assert!(sampled.top(i).iter().zip(&order).take(n).all(|(&t, &o)| t as usize == o), "alternatives");
        }
    }
}

#[test]
fn equals_go_to_the_lowest_id() {
    let mut row = vec![0.0; 300];
    [17, 40, 299].into_iter().for_each(|i| row[i] = 2.5);
    let sampled = sample(&[row], &[SamplingRow { top_logprobs: 4, ..GREEDY }], &[]);
    assert_eq!(sampled.tokens, [17]);
    assert_eq!(sampled.top(0)[..4], [17, 40, 299, 0]);
}

#[test]
fn a_row_without_an_answer_is_minus_one_and_spoils_no_other() {
    let good = vec![0.0, 1.0, 3.0, 2.0];
    let rows = [good.clone(), vec![0.0, f64::NAN, 9.0, 1.0], vec![f64::NEG_INFINITY; 4], good];
    for temperature in [0.0, 1.0] {
        let params = [0, 1, 2, 3].map(|state| SamplingRow { state, temperature, top_k: 1, ..GREEDY });
        let sampled = sample(&rows, &params, &[0; 16]);
        assert_eq!(sampled.tokens, [2, -1, -1, 2]);
        let counted = [0, 0, 1, 0];
        assert_eq!([0, 1, 2, 3].map(|s| sampled.sequence(s)), [&counted[..], &[0; 4], &[0; 4], &counted]);
    }
}

/// Forbidden tokens are minus infinity: never drawn, and no trouble for the others.
#[test]
fn a_forbidden_token_is_never_drawn() {
    let row = vec![f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY, 0.5, f64::NEG_INFINITY];
    let params: Vec<SamplingRow> =
        (0..500).map(|step| SamplingRow { step, temperature: 2.0, top_p: 0.99, min_p: 0.01, ..GREEDY }).collect();
    let sampled = sample(&vec![row; 500], &params, &[]);
    assert!(sampled.tokens.iter().all(|t| [1, 3].contains(t)), "{:?}", sampled.tokens);
    assert!([1, 3].iter().all(|t| sampled.tokens.contains(t)));
}

#[test]
fn penalties_change_the_choice_and_every_choice_is_counted() {
    let logits = vec![vec![1.0, 3.0, 2.9, -1.0, 2.8]; 5];
    // Sequence 0 has token 1 in its prompt, sequence 1 has generated token 1 twice and token 2 once.
    let counts = [0, IN_PROMPT, 0, 0, 0, 0, IN_PROMPT | 2, 1, 0, 0];
    let params = [
        GREEDY,
        SamplingRow { state: 0, repetition_penalty: 1.1, ..GREEDY },
        SamplingRow { state: 0, presence_penalty: 2.0, frequency_penalty: 2.0, ..GREEDY },
        SamplingRow { state: 1, frequency_penalty: 0.15, ..GREEDY },
        SamplingRow { state: 1, presence_penalty: 0.5, ..GREEDY },
    ]
    .map(|row| SamplingRow { top_logprobs: 3, ..row });
    // Row 1: 3.0 / 1.1 < 2.9. Row 2: the prompt does not count, and token 2 has been generated by now.
    // Row 3: 2.7, 2.75 and 2.8. Row 4, the same sequence after that: 2.5, 2.4, 2.3.
    let sampled = sample(&logits, &params, &counts);
    assert_eq!(sampled.tokens, [1, 2, 1, 4, 1]);
    assert_eq!(sampled.sequence(0), [0, IN_PROMPT | 1, 1, 0, 0]);
    assert_eq!(sampled.sequence(1), [0, IN_PROMPT | 3, 1, 0, 1]);
    // Log-probabilities and alternatives are of the logits as they came.
    let raw = log_softmax(&[1.0, 3.0, 2.9, -1.0, 2.8]);
    for (row, &token) in sampled.tokens.iter().enumerate() {
        assert_eq!(sampled.top(row)[..3], [1, 2, 4]);
        for (found, token) in sampled.logprobs(row).into_iter().zip([token, 1, 2, 4]) {
            assert!((found - raw[token as usize].value).abs() < 1e-6);
        }
    }
}

#[test]
fn a_draw_depends_on_the_seed_and_the_step_and_not_on_its_neighbours() {
    let row = Rng::new(5).numbers(64, 2.0);
    let draw = |seed, step| SamplingRow { seed: [seed, 0], step, temperature: 1.0, ..GREEDY };
    let params: Vec<SamplingRow> = (0..40).map(|step| draw(9, step)).collect();
    let together = sample(&vec![row.clone(); 40], &params, &[]).tokens;
    let alone: Vec<i32> = params.iter().map(|p| sample(std::slice::from_ref(&row), &[*p], &[]).tokens[0]).collect();
    assert_eq!(together, alone);
    let other: Vec<SamplingRow> = (0..40).map(|step| draw(10, step)).collect();
    assert_ne!(together, sample(&vec![row; 40], &other, &[]).tokens);
}

/// 6000 draws with every knob in use, each of which decides once, against the distribution that is left: Pearson's
/// statistic stays below the 99.99 % quantile of chi-square. Seeds are fixed, so the test never flickers.
#[test]
fn draws_follow_the_distribution_that_the_knobs_leave() {
    // Token 3 is penalised by 1, then the temperature of 0.5 doubles all: 4 0.2 3.2 4 -4 2.4 4.8.
    let logits = [2.0, 0.1, 1.6, 3.0, -2.0, 1.2, 2.4];
    let scores = [4.0, 0.2, 3.2, 4.0, -4.0, 2.4, 4.8f64];
    // In descending order the probabilities of 6 0 3 2 5 1 are .454 .204 .204 .092 .041 .005.
    let cases = [
        // The second and third are equal.
        (2, 0.95, 0.1, &[0, 3, 6][..], 18.42),
        // Tokens 1 and 5 are 0.046 together, and 0.138 with token 2.
        (6, 0.9, 0.05, &[0, 2, 3, 6], 21.11),
        // Relative to token 6, tokens 2 and 5 are 0.20 and 0.09, tokens 0 and 3 are 0.45.
        (6, 0.99, 0.3, &[0, 3, 6], 18.42),
    ];
    for (top_k, top_p, min_p, kept, quantile) in cases {
        let n = 6000;
        let row = SamplingRow { temperature: 0.5, top_k, top_p, min_p, presence_penalty: 1.0, ..GREEDY };
        let params: Vec<SamplingRow> = (0..n).map(|step| SamplingRow { step, state: step as i32, ..row }).collect();
        let counts: Vec<i32> = (0..n as usize * 7).map(|i| i32::from(i % 7 == 3)).collect();
        let tokens = sample(&vec![logits.to_vec(); n as usize], &params, &counts).tokens;
        assert!(tokens.iter().all(|&t| kept.contains(&(t as usize))), "a dropped token was drawn");
        let total: f64 = kept.iter().map(|&t| scores[t].exp()).sum();
        let share = |&t: &usize| {
            let expected = f64::from(n) * scores[t].exp() / total;
            let found = tokens.iter().filter(|&&x| x as usize == t).count() as f64;
            (found - expected).powi(2) / expected
        };
        let statistic: f64 = kept.iter().map(share).sum();
        assert!(statistic < quantile, "chi-square {statistic} with top_k {top_k}, top_p {top_p}, min_p {min_p}");
    }
}
