//! Numbers, and what is said of many of them.

/// Numbers in ascending order; there is at least one.
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// `None` if there is not one.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Samples> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Samples(values))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that a share of them does not exceed, between two neighbours as far as it lies between them: NumPy's
    /// `linear`, which vLLM's client uses.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = share * (self.0.len() - 1) as f64;
        let (low, high) = (self.0[at.floor() as usize], self.0[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    /// The sum of them by their number.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Standard deviation of these numbers, not of a population behind them: NumPy's default.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        (self.0.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / self.0.len() as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::of(values.iter().copied()).unwrap()
    }

    #[test]
    fn numbers_are_summed_up_as_numpy_does() {
        let four = samples(&[4.0, 1.0, 2.0, 3.0]);
        assert_eq!([0.0, 0.5, 1.0].map(|share| four.quantile(share)), [1.0, 2.5, 4.0]);
        assert_eq!((four.mean(), four.deviation(), four.count()), (2.5, 1.25_f64.sqrt(), 4));
        assert!((four.quantile(0.99) - 3.97).abs() < 1e-12);
        assert_eq!(samples(&[7.0]).quantile(0.99), 7.0);
        assert!(Samples::of([].into_iter()).is_none());
    }
}
