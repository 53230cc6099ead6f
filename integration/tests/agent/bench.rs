//! A node with a client and a pod, whose rules refuse connections to the Service and to another.

use std::net::{IpAddr, SocketAddr};

use integration::{
    World,
    net::{Host, NODE, Net, Rule},
    world::NAMESPACE,
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::clients::{Outcome, PORT, connect};

pub(crate) const VIP: &str = "10.96.0.1";
pub(crate) const VIP6: &str = "fd00:96::1";
pub(crate) const FRONTEND: &str = "10.96.0.1:80";
pub(crate) const FRONTEND6: &str = "[fd00:96::1]:80";
pub(crate) const OTHER: &str = "10.96.0.2:80";

/// A node with a client and a pod, whose rules refuse connections to the Service and to another.
pub(crate) struct Bench {
    pub(crate) net: Net,
    pub(crate) client: Host,
    pub(crate) pod: Host,
    pub(crate) world: World,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(json!({}))
    }

    pub(crate) fn with(more: Value) -> Self {
        let mut net = Net::new();
        let (client, pod) = (net.pod(), net.pod());
        let world = World::new();
        world.direct("web", &[VIP, VIP6], more);
        net.rules(&cold(), "");
        Self { net, client, pod, world }
    }

    pub(crate) fn endpoints(&self, pods: &[&Host]) {
        self.endpoints_of(pods, VIP.parse().unwrap());
    }

    pub(crate) fn endpoints_of(&self, pods: &[&Host], like: IpAddr) {
        let addresses: Vec<_> = pods.iter().map(|pod| SocketAddr::new(pod.like(like), PORT)).collect();
        self.world.endpoints("web", &addresses);
    }

    /// The node's rules lead to the pod.
    pub(crate) fn warm(&self) {
        let to = SocketAddr::new(self.pod.addresses[0], PORT);
        self.net.rules(&[Rule { frontend: FRONTEND.parse().unwrap(), pods: vec![to] }], "");
    }

    /// A connection of the client that will be held.
    pub(crate) fn held(&self) -> oneshot::Receiver<Outcome> {
        connect(&self.client, FRONTEND)
    }

    /// The route with a readiness probe of its pods in the status, as the operator writes it.
    pub(crate) fn probed(&self) {
        self.world.object(&json!({
            "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
            "metadata": { "name": "web", "namespace": NAMESPACE },
            "spec": {
                "target": { "service": "web", "port": 80 }, "dataPath": "Direct", "protocol": "TCP",
                "scalingMetric": { "concurrency": { "targetValue": 10 } },
            },
            "status": { "readinessProbe": { "tcpSocket": { "port": PORT }, "periodSeconds": 10 } },
        }));
    }

    /// The pod as its slice has it before the kubelet has reported it.
    pub(crate) fn starting(&self) {
        self.world.object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "web-0", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [self.pod.addresses[0]], "conditions": { "ready": false } }],
            "ports": [{ "name": "http", "port": PORT, "protocol": "TCP" }],
        }));
    }
}

pub(crate) fn cold() -> Vec<Rule> {
    let refused = |frontend: &str| Rule { frontend: frontend.parse().unwrap(), pods: Vec::new() };
    [FRONTEND, FRONTEND6, OTHER, &format!("{NODE}:30080")].map(refused).to_vec()
}
