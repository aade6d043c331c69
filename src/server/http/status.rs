//! What there is, and how it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::app::App;

/// The names under which the model answers.
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let root = app.engine.model_name();
    let card = |name: &String| {
        json!({
            "id": name,
            "object": "model",
            "created": app.started,
            "owned_by": "ocelli",
            "root": root,
            "parent": null,
            "max_model_len": app.engine.max_model_len(),
        })
    };
    let cards: Vec<_> = app.options.served_model_names.iter().map(card).collect();
    Json(json!({ "object": "list", "data": cards }))
}

/// Whether the engine lives and moves.
pub(super) async fn health(State(app): State<Arc<App>>) -> StatusCode {
    status(app.lives())
}

/// Whether new requests should be sent here.
pub(super) async fn ready(State(app): State<Arc<App>>) -> StatusCode {
    status(app.ready.load(Ordering::Relaxed) && app.lives())
}

fn status(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// Requests that are under way.
pub(super) async fn load(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "server_load": app.load() }))
}
