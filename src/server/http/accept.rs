//! Connections: their timers, and how they end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::app::App;
use super::connections::Place;
use super::socket::Socket;
use super::{EngineFailed, EngineHangs};

/// Longest head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// Before a connection is accepted again after that failed: too many files are open, and some will be closed.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the engine is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Refusals that are explained at the same time. More connections are closed without a word.
const EXPLAINED: usize = 64;
/// For a refusal to be read.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a connection is told for which there is no place.
const NO_PLACE: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n",
    "content-length: 156\r\n\r\n",
    r#"{"error":{"message":"all connections are busy; try again in a second (--max-connections)","#,
    r#""type":"server_error","param":null,"code":"too_many_connections"}}"#
);

/// What ends the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let open = |kind| signal(kind).context("waiting for signals");
        Ok(Signals { terminate: open(SignalKind::terminate())?, interrupt: open(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Why nobody is accepted any more.
enum End {
    Signal,
    Failed,
    Hangs,
}

/// Accept connections until a signal, then let those that are open end.
pub(super) async fn serve(listener: TcpListener, router: Router, app: &Arc<App>) -> Result<()> {
    let mut signals = Signals::new()?;
    let connections = GracefulShutdown::new();
    let end = tokio::select! {
        never = accept(&listener, &router, &connections, app) => match never {},
        () = signals.next() => End::Signal,
        end = engine(app) => end,
    };
    app.ready.store(false, Ordering::Relaxed);
    drop(listener);
    let ended = drain(connections, &mut signals, end, app).await;
    // Nobody waits for what it still computes, and if that hangs, nobody may wait for its thread.
    if app.engine.step_time().is_some() {
        std::mem::forget(app.engine.clone());
    }
    ended
}

/// Let the open connections end, as far as there is anything to wait for.
async fn drain(connections: GracefulShutdown, signals: &mut Signals, end: End, app: &App) -> Result<()> {
    if let End::Hangs = end {
        bail!(EngineHangs(app.options.step_timeout));
    }
    let drained = tokio::select! {
        drained = timeout(app.options.drain, connections.shutdown()) => drained.is_ok(),
        () = signals.next() => false,
    };
    if let End::Failed = end {
        bail!(EngineFailed);
    }
    let given_up = app.connections.busy();
    if !drained && given_up > 0 {
        bail!("{given_up} requests were given up");
    }
    Ok(())
}

/// Wait until the engine can answer no more.
async fn engine(app: &App) -> End {
    loop {
        sleep(LOOK).await;
        if app.engine.alive().is_err() {
            return End::Failed;
        }
        if app.hangs() {
            return End::Hangs;
        }
    }
}

async fn accept(listener: &TcpListener, router: &Router, graceful: &GracefulShutdown, app: &Arc<App>) -> Infallible {
    let explained = Arc::new(Semaphore::new(EXPLAINED));
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            app.connections.failed.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
            continue;
        };
        if let Some(place) = app.connections.enter() {
            tokio::spawn(connection(socket, place, router.clone(), graceful.watcher(), app.clone()));
        } else if let Ok(permit) = explained.clone().try_acquire_owned() {
            tokio::spawn(async move {
                // Who does not listen misses it.
                let _ = timeout(FAREWELL, refuse(socket)).await;
                drop(permit);
            });
        }
    }
}

/// Answer the requests of a connection. A client that breaks off harms nobody but itself.
async fn connection(socket: TcpStream, place: Place, router: Router, watcher: Watcher, app: Arc<App>) {
    // Tokens are small, and each should leave at once.
    let _ = socket.set_nodelay(true);
    let place = &place;
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = place.busy();
        let answer = router.call(request);
        async move { answer.await.map(|response| response.map(|body| busy.until_read(body))) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.options.header_timeout).max_header_size(HEAD_BYTES);
    let connection = http.serve_connection(Socket::new(socket, app.options.write_timeout, place.mark()), service);
    tokio::select! {
        _ = watcher.watch(connection) => {}
        () = place.evicted() => {}
    }
}

/// Say why, and wait until the client has heard it: closing a socket with unread bytes takes back what was written.
async fn refuse(mut socket: TcpStream) -> std::io::Result<()> {
    socket.write_all(NO_PLACE.as_bytes()).await?;
    socket.shutdown().await?;
    let mut rest = [0; 1024];
    while socket.read(&mut rest).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = NO_PLACE.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]["code"].is_string());
    }
}
