//! One namespace of a real API server: the objects a test writes into it, the way to it which a test can close, and users
//! who may do no more than they must.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use api::crd;
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use parking_lot::Mutex;
use runtime::task;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UdpSocket},
    sync::RwLock,
    task::JoinHandle,
};

use crate::eventually;

/// Where tests find the API server.
const KUBECONFIG: &str = "ROUSE_TEST_KUBECONFIG";

/// Held for reading by tests that rely on the CRDs, for writing by those that change them.
pub static CRDS: RwLock<()> = RwLock::const_new(());

/// A namespace of an API server.
pub struct Cluster {
    /// Its name.
    pub namespace: String,
    client: Client,
    kubeconfig: Kubeconfig,
    server: SocketAddr,
    folder: TempDir,
}

/// A way to the API server that can be closed, as if the server had gone.
#[derive(Debug)]
pub struct Gate {
    addr: SocketAddr,
    server: SocketAddr,
    open: Mutex<Option<JoinHandle<()>>>,
}

// === impl Cluster ===

impl Cluster {
    /// A new namespace.
    pub async fn new(test: &str) -> Self {
        let path = std::env::var_os(KUBECONFIG).unwrap_or_else(|| panic!("{KUBECONFIG} names a kubeconfig"));
        let kubeconfig = Kubeconfig::read_from(Path::new(&path)).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await.unwrap();
        let host = config.cluster_url.host().unwrap().parse::<IpAddr>().unwrap();
        let server = SocketAddr::new(host, config.cluster_url.port_u16().unwrap_or(443));
        let client = Client::try_from(config).unwrap();
        let namespace = format!("{test}-{}", std::process::id());
        let it = Self { namespace, client, kubeconfig, server, folder: tempfile::tempdir().unwrap() };
        it.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": it.namespace } })).await;
        it
    }

    /// The same with our CRDs installed.
    pub async fn with_crds(test: &str) -> Self {
        let it = Self::new(test).await;
        it.install(&crd::all().map(|(_, crd)| crd)).await;
        it
    }

    /// Installs definitions, and waits until they are served.
    pub async fn install(&self, crds: &[Value]) {
        for crd in crds {
            self.apply(crd).await;
            let name = crd["metadata"]["name"].as_str().unwrap();
            eventually(&format!("{name} is served"), async || {
                let crd = self.api(crd).get(name).await.ok()?;
                let conditions = crd.data["status"]["conditions"].as_array()?.clone();
                conditions.iter().any(|it| it["type"] == "Established" && it["status"] == "True").then_some(())
            })
            .await;
        }
    }

    /// A kubeconfig file for the API server, by way of a gate if one is given, in the name of a user if one is named.
    pub fn kubeconfig(&self, gate: Option<&Gate>, user: Option<&str>) -> PathBuf {
        let mut kubeconfig = self.kubeconfig.clone();
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            if let Some(gate) = gate {
                cluster.server = Some(format!("https://{}", gate.addr));
                cluster.tls_server_name = Some(self.server.ip().to_string());
            }
        }
        for auth in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
            auth.impersonate = user.map(Into::into);
        }
        let path = self.folder.path().join(format!("{}.json", user.unwrap_or("admin").replace(':', "-")));
        std::fs::write(&path, serde_json::to_string(&kubeconfig).unwrap()).unwrap();
        path
    }

    /// An address of this machine that an EndpointSlice may list, which a loopback address is not.
    pub async fn address(&self) -> IpAddr {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        socket.connect(self.server).await.unwrap();
        socket.local_addr().unwrap().ip()
    }

    /// Creates or changes an object.
    pub async fn apply(&self, object: &Value) {
        self.try_apply(object).await.unwrap_or_else(|error| panic!("{object}: {error}"));
    }

    /// The same, which may fail.
    pub async fn try_apply(&self, object: &Value) -> Result<DynamicObject, kube::Error> {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.api(object).patch(name, &PatchParams::apply("tests").force(), &Patch::Apply(object)).await
    }

    /// Sets an object's status.
    pub async fn status(&self, object: &Value, status: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let patch = json!({ "status": status });
        self.api(object).patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// Deletes an object.
    pub async fn delete(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.api(object).delete(name, &DeleteParams::default()).await.unwrap();
        eventually(&format!("{name} is gone"), async || {
            self.api(object).get_opt(name).await.ok()?.is_none().then_some(())
        })
        .await;
    }

    /// A route for a host to a port of the Service of the same name.
    pub fn route(&self, name: &str, host: &str, port: &Value) -> Value {
        let mut target = port.clone();
        target["service"] = name.into();
        json!({
            "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": {
                "rules": [{ "hosts": [host] }],
                "target": target,
                "scalingMetric": { "concurrency": { "targetValue": 10 } },
            },
        })
    }

    /// A Service whose slices the test writes.
    pub fn service(&self, name: &str, port: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": { "clusterIP": "None", "ports": [{ "name": port, "port": 80 }] },
        })
    }

    /// A slice of a Service with one endpoint.
    pub fn slice(&self, service: &str, port: &str, addr: SocketAddr, ready: bool) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", addr.port()), "namespace": self.namespace,
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [addr.ip().to_string()], "conditions": { "ready": ready } }],
            "ports": [{ "name": port, "port": addr.port(), "protocol": "TCP" }],
        })
    }

    /// A user who may do with these resources of the namespace what a watch needs, and nothing else.
    pub async fn user(&self, name: &str, rules: &Value) -> String {
        let metadata = json!({ "name": name, "namespace": self.namespace });
        let rbac = "rbac.authorization.k8s.io";
        self.apply(
            &json!({ "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata, "rules": rules }),
        )
        .await;
        let account = json!({ "kind": "ServiceAccount", "name": name, "namespace": self.namespace });
        self.apply(&json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": rbac, "kind": "Role", "name": name }, "subjects": [account],
        }))
        .await;
        format!("system:serviceaccount:{}:{name}", self.namespace)
    }

    /// Lets a user read the Namespace itself, which is no object of that namespace.
    pub async fn let_read_its_namespace(&self, user: &str) {
        let (rbac, name) = ("rbac.authorization.k8s.io", format!("{}-namespace", self.namespace));
        let rule = json!({
            "apiGroups": [""], "resources": ["namespaces"], "resourceNames": [self.namespace], "verbs": ["get", "list", "watch"],
        });
        let metadata = json!({ "name": name });
        let version = format!("{rbac}/v1");
        self.apply(&json!({ "apiVersion": version, "kind": "ClusterRole", "metadata": metadata, "rules": [rule] }))
            .await;
        self.apply(&json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": name },
            "subjects": [{ "apiGroup": rbac, "kind": "User", "name": user }],
        }))
        .await;
    }

    /// A way to the API server.
    pub async fn gate(&self) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Gate { addr: listener.local_addr().unwrap(), server: self.server, open: Mutex::default() };
        gate.serve(listener);
        gate
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let text = |field: &str| object[field].as_str().unwrap();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")));
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

// === impl Gate ===

impl Gate {
    /// Ends all connections and takes no more.
    pub fn close(&self) {
        let open = self.open.lock().take();
        if let Some(open) = open {
            open.abort();
        }
    }

    /// Opens again, where it was.
    pub async fn open(&self) {
        let addr = self.addr;
        let listener = eventually("the gate's port is free", async || TcpListener::bind(addr).await.ok()).await;
        self.serve(listener);
    }

    fn serve(&self, listener: TcpListener) {
        let server = self.server;
        let serving = task::spawn("gate", async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    // How it ends is both sides' business.
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        *self.open.lock() = Some(serving);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.close();
    }
}
