//! Kubelets' probes of a workload's pods that do not show early that they are such. The operator writes them into a route's status;
//! agents leave them out of what they count.

use interceptor_core::kubelet;
use k8s_openapi::api::core::v1 as core;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::readiness_probe::number;

/// A probe by HTTP in clear, of whose request the first 256 bytes do not name the kubelet, or may not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnnamedProbe {
    /// The host that is asked for; absent for the pod's address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub host: Option<String>,
    /// Path and query.
    #[schemars(length(max = 1024))]
    pub path: String,
    /// Port of the pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The `User-Agent`, empty for none; absent for the kubelet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub user_agent: Option<String>,
}

// === impl UnnamedProbe ===

impl UnnamedProbe {
    /// Those that a pod template has, each once and at most 16. Left out are those that go to another host than the pod, and those
    /// that kubelets would not send as they are written.
    pub fn of_pod(pod: &core::PodSpec) -> Vec<Self> {
        let sidecars = pod.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let mut probes = Vec::new();
        for container in pod.containers.iter().chain(sidecars) {
            let all = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
            let actions = all.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref());
            let found = actions.filter_map(|action| Self::of_action(container, action));
            found.for_each(|probe| {
                if !probes.contains(&probe) {
                    probes.push(probe);
                }
            });
        }
        probes.truncate(kubelet::UnnamedProbe::MOST);
        probes
    }

    fn of_action(container: &core::Container, action: &core::HTTPGetAction) -> Option<Self> {
        let is_to_pod = action.host.as_deref().is_none_or(str::is_empty);
        let is_clear = action.scheme.as_deref().is_none_or(|scheme| matches!(scheme, "" | "HTTP"));
        if !is_to_pod || !is_clear {
            return None;
        }
        // Of several the first counts, as `http.Header.Get` has it.
        let header = |name: &str| {
            let mut headers = action.http_headers.iter().flatten();
            headers.find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.clone())
        };
        let probe = Self {
            host: header("host").filter(|host| !host.is_empty()),
            path: action.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
            port: number(container, &action.port)?,
            user_agent: header("user-agent"),
        };
        (!probe.read()?.is_named()).then_some(probe)
    }

    /// As an agent needs it; `None` for what no kubelet would send.
    pub(crate) fn read(&self) -> Option<kubelet::UnnamedProbe> {
        let Self { host, path, port, user_agent } = self;
        kubelet::UnnamedProbe::new(*port, path, host.as_deref(), user_agent.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_pod(containers: &str) -> Vec<UnnamedProbe> {
        UnnamedProbe::of_pod(&serde_yaml_ng::from_str(containers).unwrap())
    }

    fn of_get(get: &str) -> Option<UnnamedProbe> {
        of_pod(&format!("{{containers: [{{name: a, livenessProbe: {{httpGet: {{port: 80, {get}}}}}}}]}}")).pop()
    }

    #[test]
    fn probes_of_all_kinds_and_of_sidecars_are_found_once_each_if_they_have_names_of_their_own() {
        let found = of_pod(
            "
            containers:
            - name: app
              ports: [{name: web, containerPort: 8080}]
              livenessProbe: {httpGet: {port: web, path: /live, httpHeaders: [{name: user-AGENT, value: a/1}, {name: User-Agent, value: b}]}}
              readinessProbe: {httpGet: {port: 8080, path: /live, httpHeaders: [{name: User-Agent, value: a/1}]}}
              startupProbe: {httpGet: {port: 8080, httpHeaders: [{name: HOST, value: app.example}, {name: User-Agent, value: ''}]}}
            - {name: named, livenessProbe: {httpGet: {port: 9, path: /}}, readinessProbe: {tcpSocket: {port: 9}}}
            initContainers:
            - {name: once, livenessProbe: {httpGet: {port: 7, httpHeaders: [{name: User-Agent, value: c}]}}}
            - {name: side, restartPolicy: Always, livenessProbe: {httpGet: {port: 7, httpHeaders: [{name: User-Agent, value: d}]}}}
            ",
        );
        let probe = |host: Option<&str>, path: &str, port, name: &str| UnnamedProbe {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            port,
            user_agent: Some(name.to_owned()),
        };
        let expected =
            [probe(None, "/live", 8080, "a/1"), probe(Some("app.example"), "/", 8080, ""), probe(None, "/", 7, "d")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_long_path_or_host_hides_the_kubelets_name() {
        let long = "a".repeat(230);
        let found = of_get(&format!("path: /{long}")).unwrap();
        assert_eq!((found.user_agent, found.path.len()), (None, 231));
        assert!(of_get(&format!("httpHeaders: [{{name: Host, value: {long}}}]")).is_some());
        assert_eq!(of_get("path: /short"), None);
    }

    #[test]
    fn what_goes_elsewhere_or_is_encrypted_or_cannot_be_sent_is_left_out() {
        let name = "httpHeaders: [{name: User-Agent, value: a}]";
        assert!(of_get(name).is_some());
        for other in ["host: elsewhere", "scheme: HTTPS", "path: /a b", "path: '/a#b'"] {
            assert_eq!(of_get(&format!("{other}, {name}")), None, "{other}");
        }
        assert_eq!(of_get("httpHeaders: [{name: User-Agent, value: \"a\\nb\"}]"), None);
        assert_eq!(of_get(&format!("httpHeaders: [{{name: User-Agent, value: {}}}]", "a".repeat(1025))), None);
    }

    #[test]
    fn there_are_at_most_sixteen() {
        let probed = |port| {
            format!(
                "{{name: a, livenessProbe: {{httpGet: {{port: {port}, httpHeaders: [{{name: user-agent, value: a}}]}}}}}}"
            )
        };
        let containers: Vec<_> = (1..=20).map(probed).collect();
        let found = of_pod(&format!("{{containers: [{}]}}", containers.join(", ")));
        assert_eq!((found.len(), found[15].port), (16, 16));
    }
}
