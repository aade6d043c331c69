//! LayerNorm and RmsNorm.

use ocelli::mem::{DType, Region};
use ocelli::ops::{LayerNorm, RmsNorm};

use crate::FLOATS;
use crate::bed::Bed;
use crate::bound::{Account, Exact, SLACK, U, round};

/// Rows and columns: single rows and columns, around the widths of vectors, and those of real models.
const SHAPES: [(usize, usize); 12] =
    [(1, 1), (1, 7), (3, 8), (2, 9), (5, 15), (4, 16), (17, 33), (1, 64), (2, 127), (2, 1000), (577, 24), (2, 4096)];

fn mean(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len() as f64;
    x.sum::<f64>() / n
}

/// Layer normalisation of a row whose element `i` is known up to `x[i].error`.
///
/// f32 finds the mean up to `mean(|x|) (n+1) u`. Squared deviations from a mean that is off by `d` exceed the variance
/// by `d^2`; deviation, square, sum and division cost `(n+4) u` of it, and the root halves relative errors. Errors `e`
/// of the inputs move the mean by at most `mean(e)` and the standard deviation by at most `sqrt(mean(e^2))`.
pub fn layer_norm(x: &[Exact], weight: &[f64], bias: &[f64], eps: f64) -> Vec<Exact> {
    let n = x.len() as f64;
    let mu = mean(x.iter().map(|x| x.value));
    let variance = mean(x.iter().map(|x| (x.value - mu).powi(2)));
    let sigma = (variance + eps).sqrt();

    let mu_error = mean(x.iter().map(|x| x.value.abs())) * (n + 1.0) * U + mean(x.iter().map(|x| x.error));
    let of_variance = ((n + 4.0) * U * variance + mu_error.powi(2)) / (variance + eps);
    let of_inputs = mean(x.iter().map(|x| x.error.powi(2))).sqrt() / sigma;
    let of_sigma = 0.5 * of_variance + of_inputs + 3.0 * U;
    let element = |(i, x): (usize, &Exact)| {
        let deviation = x.value - mu;
        let scaled = deviation / sigma * weight[i];
        let from_deviation = (x.error + mu_error + U * deviation.abs()) / sigma * weight[i].abs();
        let error = from_deviation + scaled.abs() * (of_sigma + 2.0 * U) + U * (scaled.abs() + bias[i].abs());
        Exact { value: scaled + bias[i], error: error * SLACK }
    };
    x.iter().enumerate().map(element).collect()
}

fn exactly(x: &[f64]) -> Vec<Exact> {
    x.iter().map(|&value| Exact { value, error: 0.0 }).collect()
}

fn layer_norm_case(account: &mut Account, dtype: DType, rows: usize, cols: usize, x: &[f64], in_place: bool) {
    let mut bed = Bed::new(dtype, (rows * 10_000 + cols) as u64);
    let x = bed.put(Region::Scratch, x);
    let y = if in_place { x } else { bed.random(Region::Scratch, rows * cols, 1.0) };
    let weight = bed.random(Region::Weights, cols, 2.0);
    let bias = bed.random(Region::Weights, cols, 1.0);
    let ran = bed.run(LayerNorm { y, x, weight, bias, rows, cols, eps: 1e-5 });
    let (weight, bias) = (ran.input(weight), ran.input(bias));
    for (i, (found, x)) in ran.output(y).chunks(cols).zip(ran.input(x).chunks(cols)).enumerate() {
        let exact = layer_norm(&exactly(x), &weight, &bias, f64::from(1e-5f32));
        account.check(format_args!("[{rows}, {cols}] row {i}"), found, &exact);
    }
}

#[test]
fn layer_norm_follows_the_formula() {
    for dtype in FLOATS {
        let mut account = Account::new("layer_norm", dtype);
        for (rows, cols) in SHAPES {
            let x = Bed::new(dtype, 5).rng.numbers(rows * cols, 3.0);
            layer_norm_case(&mut account, dtype, rows, cols, &x, false);
            layer_norm_case(&mut account, dtype, rows, cols, &x, true);
        }
    }
}

/// Vision towers have channels that are a hundred times larger than the others, and rows may be constant.
#[test]
fn layer_norm_bears_outliers_offsets_and_constant_rows() {
    for dtype in FLOATS {
        let mut account = Account::new("layer_norm, hard rows", dtype);
        let mut rng = Bed::new(dtype, 6).rng;
        let outlier: Vec<f64> = (0..64).map(|i| if i == 17 { 300.0 } else { rng.unit() }).collect();
        let offset: Vec<f64> = (0..64).map(|_| 1000.0 + rng.unit()).collect();
        let constant = vec![0.3; 64];
        layer_norm_case(&mut account, dtype, 3, 64, &[outlier, offset, constant].concat(), false);
    }
}

/// The two roundings of an RmsNorm: `n = round(x / sqrt(mean(x^2) + eps))`, `y = round(n w)`.
///
/// The value before the first rounding is found up to a relative `((n+1)/2 + 5) u`: the mean of n squares, halved by the
/// root, then root, reciprocal and product. Where no tie lies that close, n is certain; a product of two numbers of
/// 11 bits is exact in f32, so y is then certain to the last bit. Returns the one or two possible results.
fn rmsnorm_half(dtype: DType, x: &[f64], weight: &[f64], eps: f64) -> Vec<[f64; 2]> {
    let cols = x.len() as f64;
    let scale = 1.0 / (mean(x.iter().map(|v| v * v)) + eps).sqrt();
    let off = ((cols + 1.0) / 2.0 + 5.0) * U * SLACK;
    let element = |(v, w): (&f64, &f64)| {
        [v * scale * (1.0 - off), v * scale * (1.0 + off)].map(|n| round(dtype, round(dtype, n) * w))
    };
    x.iter().zip(weight).map(element).collect()
}

#[test]
fn rmsnorm_rounds_twice_in_half_precision() {
    for dtype in [DType::F16, DType::Bf16] {
        let (mut elements, mut uncertain, mut rounded_once_differs) = (0, 0, 0);
        for (rows, cols) in SHAPES.into_iter().filter(|s| s.1 <= 127) {
            let mut bed = Bed::new(dtype, cols as u64);
            let x = bed.random(Region::Scratch, rows * cols, 3.0);
            let weight = bed.random(Region::Weights, cols, 2.0);
            let y = bed.random(Region::Scratch, rows * cols, 1.0);
            let ran = bed.run(RmsNorm { y, x, weight, rows, cols, eps: 1e-5 });
            let in_place = bed.run(RmsNorm { y: x, x, weight, rows, cols, eps: 1e-5 });
            assert_eq!(in_place.bits(x), ran.bits(y), "in place");

            let weight = ran.input(weight);
            for (found, x) in ran.output(y).chunks(cols).zip(ran.input(x).chunks(cols)) {
                let scale = 1.0 / (mean(x.iter().map(|v| v * v)) + f64::from(1e-5f32)).sqrt();
                for (i, (found, [a, b])) in
                    found.iter().zip(rmsnorm_half(dtype, x, &weight, f64::from(1e-5f32))).enumerate()
                {
                    assert!(*found == a || *found == b, "{dtype} [{rows}, {cols}] {i}: {found} is neither {a} nor {b}");
                    elements += 1;
                    uncertain += usize::from(a != b);
                    let once = round(dtype, x[i] * scale * weight[i]);
                    rounded_once_differs += usize::from(once != a && once != b);
                }
            }
        }
        println!("rmsnorm {dtype}: {elements} elements exact to the last bit, {uncertain} of them with two answers");
        assert!(uncertain * 50 < elements, "{uncertain} of {elements} results are uncertain");
        assert!(rounded_once_differs * 10 > elements, "the data would not tell one rounding from two");
    }
}

#[test]
fn rmsnorm_follows_the_formula_in_f32() {
    let mut account = Account::new("rmsnorm", DType::F32);
    for (rows, cols) in SHAPES {
        for scale in [3.0, 1e-3] {
            let mut bed = Bed::new(DType::F32, cols as u64);
            let x = bed.random(Region::Scratch, rows * cols, scale);
            let weight = bed.random(Region::Weights, cols, 2.0);
            let y = bed.random(Region::Scratch, rows * cols, 1.0);
            let ran = bed.run(RmsNorm { y, x, weight, rows, cols, eps: 1e-5 });
            let weight = ran.input(weight);
            for (found, x) in ran.output(y).chunks(cols).zip(ran.input(x).chunks(cols)) {
                let scale = 1.0 / (mean(x.iter().map(|v| v * v)) + f64::from(1e-5f32)).sqrt();
                let off = ((cols as f64 + 1.0) / 2.0 + 5.0) * U * SLACK;
                let exact: Vec<Exact> = (x.iter().zip(&weight).map(|(v, w)| v * scale * w))
                    .map(|value| Exact { value, error: value.abs() * off })
                    .collect();
                account.check(format_args!("[{rows}, {cols}]"), found, &exact);
            }
        }
    }
}
