//! What there is, and how it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::app::App;
use super::failure::Failure;

/// The names under which the model answers.
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let cards: Vec<_> = app.options.served_model_names.iter().map(|name| card(&app, name)).collect();
    Json(json!({ "object": "list", "data": cards }))
}

/// One of them.
pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Failure> {
    let name = app.model(Some(name))?;
    Ok(Json(card(&app, &name)))
}

fn card(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.started,
        "owned_by": "ocelli",
        "root": app.engine.model_name(),
        "parent": null,
        "max_model_len": app.engine.max_model_len(),
    })
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
