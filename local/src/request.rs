//! Requests of our own through the interceptor, as any client would send them.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use parking_lot::Mutex;
use runtime::task;
use thiserror::Error;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use crate::cluster::Address;

/// Answers beyond it are not read: ours are a line.
const MAX_BODY: usize = 1 << 20;
/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Different pods that are told apart.
const MAX_PODS: usize = 1024;
/// Concurrent requests of a load.
pub const MAX_LOAD: usize = 500;
/// After a failed request, so that a load never becomes a storm.
const BREATH: Duration = Duration::from_millis(100);

/// A client of the interceptor's proxy port; clones share connections.
#[derive(Clone, Debug)]
pub struct Requester {
    client: Client<HttpConnector, Empty<Bytes>>,
    proxy: SocketAddr,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// `X-KEDA-HTTP-Cold-Start`, if the answer has it.
    pub cold: Option<bool>,
    /// Its first line.
    pub line: String,
    /// `X-Pod`, which the demonstration's workload sends.
    pub pod: Option<String>,
    /// From sending to the last byte.
    pub took: Duration,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The route cannot be reached by a request that we could write.
    #[error("no request can be made for {0}")]
    Address(String),
    /// The connection broke, or could not be made.
    #[error("no answer from the interceptor")]
    Broken(#[source] hyper_util::client::legacy::Error),
    /// The answer's body broke off.
    #[error("the answer broke off")]
    Body,
    /// It took too long.
    #[error("no answer within {PATIENCE:?}")]
    Late,
}

/// Many requests at once, for as long as it lives.
#[derive(Debug)]
pub struct Load {
    workers: Vec<AbortHandle>,
    tally: Arc<Mutex<Tally>>,
}

/// What a load has seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers with a status below 400.
    pub answered: u64,
    /// All others, and requests without an answer.
    pub failed: u64,
    /// What the first failure was.
    pub failure: Option<String>,
    /// Which pods answered.
    pub pods: BTreeSet<String>,
}

// === impl Requester ===

impl Requester {
    /// Through the interceptor at `proxy`.
    pub fn new(proxy: SocketAddr) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), proxy }
    }

    /// Sends one GET to a route, with `suffix` added to its path.
    pub async fn send(&self, to: &Address, suffix: &str) -> Result<Reply, RequestError> {
        let started = Instant::now();
        let request = self.request(to, suffix)?;
        let answer = async {
            let response = self.client.request(request).await.map_err(RequestError::Broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|_broken| RequestError::Body)?.to_bytes();
            let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let line = String::from_utf8_lossy(&body).lines().next().unwrap_or_default().to_owned();
            Ok(Reply {
                status: head.status,
                cold: text("x-keda-http-cold-start").map(|value| value == "true"),
                line,
                pod: text("x-pod"),
                took: started.elapsed(),
            })
        };
        timeout(PATIENCE, answer).await.unwrap_or(Err(RequestError::Late))
    }

    fn request(&self, to: &Address, suffix: &str) -> Result<Request<Empty<Bytes>>, RequestError> {
        let path = format!("{}{suffix}", to.path.trim_end_matches('/'));
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let host = to.host.clone().unwrap_or_else(|| self.proxy.to_string());
        let mut request = Request::get(format!("http://{}{path}", self.proxy)).header(header::HOST, &host);
        for (name, value) in &to.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new()).map_err(|_error| RequestError::Address(format!("{host}{path}")))
    }
}

// === impl Load ===

impl Load {
    /// Keeps `concurrency` requests on their way.
    pub fn start(requester: &Requester, to: &Address, suffix: &str, concurrency: usize) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let worker = |_| {
            let (requester, to, suffix) = (requester.clone(), to.clone(), suffix.to_owned());
            let tally = Arc::clone(&tally);
            let work = async move {
                loop {
                    let result = requester.send(&to, &suffix).await;
                    if !tally.lock().count(result) {
                        sleep(BREATH).await;
                    }
                }
            };
            task::spawn("load", work).abort_handle()
        };
        Self { workers: (0..concurrency.min(MAX_LOAD)).map(worker).collect(), tally }
    }

    /// What it has seen.
    pub fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.workers.iter().for_each(AbortHandle::abort);
    }
}

// === impl Tally ===

impl Tally {
    /// Whether it was an answer.
    fn count(&mut self, result: Result<Reply, RequestError>) -> bool {
        let failure = match result {
            Ok(reply) if reply.status.as_u16() < 400 => {
                self.answered += 1;
                if self.pods.len() < MAX_PODS {
                    self.pods.extend(reply.pod);
                }
                return true;
            }
            Ok(reply) => format!("status {}", reply.status),
            Err(error) => error.to_string(),
        };
        self.failed += 1;
        self.failure.get_or_insert(failure);
        false
    }
}

/// The shell command that sends a request to a route.
pub fn curl(proxy: u16, to: &Address) -> String {
    use std::fmt::Write as _;
    let mut command = "curl -i".to_owned();
    let headers = to.host.iter().map(|host| ("Host".to_owned(), host.clone())).chain(to.headers.clone());
    for (name, value) in headers {
        // Writing to a String cannot fail.
        let _ = write!(command, " -H '{name}: {value}'");
    }
    let path = if to.path.starts_with('/') { to.path.clone() } else { format!("/{}", to.path) };
    let _ = write!(command, " http://127.0.0.1:{proxy}{path}");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curl_command_reaches_the_route() {
        let to = Address {
            host: Some("hello.example".into()),
            path: "/api".into(),
            headers: vec![("X-Who".into(), "me".into())],
        };
        assert_eq!(curl(8080, &to), "curl -i -H 'Host: hello.example' -H 'X-Who: me' http://127.0.0.1:8080/api");
    }

    #[test]
    fn a_load_counts_answers_failures_and_pods() {
        let mut tally = Tally::default();
        let reply = |status, pod: &str| Reply {
            status,
            cold: None,
            line: String::new(),
            pod: Some(pod.into()),
            took: Duration::ZERO,
        };
        assert!(tally.count(Ok(reply(StatusCode::OK, "a"))));
        assert!(tally.count(Ok(reply(StatusCode::OK, "b"))));
        assert!(!tally.count(Ok(reply(StatusCode::BAD_GATEWAY, "b"))));
        assert!(!tally.count(Err(RequestError::Late)));
        assert_eq!((tally.answered, tally.failed, tally.pods.len()), (2, 2, 2));
        assert_eq!(tally.failure.as_deref(), Some("status 502 Bad Gateway"));
    }
}
