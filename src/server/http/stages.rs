//! What a request goes through before the engine has it: it is read, its pictures are fetched, and all is made ready.
//!
//! Each stage runs on threads of its own number, and nobody holds a place in one while it waits for another. So however
//! many requests wait for a slow host, one that fetches nothing goes past them.

use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Result, anyhow};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{Instrument, Span};

use super::app::App;
use super::failure::Failure;
use crate::Error;
use crate::server::media::is_data;
use crate::server::openai::{ApiError, ImageUrl};

/// Threads that read requests and make them ready, which is work: no fewer, and no more.
const WORKERS: (usize, usize) = (2, 16);
/// Pictures that are fetched at the same time, which is waiting.
const FETCHES: usize = 32;

/// Places in the stages.
pub(super) struct Stages {
    work: Arc<Semaphore>,
    fetch: Arc<Semaphore>,
}

/// A picture of a request.
pub(super) enum Fetched {
    /// The bytes behind its URL.
    Bytes(Vec<u8>),
    /// A URL that holds them, which is work to read.
    Data(ImageUrl),
}

impl Stages {
    /// Nobody is in them.
    pub fn new() -> Stages {
        let workers = available_parallelism().map_or(WORKERS.0, usize::from).clamp(WORKERS.0, WORKERS.1);
        Stages { work: Arc::new(Semaphore::new(workers)), fetch: Arc::new(Semaphore::new(FETCHES)) }
    }
}

/// Run a job on a thread that may block, once a place is free.
async fn run<T: Send + 'static>(places: Arc<Semaphore>, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let place = places.acquire_owned().await?;
    let span = Span::current();
    let job = spawn_blocking(move || {
        // Not before the work is done: whoever waits for it may be gone earlier.
        let _place = place;
        span.in_scope(job)
    });
    Ok(job.await?)
}

/// Do some work for a request.
pub(super) async fn work<T: Send + 'static>(
    app: &Arc<App>,
    job: impl FnOnce(&App) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let own = app.clone();
    let done = run(app.stages.work.clone(), move || job(&own)).await;
    done.map_err(|_| panicked(app))?
}

/// Fetch pictures, all at once. With the first that cannot be had, the rest is given up.
pub(super) async fn fetch(app: &Arc<App>, images: Vec<ImageUrl>) -> Result<Vec<Fetched>, Failure> {
    let mut fetched: Vec<Option<Fetched>> = images.iter().map(|_| None).collect();
    let mut fetches = JoinSet::new();
    for (i, image) in images.into_iter().enumerate() {
        if is_data(&image.url) {
            fetched[i] = Some(Fetched::Data(image));
            continue;
        }
        let own = app.clone();
        let one = async move { (i, run(own.stages.fetch.clone(), move || one(&own, &image)).await) };
        fetches.spawn(one.in_current_span());
    }
    while let Some(done) = fetches.join_next().await {
        let (i, bytes) = done.map_err(|_| panicked(app))?;
        fetched[i] = Some(Fetched::Bytes(bytes.map_err(|_| panicked(app))??));
    }
    Ok(fetched.into_iter().flatten().collect())
}

/// The bytes of pictures that were fetched.
pub(super) fn bytes(app: &App, fetched: Vec<Fetched>) -> Result<Vec<Vec<u8>>, ApiError> {
    let bytes = |fetched| match fetched {
        Fetched::Bytes(bytes) => Ok(bytes),
        Fetched::Data(image) => one(app, &image),
    };
    fetched.into_iter().map(bytes).collect()
}

fn one(app: &App, image: &ImageUrl) -> Result<Vec<u8>, ApiError> {
    app.media.fetch(&image.url).map_err(|error| error.at(&image.param))
}

/// A defect that one request finds harms no other.
fn panicked(app: &App) -> Failure {
    app.failure(&Error::Model(anyhow!("reading the request failed")))
}
