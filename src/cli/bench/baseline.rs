//! A run beside an earlier one, and what may be said of the difference.
//!
//! A figure is called faster or slower if all of this holds, and the same within the spread otherwise:
//!
//! 1. Both runs have [`REPEATS`] repeats or more.
//! 2. The medians of the repeats do not overlap: the worst of one run is better than the best of the other. Of two
//!    runs of the same thing with five repeats each, one pair in 126 is that far apart by chance.
//! 3. The medians of the runs are [`SMALLEST`] apart. Processes differ in where their memory lies and cards in their
//!    clocks by some tenths of a percent, which no repeat in one process shows.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::record::{Bench, Better, Figure, Input, Record};
use super::table::number;

/// Fewest repeats of either run.
const REPEATS: usize = 5;
/// Smallest difference, as a share of the earlier median.
const SMALLEST: f64 = 0.01;

/// An earlier run.
pub(super) struct Baseline {
    /// Its file.
    name: String,
    record: Record,
}

/// What may be said of a figure beside its earlier self.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Faster,
    Slower,
    Same,
    /// See [`REPEATS`].
    TooFew,
    /// It explains another figure.
    Unjudged,
}

impl Verdict {
    /// By the rule at the top of this file.
    pub fn of(before: &Figure, now: &Figure) -> Verdict {
        let Some(better) = now.better else { return Verdict::Unjudged };
        if before.repeats.len().min(now.repeats.len()) < REPEATS {
            return Verdict::TooFew;
        }
        let ((before_low, before_high), (low, high)) = (before.range(), now.range());
        let least = SMALLEST * before.median.abs();
        let less = high < before_low && before.median - now.median >= least;
        let more = low > before_high && now.median - before.median >= least;
        match (better, less, more) {
            (Better::Lower, true, _) | (Better::Higher, _, true) => Verdict::Faster,
            (Better::Lower, _, true) | (Better::Higher, true, _) => Verdict::Slower,
            _ => Verdict::Same,
        }
    }

    /// In a table or a chart.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::Same => "same within spread",
            Verdict::TooFew => "too few repeats",
            Verdict::Unjudged => "",
        }
    }
}

/// Two runs side by side.
pub(super) struct Comparison {
    /// For people.
    pub table: String,
    /// The figures that are slower, each in a few words.
    pub slower: Vec<String>,
}

impl Baseline {
    /// Read the record of an earlier run of `bench`.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(path: &Path, bench: Bench) -> Result<Baseline> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("{name} (--baseline)"))?;
        let record: Record =
            serde_json::from_str(&text).with_context(|| format!("{name} is no record of a bench (--baseline)"))?;
        ensure!(
            record.bench == bench,
            "{name} is a record of `ocelli bench {}`; this is `ocelli bench {}` (--baseline)",
            record.bench.name(),
            bench.name()
        );
        Ok(Baseline { name, record })
    }

    /// Put `now` beside it.
    ///
    /// # Errors
    /// If something else was measured then.
    pub fn compare(&self, now: &Record) -> Result<Comparison> {
        let Baseline { name, record: before } = self;
        for (what, then, now) in [
            ("model", &before.model, &now.model),
            ("dtype", &before.dtype, &now.dtype),
            ("load format", &before.load_format, &now.load_format),
        ] {
            ensure!(then == now, "the {what} of {name} is {then}, and here it is {now}: they cannot be compared");
        }
        if let Some((field, then, here)) = difference(&before.input, &now.input) {
            bail!("{field} is {then} in {name}, and here it is {here}: they cannot be compared");
        }
        let mut table = format!("against {name} of {}\n", before.date);
        for (what, then, here) in [
            ("GPU", Some(&before.gpu), Some(&now.gpu)),
            ("driver", before.driver.as_ref(), now.driver.as_ref()),
            ("version", Some(&before.version), Some(&now.version)),
        ] {
            if then != here {
                let word = |text: Option<&String>| text.map_or("none", String::as_str).to_owned();
                table += &format!("another {what}: {} then, {} now\n", word(then), word(here));
            }
        }
        table += &format!("{:44}{:>10}{:>10}{:>9}\n", "medians", "then", "now", "ratio");
        let mut slower = Vec::new();
        for (key, figure) in &now.figures.0 {
            let Some(then) = before.figures.get(key) else { continue };
            let verdict = Verdict::of(then, figure);
            let line = format!(
                "{:44}{:>10}{:>10}{:>9}  {}",
                format!("{}, {}", figure.what, figure.unit),
                number(then.median),
                number(figure.median),
                ratio(then.median, figure.median),
                verdict.words()
            );
            table += &format!("{}\n", line.trim_end());
            if verdict == Verdict::Slower {
                let (then, now) = (number(then.median), number(figure.median));
                slower.push(format!("{key} {now} {unit} and not {then} {unit}", unit = figure.unit));
            }
        }
        Ok(Comparison { table, slower })
    }
}

fn ratio(then: f64, now: f64) -> String {
    if then == 0.0 { "-".into() } else { format!("{:.3}", now / then) }
}

/// The first thing that was asked in another way, with both. How often does not matter.
pub(super) fn difference(before: &Input, now: &Input) -> Option<(String, String, String)> {
    // As text, because numbers with a fraction may lose their last bit on the way through a file.
    let fields = |input: &Input| -> Option<Map<String, Value>> {
        let input = Input { repeats: 0, warmup: 0, ..input.clone() };
        serde_json::from_str(&serde_json::to_string(&input).ok()?).ok()
    };
    let (before, now) = (fields(before)?, fields(now)?);
    let other = before.iter().find(|(name, then)| now.get(*name) != Some(then));
    other.map(|(name, then)| (format!("input.{name}"), then.to_string(), now[name].to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::pictures::Random;
    use super::super::record::tests::record;
    use super::*;

    fn figure(better: Better, medians: &[f64]) -> Figure {
        let repeats: Vec<_> = medians.iter().map(|median| vec![*median]).collect();
        Figure::of("x", "ms", Some(better), &repeats).unwrap()
    }

    /// Five repeats about `middle`, up to `noise` of it away.
    fn noisy(random: &mut Random, middle: f64, noise: f64) -> Vec<f64> {
        (0..5).map(|_| middle * (1.0 + noise * (2.0 * random.unit() - 1.0))).collect()
    }

    #[test]
    fn noise_is_no_difference() {
        let mut random = Random::new(1, 0);
        for noise in [0.002, 0.02, 0.1] {
            let mut pair = || [(); 2].map(|()| figure(Better::Lower, &noisy(&mut random, 10.0, noise)));
            let judged: Vec<_> = (0..2000).map(|_| pair()).map(|[a, b]| Verdict::of(&a, &b)).collect();
            let tripped = judged.iter().filter(|&&verdict| verdict != Verdict::Same).count();
            // By chance 16 of 2000 do not overlap, give or take 4; less noise than 1 % never trips.
            let most = if noise < SMALLEST / 2.0 { 0 } else { 36 };
            assert!(tripped <= most, "{tripped} of 2000 at {noise}");
        }
    }

    #[test]
    fn three_percent_beyond_the_spread_are_a_difference() {
        let mut random = Random::new(2, 0);
        for _ in 0..2000 {
            let (before, now) = (noisy(&mut random, 10.0, 0.01), noisy(&mut random, 10.3, 0.004));
            let times = [&before, &now].map(|medians| figure(Better::Lower, medians));
            assert_eq!(Verdict::of(&times[0], &times[1]), Verdict::Slower, "{before:?} {now:?}");
            assert_eq!(Verdict::of(&times[1], &times[0]), Verdict::Faster);
            let rates = [&before, &now].map(|medians| figure(Better::Higher, medians));
            assert_eq!(Verdict::of(&rates[0], &rates[1]), Verdict::Faster);
            assert_eq!(Verdict::of(&rates[1], &rates[0]), Verdict::Slower);
        }
    }

    #[test]
    fn each_condition_is_needed() {
        let before = figure(Better::Lower, &[10.0, 10.1, 10.2, 10.3, 10.4]);
        let judge = |medians: &[f64]| Verdict::of(&before, &figure(Better::Lower, medians));
        assert_eq!(judge(&[10.5, 10.5, 10.6, 10.7, 10.8]), Verdict::Slower);
        assert_eq!(judge(&[10.4, 10.5, 10.6, 10.7, 10.8]), Verdict::Same, "they touch");
        assert_eq!(judge(&[10.5, 10.5, 10.6, 10.7]), Verdict::TooFew);
        let still = figure(Better::Lower, &[10.0; 5]);
        assert_eq!(Verdict::of(&still, &figure(Better::Lower, &[10.09; 5])), Verdict::Same, "0.9 %");
        assert_eq!(Verdict::of(&still, &figure(Better::Lower, &[10.11; 5])), Verdict::Slower);
        let part = Figure { better: None, ..still.clone() };
        assert_eq!(Verdict::of(&still, &part), Verdict::Unjudged);
    }

    #[test]
    fn a_comparison_names_what_is_slower_and_what_is_another() {
        let before = Baseline { name: "before.json".into(), record: record(&vec![vec![10.0]; 5]) };
        let mut now = record(&vec![vec![12.0]; 5]);
        now.driver = None;
        now.input.repeats = 9;
        let comparison = before.compare(&now).unwrap();
        assert_eq!(comparison.slower, ["ttft_ms 12.00 ms and not 10.00 ms"]);
        for part in ["another driver: 580.159.04 (CUDA 13.0) then, none now", "1.200  slower", "1.200  faster"] {
            assert!(comparison.table.contains(part), "{}", comparison.table);
        }
        assert!(comparison.table.lines().any(|line| line.starts_with("waiting, ms") && line.ends_with("1.200")));
    }

    #[test]
    fn what_differs_is_refused_by_name() {
        let baseline = Baseline { name: "b.json".into(), record: record(&[vec![10.0]]) };
        let refused = |change: fn(&mut Record)| {
            let mut now = record(&[vec![10.0]]);
            change(&mut now);
            baseline.compare(&now).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(
            refused(|r| r.model = "other".into()),
            "the model of b.json is llava-1.5-7b, and here it is other: they cannot be compared"
        );
        assert!(refused(|r| r.dtype = "f16".into()).starts_with("the dtype of b.json is bf16"));
        assert!(refused(|r| r.load_format = "safetensors".into()).starts_with("the load format of b.json is dummy"));
        assert_eq!(
            refused(|r| r.input.concurrency = Some(4)),
            "input.concurrency is null in b.json, and here it is 4: they cannot be compared"
        );
        assert!(refused(|r| r.input.pictures.push("1x1".into())).contains("input.pictures is []"));
    }
}
