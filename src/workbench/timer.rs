//! Seconds of a launch, as the device counts them.
//!
//! A sample is: a pass over [`Ceiling`]'s array, an event, a batch of launches, an event. While the device reads the
//! array, the host enqueues the batch, so that the device goes from one launch to the next without waiting for the host;
//! and the array drives everything else out of the L2 cache. If the host was not done before the first event, the sample
//! is thrown away and taken again behind more passes.

use anyhow::{Result, ensure};

use super::ceiling::Ceiling;
use crate::backend::cuda::driver::Device;
use crate::backend::cuda::event::Event;

/// Passes ahead of a batch, at most: tens of milliseconds of head start.
const MAX_PASSES: usize = 64;

/// Two events and what runs before them.
pub struct Timer<'a> {
    device: &'a Device,
    ceiling: &'a Ceiling,
    start: Event,
    end: Event,
    passes: usize,
}

impl Timer<'_> {
    /// For work on `device`.
    ///
    /// # Errors
    /// The driver fails.
    pub fn new<'a>(device: &'a Device, ceiling: &'a Ceiling) -> Result<Timer<'a>> {
        Ok(Timer { device, ceiling, start: device.event()?, end: device.event()?, passes: 1 })
    }

    /// Seconds of what `enqueue` enqueues.
    ///
    /// # Errors
    /// A launch failed, or the host is slower than the device by far.
    pub fn sample(&mut self, mut enqueue: impl FnMut() -> Result<()>) -> Result<f64> {
        loop {
            for _ in 0..self.passes {
                self.ceiling.pass(self.device)?;
            }
            self.start.record()?;
            enqueue()?;
            self.end.record()?;
            let in_time = !self.start.is_reached()?;
            let seconds = self.end.since(&self.start)?.as_secs_f64();
            if in_time {
                return Ok(seconds);
            }
            self.passes *= 2;
            ensure!(
                self.passes <= MAX_PASSES,
                "the host cannot enqueue a batch of launches in the time of {MAX_PASSES} reads of {} MiB: too busy to \
                 measure anything",
                self.ceiling.bytes >> 20
            );
        }
    }

    /// Seconds of one pass over the array.
    ///
    /// # Errors
    /// As [`Timer::sample`].
    pub fn pass(&mut self) -> Result<f64> {
        let (device, ceiling) = (self.device, self.ceiling);
        self.sample(|| ceiling.pass(device))
    }
}

/// The middle of some samples and where most of them lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of the samples are below.
    pub median: f64,
    /// A tenth of the samples is below.
    pub low: f64,
    /// A tenth of the samples is above.
    pub high: f64,
}

impl Spread {
    /// Of at least one sample.
    pub fn of(mut samples: Vec<f64>) -> Spread {
        samples.sort_by(f64::total_cmp);
        let last = samples.len() - 1;
        let at = |share: f64| samples[(last as f64 * share).round() as usize];
        Spread { median: (samples[last / 2] + samples[last.div_ceil(2)]) / 2.0, low: at(0.1), high: at(0.9) }
    }

    /// Every number times `factor`.
    pub fn times(self, factor: f64) -> Spread {
        Spread { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_the_outer_tenths() {
        let spread = Spread::of((0..=20).rev().map(f64::from).collect());
        assert_eq!(spread, Spread { median: 10.0, low: 2.0, high: 18.0 });
        assert_eq!(Spread::of(vec![3.0, 1.0]).median, 2.0);
        assert_eq!(Spread::of(vec![4.0]).times(0.5), Spread { median: 2.0, low: 2.0, high: 2.0 });
    }
}
