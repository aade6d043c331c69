//! What the launches of a plan took in a trace, beside the least that they can take.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::kernel::Cost;
use crate::plan::{Plan, Step};
use crate::trace::Ceilings;

/// The parts of a trace that are read here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    other_data: About,
    trace_events: Vec<Event>,
}

#[derive(Deserialize)]
struct About {
    read_gb_s: Option<f64>,
    matrix_tflop_s: Option<f64>,
}

#[derive(Deserialize)]
struct Event {
    ph: String,
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: EventArgs,
}

#[derive(Default, Deserialize)]
struct EventArgs {
    /// Of a launch: the plan that it is part of.
    of: Option<String>,
    /// Of a plan.
    launches: Option<u64>,
}

/// What a trace says about one plan.
pub struct Measured {
    ceilings: Option<Ceilings>,
    /// Median of each launch, by its label.
    launches: HashMap<String, Duration>,
    /// Median of the plan as it runs without marks between the launches.
    whole: Option<Duration>,
}

impl Measured {
    /// What the trace `path` has about the plan `name`, for example `decode of 8`.
    ///
    /// # Errors
    /// No trace of ours, or none of that plan.
    pub fn read(path: &Path, name: &str) -> Result<Measured> {
        let context = || format!("reading {}", path.display());
        let text = fs::read_to_string(path).with_context(context)?;
        Measured::parse(&text, name).with_context(context)
    }

    fn parse(text: &str, name: &str) -> Result<Measured> {
        let file: File = serde_json::from_str(text).context("it is no trace that `--trace` wrote")?;
        let slices = || file.trace_events.iter().filter(|event| event.ph == "X");
        let mut times: HashMap<&str, Vec<f64>> = HashMap::new();
        for event in slices().filter(|event| event.args.of.as_deref() == Some(name)) {
            times.entry(&event.name).or_default().push(event.dur);
        }
        let whole = slices().filter(|event| event.args.launches.is_some() && event.name == name).map(|event| event.dur);
        if times.is_empty() {
            let known: BTreeSet<&str> = slices().filter_map(|event| event.args.of.as_deref()).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            ensure!(!known.is_empty(), "it has no launches; was it written with --trace?");
            anyhow::bail!("it has no {name:?}; it has {known} (--batch, --tokens, --images)");
        }
        let ceilings = match (file.other_data.read_gb_s, file.other_data.matrix_tflop_s) {
            (Some(read), Some(matrix)) => Some(Ceilings { read: read * 1e9, matrix: matrix * 1e12 }),
            _ => None,
        };
        let launches = times.into_iter().filter_map(|(label, times)| Some((label.to_owned(), median(times)?)));
        Ok(Measured { ceilings, launches: launches.collect(), whole: median(whole.collect()) })
    }

    /// Launches, costs, least and measured time by op, the longest first; then of all of them.
    pub fn totals(&self, plan: &Plan) -> String {
        let mut by_op: BTreeMap<&str, Sum> = BTreeMap::new();
        let mut total = Sum::default();
        for step in plan.steps() {
            for sum in [by_op.entry(step.op.name()).or_default(), &mut total] {
                sum.launches += 1;
                sum.cost += step.op.cost();
                sum.floor += self.ceilings.map_or(Duration::ZERO, |c| c.floor(step.op.cost()));
                sum.time += self.of(step);
            }
        }
        let mut rows: Vec<_> = by_op.into_iter().collect();
        rows.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.time));
        let mut out = format!(
            "{:<16}  {:>8}  {:>14}  {:>16}  {:>10}  {:>11}  {:>6}\n",
            "op", "launches", "bytes", "flop", "floor us", "measured us", "%"
        );
        for (name, sum) in rows.into_iter().chain([("total", total)]) {
            out += &format!("{name:<16}  {:>8}  {:>14}  {:>16}  ", sum.launches, sum.cost.bytes, sum.cost.flops);
            out += &self.columns(self.ceilings.map(|_| sum.floor), sum.time);
        }
        out += &self.remarks(plan);
        out
    }

    /// Every launch with its cost, least and measured time.
    pub fn table(&self, plan: &Plan) -> String {
        let width = plan.steps().iter().map(|s| s.label.as_str().len()).max().unwrap_or(0).max(5);
        let mut out = format!(
            "{:>4}  {:width$}  {:>12}  {:>15}  {:>10}  {:>11}  {:>6}\n",
            "step", "label", "bytes", "flop", "floor us", "measured us", "%"
        );
        for (i, step) in plan.steps().iter().enumerate() {
            let cost = step.op.cost();
            out += &format!("{i:>4}  {:width$}  {:>12}  {:>15}  ", step.label, cost.bytes, cost.flops);
            out += &self.columns(self.ceilings.map(|c| c.floor(cost)), self.of(step));
        }
        out += &self.remarks(plan);
        out
    }

    fn of(&self, step: &Step) -> Duration {
        self.launches.get(step.label.as_str()).copied().unwrap_or_default()
    }

    fn columns(&self, floor: Option<Duration>, time: Duration) -> String {
        let us = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e6);
        let share = floor.filter(|_| time > Duration::ZERO).map(|floor| floor.as_secs_f64() / time.as_secs_f64());
        let share = share.map_or_else(|| "-".into(), |share| format!("{:.1}", 100.0 * share));
        format!("{:>10}  {:>11}  {share:>6}\n", floor.map_or_else(|| "-".into(), us), us(time))
    }

    fn remarks(&self, plan: &Plan) -> String {
        let mut out = String::new();
        if let Some(whole) = self.whole {
            out += &format!("as it runs, launches overlapping: {:.1} us\n", whole.as_secs_f64() * 1e6);
        }
        let missing = plan.steps().iter().filter(|step| !self.launches.contains_key(step.label.as_str())).count();
        if missing > 0 {
            out += &format!(
                "{missing} of {} launches are not in the trace: is it of another model?\n",
                plan.steps().len()
            );
        }
        out
    }
}

/// Launches of an op together.
#[derive(Default)]
struct Sum {
    launches: usize,
    cost: Cost,
    /// One launch may wait for memory and another for the matrix units, so this is the sum of theirs.
    floor: Duration,
    time: Duration,
}

fn median(mut times: Vec<f64>) -> Option<Duration> {
    times.sort_by(f64::total_cmp);
    let last = times.len().checked_sub(1)?;
    Some(Duration::from_secs_f64((times[last / 2] + times[last.div_ceil(2)]) / 2e6))
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::mem::{DType, Layout, Region};
    use crate::ops::RmsNorm;
    use crate::trace::{Kind, Run, Trace, Work};

    fn plan() -> Plan {
        let mut l = Layout::new(Region::Scratch, DType::F32);
        let norm = RmsNorm { y: l.take(8), x: l.take(8), weight: l.take(4), rows: 2, cols: 4, eps: 1e-5 };
        let mut plan = Plan::new(DType::F32);
        (0..2).for_each(|i| plan.scope(i, |p| p.push(norm)));
        plan
    }

    /// Two runs launch by launch, and one whole.
    fn trace() -> String {
        let us = Duration::from_micros;
        let run = |times: &[Duration]| {
            let work = Work { kind: Kind::Decode, name: "decode of 1".into(), plan: plan() };
            Run::new(work, Duration::ZERO, times)
        };
        let runs = vec![run(&[us(4), us(6)]), run(&[us(8), us(6)]), run(&[us(9)])];
        let ceilings = Ceilings { read: 80e6, matrix: 1e12 };
        let mut file = Vec::new();
        Trace { runs, ..Trace::default() }.write(Map::new(), Some(ceilings), &mut file).unwrap();
        String::from_utf8(file).unwrap()
    }

    #[test]
    fn the_medians_of_launches_stand_beside_their_floors() {
        let measured = Measured::parse(&trace(), "decode of 1").unwrap();
        let (table, totals) = (measured.table(&plan()), measured.totals(&plan()));
        // 80 bytes at 80 MB/s.
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1][4..], ["1.0", "6.0", "16.7"], "{table}");
        assert_eq!(rows[2][4..], ["1.0", "6.0", "16.7"], "{table}");
        assert!(totals.contains("as it runs, launches overlapping: 9.0 us"), "{totals}");
        let total = totals.lines().find(|line| line.starts_with("total")).unwrap();
        assert!(total.ends_with("2.0         12.0    16.7"), "{totals}");
    }

    #[test]
    fn a_trace_of_something_else_is_refused_with_what_it_has() {
        let error = |text: &str, name| format!("{:#}", Measured::parse(text, name).err().unwrap());
        assert_eq!(
            error(&trace(), "decode of 8"),
            "it has no \"decode of 8\"; it has decode of 1 (--batch, --tokens, --images)"
        );
        assert!(error("[]", "decode of 1").starts_with("it is no trace that `--trace` wrote"));
    }
}
