//! What all requests share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::HttpOptions;
use super::failure::Failure;
use super::stages::Stages;
use crate::Error;
use crate::engine::Engine;
use crate::server::media::Media;
use crate::server::openai::{ApiError, now};

pub(super) struct App {
    pub engine: Engine,
    pub media: Media,
    pub options: HttpOptions,
    /// Of requests that run or wait.
    places: Arc<Semaphore>,
    total: usize,
    pub stages: Stages,
    /// Whether new requests are welcome.
    pub ready: AtomicBool,
    /// Seconds since 1970.
    pub started: u64,
    /// Told when the engine has failed for good.
    pub fatal: Notify,
    /// Answers by their status.
    answered: Mutex<BTreeMap<u16, u64>>,
}

impl App {
    pub fn new(engine: Engine, media: Media, options: HttpOptions) -> App {
        let total = engine.memory().max_num_seqs + options.max_waiting;
        App {
            engine,
            media,
            options,
            places: Arc::new(Semaphore::new(total)),
            total,
            stages: Stages::new(),
            ready: AtomicBool::new(true),
            started: now(),
            fatal: Notify::new(),
            answered: Mutex::new(BTreeMap::new()),
        }
    }

    /// A place, to be kept until the request has its answer.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{} requests run or wait already; try again in a second", self.total);
            let kind = "rate_limit_error";
            Failure(ApiError { status: 429, kind, ..ApiError::refused("queue_full", message) })
        })
    }

    /// Places that are taken.
    pub fn load(&self) -> usize {
        self.total - self.places.available_permits()
    }

    /// The name under which a request is answered.
    pub fn model(&self, asked: Option<String>) -> Result<String, ApiError> {
        let served = &self.options.served_model_names;
        match asked {
            Some(name) if !served.contains(&name) => Err(ApiError::no_such_model(&name, served)),
            Some(name) => Ok(name),
            None => Ok(served[0].clone()),
        }
    }

    /// An error of the engine as it leaves the server. What is not the request's fault is for the log.
    pub fn failure(&self, error: &Error) -> Failure {
        let mut api = ApiError::from(error);
        if api.status >= 500 {
            (self.options.log)(&error.to_string());
            api.message = "the server failed at this request; its log says why".into();
        }
        if error.is_final() {
            self.ready.store(false, Ordering::Relaxed);
            // Kept for whoever does not wait for it yet.
            self.fatal.notify_one();
        }
        Failure(api)
    }

    /// How many answers had which status.
    pub fn answered(&self) -> BTreeMap<u16, u64> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a request brings the key, if it needs one.
    fn knows_key(&self, request: &Request) -> bool {
        let Some(key) = &self.options.api_key else { return true };
        let path = request.uri().path();
        // What makes the engine work or pictures be fetched, wherever it is.
        let guarded = path == "/v1" || path.starts_with("/v1/") || ["/tokenize", "/detokenize"].contains(&path);
        if !guarded {
            return true;
        }
        let given = request.headers().get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let (scheme, given) = given.split_at_checked(7).unwrap_or_default();
        // Hashes are compared in a time that does not depend on where they differ.
        scheme.eq_ignore_ascii_case(b"Bearer ") && blake3::hash(given) == blake3::hash(key.as_bytes())
    }
}

/// Every request passes here: with the key, if there is one, and into the count.
pub(super) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = if app.knows_key(&request) {
        next.run(request).await
    } else {
        let message = "the key is missing or wrong; send it as Authorization: Bearer KEY";
        let kind = "authentication_error";
        Failure(ApiError { status: 401, kind, ..ApiError::refused("invalid_api_key", message) }).into_response()
    };
    let mut answered = app.answered.lock().unwrap_or_else(PoisonError::into_inner);
    *answered.entry(response.status().as_u16()).or_default() += 1;
    drop(answered);
    response
}
