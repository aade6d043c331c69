//! From logits to the next token.

use bytemuck::{Pod, Zeroable};

use super::philox::{philox4x32_10, uniform};
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Bases, Buf, Spans};

/// Alternatives that can be reported beside the chosen token.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Shared memory that the kernel has besides the scores, rounded up.
const STATIC_SMEM: usize = 8192;

/// Below this temperature the most likely token is taken.
const GREEDY_BELOW: f32 = 1e-5;

/// A token's flag in the counts of its sequence: it occurs in the prompt. The other bits count how often it was
/// generated.
pub const IN_PROMPT: i32 = 1 << 30;

/// In [`SamplingRow::flags`]: a token that is not in the row's list is never chosen.
pub const ONLY_LISTED: u32 = 1;

/// In [`SamplingRow::flags`]: nothing is chosen; the row's token is [`SamplingRow::given`]. So the log-probabilities of a
/// prompt are made.
pub const REPORT_GIVEN: u32 = 2;

/// Choose a token for every row of logits, report log-probabilities, and count the token.
///
/// In order: the row's list of tokens (only these, never these, biases), repetition penalty, frequency and presence
/// penalty, then the most likely token if the temperature is 0 (the lowest id among equals), else temperature, top-k,
/// top-p, min-p, and a draw. The draw takes the largest `score + gumbel noise`, which is an exact sample of the softmax;
/// the noise of a token is Philox of the seed, the step and the token. Log-probabilities are the log-softmax of the
/// logits as they came.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// `[rows]`: the token, or -1 if the row holds a NaN or its largest logit or score is not finite.
    pub token: Buf<i32>,
    /// `[rows, 1 + 20]`: of the token, then of the most likely ones in descending order.
    pub logprobs: Buf<f32>,
    /// `[rows, 20]`: the most likely tokens; as many as the row asks for.
    pub top: Buf<i32>,
    /// `[rows]` of u64: [`logits_hash`] of the logits as they came, where there is a token.
    pub hash: Buf<u8>,
    /// `[rows, vocab]`
    pub logits: Buf<f32>,
    /// `[rows]` of [`SamplingRow`].
    pub params: Buf<u8>,
    /// Any number of [`TokenBias`]: the lists that the rows point into. What no row points into is not read.
    pub biases: Buf<u8>,
    /// `[sequences, vocab]`: see [`IN_PROMPT`].
    pub counts: Buf<i32>,
    /// Rows.
    pub rows: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

/// How one row is sampled; its twin stands in `cuda/params.cuh`. Every value is valid: requests are checked before.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SamplingRow {
    /// Low and high word of the seed.
    pub seed: [u32; 2],
    /// Tokens generated so far: the counter of the noise.
    pub step: u32,
    /// Row of `counts`, or -1 to leave penalties and counting out.
    pub state: i32,
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the most likely tokens that reach this probability together; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this fraction of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Keep the `top_k` most likely tokens and those equal to the last; 0 keeps all.
    pub top_k: u32,
    /// Divide a positive score, multiply a negative one, for tokens of the prompt and the answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtract for every token of the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtract for every occurrence in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Alternatives to report, at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: u32,
    /// The row's list: the first of its entries in `biases`. Rows may share a list.
    pub first_bias: u32,
    /// Entries of the row's list; 0 without one.
    pub biases: u32,
    /// [`ONLY_LISTED`], [`REPORT_GIVEN`]; with the latter the row's list, penalties and counts are left out.
    pub flags: u32,
    /// The token to report, with [`REPORT_GIVEN`].
    pub given: u32,
}

/// What is added to the score of one token; its twin stands in `cuda/params.cuh`. A list of them is in ascending order of
/// tokens, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TokenBias {
    /// Id of the vocabulary.
    pub token: u32,
    /// Added to the logit; minus infinity forbids the token.
    pub bias: f32,
}

impl SamplingRow {
    /// The most likely token, without penalties, counting or alternatives.
    pub const GREEDY: SamplingRow = SamplingRow {
        seed: [0; 2],
        step: 0,
        state: -1,
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        top_logprobs: 0,
        first_bias: 0,
        biases: 0,
        flags: 0,
        given: 0,
    };

    /// Report log-probabilities of `token` and of `top_logprobs` alternatives, and choose nothing.
    pub const fn report(token: u32, top_logprobs: u32) -> SamplingRow {
        SamplingRow { top_logprobs, flags: REPORT_GIVEN, given: token, ..SamplingRow::GREEDY }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

impl Kernel for Sample {
    const NAME: &'static str = "sample";

    fn cost(&self) -> Cost {
        let logits = (self.rows * self.vocab) as u64;
        let row = size_of::<SamplingRow>() + 4 * (1 + (1 + MAX_TOP_LOGPROBS) + MAX_TOP_LOGPROBS) + 8;
        Cost { bytes: 4 * logits + (self.rows * row) as u64, flops: 4 * logits }
    }

    fn writes(&self) -> Spans {
        vec![self.token.span(), self.logprobs.span(), self.top.span(), self.hash.span(), self.counts.span()]
    }

    fn reference(&self, m: &HostMem) {
        let rows: Vec<SamplingRow> = bytemuck::pod_collect_to_vec(&m.read(self.params));
        let biases: Vec<TokenBias> = bytemuck::pod_collect_to_vec(&m.read(self.biases));
        let logits = m.load(self.logits);
        let (mut tokens, mut logprobs, mut top) = (m.read(self.token), m.load(self.logprobs), m.read(self.top));
        for (i, (raw, row)) in logits.chunks_exact(self.vocab).zip(&rows).take(self.rows).enumerate() {
            let counts = usize::try_from(row.state).ok().filter(|_| !row.has(REPORT_GIVEN));
            let counts = counts.map(|s| self.counts.slice(s * self.vocab..(s + 1) * self.vocab));
            let token = next_token(raw, row, &biases, counts.map(|c| m.read(c)).as_deref());
            tokens[i] = token.map_or(-1, |t| t as i32);
            let Some(token) = token else { continue };
            m.bytes_mut(self.hash.slice(8 * i..8 * (i + 1)).span()).copy_from_slice(&logits_hash(raw).to_le_bytes());
            let normaliser = log_sum_exp(raw);
            logprobs[i * (1 + MAX_TOP_LOGPROBS)] = raw[token] - normaliser;
            for (j, t) in most_likely(raw, row.top_logprobs as usize).into_iter().enumerate() {
                top[i * MAX_TOP_LOGPROBS + j] = t as i32;
                logprobs[i * (1 + MAX_TOP_LOGPROBS) + 1 + j] = raw[t] - normaliser;
            }
            if let Some(counts) = counts {
                let mut seen = m.bytes_mut(counts.span());
                bytemuck::cast_slice_mut::<u8, i32>(&mut seen)[token] += 1;
            }
        }
        m.bytes_mut(self.token.span()).copy_from_slice(bytemuck::cast_slice(&tokens));
        m.bytes_mut(self.top.span()).copy_from_slice(bytemuck::cast_slice(&top));
        m.store(self.logprobs, &logprobs);
    }
}

/// A hash of a row of logits, to the bit: shows a change in the numbers where the token is the same. A sum over the tokens,
/// modulo 2^64, so that it may be added up in any order.
pub fn logits_hash(logits: &[f32]) -> u64 {
    let word = |(token, logit): (usize, &f32)| mix((token as u64) << 32 | u64::from(logit.to_bits()));
    logits.iter().enumerate().map(word).fold(0, u64::wrapping_add)
}

/// The output function of SplitMix64.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The token of a row, or `None` if it has no answer. `counts` is absent where penalties are off.
fn next_token(raw: &[f32], row: &SamplingRow, biases: &[TokenBias], counts: Option<&[i32]>) -> Option<usize> {
    // A list may hide a broken logit; the log-probabilities would still be of it.
    if raw.iter().any(|x| x.is_nan()) || !raw[argmax(raw.iter().copied())].is_finite() {
        return None;
    }
    if row.has(REPORT_GIVEN) {
        return Some(row.given as usize);
    }
    let list = &biases[row.first_bias as usize..][..row.biases as usize];
    let scores = biased(raw, list, row.has(ONLY_LISTED));
    match counts {
        Some(counts) => choose(&penalised(&scores, counts, row), row),
        None => choose(&scores, row),
    }
}

/// Scores after the row's list.
fn biased(raw: &[f32], list: &[TokenBias], only_listed: bool) -> Vec<f32> {
    let mut scores = if only_listed { vec![f32::NEG_INFINITY; raw.len()] } else { raw.to_vec() };
    for entry in list {
        let token = entry.token as usize;
        scores[token] = raw[token] + entry.bias;
    }
    scores
}

/// Scores after the penalties, in the order of the OpenAI interface.
fn penalised(raw: &[f32], counts: &[i32], row: &SamplingRow) -> Vec<f32> {
    let penalise = |(&score, &count): (&f32, &i32)| {
        let generated = count & (IN_PROMPT - 1);
        let mut s = score;
        if count != 0 {
            s = if s < 0.0 { s * row.repetition_penalty } else { s / row.repetition_penalty };
        }
        if generated > 0 {
            s -= row.frequency_penalty * generated as f32 + row.presence_penalty;
        }
        s
    };
    raw.iter().zip(counts).map(penalise).collect()
}

/// The next token, or `None` if a score is NaN or the largest is not finite.
fn choose(scores: &[f32], row: &SamplingRow) -> Option<usize> {
    if scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let best = argmax(scores.iter().copied());
    if !scores[best].is_finite() {
        return None;
    }
    if row.temperature < GREEDY_BELOW {
        return Some(best);
    }
    let mut scaled: Vec<f32> = scores.iter().map(|s| s / row.temperature).collect();
    keep_top_k(&mut scaled, row.top_k as usize);
    keep_top_p(&mut scaled, row.top_p);
    keep_min_p(&mut scaled, row.min_p);
    let noise = |token: usize| {
        let word = philox4x32_10([token as u32, row.step, 0, 0], row.seed)[0];
        -(-uniform(word).ln()).ln()
    };
    // A dropped token keeps minus infinity whatever its noise.
    Some(argmax(scaled.iter().enumerate().map(|(token, s)| s + noise(token))))
}

/// The first of the largest values.
fn argmax(values: impl Iterator<Item = f32>) -> usize {
    values.enumerate().fold((0, f32::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
}

/// Drop all but the `k` largest scores and those equal to the smallest of them.
fn keep_top_k(scores: &mut [f32], k: usize) {
    if k == 0 || k >= scores.len() {
        return;
    }
    let mut sorted = scores.to_vec();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    drop_unless(scores, |s| s >= threshold);
}

/// Drop the least likely tokens as long as those dropped reach at most `1 - p` together; the largest always stays.
fn keep_top_p(scores: &mut [f32], p: f32) {
    if p >= 1.0 {
        return;
    }
    let normaliser = log_sum_exp(scores);
    let mut ascending: Vec<usize> = (0..scores.len()).collect();
    ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    let mut dropped = 0.0;
    for &token in &ascending[..scores.len() - 1] {
        dropped += (scores[token] - normaliser).exp();
        if dropped > 1.0 - p {
            break;
        }
        scores[token] = f32::NEG_INFINITY;
    }
}

/// Drop tokens whose probability is below `min_p` times the largest.
fn keep_min_p(scores: &mut [f32], min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    drop_unless(scores, |s| (s - max).exp() >= min_p);
}

fn drop_unless(scores: &mut [f32], keep: impl Fn(f32) -> bool) {
    scores.iter_mut().filter(|s| !keep(**s)).for_each(|s| *s = f32::NEG_INFINITY);
}

fn log_sum_exp(x: &[f32]) -> f32 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + x.iter().map(|v| f64::from(v - max).exp()).sum::<f64>().ln() as f32
}

/// The `n` largest, in descending order, the lower id first among equals.
fn most_likely(raw: &[f32], n: usize) -> Vec<usize> {
    if n == 0 {
        return Vec::new();
    }
    let mut ids: Vec<usize> = (0..raw.len()).collect();
    ids.sort_by(|&a, &b| raw[b].total_cmp(&raw[a]).then(a.cmp(&b)));
    ids.truncate(n.min(MAX_TOP_LOGPROBS));
    ids
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SampleParams {
    token: u64,
    logprobs: u64,
    top: u64,
    hash: u64,
    logits: u64,
    params: u64,
    biases: u64,
    counts: u64,
    rows: u32,
    vocab: u32,
}

impl Launch for Sample {
    type Params = SampleParams;

    fn params(&self, at: &Bases) -> SampleParams {
        SampleParams {
            token: at.at(self.token),
            logprobs: at.at(self.logprobs),
            top: at.at(self.top),
            hash: at.at(self.hash),
            logits: at.at(self.logits),
            params: at.at(self.params),
            biases: at.at(self.biases),
            counts: at.at(self.counts),
            rows: self.rows as u32,
            vocab: self.vocab as u32,
        }
    }

    /// One block a row, with the row's scores in shared memory where the device has room for them.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let scores = 4 * self.vocab.next_multiple_of(4);
        let smem = if scores + STATIC_SMEM <= gpu.max_smem as usize { scores as u32 } else { 0 };
        Geometry {
            symbol: "sample_f32",
            grid: [self.rows as u32, 1, 1],
            block: [1024, 1, 1],
            smem,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests;
