//! EndpointSlices, reduced: to whether a pod of the Service is ready, to the interceptors among them, or to what the operator
//! once wrote into one of its own.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use api::{convert, names::SERVICE_NAME_LABEL};
use interceptor_core::ObjectKey;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::Meta;

/// A slice of a Service's own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// The Service it belongs to.
    pub service: ObjectKey,
    /// Whether a pod in it is ready, and does not end.
    pub ready: bool,
    /// The nodes of these pods.
    pub nodes: BTreeSet<Arc<str>>,
}

/// A slice of the interceptors' Service, or of that of the node agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnSlice {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// The Service's name.
    pub service: String,
    /// The nodes on which one is ready: one that is not counts nothing, or is not listened to.
    pub nodes: BTreeSet<Arc<str>>,
    /// Those that are ready.
    pub interceptors: Vec<Interceptor>,
}

/// An interceptor that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interceptor {
    /// Its address.
    pub address: IpAddr,
    /// Where it is: `nodeName`, `zone` and `targetRef` of its endpoint, for those who choose by it.
    pub place: Value,
}

/// A slice that lists interceptors in place of a Service's pods.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowSlice {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its metadata.
    pub meta: Meta,
    /// The route it is for: name and UID.
    pub route: (ObjectKey, String),
    /// Labels and owner, address type, ports and endpoints.
    pub body: Value,
}

// === impl Slice ===

impl Slice {
    /// Reads a slice as far as it can be read; `None` if it belongs to no Service, or is none of its own pods.
    pub fn read(object: &DynamicObject) -> Option<Self> {
        let key = convert::key(&object.metadata).ok()?;
        let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
        if convert::is_shadow(&object.metadata) {
            return None;
        }
        let ready = || endpoints(object).filter(|endpoint| is_ready(endpoint));
        let nodes = ready().filter_map(node).collect();
        let service = ObjectKey::new(key.namespace(), service.as_str());
        Some(Self { service, ready: ready().next().is_some(), nodes, key })
    }
}

// === impl OwnSlice ===

impl OwnSlice {
    /// Reads one; interceptors without an address are left out.
    pub fn read(object: &DynamicObject) -> Option<Self> {
        let key = convert::key(&object.metadata).ok()?;
        let interceptor = |endpoint: &Value| {
            let address = endpoint.pointer("/addresses/0")?.as_str()?.parse().ok()?;
            let mut place = json!({});
            for field in ["nodeName", "zone"] {
                if let Some(value) = endpoint.get(field).filter(|value| value.is_string()) {
                    place[field] = value.clone();
                }
            }
            if let Some(pod) = endpoint.get("targetRef").filter(|pod| pod["kind"] == "Pod") {
                let mut target = json!({ "kind": "Pod" });
                for field in ["name", "namespace", "uid"] {
                    if let Some(value) = pod.get(field).filter(|value| value.is_string()) {
                        target[field] = value.clone();
                    }
                }
                place["targetRef"] = target;
            }
            Some(Interceptor { address, place })
        };
        let ready = || endpoints(object).filter(|endpoint| is_ready(endpoint));
        let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?.clone();
        let interceptors = ready().filter_map(interceptor).collect();
        Some(Self { key, service, nodes: ready().filter_map(node).collect(), interceptors })
    }
}

// === impl ShadowSlice ===

impl ShadowSlice {
    /// Reads one of ours; `None` for all others.
    pub fn read(object: &DynamicObject) -> Option<Self> {
        if !convert::is_shadow(&object.metadata) {
            return None;
        }
        let key = convert::key(&object.metadata).ok()?;
        let owner = object.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "InterceptorRoute")?;
        let field = |name: &str| object.data.get(name).cloned().unwrap_or_default();
        Some(Self {
            route: (ObjectKey::new(key.namespace(), owner.name.as_str()), owner.uid.clone()),
            meta: Meta::of(&object.metadata),
            body: json!({
                "labels": object.metadata.labels,
                "addressType": field("addressType"),
                "ports": field("ports"),
                "endpoints": field("endpoints"),
            }),
            key,
        })
    }
}

fn endpoints(object: &DynamicObject) -> impl Iterator<Item = &Value> {
    object.data.get("endpoints").and_then(Value::as_array).into_iter().flatten()
}

fn node(endpoint: &Value) -> Option<Arc<str>> {
    endpoint["nodeName"].as_str().map(Arc::from)
}

fn is_ready(endpoint: &Value) -> bool {
    let conditions = &endpoint["conditions"];
    conditions["ready"].as_bool().unwrap_or(true) && conditions["terminating"].as_bool() != Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(more: &Value) -> DynamicObject {
        let mut object = json!({
            "metadata": {"namespace": "n", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
        });
        for (field, value) in more.as_object().unwrap() {
            object[field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_pod_that_ends_is_not_ready_although_it_is_published() {
        let of = |conditions: Value| {
            let endpoints = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
            Slice::read(&slice(&json!({"endpoints": endpoints}))).unwrap().ready
        };
        assert!(of(json!({})) && of(json!({"ready": true, "terminating": false})));
        assert!(!of(json!({"ready": false})) && !of(json!({"ready": true, "terminating": true})));
        assert!(!Slice::read(&slice(&json!({"endpoints": null}))).unwrap().ready);
    }

    #[test]
    fn whatever_an_endpoint_holds_only_interceptors_with_an_address_are_listed() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "nodeName": "node1", "zone": 7,
                "targetRef": {"kind": "Pod", "name": "i-1", "namespace": "keda", "uid": "u", "resourceVersion": "9"}},
            {"addresses": ["10.0.0.2"], "nodeName": "node2", "conditions": {"ready": false}},
            {"addresses": []}, {"addresses": ["nowhere"]}, 7,
        ]);
        let read = OwnSlice::read(&slice(&json!({"endpoints": endpoints}))).unwrap();
        let place = json!({"nodeName": "node1",
            "targetRef": {"kind": "Pod", "name": "i-1", "namespace": "keda", "uid": "u"}});
        assert_eq!(read.interceptors, [Interceptor { address: "10.0.0.1".parse().unwrap(), place }]);
        assert_eq!(read.nodes, BTreeSet::from(["node1".into()]), "one that is not ready is none");
    }
}
