//! Gemm and what follows it.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use ocelli::mem::{Act, Buf, DType, Region};
use ocelli::ops::{Epilogue, Gemm};

use crate::FLOATS;
use crate::bed::{Bed, Ran};
use crate::bound::{Account, Exact, SLACK, U};

/// Rows, columns and depths: single ones, around the tiles of 2, 4, 8 and 16 that implementations like, and one that
/// is large enough to be spread over threads.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 2, 1),
    (1, 6, 7),
    (1, 16, 8),
    (2, 4, 9),
    (3, 10, 15),
    (7, 14, 16),
    (8, 16, 17),
    (15, 30, 31),
    (16, 32, 32),
    (17, 34, 33),
    (31, 18, 64),
    (33, 66, 100),
    (1, 130, 1024),
    (40, 50, 129),
];

/// Slopes of gelu, quick_gelu and silu stay below this.
const SLOPE: f64 = 1.13;

/// erf as a series of positive terms, so nothing cancels: `2/sqrt(pi) exp(-z^2) sum of 2^n z^(2n+1) / (1*3*..*(2n+1))`.
fn erf(z: f64) -> f64 {
    if z.abs() > 6.0 {
        return z.signum(); // but for 2e-17
    }
    let (mut term, mut sum, mut n) = (z, z, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * z * z / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum
}

/// `x/2 (1 + erf(x / sqrt 2))`. f32 finds the argument up to 2u and erf up to an ulp, so `1 + erf` is off by at most
/// 5u; half of `x` times that, and two more products.
fn gelu(x: Exact) -> Exact {
    let value = 0.5 * x.value * (1.0 + erf(x.value / 2f64.sqrt()));
    Exact { value, error: SLOPE * x.error + 2.5 * U * x.value.abs() + 2.0 * U * value.abs() }
}

/// `x / (1 + exp(-1.702 x))`. The exponent is off by `2u |1.702 x|`, the exponential by 2u more, sum and division by u.
fn quick_gelu(x: Exact) -> Exact {
    let value = x.value / (1.0 + (-1.702 * x.value).exp());
    let relative = (2.0 * 1.702 * x.value.abs() + 4.0) * U;
    Exact { value, error: SLOPE * x.error + value.abs() * relative }
}

/// `x / (1 + exp(-x))`.
fn silu(x: Exact) -> Exact {
    let value = x.value / (1.0 + (-x.value).exp());
    Exact { value, error: SLOPE * x.error + value.abs() * 4.0 * U }
}

fn product(a: Exact, b: Exact) -> Exact {
    let value = a.value * b.value;
    let error = a.error * b.value.abs() + a.value.abs() * b.error + a.error * b.error + U * value.abs();
    Exact { value, error }
}

/// A bias or none, and what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    bias: bool,
    after: After,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    Store,
    AddResidual,
    QuickGelu,
    Gelu,
    SwiGlu,
}

const AFTER: [After; 5] = [After::Store, After::AddResidual, After::QuickGelu, After::Gelu, After::SwiGlu];

fn kinds() -> impl Iterator<Item = Kind> {
    AFTER.into_iter().flat_map(|after| [false, true].map(|bias| Kind { bias, after }))
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", if self.bias { "bias, " } else { "" }, self.after)
    }
}

impl Kind {
    /// Columns of the result.
    fn cols(self, n: usize) -> usize {
        if self.after == After::SwiGlu { n / 2 } else { n }
    }

    fn epilogue(self) -> Epilogue {
        match self.after {
            After::Store => Epilogue::Store,
            After::AddResidual => Epilogue::AddResidual,
            After::QuickGelu => Epilogue::QuickGelu,
            After::Gelu => Epilogue::Gelu,
            After::SwiGlu => Epilogue::SwiGlu,
        }
    }
}

/// The buffers of a product; the epilogue is chosen when it runs.
struct Matrices {
    bed: Bed,
    a: Buf<Act>,
    b: Buf<Act>,
    bias: Buf<Act>,
    c: Buf<Act>,
    n: usize,
    k: usize,
}

impl Matrices {
    /// `scale` is that of the factors.
    fn new(dtype: DType, kind: Kind, (m, n, k): (usize, usize, usize), scale: f64, logits: bool) -> Matrices {
        let mut bed = Bed::new(dtype, (m * 1_000_000 + n * 1000 + k) as u64);
        let a = bed.random(Region::Scratch, m * k, scale);
        let b = bed.random(Region::Weights, n * k, scale);
        let bias = bed.random(Region::Weights, n, 1.0);
        let c = match logits {
            true => bed.random::<f32>(Region::Scratch, m * kind.cols(n), 2.0).into(),
            false => bed.random(Region::Scratch, m * kind.cols(n), 2.0),
        };
        Matrices { bed, a, b, bias, c, n, k }
    }

    /// The rows `rows` of the result, and their place.
    fn run(&self, kind: Kind, rows: Range<usize>) -> (Ran, Buf<Act>) {
        let Matrices { b, n, k, .. } = *self;
        let a = self.a.slice(rows.start * k..rows.end * k);
        let c = self.c.slice(rows.start * kind.cols(n)..rows.end * kind.cols(n));
        let bias = kind.bias.then_some(self.bias);
        (self.bed.run(Gemm { c, a, b, m: rows.len(), n, k, bias, epilogue: kind.epilogue() }), c)
    }
}

/// A row of the result. Products, bias and residual are one sum of up to `k + 2` terms.
fn row(kind: Kind, a: &[f64], b: &[f64], bias: &[f64], c: &[f64]) -> Vec<Exact> {
    let k = a.len();
    let sum = |j: usize| {
        let mut terms: Vec<f64> = a.iter().zip(&b[j * k..][..k]).map(|(a, b)| a * b).collect();
        terms.extend(kind.bias.then(|| bias[j]));
        terms.extend((kind.after == After::AddResidual).then(|| c[j]));
        let magnitude: f64 = terms.iter().map(|t| t.abs()).sum();
        Exact { value: terms.iter().sum(), error: terms.len() as f64 * U * magnitude }
    };
    let n = b.len() / k;
    let p: Vec<Exact> = (0..n).map(sum).collect();
    let exact: Vec<Exact> = match kind.after {
        After::Store | After::AddResidual => p,
        After::QuickGelu => p.into_iter().map(quick_gelu).collect(),
        After::Gelu => p.into_iter().map(gelu).collect(),
        // The weight's rows are those of the gate, then those of up.
        After::SwiGlu => (0..n / 2).map(|j| product(silu(p[j]), p[n / 2 + j])).collect(),
    };
    exact.into_iter().map(|x| Exact { error: x.error * SLACK, ..x }).collect()
}

/// One Gemm against its oracle.
fn case(account: &mut Account, dtype: DType, kind: Kind, shape: (usize, usize, usize), scale: f64, logits: bool) {
    let matrices = Matrices::new(dtype, kind, shape, scale, logits);
    let (m, n, k) = shape;
    let cols = kind.cols(n);
    let (ran, c) = matrices.run(kind, 0..m);
    let (a, b, bias) = (ran.input(matrices.a), ran.input(matrices.b), ran.input(matrices.bias));
    let (before, found) = (ran.input(c), ran.output(c));
    for i in 0..m {
        let exact = row(kind, &a[i * k..][..k], &b, &bias, &before[i * cols..][..cols]);
        account.check(format_args!("{shape:?} row {i}"), &found[i * cols..][..cols], &exact);
    }
}

#[test]
fn every_epilogue_follows_the_formula() {
    for dtype in FLOATS {
        for kind in kinds() {
            let mut account = Account::new(format_args!("gemm, {kind}"), dtype);
            for shape in SHAPES {
                case(&mut account, dtype, kind, shape, 1.0, false);
            }
        }
    }
}

/// Far out, gelu and silu reach 0 and x; their exponentials overflow f32 on the way.
#[test]
fn activations_bear_large_arguments() {
    for kind in kinds().filter(|k| ![After::Store, After::AddResidual].contains(&k.after)) {
        let mut account = Account::new(format_args!("gemm, {kind}, large"), DType::F32);
        case(&mut account, DType::F32, kind, (16, 32, 16), 12.0, false);
    }
}

#[test]
fn logits_are_f32_whatever_the_inputs() {
    for dtype in FLOATS {
        let mut account = Account::new(format_args!("gemm, {dtype} to logits"), DType::F32);
        for shape in SHAPES {
            case(&mut account, dtype, Kind { bias: false, after: After::Store }, shape, 1.0, true);
        }
    }
}

/// What continuous batching relies on: nobody's answer depends on who else is served.
#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    for dtype in FLOATS {
        for kind in kinds() {
            let m = 19;
            let matrices = Matrices::new(dtype, kind, (m, 70, 75), 1.0, false);
            let (whole, _) = matrices.run(kind, 0..m);
            for batch in [1, 2, 3, 8, 16, 18] {
                for first in (0..m).step_by(batch) {
                    let rows = first..m.min(first + batch);
                    let (part, c) = matrices.run(kind, rows.clone());
                    assert_eq!(part.bits(c), whole.bits(c), "{kind} {dtype}: rows {rows:?}");
                }
            }
        }
    }
}

#[test]
fn the_oracle_knows_erf() {
    for (z, expected) in [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (-3.0, -0.9999779095030014)]
    {
        assert!((erf(z) - expected).abs() < 1e-15, "erf({z}) = {}", erf(z));
    }
}
