//! The HTTP server: OpenAI's routes in front of an engine.
//!
//! The address is taken before a model is loaded and nobody can connect until it is. A request takes a place, of which there
//! are as many as may run and wait; then its body is read, its pictures are fetched, and they and the text are made ready for
//! the engine, each on threads of its own. A client that goes away drops what waits for its answer, and that cancels the request.
//!
//! | module | job |
//! |---|---|
//! | `accept` | connections: their number, their timers, and how they end |
//! | `app` | what all requests share: the engine, the limits, the key |
//! | `body` | the body of a request, within its limits |
//! | `chat` | `/v1/chat/completions` |
//! | `completions` | `/v1/completions` |
//! | `events` | an answer as server-sent events |
//! | `failure` | errors as answers |
//! | `metrics` | `/metrics` |
//! | `openapi` | `/openapi.json` |
//! | `stages` | what a request goes through before the engine has it, and on which threads |
//! | `status` | what there is, and how it is |
//! | `streams` | the answers to several prompts as one |
//! | `tokenize` | `/tokenize` and `/detokenize` |

mod accept;
mod app;
mod body;
mod chat;
mod completions;
mod events;
mod failure;
mod metrics;
mod openapi;
mod stages;
mod status;
mod streams;
mod tokenize;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpSocket;

use super::media::Media;
use crate::engine::Engine;
use app::App;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How requests are answered.
#[derive(Clone)]
pub struct HttpOptions {
    /// Names that `model` may have in a request, one at least; answers to requests without one carry the first.
    pub served_model_names: Vec<String>,
    /// What requests below `/v1`, and for tokens, must bring as `Authorization: Bearer KEY`; without one, nothing.
    pub api_key: Option<String>,
    /// Longest body of a request.
    pub max_body_bytes: usize,
    /// Requests that may wait beside those that run.
    pub max_waiting: usize,
    /// How long requests may take to end once the server is told to.
    pub drain: Duration,
    /// Gets what an operator must know and a client must not.
    pub log: fn(&str),
}

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
        socket.bind(address).with_context(named)?;
        Ok(Bound { socket })
    }

    /// Answer requests until SIGTERM or SIGINT, and those that came before it to their end. `listening` is told once that
    /// clients can connect.
    ///
    /// # Errors
    /// If the address was lost to another server, the engine fails for good, or requests are given up: at a second signal, or
    /// when [`HttpOptions::drain`] has passed.
    pub async fn serve(
        self,
        engine: Engine,
        media: Media,
        options: HttpOptions,
        listening: impl FnOnce(SocketAddr),
    ) -> Result<()> {
        let app = Arc::new(App::new(engine, media, options));
        let listener = self.socket.listen(BACKLOG).context("listening for connections")?;
        listening(listener.local_addr()?);
        accept::serve(listener, router(app.clone()), &app).await
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(status::models))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/ping", get(status::health).post(status::health))
        .route("/version", get(status::version))
        .route("/load", get(status::load))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .fallback(failure::no_route)
        .method_not_allowed_fallback(failure::no_method)
        .layer(from_fn_with_state(app.clone(), app::admit))
        .with_state(app)
}
