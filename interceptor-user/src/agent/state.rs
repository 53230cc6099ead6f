//! `/state`: what the agent does for each direct route, as JSON.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use interceptor_core::{
    RouteEntry, Upstream,
    direct::{Direct, Life},
    route::DataPath,
};
use runtime::{admin::reply, ready::Ready, snapshot::Reader};
use serde::Serialize;

use crate::control::discover::{Problem, Problems};

/// Everything `/state` tells of.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) node: String,
    pub(crate) ready: Ready,
    pub(crate) reader: Reader,
    pub(crate) problems: Problems,
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    node: &'a str,
    ready: bool,
    pending: Vec<&'static str>,
    routes: Vec<RouteReport>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteReport {
    namespace: String,
    name: String,
    held: u64,
    frontends: Vec<String>,
    node_port: Option<u16>,
    pods: Vec<PodReport>,
}

#[derive(Serialize)]
struct PodReport {
    address: String,
    name: Option<String>,
    node: Option<String>,
    life: &'static str,
}

// === impl State ===

impl State {
    /// The answer to `GET /state`.
    pub(crate) fn respond(&self) -> Response<Full<Bytes>> {
        let snapshot = self.reader.load();
        let direct = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            node: &self.node,
            ready: self.ready.is_ready(),
            pending: self.ready.pending(),
            routes: direct
                .map(|entry| RouteReport::new(entry, snapshot.upstream_of(entry).map(AsRef::as_ref)))
                .collect(),
            problems: self.problems.all(),
        };
        reply::json(serde_json::to_vec(&report).expect("the report is made of names and numbers"))
    }
}

// === impl RouteReport ===

impl RouteReport {
    fn new(entry: &RouteEntry, upstream: Option<&Upstream>) -> Self {
        let key = &entry.route.key;
        let direct = upstream.and_then(|upstream| upstream.direct.as_deref());
        let none = Direct { frontends: Vec::new(), node_port: None, pods: Vec::new() };
        let Direct { frontends, node_port, pods } = direct.unwrap_or(&none);
        Self {
            namespace: key.namespace().to_owned(),
            name: key.name().to_owned(),
            held: entry.counters.counts().held,
            frontends: frontends.iter().map(ToString::to_string).collect(),
            node_port: *node_port,
            pods: pods
                .iter()
                .map(|pod| PodReport {
                    address: pod.addr.to_string(),
                    name: pod.name.as_deref().map(str::to_owned),
                    node: pod.node.as_deref().map(str::to_owned),
                    life: match pod.life {
                        Life::Starting => "starting",
                        Life::Ready => "ready",
                        Life::Ending => "ending",
                    },
                })
                .collect(),
        }
    }
}
