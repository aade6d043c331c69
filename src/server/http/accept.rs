//! Connections: their number, their timers, and how they end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::app::App;

/// Connections at once. More wait to be accepted.
const CONNECTIONS: usize = 1024;
/// How long a client may take to send the head of a request, from when its connection is open or the last answer sent.
const HEAD: Duration = Duration::from_secs(30);
/// Before a connection is accepted again after that failed: too many files are open, and some will be closed.
const PAUSE: Duration = Duration::from_millis(50);

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

/// Accept connections until a signal, then let those that are open end.
pub(super) async fn serve(listener: TcpListener, router: Router, app: &App) -> Result<()> {
    let mut signals = Signals::new()?;
    let connections = GracefulShutdown::new();
    let fatal = tokio::select! {
        never = accept(&listener, &router, &connections) => match never {},
        () = signals.next() => false,
        () = app.fatal.notified() => true,
    };
    app.ready.store(false, Ordering::Relaxed);
    drop(listener);
    let drained = tokio::select! {
        drained = timeout(app.options.drain, connections.shutdown()) => drained.is_ok(),
        () = signals.next() => false,
    };
    if fatal {
        bail!("the engine has failed for good");
    }
    if !drained {
        bail!("{} requests were given up", app.load());
    }
    Ok(())
}

async fn accept(listener: &TcpListener, router: &Router, connections: &GracefulShutdown) -> std::convert::Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { continue };
        let Ok((socket, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        // Tokens are small, and each should leave at once.
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let mut http = http1::Builder::new();
        let connection = http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let connection = connections.watch(connection.serve_connection(TokioIo::new(socket), service));
        tokio::spawn(ended(connection, place));
    }
}

/// A client that breaks off harms nobody but itself.
async fn ended<E>(connection: impl Future<Output = Result<(), E>>, _place: tokio::sync::OwnedSemaphorePermit) {
    let _ = connection.await;
}
