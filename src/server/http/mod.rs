//! The HTTP server: OpenAI's routes in front of an engine.
//!
//! The address is taken before a model is loaded and nobody can connect until it is. A request's body is read; then it takes a
//! place, of which there are as many as may run and wait; its pictures are fetched, and they and the text are made ready for
//! the engine, each on threads of its own. A client that goes away drops what waits for its answer, and that cancels the request.
//!
//! | module | job |
//! |---|---|
//! | `accept` | connections: their timers, and how they end |
//! | `admit` | what every request passes first: a name for the log, a place of origin, the key |
//! | `app` | what all requests share: the engine and the limits |
//! | `body` | the body of a request, within its limits |
//! | `chat` | `/v1/chat/completions` |
//! | `completions` | `/v1/completions` |
//! | `connections` | which connections are open, and which has to go when there are too many |
//! | `events` | an answer as server-sent events |
//! | `failure` | errors as answers |
//! | `histogram` | how often something was how large |
//! | `metrics` | `/metrics` |
//! | `observed` | times and sizes of answers, for the metrics and the log |
//! | `openapi` | `/openapi.json` |
//! | `socket` | a socket that gives up on a client that reads nothing |
//! | `page` | `/`: a page to ask with, `playground.html` |
//! | `stages` | what a request goes through before the engine has it, and on which threads |
//! | `status` | what there is, and how it is |
//! | `streams` | the answers to several prompts as one |
//! | `tokenize` | `/tokenize` and `/detokenize` |

mod accept;
mod admit;
mod app;
mod body;
mod chat;
mod completions;
mod connections;
mod events;
mod failure;
mod histogram;
mod metrics;
mod observed;
mod openapi;
mod page;
mod socket;
mod stages;
mod status;
mod streams;
mod tokenize;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpSocket;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::media::Media;
use crate::engine::Engine;
use app::App;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Bytes of answers that the system holds for a client that does not read them.
const SEND_BUFFER: u32 = 64 << 10;
/// How long a browser may remember what a page of another site may ask.
const PREFLIGHT: Duration = Duration::from_secs(600);

/// How requests are answered.
#[derive(Clone)]
pub struct HttpOptions {
    /// Names that `model` may have in a request, one at least; answers to requests without one carry the first.
    pub served_model_names: Vec<String>,
    /// What requests below `/v1` must bring as `Authorization: Bearer KEY`; without one, nothing.
    pub api_key: Option<String>,
    /// Sites whose pages may ask, as `https://HOST`; `*` is every one.
    pub allowed_origins: Vec<HeaderValue>,
    /// Longest body of a request.
    pub max_body_bytes: usize,
    /// Requests that may wait beside those that run.
    pub max_waiting: usize,
    /// Connections at once. One more takes the place of the one that has been idle longest.
    pub max_connections: usize,
    /// How long a client may take to send the head of a request, from when its connection is open or the last answer sent.
    pub header_timeout: Duration,
    /// How long it may take to send the body.
    pub body_timeout: Duration,
    /// How long it may read nothing of an answer.
    pub write_timeout: Duration,
    /// How long a step of the model may take. The engine hangs when one takes longer.
    pub step_timeout: Duration,
    /// How long requests may take to end once the server is told to.
    pub drain: Duration,
}

/// The engine has failed for good: its device is lost, or its thread has ended. The process must be started again.
#[derive(Clone, Copy, Debug)]
pub struct EngineFailed;

impl fmt::Display for EngineFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the engine has failed for good; the log says why, and a new process can answer again")
    }
}

impl std::error::Error for EngineFailed {}

/// A step of the model has taken longer than this. The process must be started again.
#[derive(Clone, Copy, Debug)]
pub struct EngineHangs(pub Duration);

impl fmt::Display for EngineHangs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        write!(f, "the engine hangs: a step has taken more than {seconds} seconds (--step-timeout)")
    }
}

impl std::error::Error for EngineHangs {}

/// An address that is taken, and where nobody can connect yet.
#[derive(Debug)]
pub struct Bound {
    socket: TcpSocket,
}

impl Bound {
    /// Take an address; port 0 is any free one.
    ///
    /// # Errors
    /// If the host has no address, or the port is taken.
    pub fn new(host: &str, port: u16) -> Result<Bound> {
        let named = || format!("{host} port {port} (--host, --port)");
        let address = (host, port).to_socket_addrs().with_context(named)?.next();
        let address = address.with_context(|| format!("{} is no address of this machine", named()))?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.with_context(named)?;
        // The connections of a server that ended a moment ago do not hold the port.
        socket.set_reuseaddr(true).with_context(named)?;
        socket.set_send_buffer_size(SEND_BUFFER).with_context(named)?;
        socket.bind(address).with_context(named)?;
        Ok(Bound { socket })
    }

    /// Answer requests until SIGTERM or SIGINT, and those that came before it to their end. `listening` is told once that
    /// clients can connect.
    ///
    /// # Errors
    /// If the address was lost to another server, the engine fails for good ([`EngineFailed`]) or hangs ([`EngineHangs`]), or
    /// requests are given up: at a second signal, or when [`HttpOptions::drain`] has passed.
    pub async fn serve(
        self,
        engine: Engine,
        media: Media,
        options: HttpOptions,
        listening: impl FnOnce(SocketAddr),
    ) -> Result<()> {
        let listener = self.socket.listen(BACKLOG).context("listening for connections")?;
        let address = listener.local_addr()?;
        let app = Arc::new(App::new(engine, media, options, address.ip().is_loopback()));
        listening(address);
        accept::serve(listener, router(app.clone()), &app).await
    }
}

fn router(app: Arc<App>) -> Router {
    let max_body_bytes = app.options.max_body_bytes;
    let router = Router::new()
        .route("/", get(move || async move { page::page(max_body_bytes) }))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(status::models))
        .route("/v1/models/{*model}", get(status::model))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/ping", get(status::health).post(status::health))
        .route("/version", get(status::version))
        .route("/load", get(status::load))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .fallback(failure::no_route)
        .method_not_allowed_fallback(failure::no_method)
        .layer(CatchPanicLayer::custom(failure::panicked))
        .layer(from_fn_with_state(app.clone(), admit::admit));
    if app.options.allowed_origins.is_empty() {
        return router.with_state(app);
    }
    // No page of another site learns anything without this.
    let cors = cors(&app.options.allowed_origins);
    router.layer(cors).with_state(app)
}

fn cors(allowed: &[HeaderValue]) -> CorsLayer {
    let all = allowed.iter().any(|origin| origin == "*");
    CorsLayer::new()
        .allow_origin(if all { AllowOrigin::any() } else { AllowOrigin::list(allowed.to_vec()) })
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([admit::REQUEST_ID])
        .max_age(PREFLIGHT)
}

#[cfg(test)]
mod tests;
