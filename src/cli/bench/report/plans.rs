//! What a token and a first token are made of, from the plans of a trace.

use super::bars::{Bar, Part};
use super::ops::{Total, colour, totals};
use super::trace::{Launch, Roof, Run, Span, Trace};

/// Bars of one chart: with more, none is read.
const MOST: usize = 4;
/// What the names of parts begin with that are no ops.
pub(super) const HOST: &str = "host: ";

impl Trace {
    /// The ceilings of the run, if they were measured.
    pub fn roof(&self) -> Option<Roof> {
        Roof::of(self.about.read_gb_s, self.about.matrix_tflop_s)
    }
}

/// A bar for each of the decode plans that ran most often launch by launch.
pub(super) fn tokens(trace: &Trace) -> Vec<Bar> {
    let decodes = || trace.runs.iter().filter(|run| run.kind == "decode");
    let mut names: Vec<(&str, Vec<&Run>)> = Vec::new();
    for run in decodes().filter(|run| !run.launches.is_empty()) {
        push(&mut names, &run.name, run);
    }
    names.sort_by_key(|(_, runs)| std::cmp::Reverse(runs.len()));
    names.truncate(MOST);
    let bar = |(name, runs): (&str, Vec<&Run>)| {
        let whole = decodes().filter(|run| run.launches.is_empty() && run.name == name).map(|run| run.us / 1e3);
        Bar { name: name.to_owned(), parts: parts(&runs, runs.len(), trace.roof()), whole_ms: median(whole.collect()) }
    };
    names.into_iter().map(bar).collect()
}

/// Add to the list of a name.
fn push<K: PartialEq, T>(lists: &mut Vec<(K, Vec<T>)>, name: K, item: T) {
    match lists.iter_mut().find(|(known, _)| *known == name) {
        Some((_, list)) => list.push(item),
        None => lists.push((name, vec![item])),
    }
}

/// The mean of so many repetitions, by op.
fn parts(runs: &[&Run], repetitions: usize, roof: Option<Roof>) -> Vec<Part> {
    let launches = runs.iter().flat_map(|run| &run.launches);
    let ms = |us: f64| us / repetitions as f64 / 1e3;
    let part = |Total { op, us, floor_us, .. }: Total| Part {
        class: colour(&op),
        what: op,
        ms: ms(us),
        floor_ms: floor_us.map(ms),
    };
    totals(launches, roof).into_iter().map(part).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

/// The plans from the pictures of a request to its first token.
struct First<'a> {
    runs: Vec<&'a Run>,
    /// What the host did before, and how long, in microseconds.
    host: Vec<(String, f64)>,
}

impl First<'_> {
    fn name(&self) -> String {
        self.runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(" + ")
    }

    fn device_us(&self) -> f64 {
        self.runs.iter().map(|run| run.us).sum()
    }
}

/// A bar for each way to a first token that was gone most often.
pub(super) fn first_tokens(trace: &Trace) -> Vec<Bar> {
    let apart = firsts(trace, |run: &&Run| !run.launches.is_empty());
    let whole = firsts(trace, |run: &&Run| run.launches.is_empty());
    let mut names: Vec<(String, Vec<First>)> = Vec::new();
    for first in apart {
        push(&mut names, first.name(), first);
    }
    names.sort_by_key(|(_, firsts)| std::cmp::Reverse(firsts.len()));
    names.truncate(MOST);
    let bar = |(name, firsts): (String, Vec<First>)| {
        let mut bar = Bar { parts: host(&firsts), whole_ms: None, name };
        let before = bar.ms();
        let runs: Vec<&Run> = firsts.iter().flat_map(|first| first.runs.iter().copied()).collect();
        bar.parts.extend(parts(&runs, firsts.len(), trace.roof()));
        let same = whole.iter().filter(|first| first.name() == bar.name).map(|first| first.device_us() / 1e3);
        bar.whole_ms = median(same.collect()).map(|ms| before + ms);
        bar
    };
    names.into_iter().map(bar).collect()
}

/// Plans between two decode plans belong together, if a prompt is among them.
fn firsts<'a>(trace: &'a Trace, wanted: impl Fn(&&'a Run) -> bool) -> Vec<First<'a>> {
    let runs: Vec<&Run> = trace.runs.iter().filter(wanted).collect();
    let groups = runs.split(|run| run.kind == "decode");
    let prompts = groups.filter(|group| group.iter().any(|run| run.kind == "prefill"));
    let first = |group: &[&'a Run]| {
        let start = group[0].start;
        // Whichever way it was timed, nothing of the request comes before what ran last.
        let before = trace.runs.iter().map(|run| run.start).take_while(|other| *other < start).last();
        First { runs: group.to_vec(), host: prepared(&trace.spans, before.unwrap_or(f64::NEG_INFINITY), start) }
    };
    prompts.map(first).collect()
}

/// What the host did for a request whose plans began at `start`. Nothing is said if several requests were made ready since
/// `before`: it cannot be told what the device waited for.
fn prepared(spans: &[Span], before: f64, start: f64) -> Vec<(String, f64)> {
    let mut ready = spans.iter().filter(|s| s.name == "prepare" && s.start > before && s.end() <= start);
    let (Some(prepare), None) = (ready.next(), ready.next()) else { return Vec::new() };
    let within = |s: &&Span| s.thread == prepare.thread && s.start >= prepare.start && s.end() <= prepare.end();
    let pictures = spans.iter().filter(within).filter(|s| s.name != "prepare");
    let mut host: Vec<(String, Vec<f64>)> = Vec::new();
    for span in pictures {
        push(&mut host, format!("{HOST}{}", span.name), span.us);
    }
    let mut host: Vec<_> = host.into_iter().map(|(name, times)| (name, times.iter().sum())).collect();
    let rest = prepare.us - host.iter().map(|(_, us)| us).sum::<f64>();
    host.push((format!("{HOST}prompt"), rest.max(0.0)));
    host.push((format!("{HOST}enqueue"), start - prepare.end()));
    host
}

/// Means of what the host did, in the order in which it did it.
fn host(firsts: &[First]) -> Vec<Part> {
    let mut sums: Vec<(String, Vec<f64>)> = Vec::new();
    for (name, us) in firsts.iter().flat_map(|first| &first.host) {
        push(&mut sums, name.clone(), *us);
    }
    let known = firsts.iter().filter(|first| !first.host.is_empty()).count();
    let mean = |times: &[f64]| times.iter().sum::<f64>() / known.max(1) as f64 / 1e3;
    let part = |(what, times): (String, Vec<f64>)| Part { what, class: "c-host", ms: mean(&times), floor_ms: None };
    sums.into_iter().map(part).collect()
}

/// A row of the roofline's table: an op in one kind of plan.
pub(super) struct Row {
    pub kind: String,
    pub total: Total,
}

/// Every op in every kind of plan that was timed launch by launch, the longest first.
pub(super) fn rows(trace: &Trace) -> Vec<Row> {
    let mut kinds: Vec<(&str, Vec<&Launch>)> = Vec::new();
    for run in &trace.runs {
        for launch in &run.launches {
            push(&mut kinds, run.kind.as_str(), launch);
        }
    }
    let row = |kind: &str, total| Row { kind: kind.to_owned(), total };
    let rows = kinds.iter().flat_map(|(kind, launches)| {
        totals(launches.iter().copied(), trace.roof()).into_iter().map(|total| row(kind, total))
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_by(|a, b| b.total.us.total_cmp(&a.total.us));
    rows
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::example;
    use super::*;

    #[test]
    fn a_token_is_the_mean_of_its_plans_and_its_mark_their_median_without_marks() {
        let bars = tokens(&example());
        assert_eq!(bars.len(), 1);
        let bar = &bars[0];
        assert_eq!(bar.name, "decode of 1");
        // Two plans of 2000 + 100 + 50 us and of 2200 + 100 + 50; three that ran as they do, of 1900, 2000 and 2500.
        assert_eq!(
            bar.parts.iter().map(|p| (p.what.as_str(), p.ms)).collect::<Vec<_>>(),
            [("gemv", 2.1), ("paged_decode", 0.1), ("sample", 0.05)]
        );
        assert_eq!(bar.whole_ms, Some(2.0));
        // 7.2 GB at 4 TB/s, 0.16 GB, and next to nothing.
        assert_eq!(bar.parts[0].floor_ms, Some(1.8));
        assert!((bar.floor_ms().unwrap() - 1.84).abs() < 1e-3);
    }

    #[test]
    fn a_first_token_is_what_the_host_did_and_every_plan_before_it() {
        let bars = first_tokens(&example());
        assert_eq!(bars.len(), 1);
        let bar = &bars[0];
        assert_eq!(bar.name, "resize + encode of 1 tile + prefill of 645");
        let parts: Vec<_> = bar.parts.iter().map(|p| (p.what.as_str(), p.ms)).collect();
        // 3 ms of preparation, of which 2.2 for the picture; 0.2 ms later the device begins.
        let host = [("host: decode", 2.0), ("host: process", 0.2), ("host: prompt", 0.8), ("host: enqueue", 0.2)];
        for ((what, ms), (named, expected)) in parts.iter().zip(host) {
            assert!(*what == named && (ms - expected).abs() < 1e-9, "{what} {ms}");
        }
        assert_eq!(
            parts[4..].iter().map(|p| p.0).collect::<Vec<_>>(),
            ["gemm", "paged_prefill", "dense_attention", "rmsnorm", "layer_norm", "resize"]
        );
        assert!(
            bar.parts[..4].iter().all(|p| p.floor_ms.is_none()) && bar.parts[4..].iter().all(|p| p.floor_ms.is_some())
        );
        assert_eq!(bar.whole_ms, None, "no request ran without marks");
    }

    #[test]
    fn a_file_may_have_a_request_as_it_runs_and_then_another_launch_by_launch() {
        let (mut trace, mut apart) = (example(), example());
        trace.runs.iter_mut().for_each(|run| run.launches.clear());
        apart.runs.iter_mut().for_each(|run| run.start += 1e6);
        apart.spans.iter_mut().for_each(|span| span.start += 1e6);
        trace.runs.extend(apart.runs);
        trace.spans.extend(apart.spans);
        let bars = first_tokens(&trace);
        assert_eq!(bars.len(), 1);
        let host: f64 = bars[0].parts.iter().filter(|part| part.class == "c-host").map(|part| part.ms).sum();
        assert!((host - 3.2).abs() < 1e-9, "{host}");
        let whole = bars[0].whole_ms.unwrap();
        assert!((whole - bars[0].ms()).abs() < 1e-9, "the same request twice: {whole}");
    }

    #[test]
    fn several_requests_at_once_say_nothing_of_the_host() {
        let mut trace = example();
        let prepare = trace.spans.iter().find(|s| s.name == "prepare").unwrap().clone();
        trace.spans.push(Span { thread: 7, ..prepare });
        assert!(first_tokens(&trace)[0].parts.iter().all(|part| part.class != "c-host"));
    }

    #[test]
    fn rows_keep_kinds_apart() {
        let trace = example();
        let rows = rows(&trace);
        let gemm: Vec<_> = rows.iter().filter(|row| row.total.op == "gemm").map(|row| row.kind.as_str()).collect();
        assert_eq!(gemm, ["prefill", "encode"]);
        let launches: usize = rows.iter().map(|row| row.total.launches).sum();
        assert_eq!(launches, trace.runs.iter().map(|run| run.launches.len()).sum::<usize>());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_its_neighbours() {
        assert_eq!((median(vec![]), median(vec![3.0, 1.0]), median(vec![3.0, 1.0, 9.0])), (None, Some(2.0), Some(3.0)));
    }
}
