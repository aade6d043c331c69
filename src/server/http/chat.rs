//! `/v1/chat/completions`.

use std::sync::Arc;

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
    let place = app.enter()?;
    let body = body::json(request, app.options.max_body_bytes).await?;
    let read = move |app: &App| {
        let mut chat = ChatRequest::parse(&body, app.engine.max_images())?;
        Ok((app.model(chat.model.take())?, chat))
    };
    let (model, mut chat) = stages::work(&app, read).await?;
    let fetched = stages::fetch(&app, std::mem::take(&mut chat.images)).await?;
    let (id, report, delivery, n) = (unique_id("chatcmpl-"), chat.report, chat.delivery, chat.sampling.n);
    let ask = move |app: &App| Ok(app.engine.submit(chat.into_request(stages::bytes(app, fetched)?)));
    let mut answer = stages::work(&app, ask).await?;
    if delivery.stream {
        let form = Form { id, model, report, delivery, n, prompt_tokens: answer.prompt_tokens() };
        let chunks = Chunks::new(form, Shape::Chat, app.engine.tokenizer());
        return events::answer(app, Streams::new(vec![answer]), chunks, place).await;
    }
    let output = answer.complete().await.map_err(|error| app.failure(&error))?;
    let body = chat_completion(&id, &model, app.engine.tokenizer(), report, &output);
    let body = body.map_err(|error| app.failure(&Error::Model(error)))?;
    Ok(Json(body).into_response())
}
