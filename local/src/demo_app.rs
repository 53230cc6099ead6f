//! The workload of the demonstration: a small HTTP server that takes its time to start and says which pod it is.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
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
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    task::spawn("connection", async move {
        // The client's business: it left, or sent nonsense.
        let _ = connection.await;
        drop(permit);
    });
}

async fn answer(request: Request<Incoming>, pod: Arc<str>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/slow" {
        sleep(delay(request.uri().query().unwrap_or_default())).await;
    }
    let body = if request.method() == Method::HEAD {
        String::new()
    } else if request.uri().path() == "/healthz" {
        "ok\n".to_owned()
    } else {
        format!("Hello from {pod}\n")
    };
    let response = Response::builder().status(StatusCode::OK).header("x-pod", &*pod).body(Full::from(body));
    Ok(response.unwrap_or_else(|_pod_is_no_header| Response::new(Full::from("Hello\n"))))
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
