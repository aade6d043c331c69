//! Chrome's trace format: one JSON object, its events in microseconds.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Ceilings, Launch, Run, Trace};
use crate::kernel::Cost;

/// Processes and threads of the file are lanes: the host's threads, and the device.
const HOST: u64 = 1;
const DEVICE: u64 = 2;
/// Launches that were timed one by one.
const LAUNCHES: u64 = 1;
/// Plans that ran as they do without a trace.
const PLANS: u64 = 2;

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

impl Trace {
    /// Write the file. `about` says what ran where; `ceilings` are those of the machine, if they were measured.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(
        &self,
        mut about: Map<String, Value>,
        ceilings: Option<Ceilings>,
        mut out: impl Write,
    ) -> io::Result<()> {
        about.insert("read_gb_s".into(), json!(ceilings.map(|c| c.read / 1e9)));
        about.insert("matrix_tflop_s".into(), json!(ceilings.map(|c| c.matrix / 1e12)));
        about.insert("dropped_plans".into(), json!(self.dropped));
        write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{},\"traceEvents\":[", Value::Object(about))?;
        let mut separator = "\n";
        let mut event = |event: Value| {
            let written = write!(out, "{separator}{event}");
            separator = ",\n";
            written
        };
        self.lanes().into_iter().try_for_each(&mut event)?;
        for span in &self.spans {
            let args: Map<String, Value> = span.args.iter().map(|(name, n)| ((*name).into(), json!(n))).collect();
            event(slice(HOST, span.thread, "host", span.name, [span.start, span.time], args.into()))?;
        }
        for (number, run) in self.runs.iter().enumerate() {
            run.slices(number, ceilings).into_iter().try_for_each(&mut event)?;
        }
        writeln!(out, "\n]}}")
    }

    /// Their names.
    fn lanes(&self) -> Vec<Value> {
        let process = |pid, name: &str| json!({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}});
        let lane = |pid, tid, name: String| json!({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}});
        let mut lanes = vec![
            process(HOST, "host"),
            process(DEVICE, "device"),
            lane(DEVICE, LAUNCHES, "launches, one by one".into()),
            lane(DEVICE, PLANS, "plans".into()),
        ];
        lanes.extend(self.threads.iter().map(|(&thread, name)| lane(HOST, thread, name.clone())));
        lanes
    }
}

impl Run {
    fn slices(&self, number: usize, ceilings: Option<Ceilings>) -> Vec<Value> {
        let kind = self.kind.name();
        if !self.apart {
            let cost: Cost = self.launches.iter().map(|l| l.cost).sum();
            let mut args = figures(cost, self.time, ceilings);
            args.insert("plan".into(), json!(number));
            args.insert("launches".into(), json!(self.launches.len()));
            return vec![slice(DEVICE, PLANS, kind, &self.name, [self.start, self.time], args.into())];
        }
        let mut start = self.start;
        let slice = |launch: &Launch| {
            let mut args = figures(launch.cost, launch.time, ceilings);
            args.insert("op".into(), json!(launch.op));
            args.insert("plan".into(), json!(number));
            args.insert("of".into(), json!(self.name));
            let at = [start, launch.time];
            start += launch.time;
            slice(DEVICE, LAUNCHES, kind, launch.label.as_str(), at, args.into())
        };
        self.launches.iter().map(slice).collect()
    }
}

/// What had to be done, how fast it was, and the share of the least time that it can take.
fn figures(cost: Cost, time: Duration, ceilings: Option<Ceilings>) -> Map<String, Value> {
    let seconds = time.as_secs_f64().max(1e-9);
    let percent = ceilings.map(|c| 100.0 * c.floor(cost).as_secs_f64() / seconds);
    let figures = [
        ("bytes", json!(cost.bytes)),
        ("flops", json!(cost.flops)),
        ("gb_s", json!(cost.bytes as f64 / seconds / 1e9)),
        ("tflop_s", json!(cost.flops as f64 / seconds / 1e12)),
        ("percent", json!(percent)),
    ];
    figures.map(|(name, value)| (name.to_string(), value)).into_iter().collect()
}

fn slice(pid: u64, tid: u64, category: &str, name: &str, [start, time]: [Duration; 2], args: Value) -> Value {
    json!({
        "ph": "X", "pid": pid, "tid": tid, "cat": category, "name": name, "ts": us(start), "dur": us(time), "args": args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};
    use crate::ops::RmsNorm;
    use crate::plan::Plan;
    use crate::trace::{Kind, Span, Work};

    fn work() -> Work {
        let mut l = Layout::new(Region::Scratch, DType::F32);
        let norm = RmsNorm { y: l.take(8), x: l.take(8), weight: l.take(4), rows: 2, cols: 4, eps: 1e-5 };
        let mut plan = Plan::new(DType::F32);
        plan.scope("llm", |p| (0..2).for_each(|_| p.push(norm)));
        Work { kind: Kind::Decode, name: "decode of \"1\"".into(), plan }
    }

    #[test]
    fn a_file_has_every_launch_where_it_ran_and_its_share_of_the_ceiling() {
        let us = Duration::from_micros;
        let apart = Run::new(work(), us(100), &[us(4), us(6)]);
        let whole = Run::new(work(), us(200), &[us(7)]);
        let span = Span { thread: 3, name: "schedule", start: us(1), time: us(2), args: vec![("step", 9)] };
        let trace = Trace { spans: vec![span], runs: vec![apart, whole], ..Trace::default() };
        // 80 bytes and 4 flop a column: the bytes decide.
        let ceilings = Ceilings { read: 80e6, matrix: 1e12 };
        let mut file = Vec::new();
        trace.write(Map::from_iter([("gpu".into(), json!("a GPU"))]), Some(ceilings), &mut file).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(file["otherData"]["gpu"], "a GPU");
        let slices: Vec<&Value> =
            file["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").collect();
        let at = |i: usize| (slices[i]["pid"].as_u64(), slices[i]["tid"].as_u64(), slices[i]["ts"].as_f64());
        assert_eq!(at(0), (Some(1), Some(3), Some(1.0)));
        assert_eq!((at(1), at(2)), ((Some(2), Some(1), Some(100.0)), (Some(2), Some(1), Some(104.0))));
        assert_eq!(at(3), (Some(2), Some(2), Some(200.0)));
        assert_eq!((&slices[1]["name"], &slices[1]["args"]["op"]), (&json!("llm/rmsnorm"), &json!("rmsnorm")));
        assert_eq!((&slices[3]["name"], &slices[3]["args"]["launches"]), (&json!("decode of \"1\""), &json!(2)));
        let bytes = slices[1]["args"]["bytes"].as_f64().unwrap();
        assert_eq!(slices[1]["args"]["percent"], 100.0 * (bytes / 80e6) / 4e-6);
        assert_eq!(slices[3]["args"]["bytes"], 2.0 * bytes);
    }
}
