//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::Value;

use super::app::App;
use super::failure::Failure;
use super::{body, stages};
use crate::Error;
use crate::server::openai::{DetokenizeRequest, TokenizeRequest, detokenized, tokenized};

/// The tokens of a prompt as a request for its answer would have them: its pictures are fetched, decoded and counted.
pub(super) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, Failure> {
    let (_place, mut body) = body::receive(&app, request).await?;
    let text = body.take_text();
    let read = move |app: &App| {
        let mut asked = TokenizeRequest::parse(&text, app.engine.max_images())?;
        app.model(asked.model.take())?;
        Ok(asked)
    };
    let mut asked = stages::work(&app, read).await?;
    let fetched = stages::fetch(&app, std::mem::take(&mut asked.images)).await?;
    let count = move |app: &App| {
        // Pictures in data: URLs are in memory until here, and count there as the body.
        let _body = body;
        let (engine, token_strs) = (&app.engine, asked.token_strs);
        let request = asked.into_request(engine.tokenizer(), stages::bytes(app, fetched)?);
        let request = request.map_err(|error| app.failure(&Error::Request(error)))?;
        let prompt = engine.prompt_tokens(&request).map_err(|error| app.failure(&error))?;
        Ok(tokenized(engine.tokenizer(), &prompt.ids, engine.max_model_len(), token_strs))
    };
    stages::work(&app, count).await.map(Json)
}

pub(super) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, Failure> {
    let (_place, body) = body::receive(&app, request).await?;
    let show = move |app: &App| {
        let mut asked = DetokenizeRequest::parse(body.text())?;
        app.model(asked.model.take())?;
        Ok(detokenized(app.engine.tokenizer(), &asked.tokens)?)
    };
    stages::work(&app, show).await.map(Json)
}
