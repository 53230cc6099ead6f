//! A Deployment as a local process needs it: parsed once from the manifest, with what cannot be run here refused by name.

use std::{collections::BTreeMap, time::Duration};

use interceptor_core::ObjectKey;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container as K8sContainer, EnvVar, PodSpec, Probe as K8sProbe},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use thiserror::Error;

/// A Deployment whose replicas are local processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The Deployment's name.
    pub key: ObjectKey,
    /// `spec.replicas`, one by default.
    pub replicas: u32,
    /// What every replica is.
    pub template: Template,
}

/// A pod template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// The pod's labels, by which Services select it.
    pub labels: BTreeMap<String, String>,
    /// `command` followed by `args`; at least one element.
    pub command: Vec<String>,
    /// In order, because later ones may refer to earlier ones.
    pub env: Vec<(String, EnvSource)>,
    /// `workingDir`.
    pub working_dir: Option<String>,
    /// Named and numbered container ports.
    pub ports: Vec<Port>,
    /// `readinessProbe`.
    pub probe: Option<Probe>,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// `lifecycle.preStop.sleep`: between the endpoint's withdrawal and SIGTERM.
    pub pre_stop: Duration,
}

/// Where an environment variable's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EnvSource {
    /// Written down, with `$(NAME)` references.
    Value(String),
    /// `status.podIP`.
    PodIp,
    /// `metadata.name`.
    PodName,
    /// `metadata.namespace`.
    Namespace,
}

/// A container port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Empty when it has none.
    pub name: String,
    /// The number.
    pub number: u16,
}

/// A readiness probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// What is tried.
    pub action: ProbeAction,
    /// Before the first try.
    pub initial_delay: Duration,
    /// Between tries.
    pub period: Duration,
    /// For one try.
    pub timeout: Duration,
    /// Successes in a row until ready.
    pub success_threshold: u32,
    /// Failures in a row until not ready.
    pub failure_threshold: u32,
}

/// What a probe tries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProbeAction {
    /// A GET that shall be answered with a status from 200 to 399.
    HttpGet {
        /// The container port.
        port: u16,
        /// Path and query.
        path: String,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A connection that shall be accepted.
    Tcp {
        /// The container port.
        port: u16,
    },
}

/// Why a Deployment cannot be run here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WorkloadError {
    /// A field that Kubernetes requires is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// More or fewer containers than one.
    #[error("the pod template has {0} containers, expected one: a local pod is one process")]
    Containers(usize),
    /// No command.
    #[error("container {0} has no command: a local pod is a process, not an image")]
    NoCommand(String),
    /// A feature that only a real kubelet has.
    #[error("{field} of container {container} is not supported for local processes, {expected}")]
    Unsupported {
        /// The container.
        container: String,
        /// The field.
        field: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A port that is none.
    #[error("{field} is {value}, expected a port from 1 to 65535 or the name of a container port")]
    Port {
        /// The field.
        field: &'static str,
        /// What stands there.
        value: String,
    },
}

// === impl Workload ===

impl Workload {
    /// Reads a Deployment.
    pub fn parse(key: ObjectKey, deployment: &Deployment) -> Result<Self, WorkloadError> {
        let spec = deployment.spec.as_ref().ok_or(WorkloadError::Missing("spec"))?;
        let pod = spec.template.spec.as_ref().ok_or(WorkloadError::Missing("spec.template.spec"))?;
        let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let replicas = spec.replicas.map_or(1, |n| u32::try_from(n).unwrap_or(0));
        Ok(Self { key, replicas, template: Template::parse(labels, pod)? })
    }
}

// === impl Template ===

impl Template {
    fn parse(labels: BTreeMap<String, String>, pod: &PodSpec) -> Result<Self, WorkloadError> {
        let [container] = pod.containers.as_slice() else {
            return Err(WorkloadError::Containers(pod.containers.len()));
        };
        let mut command = container.command.clone().unwrap_or_default();
        if command.is_empty() {
            return Err(WorkloadError::NoCommand(container.name.clone()));
        }
        command.extend(container.args.clone().unwrap_or_default());
        let ports = ports(container)?;
        let env = container.env.iter().flatten().map(|var| env(container, var)).collect::<Result<_, _>>()?;
        if container.env_from.as_ref().is_some_and(|from| !from.is_empty()) {
            return Err(unsupported(container, "envFrom", "use env"));
        }
        let probe = container.readiness_probe.as_ref().map(|p| Probe::parse(container, p, &ports)).transpose()?;
        Ok(Self {
            labels,
            command,
            env,
            working_dir: container.working_dir.clone(),
            ports,
            probe,
            grace: seconds(pod.termination_grace_period_seconds, 30),
            pre_stop: pre_stop(container)?,
        })
    }

    /// The number of a container port of that name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| port.name == name).map(|port| port.number)
    }
}

fn ports(container: &K8sContainer) -> Result<Vec<Port>, WorkloadError> {
    let parse = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        let number = number("containerPort", port.container_port)?;
        Ok(Port { name: port.name.clone().unwrap_or_default(), number })
    };
    container.ports.iter().flatten().map(parse).collect()
}

fn number(field: &'static str, value: i32) -> Result<u16, WorkloadError> {
    let port = u16::try_from(value).ok().filter(|port| *port != 0);
    port.ok_or_else(|| WorkloadError::Port { field, value: value.to_string() })
}

fn env(container: &K8sContainer, var: &EnvVar) -> Result<(String, EnvSource), WorkloadError> {
    let source = match &var.value_from {
        None => EnvSource::Value(var.value.clone().unwrap_or_default()),
        Some(from) => match from.field_ref.as_ref().map(|field| field.field_path.as_str()) {
            Some("status.podIP") => EnvSource::PodIp,
            Some("metadata.name") => EnvSource::PodName,
            Some("metadata.namespace") => EnvSource::Namespace,
            _ => {
                let field = format!("env {}", var.name);
                let expected = "expected a value or a fieldRef to status.podIP, metadata.name or metadata.namespace";
                return Err(unsupported(container, field, expected));
            }
        },
    };
    Ok((var.name.clone(), source))
}

fn pre_stop(container: &K8sContainer) -> Result<Duration, WorkloadError> {
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    match hook {
        None => Ok(Duration::ZERO),
        Some(hook) => match &hook.sleep {
            Some(sleep) => Ok(seconds(Some(sleep.seconds), 0)),
            None => Err(unsupported(container, "lifecycle.preStop", "expected sleep")),
        },
    }
}

fn seconds(value: Option<i64>, default: u64) -> Duration {
    Duration::from_secs(value.map_or(default, |value| u64::try_from(value).unwrap_or(0)))
}

fn unsupported(container: &K8sContainer, field: impl Into<String>, expected: &'static str) -> WorkloadError {
    WorkloadError::Unsupported { container: container.name.clone(), field: field.into(), expected }
}

// === impl Probe ===

impl Probe {
    fn parse(container: &K8sContainer, probe: &K8sProbe, ports: &[Port]) -> Result<Self, WorkloadError> {
        let action = if let Some(http) = &probe.http_get {
            let headers = http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
            let path = http.path.clone().unwrap_or_else(|| "/".to_owned());
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            ProbeAction::HttpGet { port: probe_port(&http.port, ports)?, path, headers }
        } else if let Some(tcp) = &probe.tcp_socket {
            ProbeAction::Tcp { port: probe_port(&tcp.port, ports)? }
        } else {
            return Err(unsupported(container, "readinessProbe", "expected httpGet or tcpSocket"));
        };
        let positive = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        Ok(Self {
            action,
            initial_delay: seconds(probe.initial_delay_seconds.map(i64::from), 0),
            period: Duration::from_secs(positive(probe.period_seconds, 10).into()),
            timeout: Duration::from_secs(positive(probe.timeout_seconds, 1).into()),
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
        })
    }
}

fn probe_port(port: &IntOrString, ports: &[Port]) -> Result<u16, WorkloadError> {
    match port {
        IntOrString::Int(value) => number("readinessProbe port", *value),
        IntOrString::String(name) => {
            let named = ports.iter().find(|port| port.name == *name).map(|port| port.number);
            named.ok_or_else(|| WorkloadError::Port { field: "readinessProbe port", value: name.clone() })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn template(app: &str, ports: &[(&str, u16)]) -> Template {
        Template {
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            command: vec!["true".to_owned()],
            env: Vec::new(),
            working_dir: None,
            ports: ports.iter().map(|(name, number)| Port { name: (*name).to_owned(), number: *number }).collect(),
            probe: None,
            grace: Duration::from_secs(1),
            pre_stop: Duration::ZERO,
        }
    }

    fn parse(container: &str) -> Result<Workload, WorkloadError> {
        let yaml = format!(
            "{{ spec: {{ selector: {{}}, template: {{ metadata: {{ labels: {{ app: hello }} }},
                spec: {{ containers: [{container}] }} }} }} }}"
        );
        Workload::parse(ObjectKey::new("default", "hello"), &serde_yaml_ng::from_str(&yaml).unwrap())
    }

    #[test]
    fn a_deployment_becomes_a_process_with_ports_and_probe() {
        let workload = parse(
            "{ name: app, command: [serve], args: ['--port', '80'], ports: [{ name: http, containerPort: 80 }],
               env: [{ name: A, value: b }, { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }],
               readinessProbe: { httpGet: { path: healthz, port: http }, periodSeconds: 1 },
               lifecycle: { preStop: { sleep: { seconds: 2 } } } }",
        )
        .unwrap();
        assert_eq!(workload.replicas, 1);
        let template = workload.template;
        assert_eq!(template.command, ["serve", "--port", "80"]);
        assert_eq!(template.env[1], ("IP".to_owned(), EnvSource::PodIp));
        let probe = template.probe.unwrap();
        assert_eq!(probe.action, ProbeAction::HttpGet { port: 80, path: "/healthz".into(), headers: Vec::new() });
        assert_eq!((probe.period.as_secs(), probe.failure_threshold), (1, 3));
        assert_eq!((template.grace.as_secs(), template.pre_stop.as_secs()), (30, 2));
    }

    #[test]
    fn what_cannot_be_run_as_a_process_is_refused_by_name() {
        for (container, part) in [
            ("", "0 containers"),
            ("{ name: a, command: [x] }, { name: b, command: [y] }", "2 containers"),
            ("{ name: app, image: nginx }", "container app has no command"),
            ("{ name: app, command: [x], ports: [{ containerPort: 70000 }] }", "containerPort is 70000"),
            (
                "{ name: app, command: [x], readinessProbe: { exec: { command: [y] } } }",
                "expected httpGet or tcpSocket",
            ),
            ("{ name: app, command: [x], readinessProbe: { tcpSocket: { port: web } } }", "port is web"),
            ("{ name: app, command: [x], env: [{ name: S, valueFrom: { secretKeyRef: { key: k } } }] }", "env S"),
        ] {
            let error = parse(container).unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} should name {part:?}");
        }
    }
}
