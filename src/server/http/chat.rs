//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::failure::Failure;
use super::streams::Streams;
use super::{body, events, stages};
use crate::Error;
use crate::server::openai::{ChatRequest, Chunks, Form, Shape, chat_completion, unique_id};

pub(super) async fn complete(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let start = Instant::now();
    let (place, mut body) = body::receive(&app, request).await?;
    let text = body.take_text();
    let read = move |app: &App| {
        let mut chat = ChatRequest::parse(&text, app.engine.max_images())?;
        Ok((app.model(chat.model.take())?, chat))
    };
    let (model, mut chat) = stages::work(&app, read).await?;
    let fetched = stages::fetch(&app, std::mem::take(&mut chat.images)).await?;
    let (id, report, delivery, n) = (unique_id("chatcmpl-"), chat.report, chat.delivery, chat.sampling.n);
    let ask = move |app: &App| {
        // Pictures in data: URLs are in memory until here, and count there as the body.
        let _body = body;
        Ok(app.engine.submit(chat.into_request(stages::bytes(app, fetched)?)))
    };
    let answer = stages::work(&app, ask).await?;
    let prompt_tokens = answer.prompt_tokens();
    let answers = Streams::new(&app, vec![answer], n, start);
    if delivery.stream {
        let form = Form { id, model, report, delivery, n, prompt_tokens };
        let chunks = Chunks::new(form, Shape::Chat, app.engine.tokenizer());
        return events::answer(app, answers, chunks, place).await;
    }
    let outputs = answers.complete().await.map_err(|error| app.failure(&error))?;
    let body = chat_completion(&id, &model, app.engine.tokenizer(), report, &outputs[0]);
    let body = body.map_err(|error| app.failure(&Error::Model(error)))?;
    Ok(Json(body).into_response())
}
