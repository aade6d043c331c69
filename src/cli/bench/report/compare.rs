//! Two folders beside each other: every figure that both have of the same work.

use super::super::baseline::{Verdict, difference};
use super::super::record::{Better, Figure, Record};
use super::svg::{Anchor, Scale, Svg, number, tick, width_of};

/// A figure of both folders.
pub(super) struct Pair {
    /// What was measured, and of what.
    pub what: String,
    pub of: String,
    pub unit: String,
    pub before: f64,
    pub now: f64,
    /// Now by before: of the medians, and the extremes that the ranges of the repeats allow.
    pub ratio: f64,
    pub range: [f64; 2],
    pub better: Better,
    pub verdict: Verdict,
}

impl Pair {
    fn of(work: &str, before: &Figure, now: &Figure) -> Option<Pair> {
        let better = now.better?;
        let ((before_low, before_high), (low, high)) = (before.range(), now.range());
        let (ratio, range) = (now.median / before.median, [low / before_high, high / before_low]);
        let positive = [ratio, range[0], range[1]].iter().all(|r| r.is_finite() && *r > 0.0);
        (positive && before.unit == now.unit).then(|| Pair {
            what: now.what.clone(),
            of: work.to_owned(),
            unit: now.unit.clone(),
            before: before.median,
            now: now.median,
            ratio,
            range,
            better,
            verdict: Verdict::of(before, now),
        })
    }

    /// How much worse it is now: above 1 if it is.
    fn loss(&self) -> f64 {
        match self.better {
            Better::Lower => self.ratio,
            Better::Higher => self.ratio.recip(),
        }
    }

    fn class(&self) -> &'static str {
        match self.verdict {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            _ => "same",
        }
    }
}

/// The figures of the same bench, model and input in both folders, the greatest loss first. Figures that explain others are not
/// judged and not shown.
pub(super) fn pairs(before: &[(String, Record)], now: &[(String, Record)]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (_, now) in now {
        let same = |r: &&Record| {
            let named = |r: &Record| (r.bench, r.model.clone(), r.dtype.clone(), r.load_format.clone());
            named(r) == named(now) && difference(&r.input, &now.input).is_none()
        };
        let Some(before) = before.iter().map(|(_, record)| record).filter(same).max_by_key(|r| &r.date) else {
            continue;
        };
        let work = super::heading::work(now);
        let both = now.figures.0.iter().filter_map(|(name, figure)| Pair::of(&work, before.figures.get(name)?, figure));
        pairs.extend(both);
    }
    pairs.sort_by(|a, b| b.loss().total_cmp(&a.loss()));
    pairs
}

const ROW: f64 = 44.0;

/// Draw every pair as an interval about 1.
pub(super) fn draw(pairs: &[Pair], width: f64, class: &str, title: &str) -> String {
    let narrow = width < 500.0;
    // A narrow drawing has what was measured above its interval, a wide one at its side.
    let (left, right, row, drop) =
        if narrow { (10.0, width - 10.0, 62.0, 32.0) } else { (330.0, width - 190.0, ROW, 0.0) };
    let bottom = 34.0 + row * pairs.len() as f64;
    let mut svg = Svg::new(width, bottom + 10.0);
    let farthest =
        pairs.iter().flat_map(|p| [p.range[0].recip(), p.range[1], p.ratio, p.ratio.recip()]).fold(1.0, f64::max);
    let (most, ticks) = ratios(farthest);
    let x = Scale::log([most.recip(), most], [left, right]);
    for value in &ticks {
        let class = if *value == 1.0 { "axis" } else { "grid" };
        svg.line(class, [x.at(*value), 24.0], [x.at(*value), bottom]);
        svg.text("tick", [x.at(*value), 14.0], Anchor::Middle, &tick(*value));
    }
    for (i, pair) in pairs.iter().enumerate() {
        let top = 34.0 + row * i as f64;
        let middle = top + drop + if narrow { 12.0 } else { row / 2.0 - 2.0 };
        let says = format!(
            "{}, {}: {} {unit} now, {} {unit} before: {:.3} ({:.3} .. {:.3}), {}",
            pair.what,
            pair.of,
            number(pair.now),
            number(pair.before),
            pair.ratio,
            pair.range[0],
            pair.range[1],
            pair.verdict.words(),
            unit = pair.unit,
        );
        let [from, to] = pair.range.map(|r| x.at(r));
        svg.rect(&format!("interval {}", pair.class()), [from, middle - 4.0], [(to - from).max(1.5), 8.0], &says);
        svg.line(
            &format!("middle {}", pair.class()),
            [x.at(pair.ratio), middle - 8.0],
            [x.at(pair.ratio), middle + 8.0],
        );
        let verdict = format!("{:.3}  {}", pair.ratio, pair.verdict.words());
        if narrow {
            svg.text(
                "row",
                [0.0, top + 12.0],
                Anchor::Start,
                &cut(&pair.what, width - width_of(&verdict, 12.0) - 8.0, 13.0),
            );
            svg.text("verdict", [width, top + 12.0], Anchor::End, &verdict);
            svg.text("tick", [0.0, top + 28.0], Anchor::Start, &cut(&pair.of, width, 12.0));
        } else {
            svg.text("row", [0.0, middle - 2.0], Anchor::Start, &cut(&pair.what, left - 20.0, 13.0));
            svg.text("tick", [0.0, middle + 14.0], Anchor::Start, &cut(&pair.of, left - 20.0, 12.0));
            svg.text("verdict", [right + 20.0, middle + 4.0], Anchor::Start, &verdict);
        }
    }
    let count = |verdict| pairs.iter().filter(|pair| pair.verdict == verdict).count();
    let (slower, faster) = (count(Verdict::Slower), count(Verdict::Faster));
    svg.finish(class, title, &format!("Of {} figures {slower} are slower and {faster} faster.", pairs.len()))
}

/// A text as far as it fits.
fn cut(text: &str, width: f64, size: f64) -> String {
    let room = (width / width_of("n", size)) as usize;
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// The end of an axis of ratios about 1 that holds `farthest`, and its ticks.
fn ratios(farthest: f64) -> (f64, Vec<f64>) {
    let axes: [(f64, [f64; 5]); 5] = [
        (1.05, [0.96, 0.98, 1.0, 1.02, 1.04]),
        (1.1, [0.92, 0.96, 1.0, 1.04, 1.08]),
        (1.25, [0.8, 0.9, 1.0, 1.1, 1.2]),
        (2.0, [0.5, 0.7, 1.0, 1.4, 2.0]),
        (4.0, [0.25, 0.5, 1.0, 2.0, 4.0]),
    ];
    let fits = axes.into_iter().find(|(most, _)| farthest <= *most);
    fits.map_or_else(
        || {
            let most = 10f64.powf(farthest.min(1e9).log10().ceil());
            (most, vec![most.recip(), 1.0, most])
        },
        |(most, ticks)| (most, ticks.to_vec()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::record;
    use super::*;

    fn run(repeats: &[f64]) -> (String, Record) {
        (String::new(), record(&repeats.iter().map(|m| vec![*m]).collect::<Vec<_>>()))
    }

    #[test]
    fn figures_of_the_same_work_are_paired_and_the_worst_comes_first() {
        let (before, now) = (run(&[10.0, 10.0, 10.1, 10.2, 10.0]), run(&[12.0, 12.0, 12.2, 12.1, 12.0]));
        let pairs = pairs(&[before.clone()], &[now.clone()]);
        // A time and a rate have the same samples here: one is worse and one better. What is not judged is not shown.
        assert_eq!(
            pairs.iter().map(|p| (p.what.as_str(), p.verdict)).collect::<Vec<_>>(),
            [("first token", Verdict::Slower), ("read", Verdict::Faster)]
        );
        assert_eq!((pairs[0].ratio, pairs[0].range), (1.2, [12.0 / 10.2, 12.2 / 10.0]));
        let mut other = before;
        other.1.input.prompt_tokens += 1;
        assert!(super::pairs(&[other.clone()], &[now.clone()]).is_empty());
        other.1.input.prompt_tokens -= 1;
        other.1.model = "other".into();
        assert!(super::pairs(&[other], &[now]).is_empty());
    }

    #[test]
    fn an_interval_stands_where_its_ratios_are() {
        let pairs = pairs(&[run(&[10.0; 5])], &[run(&[12.0, 12.0, 12.0, 11.0, 12.5])]);
        let drawn = draw(&pairs[..1], 720.0, "wide", "t");
        // 0.8 to 1.25 on 330 to 530.
        let x = |ratio: f64| 430.0 + 100.0 * ratio.ln() / 1.25f64.ln();
        assert!(drawn.contains(&format!("class=\"interval slower\" x=\"{:.2}\"", x(1.1))), "{drawn}");
        assert!(drawn.contains(&format!("width=\"{:.2}\"", x(1.25) - x(1.1))));
        assert!(drawn.contains("1.200  slower") && drawn.contains("Of 1 figures 1 are slower and 0 faster."));
        assert!(draw(&[], 720.0, "wide", "t").contains("Of 0 figures"));
    }

    #[test]
    fn axes_of_ratios_hold_what_they_must() {
        for farthest in [1.0, 1.04, 1.2, 1.7, 3.0, 42.0] {
            let (most, ticks) = ratios(farthest);
            assert!(most >= farthest && ticks.contains(&1.0) && ticks.is_sorted() && ticks[ticks.len() - 1] <= most);
        }
        assert_eq!(ratios(1.2).1, [0.8, 0.9, 1.0, 1.1, 1.2]);
        assert_eq!(cut("a long name", 40.0, 12.0), "a lo\u{2026}");
    }
}
