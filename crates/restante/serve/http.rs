//! Carries HTTP to the admin interface. Bounded: so many connections, and none that sends half a request for ever.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Commands, a monitoring system or two, and somebody's browser.
const CONNECTIONS_MAX: usize = 64;
/// For the head of each request, the wait for it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn on_tcp(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, router.clone(), place),
            Err(error) => pause(&error).await,
        }
    }
}

pub(crate) async fn on_socket(listener: UnixListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, router.clone(), place),
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::debug!("cannot accept an admin connection: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn serve<S>(stream: S, router: Router, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        // A client that breaks off has its own reasons.
        let _broken_off = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
        drop(place);
    });
}
