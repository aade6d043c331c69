//! How often something was how large, as Prometheus counts it.

use std::sync::{Mutex, PoisonError};

/// Counts of values by the bucket that they fall in.
pub(super) struct Histogram {
    bounds: &'static [f64],
    counts: Mutex<Counts>,
}

/// What was counted.
#[derive(Clone)]
pub(super) struct Counts {
    /// Values up to each bound and above the one before it; last, those above all.
    pub buckets: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    /// Buckets up to and with each of `bounds`, which ascend, and one for what is above.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let counts = Counts { buckets: vec![0; bounds.len() + 1], sum: 0.0 };
        Histogram { bounds, counts: Mutex::new(counts) }
    }

    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.buckets[bucket] += 1;
        counts.sum += value;
    }

    pub fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.0, 1.0, 1.5, 2.0, 2.5] {
            histogram.observe(value);
        }
        let Counts { buckets, sum } = histogram.counts();
        assert_eq!((buckets, sum), (vec![2, 2, 1], 7.0));
    }
}
