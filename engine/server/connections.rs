//! Connections: their number, their time limits, and how they end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use super::Options;
use super::metrics::Metrics;

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// Pause after the system could not accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until `stop`, then finishes those in flight; what is not answered in time is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    options: &Options,
    metrics: &Metrics,
    stop: impl Future<Output = ()>,
) {
    let (free, graceful) = (Arc::new(Semaphore::new(options.connections)), GracefulShutdown::new());
    let (mut stop, mut open) = (pin!(stop), JoinSet::new());
    loop {
        // Clients beyond the limit wait in the system's queue.
        let accepted = async {
            let permit = Arc::clone(&free).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let connection = graceful.watch(connection(stream, &router, options));
        let counted = Counted::new(&metrics.connections);
        open.spawn(async move {
            // A client that disconnects is not the server's error.
            let _ = connection.await;
            drop((counted, permit));
        });
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    if timeout(options.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("{} connections are dropped: they were not done in time", open.len());
    }
    open.shutdown().await;
}

/// Counts a connection in the metrics until it ends, however it ends.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Returns the future that answers the requests of a connection, one after the other.
fn connection(
    stream: TcpStream,
    router: &Router,
    options: &Options,
) -> impl GracefulConnection<Error = hyper::Error> + Send + use<> {
    // Each token is a small packet that must not wait for the next.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(options.write_timeout));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.read_timeout)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router.clone()))
}
