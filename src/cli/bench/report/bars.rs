//! Stacked bars: where the time of a token goes, with the least that it could take below.

use super::svg::{Anchor, Scale, Svg, cut, number, steps, tick, width_of};

const LETTERS: f64 = 12.0;
const LEFT: f64 = 2.0;
const RIGHT: f64 = 16.0;

/// A part of a bar. Times are in milliseconds.
pub(super) struct Part {
    pub what: String,
    pub class: &'static str,
    pub ms: f64,
    /// The least that it can take, if there is a ceiling to say so.
    pub floor_ms: Option<f64>,
}

/// A bar, and the least below it.
pub(super) struct Bar {
    pub name: String,
    pub parts: Vec<Part>,
    /// What the same work takes when nobody times its launches.
    pub whole_ms: Option<f64>,
}

impl Bar {
    /// The sum of the parts.
    pub fn ms(&self) -> f64 {
        self.parts.iter().map(|part| part.ms).sum()
    }

    /// The sum of the floors; `None` if no part has one.
    pub fn floor_ms(&self) -> Option<f64> {
        self.parts.iter().filter_map(|part| part.floor_ms).reduce(|a, b| a + b)
    }
}

/// The two bars of a row below its heading: top and height.
const TIMED: [f64; 2] = [10.0, 30.0];
const FLOOR: [f64; 2] = [44.0, 12.0];
/// From a heading's end to the next heading.
const BELOW: f64 = 72.0;

/// Draw bars one below the other on one axis, which begins at zero.
pub(super) fn draw(bars: &[Bar], width: f64, class: &str, title: &str) -> String {
    // Where name and figures do not fit on one line, they have two.
    let heading = if width < 500.0 { 32.0 } else { 14.0 };
    let row = heading + BELOW;
    let bottom = row * bars.len() as f64;
    let mut svg = Svg::new(width, bottom + 30.0);
    let longest = bars.iter().map(|bar| bar.ms().max(bar.whole_ms.unwrap_or(0.0))).fold(0.0, f64::max);
    let ticks = steps(longest, if width < 500.0 { 4 } else { 8 });
    let x = Scale::linear([0.0, ticks[ticks.len() - 1]], [LEFT, width - RIGHT]);
    for (i, bar) in bars.iter().enumerate() {
        let top = row * i as f64 + heading;
        // Lines do not cross headings: each bar has a piece of them.
        for value in &ticks {
            svg.line("grid", [x.at(*value), top + TIMED[0] - 4.0], [x.at(*value), top + FLOOR[0] + FLOOR[1] + 4.0]);
        }
        draw_heading(&mut svg, bar, top, width);
        draw_bar(&mut svg, bar, x, top);
    }
    for value in &ticks {
        let anchor = if *value == 0.0 { Anchor::Start } else { Anchor::Middle };
        svg.text("tick", [x.at(*value), bottom + 4.0], anchor, &tick(*value));
    }
    svg.text("name", [width - RIGHT, bottom + 22.0], Anchor::End, "milliseconds");
    let said: Vec<_> = bars.iter().map(words).collect();
    svg.finish(class, title, &said.join(" "))
}

/// A bar in a sentence.
fn words(bar: &Bar) -> String {
    let mut text = format!("{}: {} ms launch by launch", bar.name, number(bar.ms()));
    if let Some(ms) = bar.whole_ms {
        text += &format!(", {} ms as it runs", number(ms));
    }
    if let Some(ms) = bar.floor_ms() {
        text += &format!(", at least {} ms on the device", number(ms));
    }
    text + "."
}

/// Name and figures above a bar that begins at `top`.
fn draw_heading(svg: &mut Svg, bar: &Bar, top: f64, width: f64) {
    let mut said = vec![format!("{} ms", number(bar.ms()))];
    said.extend(bar.whole_ms.map(|ms| format!("\u{25be} {} as it runs", number(ms))));
    said.extend(bar.floor_ms().map(|ms| format!("floor {}", number(ms))));
    let said = said.join(", ");
    if width < 500.0 {
        svg.text("row", [LEFT, top - 18.0], Anchor::Start, &cut(&bar.name, width, LETTERS + 1.0));
        svg.text("tick", [LEFT, top], Anchor::Start, &said);
    } else {
        let room = width - RIGHT - width_of(&said, LETTERS) - 10.0;
        svg.text("row", [LEFT, top], Anchor::Start, &cut(&bar.name, room, LETTERS + 1.0));
        svg.text("tick", [width - RIGHT, top], Anchor::End, &said);
    }
}

fn draw_bar(svg: &mut Svg, bar: &Bar, x: Scale, top: f64) {
    let whole = bar.whole_ms.map(|ms| x.at(ms));
    let (mut at, mut least) = (0.0, 0.0);
    for part in &bar.parts {
        let says = format!("{}: {} ms, {:.1} %", part.what, number(part.ms), 100.0 * part.ms / bar.ms());
        let ends = [x.at(at), x.at(at + part.ms)];
        svg.rect(part.class, [ends[0], top + TIMED[0]], [gap(ends[1] - ends[0]), TIMED[1]], &says);
        if let Some(middle) = room(&part.what, ends, whole) {
            svg.text("inside", [middle, top + TIMED[0] + TIMED[1] / 2.0 + 4.0], Anchor::Middle, &part.what);
        }
        at += part.ms;
        if let Some(floor) = part.floor_ms {
            let says = format!("{}: at least {} ms", part.what, number(floor));
            let [start, end] = [x.at(least), x.at(least + floor)];
            svg.rect(&format!("{} floor", part.class), [start, top + FLOOR[0]], [gap(end - start), FLOOR[1]], &says);
            least += floor;
        }
    }
    if let Some(place) = whole {
        let (above, below) = (top + TIMED[0] - 1.0, top + TIMED[0] + TIMED[1] + 3.0);
        svg.path("tip", &[[place - 4.5, above - 6.0], [place + 4.5, above - 6.0], [place, above]]);
        svg.line("whole", [place, above], [place, below]);
    }
}

/// The middle of the name of a part between `start` and `end`, if there is room beside what stands at `line`.
fn room(name: &str, [start, end]: [f64; 2], line: Option<f64>) -> Option<f64> {
    let sides = match line.filter(|line| (start..end).contains(line)) {
        Some(line) => [[start, line], [line, end]],
        None => [[start, end]; 2],
    };
    let [from, to] = if sides[0][1] - sides[0][0] >= sides[1][1] - sides[1][0] { sides[0] } else { sides[1] };
    (to - from > width_of(name, LETTERS) + 8.0).then_some((from + to) / 2.0)
}

/// Parts are told apart by the ground between them, as far as they are wide enough to lose some.
fn gap(width: f64) -> f64 {
    if width > 3.0 { width - 1.0 } else { width }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(what: &str, ms: f64, floor_ms: Option<f64>) -> Part {
        Part { what: what.into(), class: "c-gemv", ms, floor_ms }
    }

    #[test]
    fn parts_follow_each_other_from_zero_on() {
        let parts = vec![part("gemv", 3.0, Some(2.0)), part("host", 0.5, None), part("x", 0.1, Some(0.25))];
        let bar = Bar { name: "decode of 1".into(), parts, whole_ms: Some(3.5) };
        assert_eq!((bar.ms(), bar.floor_ms()), (3.6, Some(2.25)));
        // The axis ends at 4 ms: 200 units a millisecond.
        let drawn = draw(&[bar], 818.0, "wide", "t");
        for there in [
            "x=\"2.00\" y=\"24.0\" width=\"599.00\" height=\"30.0\"><title>gemv: 3.00 ms, 83.3 %</title>",
            "x=\"602.00\" y=\"24.0\" width=\"99.00\" height=\"30.0\"><title>host: 0.500 ms, 13.9 %</title>",
            "class=\"c-gemv floor\" x=\"2.00\" y=\"58.0\" width=\"399.00\" height=\"12.0\"><title>gemv: at least 2.00 ms</title>",
            "class=\"c-gemv floor\" x=\"402.00\"",
            "class=\"whole\" d=\"M702.0 23.0L702.0 57.0\"",
            "decode of 1: 3.60 ms launch by launch, 3.50 ms as it runs, at least 2.25 ms on the device.",
            ">gemv</text>",
        ] {
            assert!(drawn.contains(there), "{there} in {drawn}");
        }
        assert_eq!(drawn.matches("floor\"").count(), 2, "the host has no floor");
        assert!(drawn.contains(">0</text>"), "the axis begins at zero");
    }

    #[test]
    fn names_stand_where_nothing_crosses_them() {
        assert_eq!(room("gemv", [0.0, 200.0], None), Some(100.0));
        assert_eq!(room("gemv", [0.0, 200.0], Some(150.0)), Some(75.0));
        assert_eq!(room("gemv", [0.0, 200.0], Some(50.0)), Some(125.0));
        assert_eq!(room("gemv", [0.0, 60.0], Some(30.0)), None);
        assert_eq!(room("gemv", [0.0, 20.0], None), None);
    }
}
