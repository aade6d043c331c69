//! The record of a server, with the fields of `vllm bench serve`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::super::outcome::command;
use super::super::record::Better::{Higher, Lower};
use super::super::record::{Bench, Better, Figure, Figures, Input, Record, UNKNOWN};
use super::answer::Answer;
use super::{Measured, Pass, Run, ServeArgs};
use crate::cli::date::utc;

/// The interface that is spoken.
const BACKEND: &str = "openai-chat";

/// The record of a run; `None` if no request succeeded.
pub(super) fn record(run: &Run, args: &ServeArgs) -> Option<Record> {
    let figures = figures(&run.passes);
    figures.get("ttft_ms")?;
    let more = vllm(run, &figures, args);
    Some(Record {
        bench: Bench::Serve,
        version: env!("CARGO_PKG_VERSION").into(),
        date: utc(SystemTime::now()),
        command: command(),
        gpu: UNKNOWN.into(),
        driver: None,
        backend: BACKEND.into(),
        model: run.model.clone(),
        dtype: UNKNOWN.into(),
        load_format: UNKNOWN.into(),
        ceilings: None,
        input: input(run, args),
        figures,
        more,
    })
}

/// What failed requests say, and how many say it; the most frequent first.
pub(super) fn failures(run: &Run) -> Vec<(&str, usize)> {
    let mut counts = BTreeMap::new();
    let requests = run.passes.iter().flat_map(|pass| &pass.requests);
    for message in requests.filter_map(|request| request.answer.as_ref().err()) {
        *counts.entry(message.as_str()).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

fn input(run: &Run, args: &ServeArgs) -> Input {
    let (mut tokens, mut completed) = (0, 0);
    for answer in run.passes.iter().flat_map(|pass| answers(&pass.requests)) {
        (tokens, completed) = (tokens + answer.prompt_tokens, completed + 1);
    }
    let size = format!("{}x{}", args.image_size.width, args.image_size.height);
    Input {
        prompt_tokens: (tokens as f64 / f64::from(completed.max(1))).round() as u64,
        image_tokens: None,
        output_tokens: args.output_len.into(),
        pictures: vec![size; args.images as usize],
        requests: args.num_prompts.into(),
        concurrency: args.max_concurrency.map(u64::from),
        request_rate: args.request_rate.is_finite().then_some(args.request_rate),
        seed: args.seed,
        repeats: args.repeats.into(),
        warmup: args.num_warmups.into(),
    }
}

/// Milliseconds of an answer: one, or one for each of its tokens.
type Times = fn(&Answer) -> Vec<f64>;

/// Times by their name, in words.
const TIMES: [(&str, &str, Times); 4] = [
    ("ttft_ms", "first token", |a| vec![ms(a.ttft)]),
    ("tpot_ms", "every token after it", |a| tpot(a).into_iter().collect()),
    ("itl_ms", "between two tokens", |a| a.itl.iter().copied().map(ms).collect()),
    ("e2el_ms", "the whole answer", |a| vec![ms(a.latency)]),
];

fn ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// Milliseconds a token after the first, if there is one.
fn tpot(answer: &Answer) -> Option<f64> {
    let rest = answer.completion_tokens.checked_sub(1).filter(|&n| n > 0)?;
    Some(ms(answer.latency.saturating_sub(answer.ttft)) / rest as f64)
}

fn figures(passes: &[Pass]) -> Figures {
    let mut figures = Figures::default();
    for (name, what, of) in TIMES {
        let repeats: Vec<_> = passes.iter().map(|pass| answers(&pass.requests).flat_map(of).collect()).collect();
        figures.push(name, Figure::of(what, "ms", Some(Lower), &repeats));
    }
    let mut rate = |name: &str, what: &str, unit: &str, better: Option<Better>, of: &dyn Fn(&Pass) -> f64| {
        let repeats: Vec<_> = passes.iter().map(|pass| vec![of(pass)]).collect();
        figures.push(name, Figure::of(what, unit, better, &repeats));
    };
    let tokens = |pass: &Pass, of: &dyn Fn(&Answer) -> u64| {
        answers(&pass.requests).map(of).sum::<u64>() as f64 / pass.duration.as_secs_f64()
    };
    rate("request_throughput", "requests", "req/s", Some(Higher), &|pass| tokens(pass, &|_| 1));
    rate("output_throughput", "tokens of answers", "tok/s", Some(Higher), &|pass| {
        tokens(pass, &|a| a.completion_tokens)
    });
    rate("total_token_throughput", "tokens of prompts and answers", "tok/s", Some(Higher), &|pass| {
        tokens(pass, &|a| a.prompt_tokens + a.completion_tokens)
    });
    rate("peak_output_throughput", "tokens of answers in the best second", "tok/s", None, &|pass| {
        peak_tokens(&pass.requests) as f64
    });
    rate("peak_concurrency", "requests under way, at most", "requests", None, &|pass| {
        peak_requests(&pass.requests) as f64
    });
    rate("duration_s", "all requests", "s", None, &|pass| pass.duration.as_secs_f64());
    rate("failed", "requests without an answer", "requests", None, &|pass| {
        (pass.requests.len() - answers(&pass.requests).count()) as f64
    });
    figures
}

/// The fields that `vllm bench serve` writes, of all repeats one after another. The two that every record has are not
/// among them: `date` and `backend`.
fn vllm(run: &Run, figures: &Figures, args: &ServeArgs) -> Map<String, Value> {
    let all = joined(&run.passes);
    let Pass { duration, requests } = &all;
    let completed = answers(requests).count();
    let tokens = |of: fn(&Answer) -> u64| answers(requests).map(of).sum::<u64>();
    let per_second = |number: u64| json!(number as f64 / duration.as_secs_f64());
    let (input, output) = (tokens(|a| a.prompt_tokens), tokens(|a| a.completion_tokens));
    let rate = if args.request_rate.is_finite() { json!(args.request_rate) } else { json!("inf") };
    let mut report = Map::new();
    let mut insert = |name: &str, value: Value| report.insert(name.into(), value);
    insert("endpoint_type", json!(BACKEND));
    insert("client", json!(concat!("ocelli-", env!("CARGO_PKG_VERSION"))));
    insert("model_id", json!(run.model));
    insert("num_prompts", json!(requests.len()));
    insert("request_rate", rate);
    insert("burstiness", json!(1.0));
    insert("max_concurrency", json!(args.max_concurrency));
    insert("mean_request_bytes", json!(run.body_bytes));
    insert("duration", json!(duration.as_secs_f64()));
    insert("completed", json!(completed));
    insert("failed", json!(requests.len() - completed));
    insert("total_input_tokens", json!(input));
    insert("total_output_tokens", json!(output));
    insert("request_throughput", per_second(completed as u64));
    insert("output_throughput", per_second(output));
    insert("total_token_throughput", per_second(input + output));
    insert("max_output_tokens_per_s", json!(peak_tokens(requests)));
    insert("max_concurrent_requests", json!(peak_requests(requests)));
    for (name, figure) in TIMES.iter().map(|(name, ..)| (*name, figures.get(name))) {
        // 0 where there is none, as in vLLM's client.
        let of = |of: fn(&Figure) -> f64| json!(figure.map_or(0.0, of));
        insert(&format!("mean_{name}"), of(|f| f.mean));
        insert(&format!("median_{name}"), of(|f| f.median));
        insert(&format!("std_{name}"), of(|f| f.std));
        insert(&format!("p50_{name}"), of(|f| f.median));
        insert(&format!("p90_{name}"), of(|f| f.p90));
        insert(&format!("p99_{name}"), of(|f| f.p99));
    }
    if args.save_detailed {
        report.extend(detailed(requests));
    }
    report
}

/// The fields of vLLM's client that have an entry for every request.
fn detailed(requests: &[Measured]) -> Map<String, Value> {
    let seconds = |times: &[Duration]| json!(times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>());
    let fields = [
        ("input_lens", each(requests, |a| json!(a.prompt_tokens))),
        ("output_lens", each(requests, |a| json!(a.completion_tokens))),
        ("ttfts", each(requests, |a| json!(a.ttft.as_secs_f64()))),
        ("itls", requests.iter().map(|r| r.answer.as_ref().map_or(json!([]), |a| seconds(&a.itl))).collect()),
        ("latencies", each(requests, |a| json!(a.latency.as_secs_f64()))),
        ("start_times", requests.iter().map(|r| json!(r.start.as_secs_f64())).collect()),
        ("queue_times", requests.iter().map(|r| json!(r.queued.as_secs_f64())).collect()),
        ("errors", requests.iter().map(|r| json!(r.answer.as_ref().err().map_or("", String::as_str))).collect()),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// Repeats as one that went on and on.
fn joined(passes: &[Pass]) -> Pass {
    let mut all = Pass { duration: Duration::ZERO, requests: Vec::new() };
    for pass in passes {
        let begin = all.duration;
        all.requests.extend(pass.requests.iter().map(|r| Measured { start: begin + r.start, ..r.clone() }));
        all.duration += pass.duration;
    }
    all
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
    fn repeats_follow_one_another() {
        let pass = |starts: [u64; 2]| Pass { duration: ms(2000), requests: starts.map(|s| measured(s, 1000)).to_vec() };
        let all = joined(&[pass([0, 500]), pass([0, 700])]);
        let starts: Vec<_> = all.requests.iter().map(|request| request.start).collect();
        assert_eq!((all.duration, starts), (ms(4000), [0, 500, 2000, 2700].map(ms).to_vec()));
        assert_eq!(peak_requests(&all.requests), 2, "those of two repeats are not under way at a time");
        let figures = figures(&[pass([0, 500]), pass([0, 700])]);
        let rate = figures.get("request_throughput").unwrap();
        assert_eq!((rate.repeats.as_slice(), rate.better), (&[1.0, 1.0][..], Some(Higher)));
        assert_eq!(figures.get("itl_ms").map(|f| (f.median, f.samples)), Some((200.0, 4)));
        assert!(figures.get("tpot_ms").is_none(), "no answer has a second token");
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
