//! `/v1/completions`.

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
use crate::engine::Stream;
use crate::server::openai::{Chunks, CompletionRequest, Delivery, Form, Shape, TextForm, text_completion, unique_id};

/// A request that the engine has.
struct Asked {
    model: String,
    answers: Vec<Stream>,
    delivery: Delivery,
    form: TextForm,
    prompts: usize,
    n: usize,
}

pub(super) async fn complete(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let start = Instant::now();
    let (place, body) = body::receive(&app, request).await?;
    let asked = stages::work(&app, move |app| ask(app, body.text())).await?;
    let Asked { model, answers, delivery, form, prompts, n } = asked;
    let answers = Streams::new(&app, answers, n, start);
    let id = unique_id("cmpl-");
    if delivery.stream {
        let prompt_tokens = answers.prompt_tokens();
        let echoes = form.echoes.unwrap_or_else(|| vec![String::new(); prompts]);
        let form = Form { id, model, report: form.report, delivery, n, prompt_tokens };
        let chunks = Chunks::new(form, Shape::Text(echoes), app.engine.tokenizer());
        return events::answer(app, answers, chunks, place).await;
    }
    let outputs = answers.complete().await.map_err(|error| app.failure(&error))?;
    // Long prompts with their log-probabilities are work.
    let show = move |app: &App| {
        let body = text_completion(&id, &model, app.engine.tokenizer(), &form, outputs);
        body.map_err(|error| app.failure(&Error::Model(error)))
    };
    Ok(Json(stages::work(&app, show).await?).into_response())
}

fn ask(app: &App, body: &str) -> Result<Asked, Failure> {
    let mut asked = CompletionRequest::parse(body)?;
    let model = app.model(asked.model.take())?;
    let tokenizer = app.engine.tokenizer();
    let failed = |error| app.failure(&Error::Request(error));
    let requests = asked.requests(tokenizer).map_err(failed)?;
    // A defect of the prompt itself, as an id that there is not, is the engine's to find.
    let answers = app.engine.submit_all(&requests).map_err(|(i, error)| {
        let Failure(mut error) = app.failure(&error);
        if error.status == 400 {
            error.param = Some(if requests.len() > 1 { format!("prompt[{i}]") } else { "prompt".into() });
        }
        Failure(error)
    })?;
    let echoes = asked.echoes(tokenizer).map_err(failed)?;
    Ok(Asked {
        model,
        answers,
        delivery: asked.delivery,
        form: TextForm { report: asked.report, echoes, prompt_only: asked.prompt_only },
        prompts: requests.len(),
        n: asked.sampling.n,
    })
}
