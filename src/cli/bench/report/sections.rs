//! The parts of the page, in their order.

use super::super::table::number as digits;
use super::bars::{self, Bar};
use super::compare::{self, Pair, Work};
use super::heading;
use super::lines::{self, Sweep};
use super::ops::{colour, shape};
use super::page::{Table, definitions, document, figure, section};
use super::plans::{self, HOST, Row};
use super::read::{Folder, Kernels};
use super::roofline::{self, Point};
use super::svg::{Shape, escape, number, tick};
use super::trace::Trace;

/// The whole page.
pub(super) fn page(folder: &Folder, before: Option<&Folder>) -> String {
    let mut body = format!(
        "<header><p class=\"brand\">ocelli bench report of {}</p><h1>{}</h1>\n{}</header>\n",
        escape(&folder.name),
        escape(&heading::title(folder)),
        heading::machines(folder)
    );
    let sweeps = lines::sweeps(&folder.records);
    let alone = |(_, record): &&(String, _)| !sweeps.iter().any(|sweep| sweep.holds(record));
    let cards = folder.records.iter().filter(alone).map(heading::headlines).collect::<String>();
    body += &section(
        "Figures",
        "Median of all samples, and below it the smallest and the largest median of a repeat.",
        &cards,
    );
    body += &section(
        "Under load",
        "Over the number of requests that are under way at once, on a logarithmic axis.",
        &sweeps.iter().map(sweep).collect::<String>(),
    );
    body += &before.map_or_else(String::new, |before| comparison(folder, before));
    body += &section(
        "Where a token goes",
        "The upper bar is the time of every op where launches are timed one by one, which keeps them from overlapping; \u{25be} is the \
         same work as it runs without that. The lower bar is the least time at the ceilings of the card; the host has none.",
        &per_trace(folder, times),
    );
    let rooflines =
        per_trace(folder, roofline_of_plans) + &folder.kernels.iter().map(roofline_of_cases).collect::<String>();
    body += &section(
        "Roofline",
        "How fast an op computes, over how many operations it does with each byte. The lines are the ceilings that were measured in \
         the same run; only what the card's caches keep can be above the rising one.",
        &rooflines,
    );
    let details: String = folder.records.iter().map(|(file, record)| heading::details(file, record)).collect();
    body += &section("Every figure", "", &details);
    body += &section("Files", "", &files(folder, before));
    document(&format!("ocelli bench report: {}", folder.name), &body)
}

/// What is said of each trace, under its name where there are several.
fn per_trace(folder: &Folder, of: impl Fn(&Trace) -> String) -> String {
    let part = |(file, trace): &(String, Trace)| {
        let html = of(trace);
        let about = &trace.about;
        let name = format!("{}, {} on {}", about.model, about.dtype, about.gpu);
        if html.is_empty() { html } else { format!("<h3>{}<span>{}</span></h3>\n{html}", escape(&name), escape(file)) }
    };
    folder.traces.iter().map(part).collect()
}

fn times(trace: &Trace) -> String {
    let charts = [("A token", plans::tokens(trace)), ("A first token", plans::first_tokens(trace))];
    let charts = charts.iter().filter(|(_, bars)| !bars.is_empty());
    charts
        .map(|(title, bars)| {
            figure(title, &colours(bars), |class, width| bars::draw(bars, width, class, title)) + &parts(bars)
        })
        .collect()
}

/// Which colour stands for which parts.
fn colours(bars: &[Bar]) -> String {
    let mut colours: Vec<(&str, Vec<&str>)> = Vec::new();
    for part in bars.iter().flat_map(|bar| &bar.parts) {
        match colours.iter_mut().find(|(class, _)| *class == part.class) {
            Some((_, names)) if names.contains(&part.what.as_str()) => {}
            Some((_, names)) => names.push(&part.what),
            None => colours.push((part.class, vec![&part.what])),
        }
    }
    let item = |(class, names): &(&str, Vec<&str>)| {
        let key = format!(
            "<svg class=\"key\" viewBox=\"0 0 16 16\" aria-hidden=\"true\"><path class=\"{class}\" d=\"M2 2h12v12h-12z\"/></svg>"
        );
        // `host: decode, prompt`, not the word before each.
        let names = names.iter().enumerate().map(|(i, name)| if i > 0 { name.trim_start_matches(HOST) } else { name });
        format!("<li>{key}{}</li>", escape(&names.collect::<Vec<_>>().join(", ")))
    };
    format!("<ul class=\"legend\">{}</ul>\n", colours.iter().map(item).collect::<String>())
}

/// The parts of bars as a table.
fn parts(bars: &[Bar]) -> String {
    let mut table = Table::new(&["", "part"], &["ms", "share", "floor, ms", "% of ceiling"]);
    for bar in bars {
        for part in &bar.parts {
            let floor = part.floor_ms;
            table.row(vec![
                bar.name.clone(),
                part.what.clone(),
                number(part.ms),
                format!("{:.1} %", 100.0 * part.ms / bar.ms()),
                floor.map_or_else(String::new, number),
                floor.map_or_else(String::new, |floor| format!("{:.1}", 100.0 * floor / part.ms)),
            ]);
        }
    }
    folded("Table of the parts", &table)
}

/// A table that a reader opens.
fn folded(summary: &str, table: &Table) -> String {
    format!("<details><summary>{}</summary>{}</details>\n", escape(summary), table.html())
}

fn roofline_of_plans(trace: &Trace) -> String {
    let rows = plans::rows(trace);
    if rows.is_empty() {
        return String::new();
    }
    let points: Vec<Point> = rows.iter().map(point).collect();
    let mut table = Table::new(&["plan", "op"], &["launches", "ms", "flop/B", "GB/s", "TFLOP/s", "% of ceiling"]);
    for Row { kind, total } in &rows {
        table.row(vec![
            kind.clone(),
            total.op.clone(),
            total.launches.to_string(),
            number(total.us / 1e3),
            number(total.intensity()),
            number(total.gb_s()),
            number(total.tflop_s()),
            total.percent().map_or_else(String::new, |p| format!("{p:.1}")),
        ]);
    }
    let title = "Ops in the plans of the model";
    let kinds: Vec<&str> = ["decode", "prefill", "encode", "resize", "keep"]
        .into_iter()
        .filter(|k| rows.iter().any(|r| r.kind == *k))
        .collect();
    legend(&kinds)
        + &figure(title, &missing(&points), |class, width| {
            roofline::draw(&points, trace.roof(), size(width), class, title)
        })
        + &table.html()
}

fn point(Row { kind, total }: &Row) -> Point {
    Point {
        label: total.op.clone(),
        class: colour(&total.op),
        shape: shape(kind),
        intensity: total.intensity(),
        tflop_s: total.tflop_s(),
        says: format!(
            "{} in {kind} plans: {} launches, {} ms, {} flop/B, {} GB/s, {} TFLOP/s{}",
            total.op,
            total.launches,
            number(total.us / 1e3),
            number(total.intensity()),
            number(total.gb_s()),
            number(total.tflop_s()),
            total.percent().map_or_else(String::new, |p| format!(", {p:.1} % of the ceiling")),
        ),
    }
}

/// A roofline's size for a width.
fn size(width: f64) -> [f64; 2] {
    [width, if width < 500.0 { 380.0 } else { 480.0 }]
}

/// What shape stands for which kind of plan.
fn legend(kinds: &[&str]) -> String {
    let mut shapes: Vec<(Shape, Vec<&str>)> = Vec::new();
    for kind in kinds {
        match shapes.iter_mut().find(|(known, _)| *known == shape(kind)) {
            Some((_, kinds)) => kinds.push(kind),
            None => shapes.push((shape(kind), vec![kind])),
        }
    }
    let item = |(shape, kinds): &(Shape, Vec<&str>)| {
        format!(
            "<li><svg class=\"key\" viewBox=\"0 0 16 16\" aria-hidden=\"true\"><path class=\"mark c-ink\" d=\"{}\"/></svg>{}</li>",
            shape.outline([8.0, 8.0]),
            kinds.join(", ")
        )
    };
    format!("<ul class=\"legend\">{}</ul>\n", shapes.iter().map(item).collect::<String>())
}

/// Which points have no place on the axes.
fn missing(points: &[Point]) -> String {
    let mut names: Vec<&str> = points.iter().filter(|p| p.tflop_s <= 0.0).map(|p| p.label.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    format!("<p class=\"note\">Only moves data, and is in the table alone: {}.</p>\n", escape(&names.join(", ")))
}

fn roofline_of_cases((file, kernels): &(String, Kernels)) -> String {
    let roof = kernels.ceiling.as_ref().and_then(|ceiling| ceiling.roof());
    let mut cases: Vec<_> = kernels.cases.iter().collect();
    cases.sort_by(|a, b| b.us.total_cmp(&a.us));
    let mut table = Table::new(
        &["op", "case", "type"],
        &["\u{b5}s", "flop/B", "GB/s", "TFLOP/s", "% of ceiling", "cuBLASLt, \u{b5}s"],
    );
    let mut points = Vec::new();
    for case in cases {
        let (gb_s, tflop_s, intensity) =
            (case.bytes / case.us / 1e3, case.flops / case.us / 1e6, case.flops / case.bytes);
        let percent = roof
            .map_or_else(String::new, |roof| format!("{:.1}", 100.0 * roof.floor_us(case.bytes, case.flops) / case.us));
        let says = format!(
            "{} {}, {}: {} \u{b5}s, {} GB/s, {} TFLOP/s, {percent} % of the ceiling",
            case.op,
            case.shape,
            case.dtype,
            number(case.us),
            number(gb_s),
            number(tflop_s)
        );
        points.push(Point {
            label: case.op.clone(),
            class: colour(&case.op),
            shape: Shape::Circle,
            intensity,
            tflop_s,
            says,
        });
        let mut row = vec![case.op.clone(), case.shape.clone(), case.dtype.clone()];
        row.extend([case.us, intensity, gb_s, tflop_s].map(number));
        row.extend([percent, case.cublaslt_us.map_or_else(String::new, number)]);
        table.row(row);
    }
    let title = "Kernels by themselves";
    let of = kernels.ceiling.as_ref().map_or_else(String::new, |c| format!(", {} on {}", c.dtype, c.gpu));
    format!("<h3>{title}{}<span>{}</span></h3>\n", escape(&of), escape(file))
        + &figure(title, &missing(&points), |class, width| roofline::draw(&points, roof, size(width), class, title))
        + &folded(&format!("Table of the {} cases", points.len()), &table)
}

fn sweep(sweep: &Sweep) -> String {
    let panels = sweep.panels();
    let drawn: String = panels
        .iter()
        .map(|panel| format!("<figure>{}</figure>\n", lines::draw(panel, [320.0, 250.0], "panel")))
        .collect();
    let mut table = Table::new(
        &["requests at once"],
        &[
            "first token, ms",
            "p99, ms",
            "time per token, ms",
            "p99, ms",
            "requests a second",
            "tokens of answers a second",
        ],
    );
    for (n, record) in &sweep.records {
        let of = |name: &str, value: fn(&super::super::record::Figure) -> f64| {
            record.figures.get(name).map_or_else(String::new, |figure| number(value(figure)))
        };
        table.row(vec![
            tick(*n as f64),
            of("ttft_ms", |f| f.median),
            of("ttft_ms", |f| f.p99),
            of("tpot_ms", |f| f.median),
            of("tpot_ms", |f| f.p99),
            of("request_throughput", |f| f.median),
            of("output_throughput", |f| f.median),
        ]);
    }
    format!("<h3>{}</h3>\n<div class=\"panels\">{drawn}</div>\n{}", escape(&sweep.name), table.html())
}

fn comparison(folder: &Folder, before: &Folder) -> String {
    let works = compare::works(&before.records, &folder.records);
    let intro = format!(
        "<b>{}</b> beside the earlier <b>{}</b>. A gain of 1.1 is a time that was divided by 1.1, or a rate that was multiplied by it. Bars reach as \
         far as the medians of the repeats allow. A figure differs if both runs have five repeats, no two of which overlap, and their \
         medians are 1 % apart; everything else is the same within its spread.",
        escape(&folder.name),
        escape(&before.name)
    );
    if works.is_empty() {
        let none =
            "<p class=\"warning\">No record of one folder has the bench, model and input of one of the other.</p>\n";
        return section("Comparison", &intro, none);
    }
    let mut table = Table::new(&["", "", "verdict"], &["before", "now", "gain", "range"]);
    for (name, pair) in works.iter().flat_map(|Work { name, pairs }| pairs.iter().map(move |pair| (name, pair))) {
        let Pair { what, unit, gain, range, verdict, .. } = pair;
        table.row(vec![
            name.clone(),
            what.clone(),
            verdict.words().to_owned(),
            format!("{} {unit}", digits(pair.before)),
            format!("{} {unit}", digits(pair.now)),
            format!("{gain:.3}"),
            format!("{:.3} .. {:.3}", range[0], range[1]),
        ]);
    }
    let title = "Gain";
    let chart = figure(title, "", |class, width| compare::draw(&works, width, class, title));
    section("Comparison", &intro, &(chart + &folded("Table of the comparison", &table)))
}

/// What was read of the folders, and what was not.
fn files(folder: &Folder, before: Option<&Folder>) -> String {
    let folders = || [Some(folder), before].into_iter().flatten();
    let read = folders().map(|folder| {
        let mut names: Vec<&str> = folder.records.iter().map(|(name, _)| name.as_str()).collect();
        names.extend(folder.traces.iter().map(|(name, _)| name.as_str()));
        names.extend(folder.kernels.iter().map(|(name, _)| name.as_str()));
        (folder.name.as_str(), names.join(", "))
    });
    let mut html = definitions("details", &read.collect::<Vec<_>>());
    let mut table = Table::new(&["not read", "why"], &[]);
    for (folder, (name, why)) in
        folders().flat_map(|folder| folder.skipped.iter().map(move |skipped| (folder, skipped)))
    {
        table.row(vec![format!("{}/{name}", folder.name.trim_end_matches('/')), why.clone()]);
    }
    if folders().any(|folder| !folder.skipped.is_empty()) {
        html += &table.html();
    }
    html
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::record;
    use super::super::trace::tests::example;
    use super::*;

    /// A folder with a record, a trace and a kernel, all of whose texts are `planted`.
    fn folder(planted: &str) -> Folder {
        let mut record = record(&vec![vec![10.0]; 5]);
        record.figures.0.iter_mut().for_each(|(_, f)| (f.what, f.unit) = (planted.to_owned(), planted.to_owned()));
        for text in [&mut record.model, &mut record.gpu, &mut record.command, &mut record.dtype, &mut record.date] {
            *text = planted.to_owned();
        }
        record.input.pictures = vec![planted.to_owned()];
        let mut trace = example();
        trace.about.model = planted.to_owned();
        trace.spans.iter_mut().filter(|s| s.name != "prepare").for_each(|s| s.name = planted.to_owned());
        for run in &mut trace.runs {
            run.name = planted.to_owned();
            run.launches.iter_mut().for_each(|launch| launch.op = planted.to_owned());
        }
        let case = serde_json::json!({
            "op": planted, "shape": planted, "dtype": planted, "us": 1, "bytes": 8, "flops": 8
        });
        Folder {
            name: planted.to_owned(),
            records: vec![(planted.to_owned(), record)],
            traces: vec![(planted.to_owned(), trace)],
            kernels: vec![(
                planted.to_owned(),
                Kernels { ceiling: None, cases: vec![serde_json::from_value(case).unwrap()] },
            )],
            skipped: vec![(planted.to_owned(), planted.to_owned())],
        }
    }

    #[test]
    fn nothing_that_a_file_says_becomes_markup() {
        let planted = "</title></style>\"'><script>alert(1)</script>";
        let html = page(&folder(planted), Some(&folder(planted)));
        assert!(!html.contains("<script") && html.matches("&lt;script&gt;").count() > 40);
        assert_eq!(html.matches("</title></style>").count(), 0);
        assert_eq!(html.matches("</style>").count(), 1);
    }

    #[test]
    fn a_page_has_a_section_for_everything_that_is_there_and_asks_for_nothing() {
        let html = page(&folder("x"), Some(&folder("x")));
        for title in ["Figures", "Comparison", "Where a token goes", "Roofline", "Every figure", "Files"] {
            assert!(html.contains(&format!("<h2>{title}</h2>")), "{title}");
        }
        assert!(!html.contains("<h2>Under load</h2>"), "one number of requests at once is no line");
        for outside in ["http:", "https:", "src=", "url(", "@import", "<script", "<link"] {
            assert!(!html.contains(outside), "{outside}");
        }
        let open = |tag: &str| html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        for tag in ["section", "figure", "svg", "table", "details", "dl", "article", "title", "text", "div", "li", "ul"]
        {
            assert_eq!(open(tag), html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn folders_without_common_work_are_said_to_have_none() {
        let mut other = folder("x");
        other.records[0].1.input.prompt_tokens += 1;
        assert!(page(&folder("x"), Some(&other)).contains("No record of one folder has the bench, model and input"));
    }
}
