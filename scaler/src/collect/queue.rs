//! `GET /queue` of one interceptor, as the original's scaler asks it.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use interceptor_core::{
    ObjectKey,
    demand::{Observed, Report},
};
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

/// 100,000 routes with long names take about 15 MiB.
const MAX_BODY: usize = 32 << 20;
/// A pod may take this long even if it is asked more often.
const MIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum QueueError {
    /// Nobody takes the connection.
    #[error("connecting to the interceptor failed")]
    Connect(#[source] std::io::Error),
    /// It took too long.
    #[error("the interceptor didn't answer GET /queue in time")]
    Timeout(#[source] Elapsed),
    /// It isn't HTTP, or broke off.
    #[error("the interceptor's answer to GET /queue is not HTTP")]
    Http(#[source] hyper::Error),
    /// It broke off, or is too long.
    #[error("the interceptor's answer to GET /queue can't be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It isn't the answer.
    #[error("the interceptor answered GET /queue with {0}, expected 200 OK")]
    Status(StatusCode),
    /// It isn't the answer.
    #[error("the interceptor's answer to GET /queue is not the expected JSON")]
    Json(#[source] serde_json::Error),
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "Concurrency")]
    concurrency: i64,
    #[serde(rename = "RequestCount")]
    request_count: i64,
}

/// Asks once, for a tick at most. Cancel safe: dropped, the connection is closed.
pub(super) async fn fetch(address: SocketAddr, tick: Duration) -> Result<Report, QueueError> {
    let body = timeout(tick.max(MIN_TIMEOUT), get(address)).await.map_err(QueueError::Timeout)??;
    parse(&body).map_err(QueueError::Json)
}

async fn get(address: SocketAddr) -> Result<Bytes, QueueError> {
    let stream = TcpStream::connect(address).await.map_err(QueueError::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(QueueError::Http)?;
    let request = Request::get("/queue")
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("an address is a valid Host header");
    let answer = async {
        let response = sender.send_request(request).await.map_err(QueueError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(QueueError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(QueueError::Body)?;
        Ok(body.to_bytes())
    };
    // The connection makes progress only while it is polled; it ends before the answer only when it broke.
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}

/// Entries whose key isn't `namespace/name` are left out.
pub(super) fn parse(body: &[u8]) -> serde_json::Result<Report> {
    let entries: HashMap<String, Entry> = serde_json::from_slice(body)?;
    let route = |(key, entry): (String, Entry)| {
        let Entry { concurrency, request_count } = entry;
        let (namespace, name) = key.split_once('/')?;
        if namespace.is_empty() || name.is_empty() {
            return None;
        }
        let in_flight = u64::try_from(concurrency).unwrap_or(0);
        let total = u64::try_from(request_count).unwrap_or(0);
        Some((ObjectKey::new(namespace, name), Observed { in_flight, total, ..Observed::default() }))
    };
    let routes = entries.into_iter().filter_map(route).collect();
    Ok(Report { complete: true, routes, ..Report::default() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_answer_of_an_original_interceptor_is_read() {
        let body = br#"{"ns/a":{"Concurrency":1,"RequestCount":42},"x":{"Concurrency":1,"RequestCount":1},
            "ns/below":{"Concurrency":-1,"RequestCount":-1},"/":{"Concurrency":1,"RequestCount":1}}"#;
        let mut routes = parse(body).unwrap().routes;
        routes.sort_by(|left, right| left.0.cmp(&right.0));
        let observed = |in_flight, total| Observed { in_flight, total, ..Observed::default() };
        let key = |name| ObjectKey::new("ns", name);
        assert_eq!(routes, [(key("a"), observed(1, 42)), (key("below"), observed(0, 0))]);
        assert!(parse(b"{}\n").unwrap().routes.is_empty());
    }

    #[test]
    fn other_json_is_an_error() {
        for body in ["", "[]", "null", "{\"ns/a\":{}}", "{\"ns/a\":{\"Concurrency\":\"1\",\"RequestCount\":1}}"] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(body: Vec<u8>, key: String, concurrency: i64, request_count: i64) {
            let _ = parse(&body);
            let entry = serde_json::json!({ "Concurrency": concurrency, "RequestCount": request_count });
            let body = serde_json::to_vec(&serde_json::json!({ (key): entry })).unwrap();
            prop_assert!(parse(&body).unwrap().routes.len() <= 1);
        }
    }
}
