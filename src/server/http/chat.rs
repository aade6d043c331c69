//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::anyhow;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use tokio::task::spawn_blocking;

use super::app::App;
use super::body::Json as JsonBody;
use super::failure::Failure;
use super::observed::Observed;
use super::{body, events};
use crate::Error;
use crate::engine::Stream;
use crate::server::openai::{ApiError, ChatRequest, Chunks, ImageUrl, Report, chat_completion, unique_id};

/// A request that the engine has.
struct Asked {
    answer: Stream,
    model: String,
    report: Report,
    n: usize,
    stream: bool,
    include_usage: bool,
}

pub(super) async fn complete(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let start = Instant::now();
    // Before anybody waits for a long body.
    app.has_place()?;
    let body = body::json(&app, request).await?;
    let place = app.enter()?;
    let Asked { answer, model, report, n, stream, include_usage } = load(&app, body).await?;
    let mut answer = Observed::new(app.clone(), answer, n, start);
    let id = unique_id("chatcmpl-");
    if stream {
        return events::answer(app, answer, Chunks::new(id, model, report, n), include_usage, place).await;
    }
    let output = answer.complete().await.map_err(|error| app.failure(&error))?;
    let body = chat_completion(&id, &model, app.engine.tokenizer(), report, &output);
    let body = body.map_err(|error| app.failure(&Error::Model(error)))?;
    Ok(Json(body).into_response())
}

/// Read the request, fetch and decode its pictures, and ask the engine: on a thread of its own, of which there are a few.
async fn load(app: &Arc<App>, body: JsonBody) -> Result<Asked, Failure> {
    let failed = || app.failure(&Error::Model(anyhow!("reading the request failed")));
    let permit = app.loaders.clone().acquire_owned().await.map_err(|_| failed())?;
    let own = app.clone();
    let asked = spawn_blocking(move || {
        // Not before the work is done: whoever waits for it may be gone earlier.
        let _permit = permit;
        ask(&own, &body.text)
    });
    Ok(asked.await.map_err(|_| failed())??)
}

fn ask(app: &App, body: &str) -> Result<Asked, ApiError> {
    let mut chat = ChatRequest::parse(body, app.engine.max_images())?;
    let served = &app.options.served_model_names;
    let model = chat.model.take().unwrap_or_else(|| served[0].clone());
    if !served.contains(&model) {
        return Err(ApiError::no_such_model(&model, served));
    }
    let fetch = |image: &ImageUrl| app.media.fetch(&image.url).map_err(|e| e.at(&image.param));
    let images = chat.images.iter().map(fetch).collect::<Result<Vec<_>, _>>()?;
    let (report, n, stream, include_usage) = (chat.report, chat.sampling.n, chat.stream, chat.include_usage);
    Ok(Asked { answer: app.engine.submit(chat.into_request(images)), model, report, n, stream, include_usage })
}
