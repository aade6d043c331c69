//! The table and the JSON object, with the names of `vllm bench serve`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::super::Spread;
use super::answer::Answer;
use super::{Measured, Run, ServeArgs};
use crate::cli::date::utc;

/// Times by their name in the JSON object, in a line of the table and above it.
const TIMES: [(&str, &str, &str); 4] = [
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
];

pub(super) struct Report<'a> {
    run: &'a Run,
    /// For each of the times, those of the requests that succeeded.
    times: [Times; 4],
}

/// Milliseconds in ascending order; there may be none.
struct Times(Spread);

impl Times {
    fn of(times: impl Iterator<Item = Duration>) -> Times {
        Times(Spread::of(times.map(|time| 1e3 * time.as_secs_f64())))
    }

    /// 0 where there is none, as in vLLM's client.
    fn quantile(&self, share: f64) -> f64 {
        if self.0.0.is_empty() { 0.0 } else { self.0.quantile(share) }
    }

    fn mean(&self) -> f64 {
        self.0.0.iter().sum::<f64>() / self.0.0.len().max(1) as f64
    }

    fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares = self.0.0.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (squares / self.0.0.len().max(1) as f64).sqrt()
    }
}

impl<'a> Report<'a> {
    pub fn of(run: &'a Run) -> Report<'a> {
        let answers = || answers(&run.requests);
        // The first token has no token before it.
        let tpot = |a: &Answer| {
            let rest = u32::try_from(a.completion_tokens).unwrap_or(u32::MAX).checked_sub(1).filter(|&n| n > 0);
            rest.map(|rest| a.latency.saturating_sub(a.ttft) / rest)
        };
        let times = [
            Times::of(answers().map(|a| a.ttft)),
            Times::of(answers().filter_map(tpot)),
            Times::of(answers().flat_map(|a| a.itl.iter().copied())),
            Times::of(answers().map(|a| a.latency)),
        ];
        Report { run, times }
    }

    pub fn completed(&self) -> usize {
        answers(&self.run.requests).count()
    }

    /// What failed requests say, and how many say it; the most frequent first.
    pub fn failures(&self) -> Vec<(&str, usize)> {
        let mut counts = BTreeMap::new();
        for message in self.run.requests.iter().filter_map(|request| request.answer.as_ref().err()) {
            *counts.entry(message.as_str()).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }

    fn tokens(&self, of: impl Fn(&Answer) -> u64) -> u64 {
        answers(&self.run.requests).map(of).sum()
    }

    fn per_second(&self, number: u64) -> f64 {
        number as f64 / self.run.duration.as_secs_f64()
    }

    pub fn table(&self, args: &ServeArgs) -> String {
        let completed = self.completed();
        let (input, output) = (self.tokens(|a| a.prompt_tokens), self.tokens(|a| a.completion_tokens));
        let whole = |name: &str, value: u64| format!("{name:<40} {value:<10}\n");
        let broken = |name: &str, value: f64| format!("{name:<40} {value:<10.2}\n");
        let mut text = format!("{:=^50}\n", " Serving Benchmark Result ");
        text += &whole("Successful requests:", completed as u64);
        text += &whole("Failed requests:", (self.run.requests.len() - completed) as u64);
        if let Some(n) = args.max_concurrency {
            text += &whole("Maximum request concurrency:", n.into());
        }
        if args.request_rate.is_finite() {
            text += &broken("Request rate configured (RPS):", args.request_rate);
        }
        text += &broken("Benchmark duration (s):", self.run.duration.as_secs_f64());
        text += &whole("Total input tokens:", input);
        text += &whole("Total generated tokens:", output);
        text += &broken("Request throughput (req/s):", self.per_second(completed as u64));
        text += &broken("Output token throughput (tok/s):", self.per_second(output));
        text += &broken("Peak output token throughput (tok/s):", peak_tokens(&self.run.requests) as f64);
        text += &broken("Peak concurrent requests:", peak_requests(&self.run.requests) as f64);
        text += &broken("Total token throughput (tok/s):", self.per_second(input + output));
        text += &broken("Mean request size (kB):", self.run.body_bytes / 1e3);
        for ((_, name, above), times) in TIMES.iter().zip(&self.times) {
            text += &format!("{above:-^50}\n");
            text += &broken(&format!("Mean {name} (ms):"), times.mean());
            text += &broken(&format!("Median {name} (ms):"), times.quantile(0.5));
            text += &broken(&format!("P99 {name} (ms):"), times.quantile(0.99));
        }
        text + &"=".repeat(50) + "\n"
    }

    pub fn json(&self, args: &ServeArgs) -> String {
        let completed = self.completed();
        let requests = &self.run.requests;
        let (input, output) = (self.tokens(|a| a.prompt_tokens), self.tokens(|a| a.completion_tokens));
        let rate = if args.request_rate.is_finite() { json!(args.request_rate) } else { json!("inf") };
        let mut report = Map::new();
        let mut insert = |name: &str, value: Value| report.insert(name.into(), value);
        // In the style of the others: `20261122-193000`.
        let date = utc(SystemTime::now()).replace(['-', ':', 'Z'], "").replace('T', "-");
        insert("date", json!(date));
        insert("backend", json!("openai-chat"));
        insert("endpoint_type", json!("openai-chat"));
        insert("client", json!(concat!("ocelli-", env!("CARGO_PKG_VERSION"))));
        insert("model_id", json!(self.run.model));
        insert("num_prompts", json!(requests.len()));
        insert("request_rate", rate);
        insert("burstiness", json!(1.0));
        insert("max_concurrency", json!(args.max_concurrency));
        insert("seed", json!(args.seed));
        insert("images_per_request", json!(args.images));
        insert("image_size", json!([args.image.width, args.image.height]));
        insert("mean_request_bytes", json!(self.run.body_bytes));
        insert("duration", json!(self.run.duration.as_secs_f64()));
        insert("completed", json!(completed));
        insert("failed", json!(requests.len() - completed));
        insert("total_input_tokens", json!(input));
        insert("total_output_tokens", json!(output));
        insert("request_throughput", json!(self.per_second(completed as u64)));
        insert("output_throughput", json!(self.per_second(output)));
        insert("total_token_throughput", json!(self.per_second(input + output)));
        insert("max_output_tokens_per_s", json!(peak_tokens(requests)));
        insert("max_concurrent_requests", json!(peak_requests(requests)));
        insert("input_lens", each(requests, |a| json!(a.prompt_tokens)));
        insert("output_lens", each(requests, |a| json!(a.completion_tokens)));
        insert("ttfts", each(requests, |a| json!(a.ttft.as_secs_f64())));
        let seconds = |times: &[Duration]| json!(times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>());
        insert("itls", requests.iter().map(|r| r.answer.as_ref().map_or(json!([]), |a| seconds(&a.itl))).collect());
        insert("latencies", each(requests, |a| json!(a.latency.as_secs_f64())));
        insert("start_times", requests.iter().map(|r| json!(r.start.as_secs_f64())).collect());
        insert("queue_times", requests.iter().map(|r| json!(r.queued.as_secs_f64())).collect());
        insert("errors", requests.iter().map(|r| json!(r.answer.as_ref().err().map_or("", String::as_str))).collect());
        for ((name, _, _), times) in TIMES.iter().zip(&self.times) {
            insert(&format!("mean_{name}_ms"), json!(times.mean()));
            insert(&format!("median_{name}_ms"), json!(times.quantile(0.5)));
            insert(&format!("std_{name}_ms"), json!(times.deviation()));
            for percent in [50, 90, 99] {
                insert(&format!("p{percent}_{name}_ms"), json!(times.quantile(f64::from(percent) / 100.0)));
            }
        }
        format!("{}\n", Value::Object(report))
    }
}

fn answers(requests: &[Measured]) -> impl Iterator<Item = &Answer> {
    requests.iter().filter_map(|request| request.answer.as_ref().ok())
}

/// A number of each request, 0 where it failed.
fn each(requests: &[Measured], of: impl Fn(&Answer) -> Value) -> Value {
    requests.iter().map(|request| request.answer.as_ref().map_or(json!(0), &of)).collect()
}

/// Most events with something of an answer in one of the seconds after the first request was sent.
fn peak_tokens(requests: &[Measured]) -> u64 {
    let first = requests.iter().map(|request| request.start).min().unwrap_or_default();
    let mut seconds = BTreeMap::new();
    for request in requests {
        let Ok(answer) = &request.answer else { continue };
        let mut time = request.start - first + answer.ttft;
        for gap in [&Duration::ZERO].into_iter().chain(&answer.itl) {
            time += *gap;
            *seconds.entry(time.as_secs()).or_insert(0) += 1;
        }
    }
    seconds.into_values().max().unwrap_or(0)
}

/// Most requests that were under way at a time, of those that succeeded.
fn peak_requests(requests: &[Measured]) -> u64 {
    let under_way = requests.iter().filter_map(|r| Some((r.start, r.start + r.answer.as_ref().ok()?.latency)));
    // At one time, ends come before beginnings.
    let mut events: Vec<_> = under_way.flat_map(|(start, end)| [(start, 1), (end, -1)]).collect();
    events.sort_unstable();
    let now = events.iter().scan(0_i64, |now, (_, change)| {
        *now += change;
        Some(*now)
    });
    now.max().unwrap_or(0).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn measured(start: u64, latency: u64) -> Measured {
        let answer = Answer { ttft: ms(100), itl: vec![ms(200)], latency: ms(latency), ..Answer::default() };
        Measured { start: ms(start), queued: ms(0), answer: Ok(answer) }
    }

    #[test]
    fn times_are_summed_up_as_numpy_does() {
        let times = Times::of([4, 1, 2, 3].into_iter().map(ms));
        assert_eq!((times.mean(), times.quantile(0.5), times.deviation()), (2.5, 2.5, 1.25_f64.sqrt()));
        assert!((times.quantile(0.99) - 3.97).abs() < 1e-12);
        let none = Times::of([].into_iter());
        assert_eq!((none.mean(), none.quantile(0.99), none.deviation()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn peaks_count_what_is_under_way() {
        // The second begins when the first ends; the third lies across both.
        let requests = [measured(5000, 1000), measured(6000, 1000), measured(5500, 1000)];
        assert_eq!(peak_requests(&requests), 2);
        // Events at 0.1, 0.3 / 1.1, 1.3 / 0.6, 0.8 seconds.
        assert_eq!(peak_tokens(&requests), 4);
        assert_eq!((peak_requests(&[]), peak_tokens(&[])), (0, 0));
    }
}
