//! What every chart is drawn with: escaped text, numbers, scales, and a drawing that grows element by element.
//!
//! Colours are classes, whose values are in `style.css`: one drawing serves the light page, the dark one and paper.

/// Text as it may stand between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // No document may hold these, escaped or not.
            c if c.is_control() && !c.is_whitespace() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Three digits, or all of them before the point: `0.0423`, `3.37`, `16.9`, `4402`.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    // Rounding may carry into another digit, as from 9.996 to 10.0.
    let exponent = format!("{value:.2e}").split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0);
    match usize::try_from(2 - exponent) {
        Ok(decimals) if decimals <= 7 => format!("{value:.decimals$}"),
        Ok(_) => format!("{value:.1e}"),
        Err(_) => format!("{value:.0}"),
    }
}

/// A tick of an axis: as few digits as it takes.
pub(super) fn tick(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        return format!("{value:e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// From values to places on the drawing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    values: [f64; 2],
    places: [f64; 2],
    log: bool,
}

impl Scale {
    /// Equal steps take equal room.
    pub fn linear(values: [f64; 2], places: [f64; 2]) -> Scale {
        Scale { values, places, log: false }
    }

    /// Equal ratios take equal room. Values are greater than zero.
    pub fn log(values: [f64; 2], places: [f64; 2]) -> Scale {
        Scale { values, places, log: true }
    }

    /// Where a value stands.
    pub fn at(&self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.log10() } else { value };
        let [low, high] = self.values.map(of);
        let share = if high > low { (of(value) - low) / (high - low) } else { 0.5 };
        self.places[0] + share * (self.places[1] - self.places[0])
    }
}

/// Round steps from zero past `most`, about as many as are wanted; the last one is the end of the axis.
pub(super) fn steps(most: f64, wanted: usize) -> Vec<f64> {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let rough = most / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|m| m * power >= rough * (1.0 - 1e-9)).unwrap_or(10.0) * power;
    let last = (most / step - 1e-9).ceil().max(1.0) as usize;
    (0..=last).map(|i| i as f64 * step).collect()
}

/// Powers of ten from the one below the smallest value to the one above the largest.
pub(super) fn decades(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let logs = values.filter(|v| v.is_finite() && *v > 0.0).map(f64::log10);
    let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
    if low > high {
        return vec![1.0, 10.0];
    }
    let (low, high) = ((low + 1e-9).floor() as i32, (high - 1e-9).ceil() as i32);
    (low..=high.max(low + 1)).map(|e| 10f64.powi(e)).collect()
}

/// About how wide a text is. Fonts differ: this is rather too much.
pub(super) fn width_of(text: &str, size: f64) -> f64 {
    0.58 * size * text.chars().count() as f64
}

/// A text as far as it fits.
pub(super) fn cut(text: &str, width: f64, size: f64) -> String {
    let room = (width / width_of("n", size)).max(1.0) as usize;
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room - 1).chain(['\u{2026}']).collect()
}

/// Where a text begins, lies or ends at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// Begins.
    Start,
    /// Lies about it.
    Middle,
    /// Ends.
    End,
}

/// A drawing.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    /// An empty one.
    pub fn new(width: f64, height: f64) -> Svg {
        Svg { width, height, body: String::new() }
    }

    /// A line between two points.
    pub fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        self.body += &format!("<path class=\"{class}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>\n");
    }

    /// A line through points.
    pub fn path(&mut self, class: &str, points: &[[f64; 2]]) {
        let joined: Vec<_> = points.iter().map(|[x, y]| format!("{x:.1} {y:.1}")).collect();
        self.body += &format!("<path class=\"{class}\" d=\"M{}\"/>\n", joined.join("L"));
    }

    /// A text on one line.
    pub fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        self.body += &format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\"{anchor}>{}</text>\n", escape(text));
    }

    /// A text that rises or falls with a line: about its place, turned by so many degrees.
    pub fn text_along(&mut self, class: &str, [x, y]: [f64; 2], degrees: f64, text: &str) {
        self.body += &format!(
            "<text class=\"{class}\" transform=\"translate({x:.1} {y:.1}) rotate({degrees:.1})\" text-anchor=\"middle\">{}</text>\n",
            escape(text)
        );
    }

    /// A box, and what it says to who points at it.
    pub fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2], says: &str) {
        let width = width.max(0.0);
        self.body += &format!(
            "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\"><title>{}</title></rect>\n",
            escape(says)
        );
    }

    /// A mark of one of the shapes, and what it says to who points at it.
    pub fn mark(&mut self, class: &str, shape: Shape, at: [f64; 2], says: &str) {
        self.body += &format!(
            "<path class=\"mark {class}\" d=\"{}\"><title>{}</title></path>\n",
            shape.outline(at),
            escape(says)
        );
    }

    /// The element, with what it shows in a few words and in a sentence.
    pub fn finish(self, class: &str, title: &str, description: &str) -> String {
        let Svg { width, height, body } = self;
        let (title, description) = (escape(title), escape(description));
        format!(
            "<svg class=\"{class}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{title}\">\
             <desc>{description}</desc>\n{body}</svg>\n"
        )
    }
}

/// A mark's outline: with its colour it says what the mark is, and to who sees no colours by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A disc.
    Circle,
    /// Upright.
    Square,
    /// On its tip.
    Diamond,
    /// Tip up.
    Triangle,
}

impl Shape {
    /// As path data, all of about the same area.
    pub fn outline(self, [x, y]: [f64; 2]) -> String {
        match self {
            Shape::Circle => format!("M{:.1} {y:.1}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", x - 5.0),
            Shape::Square => format!("M{:.1} {:.1}h9v9h-9z", x - 4.5, y - 4.5),
            Shape::Diamond => format!("M{x:.1} {:.1}l6.2 6.2l-6.2 6.2l-6.2 -6.2z", y - 6.2),
            Shape::Triangle => format!("M{x:.1} {:.1}l6.2 10.6h-12.4z", y - 6.6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let planted = "</text><script>alert('1' & \"2\")</script>\u{0}";
        assert_eq!(
            escape(planted),
            "&lt;/text&gt;&lt;script&gt;alert(&#39;1&#39; &amp; &quot;2&quot;)&lt;/script&gt;\u{fffd}"
        );
        let mut svg = Svg::new(10.0, 10.0);
        svg.text("tick", [1.0, 2.0], Anchor::End, planted);
        svg.rect("c0", [0.0, 0.0], [1.0, 1.0], planted);
        svg.mark("c0", Shape::Circle, [1.0, 1.0], planted);
        let drawn = svg.finish("wide", planted, planted);
        assert!(!drawn.contains("<script") && drawn.matches("&lt;script&gt;").count() == 5, "{drawn}");
    }

    #[test]
    fn numbers_have_three_digits() {
        let all = [0.0, 0.042_31, 0.5, 3.367, 9.996, 16.94, 557.4, 4402.4, 1.0e-9].map(number);
        assert_eq!(all, ["0", "0.0423", "0.500", "3.37", "10.0", "16.9", "557", "4402", "1.0e-9"]);
        assert_eq!([f64::NAN, f64::INFINITY].map(number), ["-", "-"]);
        assert_eq!(
            [0.0, 0.5, 2.5, 100.0, 0.01, 1e5, 1e-4].map(tick),
            ["0", "0.5", "2.5", "100", "0.01", "1e5", "1e-4"]
        );
    }

    #[test]
    fn axes_begin_at_zero_and_end_at_a_round_step_behind_the_largest_value() {
        assert_eq!(steps(3.37, 4), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(steps(17.3, 5), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(steps(40.0, 4), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(steps(0.0, 4), steps(f64::NAN, 4), "there is an axis where there is nothing");
        assert_eq!(decades([0.9, 120.0].into_iter()), [0.1, 1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(decades([10.0, 0.0].into_iter()), [10.0, 100.0]);
        assert_eq!(decades([].into_iter()), [1.0, 10.0]);
    }

    #[test]
    fn scales_put_values_in_their_places() {
        let linear = Scale::linear([0.0, 4.0], [100.0, 500.0]);
        assert_eq!([0.0, 1.0, 4.0].map(|v| linear.at(v)), [100.0, 200.0, 500.0]);
        let log = Scale::log([0.1, 1000.0], [400.0, 0.0]);
        assert!((log.at(1.0) - 300.0).abs() < 1e-9 && (log.at(1000.0)).abs() < 1e-9);
        assert_eq!(
            (cut("a long name", 40.0, 12.0).as_str(), cut("short", 40.0, 12.0).as_str()),
            ("a lo\u{2026}", "short")
        );
        assert_eq!(Scale::linear([1.0, 1.0], [0.0, 10.0]).at(1.0), 5.0, "a single value stands in the middle");
    }
}
