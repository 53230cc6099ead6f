//! The interceptor's `/state`, as far as it is shown and checked here. What a newer interceptor adds is ignored.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

/// More than any interceptor with some thousand routes says.
const MAX_BODY: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(2);

/// `/state`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// The interceptor's version.
    pub version: String,
    /// The data plane.
    pub dataplane: Dataplane,
    /// Whether it is ready.
    pub ready: bool,
    /// What it waits for otherwise.
    pub pending: Vec<String>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// What is wrong with which object.
    pub problems: Vec<Problem>,
    /// The last cold starts, the oldest first.
    pub cold_starts: Vec<ColdStart>,
}

/// The data plane.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dataplane {
    /// `none` or `self`.
    pub level: String,
    /// Why this one.
    pub reason: String,
}

/// One route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Route {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The object's kind.
    pub kind: String,
    /// Cold, holding or warm.
    pub state: RouteState,
    /// Requests between arrival and the last byte of the response.
    pub in_flight: u64,
    /// Of those, the ones that wait for an endpoint.
    pub held: u64,
    /// Requests ever.
    pub total: u64,
    /// Where they go.
    pub upstream: Upstream,
    /// What the kernel counted.
    pub kernel: Option<Kernel>,
}

/// A route's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteState {
    /// No endpoint.
    #[default]
    Cold,
    /// No endpoint, and requests wait for one.
    Holding,
    /// At least one endpoint.
    Warm,
    /// Something this version does not know.
    #[serde(other)]
    Unknown,
}

/// Where a route's requests go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Upstream {
    /// Ready endpoints.
    pub endpoints: Vec<String>,
    /// `found`, `noService` or `noPort`.
    pub resolution: String,
}

/// Connections from the interceptor to a route's pods, as the kernel counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kernel {
    /// Established.
    pub opened: u64,
    /// Closed.
    pub closed: u64,
    /// Refused or timed out.
    pub failed: u64,
    /// Smoothed round trip time in microseconds.
    pub srtt_us: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The object.
    pub object: String,
    /// What about it.
    pub message: String,
}

/// One request that waited; times in microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdStart {
    /// The route's namespace.
    pub namespace: String,
    /// The route's name.
    pub name: String,
    /// The request arrived.
    pub arrived: u64,
    /// An endpoint was known.
    pub endpoint_seen: u64,
    /// It accepted a connection.
    pub connected: u64,
    /// The response began.
    pub first_byte: u64,
    /// The response's status.
    pub status: u16,
}

/// Asks an interceptor.
#[derive(Clone, Debug)]
pub struct StateClient {
    client: Client<HttpConnector, Empty<Bytes>>,
    uri: Uri,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum StateError {
    /// Nobody answered in time.
    #[error("the interceptor's admin port does not answer")]
    Silent,
    /// What came is not `/state`.
    #[error("the interceptor's /state cannot be read")]
    Json(#[from] serde_json::Error),
}

// === impl StateClient ===

impl StateClient {
    /// Of the interceptor whose admin port this is.
    pub fn new(admin: u16) -> Self {
        // An address and a path always make a URI; the default would simply not answer.
        let uri = format!("http://127.0.0.1:{admin}/state").parse().unwrap_or_default();
        Self { client: Client::builder(TokioExecutor::new()).build_http(), uri }
    }

    /// The state now.
    pub async fn fetch(&self) -> Result<State, StateError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        let answer = async {
            let response = self.client.request(request).await.ok()?;
            let body = Limited::new(response.into_body(), MAX_BODY).collect().await.ok()?;
            Some(body.to_bytes())
        };
        let body = timeout(PATIENCE, answer).await.ok().flatten().ok_or(StateError::Silent)?;
        Ok(serde_json::from_slice(&body)?)
    }
}

// === impl State ===

impl State {
    /// The route of that object.
    pub fn route(&self, namespace: &str, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.namespace == namespace && route.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_read_with_fields_missing_and_unknown() {
        let text = r#"{"version":"0.1.0","dataplane":{"level":"self","reason":"r"},"ready":true,"new":1,
            "routes":[{"namespace":"default","name":"hello","kind":"InterceptorRoute","state":"holding","inFlight":2,
            "upstream":{"service":"hello","endpoints":["127.0.0.1:80"],"resolution":"found"},
            "kernel":{"opened":3,"srttUs":40}},{"name":"x","state":"frozen","kernel":null}],
            "coldStarts":[{"name":"hello","arrived":5,"endpointSeen":6,"firstByte":7,"status":200}]}"#;
        let state: State = serde_json::from_str(text).unwrap();
        let hello = state.route("default", "hello").unwrap();
        assert_eq!((hello.state, hello.in_flight, hello.kernel.unwrap().opened), (RouteState::Holding, 2, 3));
        assert_eq!(state.routes[1].state, RouteState::Unknown);
        assert_eq!(state.cold_starts[0].endpoint_seen, 6);
    }
}
