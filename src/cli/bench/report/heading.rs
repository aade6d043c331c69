//! What ran, where and when, and the figures that everybody asks for first.

use std::collections::BTreeSet;

use super::super::record::{Bench, Figure, Record, UNKNOWN};
use super::super::table::number;
use super::lines::concurrency;
use super::page::{Table, definitions};
use super::read::Folder;
use super::svg::escape;

/// The figures of a bench that stand at the top, if it has them.
const FIRST: [(Bench, [&str; 3]); 3] = [
    (Bench::Latency, ["ttft_ms", "tpot_ms", "e2el_ms"]),
    (Bench::Throughput, ["request_throughput", "output_throughput", "total_token_throughput"]),
    (Bench::Serve, ["ttft_ms", "tpot_ms", "request_throughput"]),
];

/// What a record measured, in a line.
pub(super) fn work(record: &Record) -> String {
    format!("{} {}: {}", record.bench.name(), record.model, asked(record))
}

/// What was asked, from what tells runs apart most to what does least.
fn asked(record: &Record) -> String {
    let input = &record.input;
    let mut said = Vec::new();
    if matches!(record.bench, Bench::Throughput | Bench::Serve) {
        said.push(format!("{} at once", concurrency(record)));
    }
    said.extend(input.request_rate.map(|rate| format!("{rate} a second")));
    match input.pictures.as_slice() {
        [] => {}
        [one] => said.push(format!("a picture of {one}")),
        several => said.push(format!("{} pictures", several.len())),
    }
    let tokens = [(input.prompt_tokens, "in"), (input.output_tokens, "out")];
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    said.extend(tokens.iter().filter(|(n, _)| *n > 0).map(|(n, way)| format!("{n} token{} {way}", plural(*n))));
    said.extend(Some(record.dtype.clone()).filter(|dtype| dtype != UNKNOWN));
    said.join(", ")
}

/// What the page is about: the models and where they ran.
pub(super) fn title(folder: &Folder) -> String {
    let records = folder.records.iter().map(|(_, r)| (r.model.as_str(), r.gpu.as_str()));
    let traces = folder.traces.iter().map(|(_, t)| (t.about.model.as_str(), t.about.gpu.as_str()));
    let kernels = folder.kernels.iter().filter_map(|(_, k)| Some(("kernels", k.ceiling.as_ref()?.gpu.as_str())));
    let (mut models, mut gpus) = (Vec::new(), Vec::new());
    for (model, gpu) in records.chain(traces).chain(kernels) {
        let known = |list: &[&str], name| list.contains(&name) || name.is_empty();
        // Kernels are worth a word where nothing else is there.
        if !known(&models, model) && (model != "kernels" || models.is_empty()) {
            models.push(model);
        }
        if gpu != UNKNOWN && !known(&gpus, gpu) {
            gpus.push(gpu);
        }
    }
    match [models.join(", "), gpus.join(", ")] {
        [models, gpus] if gpus.is_empty() => models,
        [models, gpus] => format!("{models} on {gpus}"),
    }
}

/// Everything that must be named beside a figure.
pub(super) fn machines(folder: &Folder) -> String {
    let (mut gpus, mut drivers, mut versions, mut dates) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut roofs = Vec::new();
    let mut add = |gpu: &str, driver: Option<&str>, version: &str, date: &str| {
        gpus.extend(Some(gpu).filter(|gpu| *gpu != UNKNOWN).map(str::to_owned));
        drivers.extend(driver.map(str::to_owned));
        versions.insert(version.to_owned());
        dates.insert(date.to_owned());
    };
    for (_, record) in &folder.records {
        add(&record.gpu, record.driver.as_deref(), &record.version, &record.date);
        roofs.extend(record.ceilings.as_ref().map(|c| (c.read_gb_s, c.matrix_tflop_s)));
    }
    for (_, trace) in &folder.traces {
        let about = &trace.about;
        add(&about.gpu, about.driver.as_deref(), &about.version, &about.date);
        roofs.extend(about.read_gb_s.zip(about.matrix_tflop_s));
    }
    for ceiling in folder.kernels.iter().filter_map(|(_, kernels)| kernels.ceiling.as_ref()) {
        add(&ceiling.gpu, Some(&ceiling.driver), &ceiling.version, &ceiling.date);
        roofs.push((ceiling.read_gb_s, ceiling.matrix_tflop_s));
    }
    let all = |set: &BTreeSet<String>| set.iter().filter(|s| !s.is_empty()).cloned().collect::<Vec<_>>().join(", ");
    let mut said = vec![
        ("Driver", all(&drivers)),
        ("Version", all(&versions)),
        ("Measured", period(&dates)),
        ("Reads", range(roofs.iter().map(|(read, _)| *read), "GB/s")),
        ("Multiplies", range(roofs.iter().map(|(_, matrix)| *matrix), "TFLOP/s")),
    ];
    said.retain(|(_, text)| !text.is_empty());
    let mut html = definitions("machines", &said);
    if gpus.len() > 1 || drivers.len() > 1 || versions.len() > 1 {
        html += "<p class=\"warning\">These files are not all of one machine and one version.</p>\n";
    }
    html
}

/// From the first to the last date.
fn period(dates: &BTreeSet<String>) -> String {
    let mut dates = dates.iter().filter(|date| !date.is_empty());
    match (dates.next(), dates.next_back()) {
        (Some(first), Some(last)) => format!("{first} .. {last}"),
        (Some(only), None) => only.clone(),
        _ => String::new(),
    }
}

/// The smallest and the largest, where they differ in what is shown.
fn range(values: impl Iterator<Item = f64>, unit: &str) -> String {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match [number(low), number(high)] {
        _ if low > high => String::new(),
        [low, high] if low == high => format!("{low} {unit}"),
        [low, high] => format!("{low} .. {high} {unit}"),
    }
}

/// A card of a record: what it was, and its first figures.
pub(super) fn headlines((file, record): &(String, Record)) -> String {
    let figures: String = first(record).into_iter().map(headline).collect();
    let (bench, model) = (record.bench.name(), escape(&record.model));
    let (asked, file) = (escape(&asked(record)), escape(file));
    format!(
        "<article class=\"card\"><h3>{bench} {model}<span>{asked}</span><span>{file}</span></h3><dl>{figures}</dl></article>\n"
    )
}

/// The figures that stand at the top: those that are known for the bench, or its first ones that are judged.
fn first(record: &Record) -> Vec<&Figure> {
    let known = FIRST.iter().find(|(bench, _)| *bench == record.bench);
    match known {
        Some((_, names)) => names.iter().filter_map(|name| record.figures.get(name)).collect(),
        None => record.figures.0.iter().map(|(_, f)| f).filter(|f| f.better.is_some()).take(3).collect(),
    }
}

fn headline(figure: &Figure) -> String {
    let (low, high) = figure.range();
    let range = if figure.repeats.len() > 1 { format!("{} .. {}", number(low), number(high)) } else { String::new() };
    let percent = figure.ceiling_percent.map_or_else(String::new, |p| format!("{p:.0} % of the ceiling"));
    let said: Vec<_> = [range, percent].into_iter().filter(|text| !text.is_empty()).collect();
    format!(
        "<div><dt>{}</dt><dd><b>{}</b> {}<small>{}</small></dd></div>",
        escape(&figure.what),
        number(figure.median),
        escape(&figure.unit),
        said.join(", ")
    )
}

/// Every figure of a record, and the command that made it.
pub(super) fn details(file: &str, record: &Record) -> String {
    let mut table =
        Table::new(&["", "unit"], &["mean", "median", "p90", "p99", "min", "max", "repeats' medians", "% of ceiling"]);
    for (_, f) in &record.figures.0 {
        let (low, high) = f.range();
        let mut row = vec![f.what.clone(), f.unit.clone()];
        row.extend([f.mean, f.median, f.p90, f.p99, f.min, f.max].map(number));
        row.push(format!("{} .. {}", number(low), number(high)));
        row.push(f.ceiling_percent.map_or_else(String::new, |p| format!("{p:.1}")));
        table.row(row);
    }
    let input = &record.input;
    let said = [
        ("Command", record.command.clone()),
        (
            "Machine",
            [Some(record.gpu.as_str()), record.driver.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", "),
        ),
        (
            "Measured",
            format!(
                "{}, version {}, {}, load format {}",
                record.date, record.version, record.backend, record.load_format
            ),
        ),
        (
            "Asked",
            format!(
                "{} requests, {} times, after {} to warm up; seed {}",
                input.requests, input.repeats, input.warmup, input.seed
            ),
        ),
    ];
    let body = definitions("details", &said) + &table.html();
    format!("<details><summary>{} <span>{}</span></summary>{body}</details>\n", escape(&work(record)), escape(file))
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::record;
    use super::*;

    #[test]
    fn a_card_has_the_figures_everybody_asks_for() {
        let record = record(&[vec![10.0], vec![12.0], vec![11.0]]);
        let html = headlines(&("a.json".into(), record.clone()));
        assert!(html.contains("<dt>first token</dt><dd><b>11.00</b> ms<small>10.00 .. 12.00</small>"), "{html}");
        assert!(html.contains("<h3>latency llava-1.5-7b<span>645 tokens in, bf16</span>"));
        let mut vision = record;
        vision.bench = Bench::Vision;
        let html = headlines(&("a.json".into(), vision));
        assert!(
            html.contains("first token") && html.contains("3 % of the ceiling") && !html.contains("waiting"),
            "{html}"
        );
    }

    #[test]
    fn machines_are_named_and_a_mixture_is_said() {
        let one = record(&[vec![10.0]]);
        let mut folder = Folder { records: vec![("a".into(), one.clone())], ..Folder::default() };
        let html = machines(&folder);
        for part in ["580.159.04 (CUDA 13.0)", "2026-11-22T22:00:00Z", "400.0 GB/s", "781.0 TFLOP/s"] {
            assert!(html.contains(part), "{part}");
        }
        // A server's client does not know where it ran.
        folder.records.push(("s".into(), Record { gpu: UNKNOWN.into(), driver: None, ..one.clone() }));
        assert_eq!((machines(&folder), title(&folder)), (html.clone(), "llava-1.5-7b on NVIDIA H200".into()));
        assert!(!html.contains("not all of one machine"));
        folder.records.push(("b".into(), Record { gpu: "host".into(), date: "2026-11-23T00:00:00Z".into(), ..one }));
        let html = machines(&folder);
        assert!(html.contains("not all of one machine") && html.contains("22T22:00:00Z .. 2026-11-23"), "{html}");
        assert_eq!(title(&folder), "llava-1.5-7b on NVIDIA H200, host");
    }
}
