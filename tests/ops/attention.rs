//! The oracle of every attention.

use crate::bound::{Exact, SLACK, U};

/// `softmax(q k^T / sqrt(d)) v` of one query over `keys` and `values`, both `[n, d]`.
///
/// A score is a sum of d products times a scale that is itself off by 2u, so it is off by `(d + 3) u` times the sum of
/// the magnitudes; its distance to the largest is rounded, and so is the exponential (2u). That is the relative error
/// `r` of a weight; what the largest score is off by cancels between the sum of weighted values and the sum of weights,
/// which add `(n + 2) u` and `n u` and are divided: `2 r + (2n + 3) u` of the weighted magnitudes in all.
pub fn attend(query: &[f64], keys: &[f64], values: &[f64]) -> Vec<Exact> {
    let d = query.len();
    let n = keys.len() / d;
    let scale = 1.0 / (d as f64).sqrt();
    let products = |key: &[f64]| query.iter().zip(key).map(|(q, k)| q * k).collect::<Vec<f64>>();
    let scores: Vec<f64> = keys.chunks(d).map(|key| products(key).iter().sum::<f64>() * scale).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();

    let of_weight = |(key, score): (&[f64], &f64)| {
        let magnitude: f64 = products(key).iter().map(|p| p.abs()).sum();
        (magnitude * scale * (d as f64 + 3.0) + (score - largest).abs() + 2.0) * U
    };
    let r = keys.chunks(d).zip(&scores).map(of_weight).fold(0.0, f64::max);
    let relative = (2.0 * r + (2.0 * n as f64 + 3.0) * U) * SLACK;
    let column = |c: usize| {
        let terms = || weights.iter().zip(values.chunks(d)).map(|(w, value)| w / total * value[c]);
        Exact { value: terms().sum(), error: terms().map(f64::abs).sum::<f64>() * relative }
    };
    (0..d).map(column).collect()
}
