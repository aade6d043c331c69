//! A trace as `--trace` writes it, back to the plans that ran and what the host did beside them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The lanes of a trace that hold work: see `docs/benchmarking.md`.
const HOST: u64 = 1;
const DEVICE: u64 = 2;
const LAUNCHES: u64 = 1;
const PLANS: u64 = 2;

/// What ran where, and the ceilings of the same run.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct About {
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub date: String,
    #[serde(default)]
    pub gpu: String,
    #[serde(default)]
    pub driver: Option<String>,
    #[serde(default)]
    pub model: String,
    #[serde(default)]
    pub dtype: String,
    pub read_gb_s: Option<f64>,
    pub matrix_tflop_s: Option<f64>,
}

/// The best that the machine did in the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Roof {
    /// Bytes a second.
    pub read: f64,
    /// Operations a second.
    pub matrix: f64,
}

impl Roof {
    /// From the figures of a file, if it has both and they are more than nothing.
    pub fn of(read_gb_s: Option<f64>, matrix_tflop_s: Option<f64>) -> Option<Roof> {
        let roof = Roof { read: read_gb_s? * 1e9, matrix: matrix_tflop_s? * 1e12 };
        (roof.read > 0.0 && roof.matrix > 0.0).then_some(roof)
    }

    /// The least microseconds that it can take.
    pub fn floor_us(&self, bytes: f64, flops: f64) -> f64 {
        1e6 * (bytes / self.read).max(flops / self.matrix)
    }
}

/// A launch that was timed by itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Launch {
    pub op: String,
    pub bytes: f64,
    pub flops: f64,
    pub us: f64,
}

/// A plan that ran. One that ran as it does without a trace has no launches here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// `decode`, `prefill`, `encode`, `resize` or `keep`.
    pub kind: String,
    /// For example `decode of 1`; the kind where the file does not say.
    pub name: String,
    pub start: f64,
    pub us: f64,
    pub launches: Vec<Launch>,
}

/// What a thread of the host did.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub thread: u64,
    pub name: String,
    pub start: f64,
    pub us: f64,
}

impl Span {
    /// When it ended.
    pub fn end(&self) -> f64 {
        self.start + self.us
    }
}

/// A trace. Times are in microseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    pub about: About,
    /// In the order in which they began.
    pub runs: Vec<Run>,
    pub spans: Vec<Span>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    other_data: About,
    trace_events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    ph: String,
    #[serde(default)]
    pid: u64,
    #[serde(default)]
    tid: u64,
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

/// Those of a launch or a plan; other events have others.
#[derive(Default, Deserialize)]
struct Args {
    op: Option<String>,
    plan: Option<u64>,
    of: Option<String>,
    bytes: Option<f64>,
    flops: Option<f64>,
}

/// Read the text of a file.
///
/// # Errors
/// If it is no trace, or a launch of it lacks what a launch has.
pub(super) fn parse(text: &str) -> Result<Trace> {
    let file: File = serde_json::from_str(text).context("no trace")?;
    let mut trace = Trace { about: file.other_data, ..Trace::default() };
    let mut apart: BTreeMap<u64, Run> = BTreeMap::new();
    for event in file.trace_events.into_iter().filter(|event| event.ph == "X") {
        ensure!(event.ts.is_finite() && event.dur >= 0.0, "the event \"{}\" has no time", event.name);
        match (event.pid, event.tid) {
            (HOST, thread) => {
                trace.spans.push(Span { thread, name: event.name, start: event.ts, us: event.dur });
            }
            (DEVICE, LAUNCHES) => launch(&mut apart, event)?,
            (DEVICE, PLANS) => {
                let (start, us) = (event.ts, event.dur);
                trace.runs.push(Run { kind: event.cat, name: event.name, start, us, launches: Vec::new() });
            }
            _ => {}
        }
    }
    trace.runs.extend(apart.into_values());
    trace.runs.sort_by(|a, b| a.start.total_cmp(&b.start));
    Ok(trace)
}

/// Add a launch to the plan that it belongs to.
fn launch(runs: &mut BTreeMap<u64, Run>, event: Event) -> Result<()> {
    let Event { name, cat, ts, dur, args, .. } = event;
    let lacking = |what: &str| format!("the launch \"{name}\" has no args.{what}");
    let plan = args.plan.with_context(|| lacking("plan"))?;
    let launch = Launch {
        op: args.op.with_context(|| lacking("op"))?,
        bytes: args.bytes.with_context(|| lacking("bytes"))?,
        flops: args.flops.with_context(|| lacking("flops"))?,
        us: dur,
    };
    let run = runs.entry(plan).or_insert_with(|| Run {
        name: args.of.unwrap_or_else(|| cat.clone()),
        kind: cat,
        start: ts,
        us: 0.0,
        launches: Vec::new(),
    });
    run.start = run.start.min(ts);
    run.us += dur;
    run.launches.push(launch);
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A trace of a card that reads 4000 GB/s and multiplies 800 TFLOP/s: a request with a picture, its launches apart and
    /// three of its tokens, then a token as it runs without marks.
    pub fn example() -> Trace {
        parse(include_str!("../../../../tests/report/run/trace.json")).unwrap()
    }

    #[test]
    fn launches_come_back_as_the_plans_they_belong_to() {
        let text = r#"{"otherData": {"gpu": "NVIDIA H200", "read_gb_s": 4000, "matrix_tflop_s": 800}, "traceEvents": [
            {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "host"}},
            {"ph": "X", "pid": 2, "tid": 2, "cat": "decode", "name": "decode of 1", "ts": 50, "dur": 7, "args": {"plan": 9}},
            {"ph": "X", "pid": 2, "tid": 1, "cat": "decode", "name": "llm/0/a", "ts": 10, "dur": 3,
             "args": {"op": "gemv", "plan": 4, "of": "decode of 1", "bytes": 100, "flops": 200}},
            {"ph": "X", "pid": 2, "tid": 1, "cat": "decode", "name": "llm/0/b", "ts": 13, "dur": 5,
             "args": {"op": "sample", "plan": 4, "of": "decode of 1", "bytes": 1, "flops": 0}},
            {"ph": "X", "pid": 1, "tid": 3, "cat": "host", "name": "schedule", "ts": 1, "dur": 2, "args": {"step": 1}}]}"#;
        let trace = parse(text).unwrap();
        assert_eq!(trace.runs.len(), 2);
        let run = &trace.runs[0];
        assert_eq!((run.name.as_str(), run.start, run.us, run.launches.len()), ("decode of 1", 10.0, 8.0, 2));
        assert_eq!(run.launches[0], Launch { op: "gemv".into(), bytes: 100.0, flops: 200.0, us: 3.0 });
        assert!(trace.runs[1].launches.is_empty());
        assert_eq!(trace.spans, [Span { thread: 3, name: "schedule".into(), start: 1.0, us: 2.0 }]);
        let roof = Roof::of(trace.about.read_gb_s, trace.about.matrix_tflop_s).unwrap();
        assert_eq!((roof.floor_us(4e6, 1.0), roof.floor_us(1.0, 8e8)), (1.0, 1.0));
        assert_eq!(Roof::of(Some(1.0), None), None);
    }

    #[test]
    fn a_launch_that_lacks_something_is_named() {
        let text = r#"{"traceEvents": [{"ph": "X", "pid": 2, "tid": 1, "name": "llm/0/a", "ts": 0, "dur": 1,
            "args": {"op": "gemv", "plan": 0, "flops": 2}}]}"#;
        assert_eq!(parse(text).unwrap_err().to_string(), "the launch \"llm/0/a\" has no args.bytes");
    }
}
