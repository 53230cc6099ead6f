//! The connections of an admin port: accepted up to a bound, each served on HTTP/1.1 or HTTP/2, whichever it speaks.

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::Service;
use tracing::Instrument as _;

use super::{Server, reply};

/// Probes, scrapers, scalers and people together need a few dozen; more is a mistake or an attack, and is closed at
/// once so that it cannot use up the process's descriptors.
const MAX_CONNECTIONS: usize = 512;

/// As the original's: how long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);

/// How often an HTTP/2 peer is asked whether it lives, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams a connection may have open: a scaler needs a few.
const MAX_STREAMS: u32 = 64;

/// Pause after an accept that failed for want of descriptors or memory, which no new attempt cures.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type BoxError = Box<dyn Error + Send + Sync>;
type BoxBody = UnsyncBoxBody<Bytes, BoxError>;

/// A gRPC service with its types erased.
pub(super) type Grpc =
    Box<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<BoxBody>> + Send>> + Send + Sync>;

/// Erases the types of a service, which is cloned for each request.
pub(super) fn grpc<S, B>(service: S) -> Grpc
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    // Services are not always `Sync`; the lock is held for the clone alone.
    let service = Mutex::new(service);
    Box::new(move |request| {
        let mut service = service.lock().clone();
        Box::pin(async move {
            let Ok(()) = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
            let Ok(response) = service.call(request).await;
            response.map(|body| body.map_err(Into::into).boxed_unsync())
        })
    })
}

/// Accepts and serves for ever. Cancel safe: dropping it closes the port and every connection.
pub(super) async fn accept(listener: TcpListener, server: Arc<Server>) -> Result<(), Infallible> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Once, and not again at every try.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "admin port cannot accept");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            server.refuse();
            continue;
        };
        let server = Arc::clone(&server);
        let connection = async move {
            serve(stream, server).await;
            drop(slot);
        };
        connections.spawn(connection.instrument(tracing::debug_span!("run", task = "admin connection")));
    }
}

async fn serve(stream: TcpStream, server: Arc<Server>) {
    // A pushed count must not wait for the acknowledgement of the one before it, which peers delay by up to 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "admin connection is gone already");
        return;
    }
    let spoken = Arc::new(Notify::new());
    let service = {
        let spoken = Arc::clone(&spoken);
        service_fn(move |request| {
            spoken.notify_one();
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(answer(&server, request).await) }
        })
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper's own timers start once it knows the protocol; until the first request this one watches.
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        first = timeout(HEAD_TIMEOUT, spoken.notified()) => match first {
            Ok(()) => None,
            Err(_elapsed) => return,
        },
    };
    let ended = match ended {
        Some(ended) => ended,
        None => connection.await,
    };
    if let Err(error) = ended {
        tracing::debug!(error, "admin connection ended");
    }
}

async fn answer(server: &Server, request: Request<Incoming>) -> Response<BoxBody> {
    if let Some(grpc) = server.grpc.as_ref().filter(|_| is_grpc(&request)) {
        return grpc(request).await;
    }
    let response = match server.handler(request.uri().path()) {
        Some(handler) => handler(&request),
        None => reply::not_found(),
    };
    response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
