//! What all requests share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::error;

use super::HttpOptions;
use super::connections::Connections;
use super::failure::Failure;
use super::observed::Observations;
use super::stages::Stages;
use crate::Error;
use crate::engine::Engine;
use crate::server::media::Media;
use crate::server::openai::{ApiError, now};

/// Bytes of bodies in memory at the same time, if one alone may not be longer.
const BODIES: usize = 512 << 20;
/// What room for them is counted in.
pub(super) const KIB: usize = 1 << 10;

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
    /// Whether only this machine can connect.
    pub local: bool,
    pub connections: Arc<Connections>,
    /// For the bodies that are being read and understood, in KiB.
    pub bodies: Arc<Semaphore>,
    pub observations: Observations,
    /// Answers by their status.
    answered: Mutex<BTreeMap<u16, u64>>,
}

impl App {
    pub fn new(engine: Engine, media: Media, options: HttpOptions, local: bool) -> App {
        let total = engine.memory().max_num_seqs + options.max_waiting;
        let connections = Arc::new(Connections::new(options.max_connections));
        let bodies = Arc::new(Semaphore::new(BODIES.max(options.max_body_bytes).div_ceil(KIB)));
        App {
            engine,
            media,
            options,
            places: Arc::new(Semaphore::new(total)),
            total,
            stages: Stages::new(),
            ready: AtomicBool::new(true),
            started: now(),
            local,
            connections,
            bodies,
            observations: Observations::default(),
            answered: Mutex::new(BTreeMap::new()),
        }
    }

    /// A place, to be kept until the request has its answer.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.places.clone().try_acquire_owned().map_err(|_| self.full())
    }

    /// Whether there is one now.
    pub fn has_place(&self) -> Result<(), Failure> {
        if self.places.available_permits() > 0 { Ok(()) } else { Err(self.full()) }
    }

    fn full(&self) -> Failure {
        let message = format!("{} requests run or wait already; try again in a second", self.total);
        let kind = "rate_limit_error";
        Failure(ApiError { status: 429, kind, ..ApiError::refused("queue_full", message) })
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
            error!(%error, "a request failed");
            api = ApiError::internal();
        }
        if error.is_final() {
            self.ready.store(false, Ordering::Relaxed);
        }
        Failure(api)
    }

    /// Whether the engine has been at one step for longer than any takes.
    pub fn hangs(&self) -> bool {
        self.engine.step_time().is_some_and(|time| time > self.options.step_timeout)
    }

    /// Whether requests can be answered.
    pub fn lives(&self) -> bool {
        self.engine.alive().is_ok() && !self.hangs()
    }

    /// An answer with this status was given.
    pub fn count(&self, status: u16) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
    }

    /// How many answers had which status.
    pub fn answered(&self) -> BTreeMap<u16, u64> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
