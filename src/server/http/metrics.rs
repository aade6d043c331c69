//! `/metrics`: what the engine has done and holds, in Prometheus' text.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::app::App;
use super::histogram::{Counts, Histogram};
use super::observed::Observations;
use crate::engine::{Memory, Stats};

pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let mut text = Text { model: escaped(&app.options.served_model_names[0]), text: String::new() };
    text.engine(&app.engine.stats(), &app.engine.memory());
    text.answers(&app.observations);
    text.connections(&app);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.text)
}

struct Text {
    /// The label that all of them carry.
    model: String,
    text: String,
}

impl Text {
    fn engine(&mut self, stats: &Stats, memory: &Memory) {
        let used = stats.blocks.used as f64 / stats.blocks.total.max(1) as f64;
        self.one("gauge", "num_requests_running", "Sequences that run.", stats.running);
        self.one("gauge", "num_requests_waiting", "Sequences that wait for their turn.", stats.waiting);
        self.one("gauge", "kv_cache_usage_perc", "Share of the cache that sequences refer to; 1 is all.", used);
        self.family("gauge", "cache_config_info", "How the cache is cut: tokens of a block, and blocks.");
        let block_size = memory.kv_tokens / memory.kv_blocks.max(1);
        let cut = format!(",block_size=\"{block_size}\",num_gpu_blocks=\"{}\"", memory.kv_blocks);
        self.value("cache_config_info", &cut, 1);
        let (queries, hits) = (stats.pictures.hits + stats.pictures.misses, stats.pictures.hits);
        let scheduler = &stats.scheduler;
        for (name, help, value) in [
            ("prefix_cache_queries_total", "Tokens looked for in the prefix cache.", scheduler.prefix_queries),
            ("prefix_cache_hits_total", "Tokens found in the prefix cache.", scheduler.prefix_hits),
            ("mm_cache_queries_total", "Pictures looked for in the encoder cache.", queries),
            ("mm_cache_hits_total", "Pictures found in the encoder cache.", hits),
            ("num_preemptions_total", "Sequences that gave up their blocks.", scheduler.preemptions),
            ("prompt_tokens_total", "Tokens of prompts that were computed.", stats.prompt_tokens),
            ("generation_tokens_total", "Tokens that were sampled.", stats.generation_tokens),
            ("steps_total", "Steps of the model.", stats.steps),
            ("request_cancelled_total", "Sequences that nobody wanted any more.", stats.cancelled),
            ("request_failed_total", "Sequences that failed after they had been accepted.", stats.failed),
        ] {
            self.one("counter", name, help, value);
        }
        self.family("counter", "request_success_total", "Sequences that got their whole answer, by why it ended.");
        for (reason, count) in [("stop", stats.stopped), ("length", stats.finished - stats.stopped)] {
            self.value("request_success_total", &format!(",finished_reason=\"{reason}\""), count);
        }
    }

    fn answers(&mut self, seen: &Observations) {
        let (first, between) = (&seen.time_to_first_token, &seen.inter_token_latency);
        let (whole, queue) = (&seen.e2e_latency, &seen.queue_time);
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "From a request's head to its first token.", first),
            ("inter_token_latency_seconds", "Between two tokens of an answer.", between),
            ("e2e_request_latency_seconds", "From a request's head to the end of its answers.", whole),
            ("request_queue_time_seconds", "From a request's arrival at the engine to its first step.", queue),
            (
                "request_prompt_tokens",
                "Tokens of a prompt, those of pictures as they are expanded.",
                &seen.prompt_tokens,
            ),
            ("request_generation_tokens", "Tokens of an answer.", &seen.generation_tokens),
        ] {
            self.histogram(name, help, histogram);
        }
    }

    fn connections(&mut self, app: &App) {
        let open = &app.connections;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.one("gauge", "num_requests_in_server", "Requests whose answer is not complete.", app.load());
        self.one("gauge", "num_connections", "Open connections.", open.count());
        for (name, help, value) in [
            ("connections_evicted_total", "Idle connections that were closed to make room.", count(&open.evicted)),
            ("connections_refused_total", "Connections for which there was no room.", count(&open.refused)),
            ("accept_errors_total", "Connections that could not be accepted.", count(&open.failed)),
        ] {
            self.one("counter", name, help, value);
        }
        self.family("counter", "http_requests_total", "Answers by their HTTP status.");
        for (status, count) in app.answered() {
            self.value("http_requests_total", &format!(",status=\"{status}\""), count);
        }
    }

    fn one(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help);
        self.value(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family("histogram", name, help);
        let Counts { buckets, sum } = histogram.counts();
        let mut count = 0;
        for (i, bucket) in buckets.into_iter().enumerate() {
            count += bucket;
            let bound = histogram.bounds().get(i).map_or("+Inf".to_owned(), f64::to_string);
            self.value(&format!("{name}_bucket"), &format!(",le=\"{bound}\""), count);
        }
        self.value(&format!("{name}_sum"), "", sum);
        self.value(&format!("{name}_count"), "", count);
    }

    fn family(&mut self, kind: &str, name: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP ocelli:{name} {help}\n# TYPE ocelli:{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.text, "ocelli:{name}{{model_name=\"{}\"{labels}}} {value}", self.model);
    }
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
