//! `/state`: what the agent does for each direct route, as JSON.

use std::net::SocketAddr;

use bytes::Bytes;
use dataplane::{ConnectionCounters, count::Load};
use http::Response;
use http_body_util::Full;
use interceptor_core::{
    RouteEntry, Upstream,
    direct::{Direct, Life},
    frontends::Heat,
    network::Ignored,
    route::DataPath,
};
use runtime::{admin::reply, ready::Ready, snapshot::Reader};
use serde::Serialize;

use super::{
    backlog, count,
    hold::{self, Known, Way, is_left_to_interceptors},
    pins::{Part, Pins},
    steer, uncounted,
};
use crate::control::{
    discover::{Problem, Problems},
    taken::{Pods, Taken},
};

/// Everything `/state` tells of.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) node: String,
    pub(crate) ready: Ready,
    pub(crate) reader: Reader,
    pub(crate) problems: Problems,
    pub(crate) hold: hold::Report,
    pub(crate) count: count::Report,
    pub(crate) taken: Taken,
    pub(crate) backlog: backlog::Report,
    pub(crate) steer: steer::Report,
    pub(crate) uncounted: uncounted::Report,
    pub(crate) pins: Pins,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    version: &'static str,
    node: &'a str,
    ready: bool,
    pending: Vec<&'static str>,
    hold: HoldReport,
    count: CountReport,
    accept_queues: BacklogReport,
    steer: SteerReport,
    routes: Vec<RouteReport>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HoldReport {
    active: bool,
    /// Why not.
    reason: Option<String>,
    /// Whether it outlives the agent.
    pinned: bool,
    /// Why not.
    pinned_reason: Option<String>,
    /// Connections of the node itself, and of pods in its network.
    node: NodeReport,
    way: &'static str,
    devices: Vec<String>,
    failed_devices: Vec<Named>,
    left_out: Vec<Named>,
}

/// Whether what the kernel has outlives the agent, and why not.
type Pinned = (bool, Option<String>);

#[derive(Serialize)]
struct NodeReport {
    active: bool,
    /// Why not.
    reason: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CountReport {
    active: bool,
    /// Why not.
    reason: Option<String>,
    /// Whether it outlives the agent.
    pinned: bool,
    /// Why not.
    pinned_reason: Option<String>,
    /// Whether requests of HTTP/2 are counted too.
    http2: bool,
    /// Why not.
    http2_reason: Option<String>,
    /// Below which folder pods' cgroups are looked for.
    root: String,
    /// UIDs of the pods that are counted.
    pods: Vec<String>,
    refused: Vec<Named>,
    /// Ready pods of this node of which nobody counts what they take.
    uncounted: Vec<Named>,
    /// Whose connections are left out.
    interceptors: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SteerReport {
    active: bool,
    /// Why not.
    reason: Option<String>,
    /// Whether it outlives the agent.
    pinned: bool,
    /// Why not.
    pinned_reason: Option<String>,
    /// `all` cold Services of direct routes, or only those that are `left` to interceptors.
    services: &'static str,
    /// Programs of others that see what pods connect to.
    other_programs: usize,
    /// Where the programs are attached; nowhere while nothing is steered.
    cgroups: Vec<String>,
    refused_cgroups: Vec<Named>,
    /// Those that connections are spread over.
    interceptors: Vec<String>,
    left_out: Vec<Named>,
}

/// Whether accept queues are read, for routes that scale by them.
#[derive(Serialize)]
struct BacklogReport {
    /// Whether a route asks for them.
    asked: bool,
    /// Why nothing is read, if so.
    reason: Option<String>,
    /// Pods whose accept queues are not known.
    unknown: Vec<Named>,
}

/// What the route's pods on this node take without a proxy.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TakenReport {
    requests: u64,
    in_flight: u64,
    opened: u64,
    closed: u64,
    failed: u64,
    srtt_us: u64,
    idle_ms: Option<u64>,
}

/// Something that does not work, and why.
#[derive(Serialize)]
struct Named {
    name: String,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteReport {
    namespace: String,
    name: String,
    /// `cold` and `warm` are what the kernel knows; `interceptors` is a route whose connections are theirs while it is cold;
    /// `unknown` is one that the kernel knows nothing of.
    heat: &'static str,
    held: u64,
    /// Whether connections of this node's pods go to an interceptor now.
    steered: bool,
    frontends: Vec<String>,
    node_port: Option<u16>,
    pods: Vec<PodReport>,
    /// Networks and namespaces whose connections are no demand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
    /// `None` when no pod of it has been on this node.
    taken: Option<TakenReport>,
    /// Whether nobody counts what some of its ready pods on this node take.
    uncounted: bool,
    /// Connections that its pods on this node have not accepted yet; `None` if it does not scale by them, or it is not known.
    accept_queue: Option<u64>,
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
        let (known, steer) = (self.hold.load(), self.steer.load());
        let heat = |id| match known.services.get(&id) {
            Some(Heat::Cold) => "cold",
            Some(Heat::Warm) => "warm",
            None => "unknown",
        };
        let direct = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            node: &self.node,
            ready: self.ready.is_ready(),
            pending: self.ready.pending(),
            hold: HoldReport::new(&known, self.pins.of(Part::Hold)),
            count: CountReport::new(self.count.load(), self.uncounted.pods(), self.pins.of(Part::Count)),
            accept_queues: BacklogReport::new(self.backlog.load()),
            routes: direct
                .map(|entry| {
                    let upstream = snapshot.upstream_of(entry).map(AsRef::as_ref);
                    let taken = self.taken.of(entry.upstream).map(|pods| TakenReport::new(&pods));
                    let heat =
                        if is_left_to_interceptors(&entry.route) { "interceptors" } else { heat(entry.upstream) };
                    let scales = entry.route.scaling.accept_queue.is_some();
                    let backlog = self.backlog.waiting.of(entry.upstream).filter(|backlog| scales && !backlog.unknown);
                    let accept_queue = backlog.map(|backlog| backlog.depth);
                    let steered = steer.services.contains(&entry.upstream);
                    let uncounted = self.uncounted.upstreams.contains(entry.upstream);
                    RouteReport { steered, taken, uncounted, accept_queue, ..RouteReport::new(entry, upstream, heat) }
                })
                .collect(),
            steer: SteerReport::new(&steer, self.pins.of(Part::Steer)),
            problems: self.problems.all(),
        };
        reply::json(serde_json::to_vec(&report).expect("the report is made of names and numbers"))
    }
}

// === impl HoldReport ===

impl HoldReport {
    fn new(known: &Known, (pinned, pinned_reason): Pinned) -> Self {
        let Known { off, node_off, way, devices, failed, services: _, left_out } = known;
        let named = |(name, reason): (String, &String)| Named { name, reason: reason.clone() };
        Self {
            active: off.is_none(),
            pinned,
            pinned_reason,
            reason: off.clone(),
            node: NodeReport { active: node_off.is_none(), reason: node_off.clone() },
            way: match way {
                Way::Conntrack => "conntrack",
                Way::Rules => "rules",
            },
            devices: devices.clone(),
            failed_devices: failed.iter().map(|(name, why)| named((name.clone(), why))).collect(),
            left_out: left_out.iter().map(|(service, why)| named((service.to_string(), why))).collect(),
        }
    }
}

// === impl CountReport ===

impl CountReport {
    fn new(known: count::Known, uncounted: Vec<(SocketAddr, String)>, (pinned, pinned_reason): Pinned) -> Self {
        let count::Known { off, without_http2, root, pods, refused, left_out: _, failed: _, interceptors } = known;
        Self {
            active: off.is_none(),
            pinned,
            pinned_reason,
            http2: off.is_none() && without_http2.is_none(),
            reason: off,
            http2_reason: without_http2,
            root,
            pods,
            refused: refused.into_iter().map(|(name, reason)| Named { name, reason }).collect(),
            uncounted: uncounted.into_iter().map(|(pod, reason)| Named { name: pod.to_string(), reason }).collect(),
            interceptors: interceptors.iter().map(ToString::to_string).collect(),
        }
    }
}

// === impl SteerReport ===

impl SteerReport {
    fn new(known: &steer::Known, (pinned, pinned_reason): Pinned) -> Self {
        let steer::Known { off, all, others, cgroups, refused, services: _, left_out, interceptors } = known;
        let named = |(name, why): (String, &String)| Named { name, reason: why.clone() };
        Self {
            active: off.is_none(),
            pinned,
            pinned_reason,
            reason: off.clone(),
            services: if *all { "all" } else { "left" },
            other_programs: *others,
            cgroups: cgroups.iter().map(|path| path.display().to_string()).collect(),
            refused_cgroups: refused.iter().map(|(path, why)| named((path.clone(), why))).collect(),
            interceptors: interceptors.addresses.iter().map(ToString::to_string).collect(),
            left_out: left_out.iter().map(|(service, why)| named((service.to_string(), why))).collect(),
        }
    }
}

// === impl BacklogReport ===

impl BacklogReport {
    fn new(known: backlog::Known) -> Self {
        let backlog::Known { asked, off, unread } = known;
        let unknown = unread.iter().map(|(pod, why)| Named { name: pod.to_string(), reason: why.to_string() });
        Self { asked, reason: off, unknown: unknown.collect() }
    }
}

// === impl TakenReport ===

impl TakenReport {
    fn new(pods: &Pods) -> Self {
        let Pods { load: Load { in_flight, requests }, connections, served: _ } = *pods;
        let ConnectionCounters { opened, closed, failed, srtt_us, last_activity } = connections;
        let idle_ms = last_activity.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        Self { requests, in_flight, opened, closed, failed, srtt_us, idle_ms }
    }
}

// === impl RouteReport ===

impl RouteReport {
    fn new(entry: &RouteEntry, upstream: Option<&Upstream>, heat: &'static str) -> Self {
        let key = &entry.route.key;
        let direct = upstream.and_then(|upstream| upstream.direct.as_deref());
        let none = Direct::default();
        let Direct { frontends, external: _, sources: _, node_port, pods } = direct.unwrap_or(&none);
        Self {
            namespace: key.namespace().to_owned(),
            name: key.name().to_owned(),
            heat,
            held: entry.counters.counts().held,
            steered: false,
            frontends: frontends.iter().map(ToString::to_string).collect(),
            node_port: *node_port,
            pods: pods
                .iter()
                .map(|(addr, pod)| PodReport {
                    address: addr.to_string(),
                    name: pod.name.as_deref().map(str::to_owned),
                    node: pod.node.as_deref().map(str::to_owned),
                    life: match pod.life {
                        Life::Starting => "starting",
                        Life::Ready => "ready",
                        Life::Ending => "ending",
                    },
                })
                .collect(),
            ignored: {
                let Ignored { networks, namespaces } = &entry.route.ignored;
                let namespaces = namespaces.iter().map(|name| format!("namespace {name}"));
                networks.iter().map(ToString::to_string).chain(namespaces).collect()
            },
            taken: None,
            uncounted: false,
            accept_queue: None,
        }
    }
}
