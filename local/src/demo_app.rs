//! The workload of demonstrations: a small HTTP and gRPC server that takes its time to start and says which pod it is.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use runtime::{
    env::{Env, EnvError},
    signal::Shutdown,
    task,
};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

/// Clients beyond it wait in the listen queue.
const MAX_CONNECTIONS: usize = 4096;
/// The longest answer that `/slow` can be asked for.
const MAX_SLOW: Duration = Duration::from_mins(1);
/// Requests that still run this long after SIGTERM are cut.
const MAX_DRAIN: Duration = Duration::from_secs(30);
/// The one gRPC call that is answered: `grpc.health.v1.Health/Check`.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Its answer as a gRPC frame: uncompressed, two bytes long, `status: SERVING`.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the environment says.
#[derive(Clone, Debug)]
pub struct Config {
    /// `POD_IP` and `PORT`.
    pub listen: SocketAddr,
    /// `POD_NAME`.
    pub pod: Arc<str>,
    /// `START_DELAY_MS`: between the start of the process and its listening, as if it had a cache to warm.
    pub start_delay: Duration,
}

/// Why it cannot run.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A variable is missing or wrong.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// Not an address.
    #[error("POD_IP is {0:?}, expected an IP address")]
    Address(String),
    /// The port is taken.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

// === impl Config ===

impl Config {
    /// Reads the environment.
    pub fn parse(env: &Env) -> Result<Self, DemoError> {
        let ip = env.string("POD_IP", "127.0.0.1")?;
        let address = ip.parse().map_err(|_error| DemoError::Address(ip))?;
        Ok(Self {
            listen: SocketAddr::new(address, env.port("PORT", 8000)?),
            pod: env.string("POD_NAME", "demo-app")?.into(),
            start_delay: Duration::from_millis(env.u64("START_DELAY_MS", 300)?),
        })
    }
}

/// Waits, listens, and serves until told to end; then finishes what runs.
pub async fn run(config: Config, mut shutdown: Shutdown) -> Result<(), DemoError> {
    let Config { listen: address, pod, start_delay } = config;
    tokio::select! {
        () = sleep(start_delay) => {}
        () = shutdown.requested() => return Ok(()),
    }
    let listener = TcpListener::bind(address).await.map_err(|source| DemoError::Listen { address, source })?;
    tracing::info!(%address, %pod, "listening");
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = shutdown.requested() => break,
        };
        let Ok(permit) = permit else { break };
        match accepted {
            Ok((stream, _)) => serve(stream, Arc::clone(&pod), &graceful, permit),
            // Out of descriptors, most likely: they come back.
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    tracing::info!("finishing what runs");
    let _ = timeout(MAX_DRAIN, graceful.shutdown()).await;
    Ok(())
}

fn serve(stream: TcpStream, pod: Arc<str>, graceful: &GracefulShutdown, permit: OwnedSemaphorePermit) {
    let service = service_fn(move |request| answer(request, Arc::clone(&pod)));
    // HTTP/1.1 or, for gRPC, cleartext HTTP/2: whichever the client speaks first.
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    task::spawn("connection", async move {
        // The client's business: it left, or sent nonsense.
        let _ = connection.await;
        drop(permit);
    });
}

async fn answer(request: Request<Incoming>, pod: Arc<str>) -> Result<Response<Body>, Infallible> {
    let mut response = match request.uri().path() {
        HEALTH_CHECK => serving(),
        path => {
            if path == "/slow" {
                sleep(delay(request.uri().query().unwrap_or_default())).await;
            }
            let text = match path {
                _ if request.method() == Method::HEAD => String::new(),
                "/healthz" => "ok\n".to_owned(),
                _ => format!("Hello from {pod}\n"),
            };
            Response::new(Full::from(text).boxed_unsync())
        }
    };
    if let Ok(pod) = HeaderValue::from_str(&pod) {
        response.headers_mut().insert("x-pod", pod);
    }
    Ok(response)
}

fn serving() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(SERVING)).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The `ms` of a query, one second by default.
fn delay(query: &str) -> Duration {
    let ms = query.split('&').find_map(|pair| pair.strip_prefix("ms=")).and_then(|ms| ms.parse().ok());
    Duration::from_millis(ms.unwrap_or(1000)).min(MAX_SLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_takes_as_long_as_asked_within_bounds() {
        for (query, expected) in [("ms=20", 20), ("", 1000), ("a=b&ms=7", 7), ("ms=x", 1000), ("ms=9999999", 60_000)] {
            assert_eq!(delay(query), Duration::from_millis(expected), "{query:?}");
        }
    }

    #[test]
    fn the_environment_says_where_to_listen() {
        let env = Env::from_pairs([("POD_IP", "127.0.0.9"), ("PORT", "81"), ("START_DELAY_MS", "5")]);
        let config = Config::parse(&env).unwrap();
        assert_eq!(config.listen, "127.0.0.9:81".parse().unwrap());
        assert_eq!(config.start_delay, Duration::from_millis(5));
        assert!(Config::parse(&Env::from_pairs([("POD_IP", "here")])).is_err());
    }
}
