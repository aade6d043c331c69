//! The roofline: how fast something computes, over how many operations it does with each byte.

use super::svg::{Anchor, Scale, Shape, Svg, decades, number, tick, width_of};
use super::trace::Roof;

/// Sizes of the letters of labels and ticks, as in `style.css`.
const LETTERS: f64 = 12.0;
/// A second label of one name this near to the first says nothing new.
const SAME: f64 = 56.0;

/// Something that was timed.
pub(super) struct Point {
    pub label: String,
    pub class: &'static str,
    pub shape: Shape,
    /// Operations a byte.
    pub intensity: f64,
    /// 10^12 operations a second.
    pub tflop_s: f64,
    /// All there is to say of it.
    pub says: String,
}

/// The axes of a chart.
struct Frame {
    x: Scale,
    y: Scale,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// Draw points, the most important first: labels that find no room are left out. Points without operations have no place on
/// a logarithmic axis and are not drawn.
pub(super) fn draw(
    points: &[Point],
    roof: Option<Roof>,
    [width, height]: [f64; 2],
    class: &str,
    title: &str,
) -> String {
    let mut svg = Svg::new(width, height);
    let points: Vec<&Point> = points.iter().filter(|p| p.tflop_s > 0.0 && p.intensity.is_finite()).collect();
    let ridge = roof.map(|roof| roof.matrix / roof.read);
    let xs = decades(points.iter().map(|p| p.intensity).chain(ridge.map(|x| 3.0 * x)));
    let ys = decades(points.iter().map(|p| p.tflop_s).chain(roof.map(|roof| roof.matrix / 1e12)));
    let frame = axes(&mut svg, [width, height], &xs, &ys);
    let mut taken = Vec::new();
    if let Some(roof) = roof {
        ceilings(&mut svg, &frame, roof, [xs[0], xs[xs.len() - 1]], ys[0], &mut taken);
    }
    let at = |p: &Point| [frame.x.at(p.intensity), frame.y.at(p.tflop_s)];
    taken.extend(points.iter().map(|p| Space::about(at(p), 6.0)));
    labels(&mut svg, &frame, &points, taken);
    // From the least important to the most: what matters lies on top.
    for point in points.iter().rev() {
        svg.mark(point.class, point.shape, at(point), &point.says);
    }
    let description = roof.map_or_else(String::new, |roof| {
        format!("Ceilings: {} GB/s and {} TFLOP/s. ", number(roof.read / 1e9), number(roof.matrix / 1e12))
    });
    svg.finish(class, title, &(description + "Every mark is a row of the table below."))
}

fn axes(svg: &mut Svg, [width, height]: [f64; 2], xs: &[f64], ys: &[f64]) -> Frame {
    let (left, right, top, bottom) = (46.0, width - 14.0, 30.0, height - 42.0);
    let (x, y) =
        (Scale::log([xs[0], xs[xs.len() - 1]], [left, right]), Scale::log([ys[0], ys[ys.len() - 1]], [bottom, top]));
    for value in xs {
        svg.line("grid", [x.at(*value), top], [x.at(*value), bottom]);
        svg.text("tick", [x.at(*value), bottom + 17.0], Anchor::Middle, &tick(*value));
    }
    for value in ys {
        svg.line("grid", [left, y.at(*value)], [right, y.at(*value)]);
        svg.text("tick", [left - 8.0, y.at(*value) + 4.0], Anchor::End, &tick(*value));
    }
    svg.line("axis", [left, bottom], [right, bottom]);
    svg.text("name", [right, bottom + 35.0], Anchor::End, "operations per byte (flop/B)");
    svg.text("name", [2.0, 14.0], Anchor::Start, "TFLOP/s");
    Frame { x, y, left, right, top, bottom }
}

/// What the card reads, rising to what it multiplies, each with its name outside of what can be reached.
fn ceilings(svg: &mut Svg, frame: &Frame, roof: Roof, [low, high]: [f64; 2], least: f64, taken: &mut Vec<Space>) {
    let tera = |x: f64| roof.read * x / 1e12;
    let ridge = roof.matrix / roof.read;
    let start = low.max(least / tera(1.0));
    let matrix = frame.y.at(roof.matrix / 1e12);
    let [from, knee, to] =
        [[frame.x.at(start), frame.y.at(tera(start))], [frame.x.at(ridge), matrix], [frame.x.at(high), matrix]];
    svg.path("roof", &[from, knee, to]);
    let (dx, dy) = (knee[0] - from[0], knee[1] - from[1]);
    let angle = dy.atan2(dx);
    let middle = [from[0] + 0.45 * dx + 9.0 * angle.sin(), from[1] + 0.45 * dy - 9.0 * angle.cos()];
    let name = format!("reads {} GB/s", number(roof.read / 1e9));
    svg.text_along("roof-name", middle, angle.to_degrees(), &name);
    let half = [0.5 * width_of(&name, LETTERS) * angle.cos(), 0.5 * width_of(&name, LETTERS) * angle.sin()];
    let ends = [-1.0, 1.0].map(|side| [middle[0] + side * half[0], middle[1] + side * half[1] - 4.0]);
    taken.extend(along(ends[0], ends[1]).map(|place| Space::about(place, 7.0)));
    let name = format!("multiplies {} TFLOP/s", number(roof.matrix / 1e12));
    // Left of the knee there is always room for it, right of it not.
    let end = if to[0] - knee[0] > width_of(&name, LETTERS) { to[0] } else { knee[0] + 20.0 };
    svg.text("roof-name", [end, matrix - 8.0], Anchor::End, &name);
    let line = along(from, knee).chain(along(knee, to));
    taken.extend(line.map(|place| Space::about(place, 1.0)));
    taken.push(Space { x: [end - width_of(&name, LETTERS), end], y: [matrix - 20.0, matrix] });
}

/// Room on the drawing.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Space {
    x: [f64; 2],
    y: [f64; 2],
}

impl Space {
    fn about([x, y]: [f64; 2], half: f64) -> Space {
        Space { x: [x - half, x + half], y: [y - half, y + half] }
    }

    /// From a point to its nearest edge.
    fn distance(&self, [x, y]: [f64; 2]) -> f64 {
        (x - x.clamp(self.x[0], self.x[1])).hypot(y - y.clamp(self.y[0], self.y[1]))
    }

    fn holds(&self, [x, y]: [f64; 2]) -> bool {
        (self.x[0]..=self.x[1]).contains(&x) && (self.y[0]..=self.y[1]).contains(&y)
    }

    fn meets(&self, other: &Space) -> bool {
        self.x[0] < other.x[1] && other.x[0] < self.x[1] && self.y[0] < other.y[1] && other.y[0] < self.y[1]
    }
}

/// Put a label beside each mark where there is room for it, near the mark if possible, and else at the end of a thin line.
fn labels(svg: &mut Svg, frame: &Frame, points: &[&Point], mut taken: Vec<Space>) {
    let mut named: Vec<(&str, [f64; 2])> = Vec::new();
    // What a line to a label must not cross: other marks and labels.
    let marks = points.iter().map(|p| Space::about([frame.x.at(p.intensity), frame.y.at(p.tflop_s)], 4.0));
    let mut written: Vec<Space> = marks.collect();
    for point in points {
        let at = [frame.x.at(point.intensity), frame.y.at(point.tflop_s)];
        let near = |other: &[f64; 2]| (other[0] - at[0]).hypot(other[1] - at[1]) < SAME;
        if named.iter().any(|(name, other)| *name == point.label && near(other)) {
            continue;
        }
        // A label right beside another op's mark would be taken for its.
        let others = points.iter().filter(|other| other.label != point.label);
        let others: Vec<_> = others.map(|p| [frame.x.at(p.intensity), frame.y.at(p.tflop_s)]).collect();
        let own = |space: &Space| others.iter().all(|other| space.distance(*other) > space.distance(at));
        let width = width_of(&point.label, LETTERS);
        let Some(Place { space, leader }) = place(frame, at, width, [&taken, &written], own) else { continue };
        if let Some(end) = leader {
            svg.line("leader", at, end);
            taken.extend(along(at, end).map(|step| Space::about(step, 2.0)));
        }
        svg.text(&format!("label {}", point.class), [space.x[0], space.y[1] - 4.0], Anchor::Start, &point.label);
        named.push((&point.label, at));
        taken.push(space);
        written.push(space);
    }
}

/// Where a label stands.
#[derive(Clone, Copy)]
struct Place {
    space: Space,
    /// Where the line from the mark ends, if the label is not right beside it.
    leader: Option<[f64; 2]>,
}

/// The nearest free room for a label of this width that is clearly the mark's `own`, or has a line to it which crosses nothing
/// that is `written` but the mark itself.
fn place(
    frame: &Frame,
    [x, y]: [f64; 2],
    width: f64,
    [taken, written]: [&[Space]; 2],
    own: impl Fn(&Space) -> bool,
) -> Option<Place> {
    let height = LETTERS + 3.0;
    let free = |space: &Space| {
        let inside = space.x[0] >= frame.left && space.x[1] <= frame.right + 10.0 && space.y[0] >= frame.top - 8.0;
        inside && space.y[1] <= frame.bottom && !taken.iter().any(|other| space.meets(other))
    };
    [9.0, 16.0, 28.0, 44.0, 62.0].into_iter().find_map(|far| {
        let aslant = far * 0.75;
        let corners = [
            [x + far, y - height / 2.0],
            [x + aslant, y + aslant - 2.0],
            [x - width / 2.0, y + far],
            [x - width / 2.0, y - far - height],
            [x - far - width, y - height / 2.0],
            [x + aslant, y - aslant - height + 2.0],
            [x - aslant - width, y + aslant - 2.0],
            [x - aslant - width, y - aslant - height + 2.0],
        ];
        corners.into_iter().find_map(|[left, top]| {
            let space = Space { x: [left, left + width], y: [top, top + height] };
            let end = [x.clamp(space.x[0], space.x[1]), y.clamp(space.y[0], space.y[1])];
            let crosses = |step: [f64; 2]| written.iter().any(|other| other.holds(step) && !other.holds([x, y]));
            let leader = (far > 10.0).then_some(end);
            let clear = if leader.is_some() { !along([x, y], end).any(crosses) } else { own(&space) };
            (free(&space) && clear).then_some(Place { space, leader })
        })
    })
}

/// Points on a line, near enough to each other to stand for it.
fn along([x, y]: [f64; 2], [to_x, to_y]: [f64; 2]) -> impl Iterator<Item = [f64; 2]> {
    let steps = ((to_x - x).hypot(to_y - y) / 4.0).ceil().max(1.0);
    (0..=steps as usize).map(move |i| [x + (to_x - x) * i as f64 / steps, y + (to_y - y) * i as f64 / steps])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOF: Roof = Roof { read: 4e12, matrix: 8e14 };

    fn point(label: &str, intensity: f64, tflop_s: f64) -> Point {
        Point {
            label: label.into(),
            class: "c-gemm",
            shape: Shape::Square,
            intensity,
            tflop_s,
            says: format!("all of {label}"),
        }
    }

    #[test]
    fn marks_stand_at_their_intensity_and_rate() {
        let drawn = draw(&[point("gemm", 100.0, 400.0)], Some(ROOF), [514.0, 372.0], "wide", "t");
        // x from 100 to 1000 takes 46 to 500 (the ridge of 200 and what lies behind it); y from 100 to 1000 takes 330 to 30.
        let y = 330.0 - 300.0 * 4.0f64.log10();
        assert!(drawn.contains(&format!("d=\"M{:.1} {:.1}h9", 46.0 - 4.5, y - 4.5)), "{drawn}");
        assert!(drawn.contains("<title>all of gemm</title>"));
        // The roof starts at the edge, at 4 TB/s x 100 flop/byte, bends at 200 flop/byte and goes on at 800 TFLOP/s.
        let knee = [46.0 + 454.0 * 2.0f64.log10(), 330.0 - 300.0 * 8.0f64.log10()];
        assert!(
            drawn.contains(&format!("class=\"roof\" d=\"M46.0 {y:.1}L{:.1} {:.1}L500.0", knee[0], knee[1])),
            "{drawn}"
        );
        assert!(drawn.contains("reads 4000 GB/s") && drawn.contains("multiplies 800 TFLOP/s"));
    }

    #[test]
    fn what_computes_nothing_is_not_drawn_and_ceilings_may_be_unknown() {
        let drawn = draw(&[point("gather", 0.0, 0.0), point("gemv", 1.0, 0.5)], None, [400.0, 300.0], "wide", "t");
        assert!(!drawn.contains("all of gather") && drawn.contains("all of gemv") && !drawn.contains("class=\"roof\""));
        assert!(draw(&[], None, [400.0, 300.0], "wide", "t").contains("TFLOP/s"), "an empty frame");
    }

    #[test]
    fn labels_do_not_meet() {
        let crowd: Vec<_> = (0..12).map(|i| point(&format!("op number {i}"), 1.3f64.powi(i), 3.0)).collect();
        let frame = Frame {
            x: Scale::log([0.1, 1000.0], [46.0, 900.0]),
            y: Scale::log([0.1, 1000.0], [380.0, 30.0]),
            left: 46.0,
            right: 900.0,
            top: 30.0,
            bottom: 380.0,
        };
        let mut taken: Vec<Space> = Vec::new();
        for p in &crowd {
            let at = [frame.x.at(p.intensity), frame.y.at(p.tflop_s)];
            if let Some(Place { space, .. }) =
                place(&frame, at, width_of(&p.label, LETTERS), [&taken, &taken], |_| true)
            {
                assert!(taken.iter().all(|other| !space.meets(other)));
                taken.push(space);
            }
        }
        assert!(taken.len() >= 8, "{} of 12 found room", taken.len());
    }

    #[test]
    fn a_label_is_nearer_to_its_own_mark_than_to_others_or_has_a_line() {
        // One right of the other, so near that a label between them could be either's.
        let drawn = draw(&[point("left", 1.0, 3.0), point("right", 1.12, 3.0)], None, [900.0, 400.0], "wide", "t");
        let label = |name: &str| {
            let before = drawn.split(&format!(">{name}</text>")).next().unwrap();
            let x = before.rsplit("x=\"").next().unwrap();
            x.split('"').next().unwrap().parse::<f64>().unwrap()
        };
        let mark = drawn.split("all of right").next().unwrap().rsplit("d=\"M").next().unwrap();
        let mark = mark.split(' ').next().unwrap().parse::<f64>().unwrap() + 4.5;
        assert!(label("right") > mark, "{drawn}");
        assert!(label("left") + width_of("left", LETTERS) < mark || drawn.contains("class=\"leader\""), "{drawn}");
    }

    #[test]
    fn a_name_is_written_once_where_its_marks_are_close() {
        let close: Vec<_> = (0..5).map(|i| point("gemv", 1.0 + 0.01 * f64::from(i), 3.0)).collect();
        let drawn = draw(&close, Some(ROOF), [900.0, 400.0], "wide", "t");
        assert_eq!((drawn.matches(">gemv</text>").count(), drawn.matches("all of gemv").count()), (1, 5));
    }
}
