//! From manifests to the cluster's state: the one writer of objects, fed by the same watch as interceptor and scaler.

use std::{collections::BTreeMap, sync::Arc};

use api::{HTTPScaledObject, InterceptorRoute, ScaledObject, interceptor_route::HeaderRule};
use interceptor_core::ObjectKey;
use k8s_openapi::api::apps::v1::Deployment;
use runtime::watch::{Invalid, Kind, Object, WatchEvent};
use tokio::sync::mpsc;

use crate::{
    cluster::{Address, Cluster, RouteName},
    scaling::scaled::{ScaledWorkload, derive},
    timeline::Actor,
    workload::Workload,
};

/// What was read so far.
#[derive(Debug)]
pub struct Manifests {
    cluster: Cluster,
    /// `spec.replicas` as it was written last; only a change of it is an order.
    replicas: BTreeMap<ObjectKey, u32>,
    /// Each ScaledObject that was written, and each that an HTTPScaledObject stands for, which wins.
    written: BTreeMap<ObjectKey, Arc<ScaledWorkload>>,
    derived: BTreeMap<ObjectKey, Arc<ScaledWorkload>>,
}

// === impl Manifests ===

impl Manifests {
    /// Nothing was read yet.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, replicas: BTreeMap::new(), written: BTreeMap::new(), derived: BTreeMap::new() }
    }

    /// Applies batches until the watch ends.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Vec<WatchEvent>>) {
        while let Some(batch) = batches.recv().await {
            for event in batch {
                self.apply(event);
            }
        }
    }

    /// Applies one event.
    pub fn apply(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Applied(object) => {
                // An object without a name is told as invalid by the watch.
                let Ok(key) = object.key() else { return };
                self.applied(key, object);
            }
            WatchEvent::Deleted(kind, key) => self.deleted(kind, &key),
            WatchEvent::Invalid(invalid) => self.cluster.problem(&place(&invalid), Some(invalid.message.clone())),
            WatchEvent::Repaired(invalid) => self.cluster.problem(&place(&invalid), None),
            WatchEvent::Synced => {}
        }
    }

    fn applied(&mut self, key: ObjectKey, object: Object) {
        match object {
            Object::Deployment(deployment) => self.deployment(&key, &deployment),
            Object::ScaledObject(object) => self.scaled_object(key, &object),
            Object::HttpScaledObject(object) => self.http_scaled_object(key, &object),
            Object::InterceptorRoute(object) => {
                let address = interceptor_route_address(&object);
                self.route(Kind::InterceptorRoute, key, address);
            }
            Object::Service(service) => self.cluster.edit(|state| drop(state.services.insert(key, Arc::new(*service)))),
            Object::EndpointSlice(_) | Object::Secret(_) | Object::ConfigMap(_) | Object::Namespace(_) => {}
        }
    }

    fn deleted(&mut self, kind: Kind, key: &ObjectKey) {
        self.cluster.problem(&format!("{kind} {key}"), None);
        match kind {
            Kind::Deployment => {
                self.replicas.remove(key);
                self.cluster.edit(|state| {
                    state.workloads.remove(key);
                    state.replicas.remove(key);
                });
            }
            Kind::ScaledObject => {
                self.written.remove(key);
                self.publish_scaled();
            }
            Kind::HttpScaledObject => {
                self.derived.remove(key);
                self.publish_scaled();
                self.remove_route(kind, key);
            }
            Kind::InterceptorRoute => self.remove_route(kind, key),
            Kind::Service => self.cluster.edit(|state| drop(state.services.remove(key))),
            Kind::EndpointSlice | Kind::Secret | Kind::ConfigMap | Kind::Namespace => {}
        }
    }

    /// An edit that cannot be run leaves the last good version running.
    fn deployment(&mut self, key: &ObjectKey, deployment: &Deployment) {
        let object = format!("{} {key}", Kind::Deployment);
        let workload = match Workload::parse(key.clone(), deployment) {
            Ok(workload) => workload,
            Err(error) => return self.cluster.problem(&object, Some(error.to_string())),
        };
        self.cluster.problem(&object, None);
        let replicas = workload.replicas;
        let before = self.replicas.insert(key.clone(), replicas);
        self.cluster.edit(|state| {
            state.workloads.insert(key.clone(), Arc::new(workload));
            state.replicas.entry(key.clone()).or_insert(replicas);
        });
        if before.is_some_and(|before| before != replicas) {
            self.cluster.scale(key, replicas, Actor::Manifest, || "the Deployment was edited".to_owned());
        }
    }

    fn scaled_object(&mut self, key: ObjectKey, object: &ScaledObject) {
        let parsed = self.parse_scaled(Kind::ScaledObject, &key, object);
        match parsed {
            Some(scaled) => drop(self.written.insert(key, scaled)),
            None => drop(self.written.remove(&key)),
        }
        self.publish_scaled();
    }

    fn http_scaled_object(&mut self, key: ObjectKey, object: &HTTPScaledObject) {
        let parsed = derive(object).and_then(|derived| self.parse_scaled(Kind::HttpScaledObject, &key, &derived));
        match parsed {
            Some(scaled) => drop(self.derived.insert(key.clone(), scaled)),
            None => drop(self.derived.remove(&key)),
        }
        self.publish_scaled();
        let path = object.spec.path_prefixes.first().map_or("/", String::as_str);
        let address = address(object.spec.hosts.first(), path, &object.spec.headers);
        self.route(Kind::HttpScaledObject, key, Some(address));
    }

    fn parse_scaled(&self, kind: Kind, key: &ObjectKey, object: &ScaledObject) -> Option<Arc<ScaledWorkload>> {
        let parsed = ScaledWorkload::parse(key.clone(), object);
        self.cluster.problem(&format!("{kind} {key}"), parsed.as_ref().err().map(ToString::to_string));
        parsed.ok().flatten().map(Arc::new)
    }

    fn publish_scaled(&self) {
        let mut all = self.written.clone();
        all.extend(self.derived.clone());
        self.cluster.edit(|state| state.scaled = all);
    }

    fn route(&self, kind: Kind, key: ObjectKey, address: Option<Address>) {
        let name = RouteName { key, kind: kind.name() };
        self.cluster.edit(|state| match address {
            Some(address) => drop(state.routes.insert(name, address)),
            None => drop(state.routes.remove(&name)),
        });
    }

    fn remove_route(&self, kind: Kind, key: &ObjectKey) {
        self.route(kind, key.clone(), None);
    }
}

/// Where a document is, for people.
fn place(invalid: &Invalid) -> String {
    let Invalid { file, document, object, message: _ } = invalid;
    let file = file.as_ref().and_then(|file| file.file_name()).unwrap_or_default().to_string_lossy();
    match (document, object) {
        (0, _) => file.into_owned(),
        (document, None) => format!("{file}, document {document}"),
        (document, Some((kind, key))) => format!("{file}, document {document}, {kind} {key}"),
    }
}

/// Without rules a route cannot be reached.
fn interceptor_route_address(object: &InterceptorRoute) -> Option<Address> {
    let rule = object.spec.rules.first()?;
    let path = rule.paths.first().map_or("/", |path| path.value.as_str());
    Some(address(rule.hosts.first(), path, &rule.headers))
}

fn address(host: Option<&String>, path: &str, headers: &[HeaderRule]) -> Address {
    let host = host.filter(|host| *host != "*").map(|host| match host.strip_prefix("*.") {
        Some(suffix) => format!("any.{suffix}"),
        None => host.clone(),
    });
    let header = |rule: &HeaderRule| (rule.name.clone(), rule.value.clone().unwrap_or_else(|| "any".to_owned()));
    Address { host, path: path.to_owned(), headers: headers.iter().map(header).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Timeline;

    fn deployment(replicas: u32, command: &str) -> WatchEvent {
        let yaml = format!(
            "{{ metadata: {{ name: app, namespace: default }}, spec: {{ replicas: {replicas}, selector: {{}},
                template: {{ spec: {{ containers: [{{ name: c, command: {command} }}] }} }} }} }}"
        );
        WatchEvent::Applied(Object::Deployment(serde_yaml_ng::from_str(&yaml).unwrap()))
    }

    fn key() -> ObjectKey {
        ObjectKey::new("default", "app")
    }

    fn manifests() -> (Cluster, Manifests) {
        let cluster = Cluster::new(Timeline::default());
        (cluster.clone(), Manifests::new(cluster))
    }

    #[test]
    fn only_a_change_of_the_written_replicas_is_an_order() {
        let (cluster, mut manifests) = manifests();
        manifests.apply(deployment(0, "[a]"));
        cluster.scale(&key(), 3, Actor::Hpa, String::new);
        manifests.apply(deployment(0, "[b]"));
        assert_eq!(cluster.load().replicas[&key()], 3, "the autoscaler's number stays");
        assert_eq!(cluster.load().workloads[&key()].template.command, ["b"]);
        manifests.apply(deployment(1, "[b]"));
        assert_eq!(cluster.load().replicas[&key()], 1);
    }

    #[test]
    fn an_edit_that_cannot_be_run_is_told_and_leaves_the_last_good_version() {
        let (cluster, mut manifests) = manifests();
        manifests.apply(deployment(1, "[a]"));
        manifests.apply(deployment(1, "[]"));
        assert_eq!(cluster.load().workloads[&key()].template.command, ["a"]);
        assert!(cluster.load().problems["Deployment default/app"].contains("no command"));
        manifests.apply(deployment(1, "[a]"));
        assert!(cluster.load().problems.is_empty());
        manifests.apply(WatchEvent::Deleted(Kind::Deployment, key()));
        assert!(cluster.load().workloads.is_empty());
        assert!(cluster.load().replicas.is_empty());
    }

    #[test]
    fn a_route_can_be_reached_by_the_address_that_is_shown() {
        let header = HeaderRule { name: "X-A".into(), value: None };
        let shown = address(Some(&"*.example.com".to_owned()), "/api", &[header]);
        assert_eq!(shown.host.as_deref(), Some("any.example.com"));
        assert_eq!(shown.headers, [("X-A".to_owned(), "any".to_owned())]);
        assert_eq!(address(Some(&"*".to_owned()), "/", &[]).host, None);
    }
}
