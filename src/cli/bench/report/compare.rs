//! Two folders beside each other: every figure that both have of the same work.

use super::super::baseline::{Verdict, difference};
use super::super::record::{Better, Figure, Record};
use super::super::table::number;
use super::svg::{Anchor, Scale, Svg, cut, tick};

/// A figure of both folders.
pub(super) struct Pair {
    pub what: String,
    pub unit: String,
    pub before: f64,
    pub now: f64,
    /// How many times better it is now: a time before by now, a rate now by before. Of the medians, and the extremes that
    /// the medians of the repeats allow.
    pub gain: f64,
    pub range: [f64; 2],
    pub verdict: Verdict,
}

/// The figures of one piece of work in both folders, the greatest loss first.
pub(super) struct Work {
    pub name: String,
    pub pairs: Vec<Pair>,
}

impl Pair {
    fn of(before: &Figure, now: &Figure) -> Option<Pair> {
        let ((before_low, before_high), (low, high)) = (before.range(), now.range());
        let (gain, range) = match now.better? {
            Better::Lower => (before.median / now.median, [before_low / high, before_high / low]),
            Better::Higher => (now.median / before.median, [low / before_high, high / before_low]),
        };
        let positive = [gain, range[0], range[1]].iter().all(|r| r.is_finite() && *r > 0.0);
        (positive && before.unit == now.unit).then(|| Pair {
            what: now.what.clone(),
            unit: now.unit.clone(),
            before: before.median,
            now: now.median,
            gain,
            range,
            verdict: Verdict::of(before, now),
        })
    }

    fn class(&self) -> &'static str {
        match self.verdict {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            _ => "same",
        }
    }

    /// All there is to say of it.
    fn words(&self) -> String {
        let Pair { what, unit, gain, range: [low, high], .. } = self;
        let (before, now) = (number(self.before), number(self.now));
        format!(
            "{what}: {before} {unit} before, {now} {unit} now; gain {gain:.3} ({low:.3} .. {high:.3}): {}",
            self.verdict.words()
        )
    }
}

/// What is in both folders of the same bench, model and input, the greatest loss first. Figures that explain others are not
/// judged and not shown.
pub(super) fn works(before: &[(String, Record)], now: &[(String, Record)]) -> Vec<Work> {
    let mut works = Vec::new();
    for (_, now) in now {
        let same = |r: &&Record| {
            let named = |r: &Record| (r.bench, r.model.clone(), r.dtype.clone(), r.load_format.clone());
            named(r) == named(now) && difference(&r.input, &now.input).is_none()
        };
        // Of several runs of the same, the last one counts.
        let before = before.iter().map(|(_, record)| record).filter(same).max_by_key(|r| &r.date);
        let pair = |(name, figure): &(String, Figure)| Pair::of(before?.figures.get(name)?, figure);
        let mut pairs: Vec<Pair> = now.figures.0.iter().filter_map(pair).collect();
        pairs.sort_by(|a, b| a.gain.total_cmp(&b.gain));
        if !pairs.is_empty() {
            works.push(Work { name: super::heading::work(now), pairs });
        }
    }
    works.sort_by(|a, b| a.pairs[0].gain.total_cmp(&b.pairs[0].gain));
    works
}

/// Heights of a heading and of a row, from baseline to baseline.
const HEADING: f64 = 34.0;
const ROW: f64 = 24.0;

/// Draw every pair as an interval about 1, on one axis.
pub(super) fn draw(works: &[Work], width: f64, class: &str, title: &str) -> String {
    let narrow = width < 500.0;
    // A narrow drawing has what was measured above its interval, a wide one at its side.
    let (left, right, row) = if narrow { (10.0, width - 10.0, 46.0) } else { (230.0, width - 190.0, ROW) };
    let pairs = || works.iter().flat_map(|work| &work.pairs);
    let bottom = 26.0 + HEADING * works.len() as f64 + row * pairs().count() as f64;
    let mut svg = Svg::new(width, bottom + 34.0);
    // Figures that scatter widely say little: their bars may go past the axis, so that the others can be read.
    let judged = |p: &&Pair| matches!(p.verdict, Verdict::Faster | Verdict::Slower);
    let certain = pairs().filter(judged).flat_map(|p| [p.range[0].recip(), p.range[1]]);
    let farthest = pairs().flat_map(|p| [p.gain, p.gain.recip()]).chain(certain).fold(1.0, f64::max);
    let (most, ticks) = ratios(farthest);
    let x = Scale::log([most.recip(), most], [left, right]);
    for value in &ticks {
        svg.text("tick", [x.at(*value), 12.0], Anchor::Middle, &tick(*value));
        svg.text("tick", [x.at(*value), bottom + 14.0], Anchor::Middle, &tick(*value));
    }
    svg.text("name", [left, bottom + 31.0], Anchor::Start, "\u{2190} worse now");
    svg.text("name", [right, bottom + 31.0], Anchor::End, "better now \u{2192}");
    let mut top = 22.0;
    for Work { name, pairs } in works {
        svg.text("row", [0.0, top + 22.0], Anchor::Start, &cut(name, width, 13.0));
        top += HEADING;
        let end = top + row * pairs.len() as f64 - 4.0;
        for value in &ticks {
            let class = if *value == 1.0 { "axis" } else { "grid" };
            svg.line(class, [x.at(*value), top - 4.0], [x.at(*value), end]);
        }
        for pair in pairs {
            let middle = top + if narrow { 26.0 } else { 8.0 };
            interval(&mut svg, pair, x, [left, right], middle);
            let verdict = format!("{:.3}  {}", pair.gain, pair.verdict.words());
            let label = if narrow { top + 10.0 } else { middle + 4.0 };
            svg.text("tick", [0.0, label], Anchor::Start, &cut(&pair.what, 220.0, 12.0));
            svg.text(
                "verdict",
                if narrow { [width, label] } else { [right + 20.0, label] },
                if narrow { Anchor::End } else { Anchor::Start },
                &verdict,
            );
            top += row;
        }
    }
    let count = |verdict| pairs().filter(|pair| pair.verdict == verdict).count();
    let (slower, faster) = (count(Verdict::Slower), count(Verdict::Faster));
    svg.finish(class, title, &format!("Of {} figures {slower} are slower and {faster} faster.", pairs().count()))
}

/// A bar over the range and a line at the gain. A bar that goes past an end of the axis has a tip there.
fn interval(svg: &mut Svg, pair: &Pair, x: Scale, [left, right]: [f64; 2], middle: f64) {
    let class = pair.class();
    let [from, to] = pair.range.map(|r| x.at(r).clamp(left, right));
    for (end, past, tip) in [(left, x.at(pair.range[0]) < left, -7.0), (right, x.at(pair.range[1]) > right, 7.0)] {
        if past {
            let outline = [[end, middle - 4.0], [end + tip, middle], [end, middle + 4.0]];
            svg.path(&format!("interval {class}"), &outline);
        }
    }
    svg.rect(&format!("interval {class}"), [from, middle - 4.0], [(to - from).max(1.5), 8.0], &pair.words());
    svg.line(&format!("middle {class}"), [x.at(pair.gain), middle - 7.0], [x.at(pair.gain), middle + 7.0]);
}

/// The end of an axis of ratios about 1 that holds `farthest`, and its ticks.
fn ratios(farthest: f64) -> (f64, Vec<f64>) {
    let axes: [(f64, [f64; 5]); 6] = [
        (1.05, [0.96, 0.98, 1.0, 1.02, 1.04]),
        (1.1, [0.92, 0.96, 1.0, 1.04, 1.08]),
        (1.25, [0.8, 0.9, 1.0, 1.1, 1.2]),
        (1.5, [0.7, 0.85, 1.0, 1.2, 1.4]),
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
        let (mut before, now) = ([run(&[10.0, 10.0, 10.1, 10.2, 10.0])], [run(&[12.0, 12.0, 12.2, 12.1, 12.0])]);
        let works = works(&before, &now);
        assert_eq!(works.len(), 1);
        // A time and a rate have the same samples here: one is worse and one better. What is not judged is not shown.
        let pairs = &works[0].pairs;
        assert_eq!(
            pairs.iter().map(|p| (p.what.as_str(), p.verdict)).collect::<Vec<_>>(),
            [("first token", Verdict::Slower), ("read", Verdict::Faster)]
        );
        assert_eq!((pairs[0].gain, pairs[0].range), (10.0 / 12.0, [10.0 / 12.2, 10.2 / 12.0]));
        assert_eq!((pairs[1].gain, pairs[1].range), (1.2, [12.0 / 10.2, 12.2 / 10.0]));
        before[0].1.input.prompt_tokens += 1;
        assert!(super::works(&before, &now).is_empty());
        before[0].1.input.prompt_tokens -= 1;
        before[0].1.model = "other".into();
        assert!(super::works(&before, &now).is_empty());
    }

    #[test]
    fn an_interval_stands_where_its_gains_are() {
        let mut works = works(&[run(&[12.0, 12.0, 12.0, 11.0, 12.5])], &[run(&[10.0; 5])]);
        works[0].pairs.retain(|pair| pair.what == "first token");
        let drawn = draw(&works, 620.0, "wide", "t");
        // 0.8 to 1.25 on 230 to 430.
        let x = |ratio: f64| 330.0 + 100.0 * ratio.ln() / 1.25f64.ln();
        assert!(drawn.contains(&format!("class=\"interval faster\" x=\"{:.2}\"", x(1.1))), "{drawn}");
        assert!(drawn.contains(&format!("width=\"{:.2}\"", x(1.25) - x(1.1))));
        assert!(drawn.contains("12.00 ms before, 10.00 ms now; gain 1.200 (1.100 .. 1.250): faster"), "{drawn}");
        assert!(drawn.contains("1.200  faster") && drawn.contains("Of 1 figures 0 are slower and 1 faster."));
        assert!(draw(&[], 720.0, "wide", "t").contains("Of 0 figures"));
    }

    #[test]
    fn axes_of_ratios_hold_what_they_must() {
        for farthest in [1.0, 1.04, 1.2, 1.7, 3.0, 42.0] {
            let (most, ticks) = ratios(farthest);
            assert!(most >= farthest && ticks.contains(&1.0) && ticks.is_sorted() && ticks[ticks.len() - 1] <= most);
        }
        assert_eq!(ratios(1.2).1, [0.8, 0.9, 1.0, 1.1, 1.2]);
    }
}
