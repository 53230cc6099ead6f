//! `http.keda.sh/v1beta1` InterceptorRoute: which requests are taken, where they go and how demand is measured.

#![expect(unreachable_pub, reason = "KubeSchema copies the types into functions, where pub reaches nobody")]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::GoDuration, readiness_probe::ReadinessProbe};

mod scaling;
mod status;

pub use self::{
    scaling::{
        AcceptQueueTarget, ConcurrencyTarget, ConnectionsTarget, RequestRateTarget, ScalingMetric, ScalingSpec,
        ScalingTargetRef,
    },
    status::{InterceptorRouteStatus, ShadowStatus},
};

/// Routes requests to a Service and measures them for scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "http.keda.sh",
    version = "v1beta1",
    kind = "InterceptorRoute",
    plural = "interceptorroutes",
    singular = "interceptorroute",
    namespaced,
    status = "InterceptorRouteStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"TargetService","type":"string","jsonPath":".spec.target.service"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Active","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Active\")].status"}"#,
    printcolumn = r#"{"name":"Host","type":"string","priority":1,"jsonPath":".spec.rules[*].hosts[*]"}"#,
    printcolumn = r#"{"name":"ScaledObject","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"ScaledObject\")].reason"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.protocol) || self.protocol != 'TCP' || ((!has(self.rules) || size(self.rules) == 0) && (!has(self.staticRoutes) || size(self.staticRoutes) == 0))").message("a route with protocol TCP has neither 'rules' nor 'staticRoutes'"))]
#[x_kube(validation = Rule::new("!has(self.protocol) || self.protocol != 'TCP' || (has(self.dataPath) && self.dataPath == 'Direct')").message("protocol TCP needs dataPath Direct"))]
#[x_kube(validation = Rule::new("!has(self.demand) || (has(self.dataPath) && self.dataPath == 'Direct')").message("demand needs dataPath Direct"))]
#[x_kube(validation = Rule::new("!has(self.scalingMetric.connections) || (has(self.dataPath) && self.dataPath == 'Direct')").message("scalingMetric.connections needs dataPath Direct"))]
#[x_kube(validation = Rule::new("!has(self.scalingMetric.acceptQueue) || (has(self.dataPath) && self.dataPath == 'Direct')").message("scalingMetric.acceptQueue needs dataPath Direct"))]
pub struct InterceptorRouteSpec {
    /// What to do while no replica is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.fallback) || has(self.placeholder) || has(self.maxPendingRequests) || has(self.maxRequestsPerPod) || has(self.probeReadiness)").message("at least one of 'fallback', 'placeholder', 'maxPendingRequests', 'maxRequestsPerPod' or 'probeReadiness' must be set"))]
    #[x_kube(validation = Rule::new("!has(self.overflow) || self.overflow != 'Placeholder' || has(self.placeholder)").message("'placeholder' must be set when 'overflow' is Placeholder"))]
    pub cold_start: Option<ColdStart>,
    /// How clients in the cluster reach the target: through the interceptor, or, with Direct, at the Service's own address
    /// without a proxy, on nodes that run the agent; Proxy unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<DataPath>,
    /// What counts as demand; needs dataPath Direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandSpec>,
    /// What clients speak: HTTP, or anything over TCP, which needs dataPath Direct and has no rules; HTTP unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Which requests are taken; without rules none is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rules: Vec<RoutingRule>,
    /// Asks for a ScaledObject, which the operator then writes and keeps as it says; without it the user writes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas").message("minReplicas must not be above maxReplicas"))]
    pub scaling: Option<ScalingSpec>,
    /// How demand is measured.
    #[x_kube(validation = Rule::new("has(self.concurrency) || has(self.requestRate) || has(self.connections) || has(self.acceptQueue)").message("at least one of 'concurrency', 'requestRate', 'connections' or 'acceptQueue' must be set"))]
    pub scaling_metric: ScalingMetric,
    /// Keeps the requests of a client at the same replica, as long as it is ready; without it each request goes where least
    /// is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
    /// Requests that are answered by the interceptor itself, always or while no replica is ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub static_routes: Vec<StaticRoute>,
    /// Where requests go.
    #[x_kube(validation = Rule::new("has(self.port) != has(self.portName)").message("exactly one of 'port' or 'portName' must be set"))]
    pub target: TargetRef,
    /// Deadlines that replace the interceptor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<InterceptorRouteTimeouts>,
}

/// How clients in the cluster reach a route's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum DataPath {
    /// Through the interceptor.
    Proxy,
    /// At the Service's own address, without a proxy.
    Direct,
}

/// What counts as demand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DemandSpec {
    /// Clients that do not: their connections wake nobody and are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<IgnoredClients>,
}

/// Clients whose connections are no demand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IgnoredClients {
    /// Those with addresses in these networks, such as 10.1.0.0/16, or of these addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(pattern(r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"), length(max = 49)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub cidrs: Vec<String>,
    /// Pods of these namespaces that a Service lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"), length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<String>,
}

/// What a route's clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Protocol {
    /// HTTP.
    #[serde(rename = "HTTP")]
    Http,
    /// Anything over TCP.
    #[serde(rename = "TCP")]
    Tcp,
}

/// A Service in the route's namespace and one of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Port number of the Service. Excludes portName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Port name of the Service. Excludes port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub port_name: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1))]
    pub service: String,
    /// Connections to the Service's pods by mutual TLS: always encrypted, with a certificate of this route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TargetTls>,
}

/// Who the interceptor is to the pods of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetTls {
    /// Name of a Secret in the route's namespace, with the label http.keda.sh/tls=client: the certificate that is shown to pods
    /// (tls.crt, tls.key), and, if it has any, the authorities that theirs must come from (ca.crt). Interceptors must be
    /// allowed to read it.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// Requests that are taken: any of the hosts, any of the paths, all of the headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingRule {
    /// Headers a request must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HeaderRule>,
    /// Exact names, *.suffix, or * for all; none is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub hosts: Vec<String>,
    /// Path prefixes in whole segments; none is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub paths: Vec<PathRule>,
}

/// A header that a request must have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderRule {
    /// Name of the header, in any case.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Value it must have; without one, any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A path prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathRule {
    /// The prefix, in whole segments: /api takes /api/v1 and leaves /apis.
    #[schemars(length(min = 1))]
    pub value: String,
}

/// What to do while no replica is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ColdStart {
    /// Send requests elsewhere when no replica gets ready in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Most requests that one interceptor holds while no replica is ready; what the interceptors were told for all routes unless
    /// told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_pending_requests: Option<i32>,
    /// Most requests that one interceptor has at a replica while others are still held: the rest follow as replicas get ready
    /// or have room. 0 lets all go to the first; scalingMetric.concurrency.targetValue unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_requests_per_pod: Option<i32>,
    /// What becomes of requests beyond maxPendingRequests. With Placeholder, requests are held as long as there is room, and
    /// the placeholder is for the others alone.
    #[serde(default)]
    pub overflow: Overflow,
    /// Answer at once with a fixed response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<Placeholder>,
    /// Whether interceptors run the pods' own readiness probe while requests wait, which finds a ready pod sooner than the
    /// kubelet reports it; true unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_readiness: Option<bool>,
}

/// What becomes of requests that cannot be held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Overflow {
    /// They are refused with 503.
    #[default]
    Reject,
    /// They get the placeholder.
    Placeholder,
}

/// Keeps the requests of a client at the same replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// How old a session may get before it is given a replica anew; no limit unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("absoluteTimeout must be at least 1s"))]
    pub absolute_timeout: Option<GoDuration>,
    /// The cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<SessionCookie>,
    /// How a client's session is known.
    #[serde(rename = "type")]
    pub kind: SessionType,
}

/// How a client's session is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SessionType {
    /// By a cookie that interceptors set.
    Cookie,
}

/// A cookie that interceptors set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionCookie {
    /// Its name; one that is the route's alone unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"))]
    pub name: Option<String>,
}

/// Where requests go when no replica gets ready in time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// A Service in the route's namespace.
    #[x_kube(validation = Rule::new("has(self.port) != has(self.portName)").message("exactly one of 'port' or 'portName' must be set"))]
    pub service: FallbackService,
}

/// A Service in the route's namespace and one of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FallbackService {
    /// Name of the Service.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Port number of the Service. Excludes portName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Port name of the Service. Excludes port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub port_name: Option<String>,
}

/// A fixed response while no replica is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placeholder {
    /// The response; its status is 503 unless told.
    #[x_kube(validation = Rule::new("!(has(self.body) && has(self.bodyFromConfigMap))").message("at most one of 'body' or 'bodyFromConfigMap' may be set"))]
    pub response: StaticResponse,
}

/// Requests that the interceptor answers itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaticRoute {
    /// The response; its status is 200 unless told.
    #[x_kube(validation = Rule::new("!(has(self.body) && has(self.bodyFromConfigMap))").message("at most one of 'body' or 'bodyFromConfigMap' may be set"))]
    pub response: StaticResponse,
    /// Whether always, or only while no replica is ready.
    #[serde(default)]
    pub response_mode: ResponseMode,
    /// Which of the route's requests; any rule may match.
    #[schemars(length(min = 1))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rules: Vec<RoutingRule>,
}

/// When a static route answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ResponseMode {
    /// Always.
    Always,
    /// While no replica is ready.
    #[default]
    WhenUnavailable,
}

/// A response that needs no replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaticResponse {
    /// The body. Excludes bodyFromConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub body: Option<String>,
    /// Where the body is. Excludes body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_from_config_map: Option<ConfigMapRef>,
    /// Headers to set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 599))]
    pub status_code: Option<i32>,
}

/// A ConfigMap in the route's namespace with the label http.keda.sh/response-body: "true".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapRef {
    /// Its key; without one the request's path tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// Deadlines; 0s is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterceptorRouteTimeouts {
    /// How long a request waits for a ready replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<GoDuration>,
    /// How long a request takes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<GoDuration>,
    /// How long a replica takes to begin its response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header: Option<GoDuration>,
}

// === impl InterceptorRoute ===

impl InterceptorRoute {
    /// The probe by which interceptors may find out that a pod is ready, unless the route says that they shall not.
    pub fn readiness_probe(&self) -> Option<&ReadinessProbe> {
        self.status.as_ref().filter(|_| !self.refuses_probes())?.readiness_probe.as_ref()
    }

    /// Whether interceptors shall not find out by themselves that a pod is ready.
    pub fn refuses_probes(&self) -> bool {
        self.spec.cold_start.as_ref().and_then(|cold_start| cold_start.probe_readiness) == Some(false)
    }
}
