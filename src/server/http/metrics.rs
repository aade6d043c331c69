//! `/metrics`: what the engine has done and holds, in Prometheus' text.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::app::App;
use crate::engine::Stats;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let mut text = Text { model: escaped(&app.options.served_model_names[0]), text: String::new() };
    text.engine(&app.engine.stats());
    text.family("gauge", "num_requests_in_server", "Requests whose answer is not complete.");
    text.value("num_requests_in_server", "", app.load());
    text.family("counter", "http_requests_total", "Answers by their HTTP status.");
    for (status, count) in app.answered() {
        text.value("http_requests_total", &format!(",status=\"{status}\""), count);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.text)
}

struct Text {
    /// The label that all of them carry.
    model: String,
    text: String,
}

impl Text {
    fn engine(&mut self, stats: &Stats) {
        let used = stats.blocks.used as f64 / stats.blocks.total.max(1) as f64;
        self.one("gauge", "num_requests_running", "Sequences that run.", stats.running);
        self.one("gauge", "num_requests_waiting", "Sequences that wait for their turn.", stats.waiting);
        self.one("gauge", "kv_cache_usage_perc", "Share of the cache that sequences refer to; 1 is all.", used);
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
            ("request_success_total", "Sequences that got their whole answer.", stats.finished),
            ("request_cancelled_total", "Sequences that nobody wanted any more.", stats.cancelled),
            ("request_failed_total", "Sequences that failed after they had been accepted.", stats.failed),
        ] {
            self.one("counter", name, help, value);
        }
    }

    fn one(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help);
        self.value(name, "", value);
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
