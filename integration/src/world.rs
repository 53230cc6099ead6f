//! A folder of manifests that stands for a cluster: routes, Services and EndpointSlices, written whole by a rename, as
//! an editor or a mounted ConfigMap does it.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The namespace of everything that does not say otherwise.
pub const NAMESPACE: &str = "shop";

/// The Service of the interceptors' admin ports.
pub const INTERCEPTORS: &str = "interceptor-admin";

/// The folder.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
}

// === impl World ===

impl World {
    /// Nothing at all.
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// One route for a host, to port 80 of the Service of the same name, which has no endpoints yet.
    pub fn with_app(name: &str, host: &str) -> Self {
        let world = Self::new();
        world.app(name, host);
        world
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A route for a host and its Service.
    pub fn app(&self, name: &str, host: &str) {
        self.route(name, json!([{ "hosts": [host] }]));
        self.service(name);
    }

    /// A route with these rules.
    pub fn route(&self, name: &str, rules: Value) {
        self.route_with(name, rules, json!({}));
    }

    /// A route with these rules and more of a spec.
    pub fn route_with(&self, name: &str, rules: Value, more: Value) {
        let mut spec = json!({
            "target": { "service": name, "port": 80 },
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        });
        spec["rules"] = rules;
        let (Value::Object(all), Value::Object(more)) = (&mut spec, more) else { panic!("specs are objects") };
        all.extend(more);
        self.object(&json!({
            "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
            "metadata": { "name": name, "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": spec,
        }));
    }

    /// A direct route with these rules and more of a spec, for which interceptors stand in at a port.
    pub fn standing_in(&self, name: &str, port: u16, rules: Value, more: Value) {
        let mut spec = json!({
            "target": { "service": name, "port": 80 }, "dataPath": "Direct",
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        });
        spec["rules"] = rules;
        let (Value::Object(all), Value::Object(more)) = (&mut spec, more) else { panic!("specs are objects") };
        all.extend(more);
        self.object(&json!({
            "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
            "metadata": { "name": name, "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": spec,
            "status": { "shadow": { "port": port, "published": true } },
        }));
    }

    /// A Service with port 80, called http.
    pub fn service(&self, name: &str) {
        self.service_with(name, json!([{ "name": "http", "port": 80, "targetPort": 8080 }]));
    }

    /// A Service with these ports.
    pub fn service_with(&self, name: &str, ports: Value) {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "selector": { "app": name } },
        });
        service["spec"]["ports"] = ports;
        self.object(&service);
    }

    /// A Service whose pods speak cleartext HTTP/2.
    pub fn h2c_service(&self, name: &str) {
        let port = json!({ "name": "http", "port": 80, "targetPort": 8080, "appProtocol": "kubernetes.io/h2c" });
        self.service_with(name, json!([port]));
    }

    /// The ready endpoints of a Service, in place of those it had.
    pub fn endpoints(&self, service: &str, addrs: &[SocketAddr]) {
        let slices = addrs.iter().enumerate().map(|(index, addr)| slice(service, index, *addr)).collect();
        let items: Vec<Value> = slices;
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.file(&format!("endpoints-{service}.json"), &list.to_string());
    }

    /// The interceptors that a scaler shall find.
    pub fn interceptors(&self, admin: &[SocketAddr]) {
        self.service(INTERCEPTORS);
        self.endpoints(INTERCEPTORS, admin);
    }

    /// The only one that a scaler can find is about to end.
    pub fn last_interceptor_leaves(&self, admin: SocketAddr) {
        let mut slice = slice(INTERCEPTORS, 0, admin);
        slice["endpoints"][0]["conditions"] = json!({ "ready": false, "serving": true, "terminating": true });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [slice] });
        self.file(&format!("endpoints-{INTERCEPTORS}.json"), &list.to_string());
    }

    /// Any object, in a file of its own.
    pub fn object(&self, object: &Value) {
        let kind = object["kind"].as_str().unwrap();
        let name = object["metadata"]["name"].as_str().unwrap();
        self.file(&format!("{kind}-{name}.json"), &object.to_string());
    }

    /// Any text, in a file.
    pub fn file(&self, name: &str, text: &str) {
        let hidden = self.path().join(format!(".{name}.new"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.path().join(name)).unwrap();
    }

    /// Removes an object.
    pub fn remove(&self, kind: &str, name: &str) {
        fs::remove_file(self.path().join(format!("{kind}-{name}.json"))).unwrap();
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// A slice with one ready endpoint.
fn slice(service: &str, index: usize, addr: SocketAddr) -> Value {
    let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{index}"), "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": family,
        "endpoints": [{ "addresses": [addr.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "http", "port": addr.port(), "protocol": "TCP" }],
    })
}
