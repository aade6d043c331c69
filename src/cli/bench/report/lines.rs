//! Lines over the number of requests that are under way at once.

use super::super::record::{Bench, Figure, Record, UNKNOWN};
use super::svg::{Anchor, Scale, Svg, decades, number, steps, tick};

/// From this ratio of the largest to the smallest value on, a linear axis would show the large ones alone.
const LOG: f64 = 25.0;

/// Records that differ in nothing but how many requests are under way.
pub(super) struct Sweep {
    pub name: String,
    /// By requests at once, ascending; two or more of them.
    pub records: Vec<(u64, Record)>,
}

/// A quantity over the number of requests.
pub(super) struct Panel {
    pub title: &'static str,
    pub unit: &'static str,
    pub lines: Vec<Line>,
    /// Whether a shape is all that is asked of it, so that its axis may be logarithmic.
    pub may_log: bool,
}

/// A line of a panel.
pub(super) struct Line {
    pub name: &'static str,
    pub class: &'static str,
    pub points: Vec<[f64; 2]>,
}

/// Requests that are under way at once: what was asked for, or all there are.
pub(super) fn concurrency(record: &Record) -> u64 {
    record.input.concurrency.unwrap_or(record.input.requests)
}

/// Group the records of servers and of many requests that were measured at several numbers of requests at once.
pub(super) fn sweeps(records: &[(String, Record)]) -> Vec<Sweep> {
    let mut sweeps: Vec<Sweep> = Vec::new();
    for record in records.iter().map(|(_, record)| record).filter(|record| loaded(record)) {
        let name = name(record);
        match sweeps.iter_mut().find(|sweep| sweep.name == name) {
            Some(sweep) => sweep.records.push((concurrency(record), record.clone())),
            None => sweeps.push(Sweep { name, records: vec![(concurrency(record), record.clone())] }),
        }
    }
    for sweep in &mut sweeps {
        // Of two runs of the same, the later one counts.
        sweep.records.sort_by(|(a, r), (b, s)| a.cmp(b).then_with(|| s.date.cmp(&r.date)));
        sweep.records.dedup_by_key(|(n, _)| *n);
    }
    sweeps.retain(|sweep| sweep.records.len() > 1);
    sweeps
}

/// Whether as many requests as were asked for are under way all the time.
fn loaded(record: &Record) -> bool {
    matches!(record.bench, Bench::Serve | Bench::Throughput) && record.input.request_rate.is_none()
}

/// What stays the same along a line. Prompts of a server's bench differ by some tokens from run to run.
fn name(record: &Record) -> String {
    let pictures = match record.input.pictures.as_slice() {
        [] => "text alone".to_owned(),
        [one] => format!("a picture of {one}"),
        several => format!("pictures of {}", several.join(", ")),
    };
    let Record { model, gpu, backend, dtype, .. } = record;
    let bench = record.bench.name();
    // A client does not know what is behind a server.
    let runs = if gpu == UNKNOWN { backend.clone() } else { format!("{dtype}, {backend} on {gpu}") };
    format!("{model}, {runs}, {pictures}, {} tokens out ({bench})", record.input.output_tokens)
}

impl Sweep {
    /// Whether a record belongs to it, if only as an earlier run.
    pub fn holds(&self, record: &Record) -> bool {
        loaded(record) && self.name == name(record)
    }

    /// Latency twice, and the rate.
    pub fn panels(&self) -> Vec<Panel> {
        let line = |name, class, figure: &str, of: fn(&Figure) -> f64| Line {
            name,
            class,
            points: self.records.iter().filter_map(|(n, r)| Some([*n as f64, of(r.figures.get(figure)?)])).collect(),
        };
        let times = |title, figure| Panel {
            title,
            unit: "ms",
            lines: vec![line("median", "line", figure, |f| f.median), line("p99", "line faint", figure, |f| f.p99)],
            may_log: true,
        };
        let rate = line("median", "line", "request_throughput", |f| f.median);
        let mut panels = vec![
            times("First token", "ttft_ms"),
            times("Every token after it", "tpot_ms"),
            Panel { title: "Requests a second", unit: "req/s", lines: vec![rate], may_log: false },
        ];
        panels.retain(|panel| panel.lines.iter().all(|line| line.points.len() > 1));
        panels
    }
}

/// Draw a panel.
pub(super) fn draw(panel: &Panel, [width, height]: [f64; 2], class: &str) -> String {
    let mut svg = Svg::new(width, height);
    let points = || panel.lines.iter().flat_map(|line| line.points.iter().copied());
    let fold = |axis: usize| points().map(|p| p[axis]).fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
    let ((first, last), (least, most)) = (fold(0), fold(1));
    let log = panel.may_log && least > 0.0 && most / least > LOG;
    let ticks = if log { decades([least, most].into_iter()) } else { steps(most, 4) };
    // A single line needs no name, and no room for it.
    let (left, right) = (44.0, if panel.lines.len() > 1 { width - 50.0 } else { width - 14.0 });
    let (top, bottom) = (44.0, height - 40.0);
    let ends = [ticks[0], ticks[ticks.len() - 1]];
    let y = if log { Scale::log(ends, [bottom, top]) } else { Scale::linear(ends, [bottom, top]) };
    let x = Scale::log([first.max(1e-9), last], [left + 10.0, right - 10.0]);
    svg.text("row", [2.0, 14.0], Anchor::Start, panel.title);
    let unit = if log { format!("{}, logarithmic", panel.unit) } else { panel.unit.to_owned() };
    svg.text("name", [2.0, 31.0], Anchor::Start, &unit);
    for value in &ticks {
        svg.line("grid", [left, y.at(*value)], [right, y.at(*value)]);
        svg.text("tick", [left - 8.0, y.at(*value) + 4.0], Anchor::End, &tick(*value));
    }
    svg.line("axis", [left, bottom], [right, bottom]);
    let counts = panel.lines.first().map_or(&[][..], |line| &line.points);
    label_counts(&mut svg, counts.iter().map(|[n, _]| *n), x, bottom);
    svg.text("name", [right, bottom + 34.0], Anchor::End, "requests at once");
    let mut named = Vec::new();
    for line in &panel.lines {
        let last = draw_line(&mut svg, line, panel.unit, [x, y]);
        if let (Some([x, y]), true) = (last, panel.lines.len() > 1) {
            // Two names at one height would lie on each other.
            let meets = named.iter().any(|other: &f64| (other - y).abs() < 13.0);
            let y = if meets { y - 13.0 } else { y };
            svg.text("label", [x + 8.0, y + 4.0], Anchor::Start, line.name);
            named.push(y);
        }
    }
    let said: Vec<_> = panel.lines.iter().map(|line| words(line, panel.unit)).collect();
    svg.finish(class, panel.title, &said.join(" "))
}

/// Ticks at the numbers that were measured, as far as they do not lie on each other.
fn label_counts(svg: &mut Svg, counts: impl Iterator<Item = f64>, x: Scale, bottom: f64) {
    let mut free = f64::NEG_INFINITY;
    for n in counts {
        let place = x.at(n);
        svg.line("axis", [place, bottom], [place, bottom + 4.0]);
        if place >= free {
            svg.text("tick", [place, bottom + 17.0], Anchor::Middle, &tick(n));
            free = place + 8.0 * tick(n).len() as f64 + 4.0;
        }
    }
}

/// Draw a line with its points, and return where it ends.
fn draw_line(svg: &mut Svg, line: &Line, unit: &str, [x, y]: [Scale; 2]) -> Option<[f64; 2]> {
    let places: Vec<[f64; 2]> = line.points.iter().map(|[n, v]| [x.at(*n), y.at(*v)]).collect();
    svg.path(line.class, &places);
    for ([n, value], at) in line.points.iter().zip(&places) {
        let says = format!("{} at once: {} {} {unit}", tick(*n), line.name, number(*value));
        svg.rect(&format!("dot {}", line.class), [at[0] - 3.0, at[1] - 3.0], [6.0, 6.0], &says);
    }
    places.last().copied()
}

/// A line in a sentence.
fn words(line: &Line, unit: &str) -> String {
    let said: Vec<_> = line.points.iter().map(|[n, v]| format!("{} {unit} at {}", number(*v), tick(*n))).collect();
    format!("{}: {}.", line.name, said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::record;
    use super::*;

    fn served(concurrency: Option<u64>, ttft: f64, date: &str) -> (String, Record) {
        let mut record = record(&[vec![ttft, ttft, 3.0 * ttft]]);
        record.bench = Bench::Serve;
        record.date = date.into();
        record.input.concurrency = concurrency;
        record.input.requests = 256;
        record.figures.push("request_throughput", Figure::of("requests", "req/s", None, &[vec![ttft / 10.0]]));
        (String::new(), record)
    }

    #[test]
    fn records_that_differ_in_concurrency_alone_are_a_sweep() {
        let mut records = vec![served(None, 600.0, "3"), served(Some(16), 200.0, "1"), served(Some(16), 220.0, "2")];
        assert_eq!(sweeps(&records[1..]).len(), 0, "one number of requests is no line");
        records.push(served(Some(1), 20.0, "1"));
        records[3].1.model = "another".into();
        let sweeps = sweeps(&records);
        assert_eq!(sweeps.len(), 1);
        let seen: Vec<_> = sweeps[0].records.iter().map(|(n, r)| (*n, r.date.as_str())).collect();
        assert_eq!(seen, [(16, "2"), (256, "3")], "sorted, and the later of two");
        assert_eq!(records.iter().map(|(_, r)| sweeps[0].holds(r)).collect::<Vec<_>>(), [true, true, true, false]);
        let panels = sweeps[0].panels();
        assert_eq!(panels.iter().map(|p| p.title).collect::<Vec<_>>(), ["First token", "Requests a second"]);
        assert_eq!(panels[0].lines[0].points, [[16.0, 220.0], [256.0, 600.0]]);
        assert!(panels[0].lines[1].points[1][1] > 1700.0, "p99");
    }

    #[test]
    fn a_panel_has_its_points_in_place_and_a_baseline_of_zero() {
        let points = vec![[1.0, 2.0], [4.0, 10.0], [16.0, 30.0]];
        let panel = |may_log| Panel {
            title: "t",
            unit: "ms",
            lines: vec![Line { name: "median", class: "line", points: points.clone() }],
            may_log,
        };
        // x: 1 to 16 on 54 to 276, y: 0 to 30 on 160 to 44.
        let drawn = draw(&panel(true), [300.0, 200.0], "wide");
        assert!(
            drawn.contains(&format!(
                "M54.0 {:.1}L165.0 {:.1}L276.0 44.0",
                160.0 - 116.0 * 2.0 / 30.0,
                160.0 - 116.0 / 3.0
            )),
            "{drawn}"
        );
        assert!(drawn.contains(">0</text>") && drawn.contains("median: 2.00 ms at 1, 10.0 ms at 4, 30.0 ms at 16."));
        let mut steep = panel(true);
        steep.lines[0].points[2][1] = 300.0;
        assert!(draw(&steep, [300.0, 200.0], "wide").contains("ms, logarithmic"));
        steep.may_log = false;
        assert!(!draw(&steep, [300.0, 200.0], "wide").contains("logarithmic"));
    }
}
