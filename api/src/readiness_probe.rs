//! When a pod is ready, as its workload says. The operator writes it into a route's status; interceptors probe with it, so
//! that they need no right to read pods.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The readiness probe of the workload's pods, with port numbers in place of port names. One of httpGet, tcpSocket and grpc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadinessProbe {
    /// Failures in a row after which a pod is not ready.
    #[serde(default = "three")]
    pub failure_threshold: i32,
    /// Ready when a gRPC health service says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// Ready when a GET is answered with a status from 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpProbe>,
    /// Seconds before the kubelet's first probe.
    #[serde(default)]
    pub initial_delay_seconds: i32,
    /// Seconds between the kubelet's probes.
    #[serde(default = "ten")]
    pub period_seconds: i32,
    /// Successes in a row after which a pod is ready.
    #[serde(default = "one")]
    pub success_threshold: i32,
    /// Ready when a connection opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpProbe>,
    /// Seconds a probe may take.
    #[serde(default = "one")]
    pub timeout_seconds: i32,
}

/// A probe by HTTP. It has no host: it goes to the pod and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// Headers to send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<ProbeHeader>,
    /// Path to get.
    #[serde(default = "root")]
    pub path: String,
    /// Port of the pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// HTTP or HTTPS.
    #[serde(default)]
    pub scheme: ProbeScheme,
}

/// A header of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How a probe by HTTP connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum ProbeScheme {
    /// In the clear.
    #[default]
    Http,
    /// By TLS, whatever the certificate.
    Https,
}

/// A probe by a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpProbe {
    /// Port of the pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// A probe by `grpc.health.v1.Health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcProbe {
    /// Port of the pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Name of the service to ask for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

// === impl ReadinessProbe ===

impl ReadinessProbe {
    /// What a pod template says, or `None` when no other process could tell by a probe that such a pod is ready: there is no
    /// probe or more than one, it is a command or goes to a port without a number, or readiness gates have a say.
    pub fn of_pod(pod: &core::PodSpec) -> Option<Self> {
        let sidecars = pod.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let mut probed = pod.containers.iter().chain(sidecars).filter(|container| container.readiness_probe.is_some());
        match (probed.next(), probed.next()) {
            (Some(container), None) if pod.readiness_gates.is_none() => Self::of_container(container),
            _ => None,
        }
    }

    fn of_container(container: &core::Container) -> Option<Self> {
        let probe = container.readiness_probe.as_ref()?;
        let port = |port: &IntOrString| number(container, port);
        let probe_of = |of: Self| Self {
            failure_threshold: probe.failure_threshold.unwrap_or_else(three),
            initial_delay_seconds: probe.initial_delay_seconds.unwrap_or_default(),
            period_seconds: probe.period_seconds.unwrap_or_else(ten),
            success_threshold: probe.success_threshold.unwrap_or_else(one),
            timeout_seconds: probe.timeout_seconds.unwrap_or_else(one),
            ..of
        };
        if let Some(http) = &probe.http_get {
            let http_get = Some(HttpProbe::of(http, port(&http.port)?));
            return Some(probe_of(Self { http_get, ..Self::default() }));
        }
        if let Some(tcp) = &probe.tcp_socket {
            let tcp_socket = Some(TcpProbe { port: port(&tcp.port)? });
            return Some(probe_of(Self { tcp_socket, ..Self::default() }));
        }
        let grpc = probe.grpc.as_ref()?;
        let grpc = GrpcProbe { port: grpc.port, service: grpc.service.clone().unwrap_or_default() };
        Some(probe_of(Self { grpc: Some(grpc), ..Self::default() }))
    }
}

// === impl HttpProbe ===

impl HttpProbe {
    fn of(action: &core::HTTPGetAction, port: i32) -> Self {
        let headers = action.http_headers.iter().flatten();
        let path = action.path.clone().filter(|path| !path.is_empty());
        Self {
            http_headers: headers
                .map(|header| ProbeHeader { name: header.name.clone(), value: header.value.clone() })
                .collect(),
            path: path.unwrap_or_else(root),
            port,
            scheme: match action.scheme.as_deref() {
                Some("HTTPS") => ProbeScheme::Https,
                _ => ProbeScheme::Http,
            },
        }
    }
}

pub(crate) fn number(container: &core::Container, port: &IntOrString) -> Option<i32> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            // The API server takes a number in quotes too.
            named.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    (1..=65535).contains(&number).then_some(number)
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

fn ten() -> i32 {
    10
}

fn root() -> String {
    "/".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HTTPScaledObject, InterceptorRoute};

    fn probe(container: &str) -> Option<ReadinessProbe> {
        ReadinessProbe::of_container(&serde_yaml_ng::from_str(container).unwrap())
    }

    fn of_pod(pod: &str) -> Option<ReadinessProbe> {
        ReadinessProbe::of_pod(&serde_yaml_ng::from_str(pod).unwrap())
    }

    #[test]
    fn a_named_port_becomes_a_number_and_the_rest_takes_kubernetes_defaults() {
        let probe = probe(
            "
            name: app
            ports: [{name: web, containerPort: 8080}]
            readinessProbe:
              httpGet: {port: web, host: elsewhere.example, scheme: HTTPS, httpHeaders: [{name: a, value: b}]}
              periodSeconds: 5
            ",
        );
        let probe = probe.unwrap();
        let header = ProbeHeader { name: "a".to_owned(), value: "b".to_owned() };
        let http =
            HttpProbe { http_headers: vec![header], path: "/".to_owned(), port: 8080, scheme: ProbeScheme::Https };
        assert_eq!(probe.http_get, Some(http));
        assert_eq!((probe.period_seconds, probe.timeout_seconds, probe.failure_threshold), (5, 1, 3));
        let text = serde_json::to_string(&probe).unwrap();
        assert!(!text.contains("elsewhere"), "{text}");
        assert_eq!(serde_json::from_str::<ReadinessProbe>(&text).unwrap(), probe);
    }

    #[test]
    fn connections_and_grpc_are_probes_too() {
        let tcp = probe("{name: a, readinessProbe: {tcpSocket: {port: 9}}}").unwrap();
        assert_eq!(tcp.tcp_socket, Some(TcpProbe { port: 9 }));
        let grpc = probe("{name: a, readinessProbe: {grpc: {port: 9, service: s}}}").unwrap();
        assert_eq!(grpc.grpc, Some(GrpcProbe { port: 9, service: "s".to_owned() }));
    }

    #[test]
    fn what_another_process_cannot_run_is_no_probe() {
        assert_eq!(probe("{name: a}"), None);
        assert_eq!(probe("{name: a, readinessProbe: {exec: {command: [true]}}}"), None);
        assert_eq!(probe("{name: a, readinessProbe: {httpGet: {port: nobody}}}"), None);
        assert_eq!(probe("{name: a, readinessProbe: {tcpSocket: {port: 70000}}}"), None);
    }

    #[test]
    fn a_pod_is_ready_by_one_probe_or_by_more_than_a_probe_can_tell() {
        let probed = "{name: a, readinessProbe: {tcpSocket: {port: 9}}}";
        assert!(of_pod(&format!("{{containers: [{{name: b}}, {probed}]}}")).is_some());
        assert_eq!(of_pod(&format!("{{containers: [{probed}, {probed}]}}")), None);
        let sidecar = "{name: s, restartPolicy: Always, readinessProbe: {tcpSocket: {port: 8}}}";
        assert_eq!(of_pod(&format!("{{containers: [{probed}], initContainers: [{sidecar}]}}")), None);
        assert!(of_pod(&format!("{{containers: [{probed}], initContainers: [{{name: i}}]}}")).is_some());
        assert_eq!(of_pod(&format!("{{containers: [{probed}], readinessGates: [{{conditionType: a/b}}]}}")), None);
    }

    #[test]
    fn a_route_may_refuse_to_be_probed() {
        let status = "status: {readinessProbe: {tcpSocket: {port: 9}}}";
        let spec = "target: {service: a, port: 1}, scalingMetric: {concurrency: {targetValue: 1}}";
        let route = |cold_start: &str| {
            let text = format!("{{metadata: {{name: a}}, spec: {{{spec}, coldStart: {cold_start}}}, {status}}}");
            serde_yaml_ng::from_str::<InterceptorRoute>(&text).unwrap()
        };
        assert!(route("null").readiness_probe().is_some());
        assert!(route("{probeReadiness: true}").readiness_probe().is_some());
        assert_eq!(route("{probeReadiness: false}").readiness_probe(), None);

        let scaled = |value: &str| {
            let metadata = format!("metadata: {{name: a, annotations: {{http.keda.sh/probe-readiness: {value}}}}}");
            let text = format!("{{{metadata}, spec: {{scaleTargetRef: {{service: a, port: 1}}}}, {status}}}");
            serde_yaml_ng::from_str::<HTTPScaledObject>(&text).unwrap()
        };
        assert!(scaled("'true'").readiness_probe().is_some());
        assert_eq!(scaled("'false'").readiness_probe(), None);
    }
}
