//! Stacked bars: where the time of a token goes, with the least that it could take below.

use super::svg::{Anchor, Scale, Svg, number, steps, tick, width_of};

const LETTERS: f64 = 12.0;
const LEFT: f64 = 2.0;

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

/// Room of a bar with its heading, and of its parts: baseline of the heading, top and height of the two bars.
const ROW: f64 = 86.0;
const HEADING: f64 = 14.0;
const TIMED: [f64; 2] = [24.0, 30.0];
const FLOOR: [f64; 2] = [58.0, 12.0];

/// Draw bars one below the other on one axis, which begins at zero.
pub(super) fn draw(bars: &[Bar], width: f64, class: &str, title: &str) -> String {
    let bottom = ROW * bars.len() as f64;
    let mut svg = Svg::new(width, bottom + 40.0);
    let longest = bars.iter().map(|bar| bar.ms().max(bar.whole_ms.unwrap_or(0.0))).fold(0.0, f64::max);
    let ticks = steps(longest, if width < 500.0 { 4 } else { 8 });
    let x = Scale::linear([0.0, ticks[ticks.len() - 1]], [LEFT, width - 16.0]);
    for value in &ticks {
        // Lines do not cross headings: each bar has a piece.
        for row in 0..bars.len() {
            let top = ROW * row as f64;
            svg.line("grid", [x.at(*value), top + TIMED[0] - 4.0], [x.at(*value), top + FLOOR[0] + FLOOR[1] + 4.0]);
        }
        let anchor = if *value == 0.0 { Anchor::Start } else { Anchor::Middle };
        svg.text("tick", [x.at(*value), bottom + 12.0], anchor, &tick(*value));
    }
    svg.text("name", [width - 16.0, bottom + 32.0], Anchor::End, "milliseconds");
    for (row, bar) in bars.iter().enumerate() {
        draw_bar(&mut svg, bar, x, ROW * row as f64, width);
    }
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

fn draw_bar(svg: &mut Svg, bar: &Bar, x: Scale, top: f64, width: f64) {
    svg.text("row", [LEFT, top + HEADING], Anchor::Start, &bar.name);
    let mut said = vec![format!("{} ms", number(bar.ms()))];
    said.extend(bar.whole_ms.map(|ms| format!("\u{25be} {} as it runs", number(ms))));
    said.extend(bar.floor_ms().map(|ms| format!("floor {}", number(ms))));
    let said = said.join(", ");
    // What does not fit beside the name is in the table.
    if width_of(&bar.name, LETTERS + 1.0) + width_of(&said, LETTERS) < width - 24.0 {
        svg.text("tick", [width - 16.0, top + HEADING], Anchor::End, &said);
    }
    let (mut at, mut least) = (0.0, 0.0);
    for part in &bar.parts {
        let says = format!("{}: {} ms, {:.1} %", part.what, number(part.ms), 100.0 * part.ms / bar.ms());
        piece(svg, part, x, [at, part.ms], [top + TIMED[0], TIMED[1]], &says);
        at += part.ms;
        if let Some(floor) = part.floor_ms {
            let says = format!("{}: at least {} ms", part.what, number(floor));
            let class = format!("{} floor", part.class);
            let [start, end] = [x.at(least), x.at(least + floor)];
            svg.rect(&class, [start, top + FLOOR[0]], [gap(end - start), FLOOR[1]], &says);
            least += floor;
        }
    }
    if let Some(ms) = bar.whole_ms {
        let place = x.at(ms);
        let (above, below) = (top + TIMED[0] - 1.0, top + TIMED[0] + TIMED[1] + 3.0);
        svg.path(
            "tip",
            &[[place - 4.5, above - 6.0], [place + 4.5, above - 6.0], [place, above], [place - 4.5, above - 6.0]],
        );
        svg.line("whole", [place, above], [place, below]);
    }
}

/// A part of the timed bar, with its name in it if there is room.
fn piece(svg: &mut Svg, part: &Part, x: Scale, [at, ms]: [f64; 2], [top, height]: [f64; 2], says: &str) {
    let [start, end] = [x.at(at), x.at(at + ms)];
    svg.rect(part.class, [start, top], [gap(end - start), height], says);
    if end - start > width_of(&part.what, LETTERS) + 10.0 {
        svg.text("inside", [(start + end) / 2.0, top + height / 2.0 + 4.0], Anchor::Middle, &part.what);
    }
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
        let parts = vec![part("gemv", 3.0, Some(2.0)), part("host", 0.5, None), part("x", 0.5, Some(0.25))];
        let bar = Bar { name: "decode of 1".into(), parts, whole_ms: Some(3.5) };
        assert_eq!((bar.ms(), bar.floor_ms()), (4.0, Some(2.25)));
        // The axis ends at 4 ms: 100 units a millisecond.
        let drawn = draw(&[bar], 418.0, "wide", "t");
        for there in [
            "x=\"2.00\" y=\"24.0\" width=\"299.00\" height=\"30.0\"><title>gemv: 3.00 ms, 75.0 %</title>",
            "x=\"302.00\" y=\"24.0\" width=\"49.00\" height=\"30.0\"><title>host: 0.500 ms, 12.5 %</title>",
            "class=\"c-gemv floor\" x=\"2.00\" y=\"58.0\" width=\"199.00\" height=\"12.0\"><title>gemv: at least 2.00 ms</title>",
            "class=\"c-gemv floor\" x=\"202.00\"",
            "class=\"whole\" d=\"M352.0 23.0L352.0 57.0\"",
            "decode of 1: 4.00 ms launch by launch, 3.50 ms as it runs, at least 2.25 ms on the device.",
            ">gemv</text>",
        ] {
            assert!(drawn.contains(there), "{there} in {drawn}");
        }
        assert_eq!(drawn.matches("floor\"").count(), 2, "the host has no floor");
        assert!(!drawn.contains(">x</text>") || width_of("x", LETTERS) < 40.0);
    }
}
