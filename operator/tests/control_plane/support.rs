//! One namespace of a real API server, and operators that watch it.

use std::{path::Path, time::Duration};

use interceptor_core::{ObjectKey, index::HostGuard};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::await_condition,
};
use operator::{app, lease::Terms, plan::Settings, secure::Security};
use runtime::signal::{self, Trigger};
use serde_json::{Value, json};
use tokio::sync::RwLock;

/// Longer than anything takes, also on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Where the tests find the API server.
const KUBECONFIG: &str = "ROUSE_TEST_KUBECONFIG";

/// Held for reading by tests that rely on the CRDs, for writing by the one that loosens them.
pub(crate) static SCHEMAS: RwLock<()> = RwLock::const_new(());

/// A namespace of one test.
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) client: Client,
    config: kube::Config,
}

/// An operator that runs in this process.
pub(crate) struct Operator {
    pub(crate) metrics_addr: Option<std::net::SocketAddr>,
    trigger: Trigger,
    task: tokio::task::JoinHandle<Result<(), app::RunError>>,
}

pub(crate) const ROUTE: (&str, &str) = ("http.keda.sh/v1beta1", "InterceptorRoute");
pub(crate) const HTTP: (&str, &str) = ("http.keda.sh/v1alpha1", "HTTPScaledObject");
pub(crate) const SCALED: (&str, &str) = ("keda.sh/v1alpha1", "ScaledObject");
pub(crate) const CRD: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");

// === impl Namespace ===

impl Namespace {
    /// A new namespace, with our CRDs installed as they are in this repository.
    pub(crate) async fn new(test: &str) -> Self {
        let path = std::env::var_os(KUBECONFIG).expect("ROUSE_TEST_KUBECONFIG names a kubeconfig");
        let file = Kubeconfig::read_from(Path::new(&path)).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        let it = Self { name: format!("{test}-{}", std::process::id()), client, config };
        it.install(api::crd::all().map(|(_, crd)| crd)).await;
        let crds = it.all_api(CRD);
        let keda = crds.get_opt("scaledobjects.keda.sh").await.unwrap();
        assert!(keda.is_some(), "KEDA's CRDs are not installed");
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(it.client.clone());
        let metadata = ObjectMeta { name: Some(it.name.clone()), ..ObjectMeta::default() };
        let namespace = k8s_openapi::api::core::v1::Namespace { metadata, ..Default::default() };
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        it
    }

    /// Installs definitions, and waits until they are served.
    pub(crate) async fn install(&self, definitions: [Value; 2]) {
        let crds = self.all_api(CRD);
        for crd in definitions {
            let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
            let params = PatchParams::apply("tests").force();
            let applied = crds.patch(&name, &params, &Patch::Apply(&crd)).await.unwrap();
            let generation = applied.metadata.generation;
            let served = move |crd: Option<&DynamicObject>| {
                crd.is_some_and(|crd| {
                    crd.metadata.generation >= generation && condition(&crd.data, "Established")["status"] == "True"
                })
            };
            within("a CRD that is served", await_condition(crds.clone(), &name, served)).await.unwrap();
        }
    }

    pub(crate) fn all_api(&self, (version, kind): (&str, &str)) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(version, kind))
    }

    pub(crate) fn api(&self, (version, kind): (&str, &str)) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.name, &resource(version, kind))
    }

    /// Creates or changes objects, given as YAML documents, as a user would.
    pub(crate) async fn apply(&self, documents: &str) {
        for document in documents.split("---\n").filter(|document| !document.trim().is_empty()) {
            let object: Value = serde_yaml_ng::from_str(document).unwrap();
            self.apply_value(&object).await.unwrap_or_else(|error| panic!("{object}: {error}"));
        }
    }

    /// The same for objects of which some belong to no namespace.
    pub(crate) async fn apply_everywhere(&self, documents: &str) {
        for document in documents.split("---\n").filter(|document| !document.trim().is_empty()) {
            let object: Value = serde_yaml_ng::from_str(document).unwrap();
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
            let (version, kind) = (text("/apiVersion"), text("/kind"));
            let kinds = (version.as_str(), kind.as_str());
            let api = if kind.starts_with("Cluster") { self.all_api(kinds) } else { self.api(kinds) };
            let params = PatchParams::apply("user").force();
            api.patch(&text("/metadata/name"), &params, &Patch::Apply(&object)).await.unwrap();
        }
    }

    pub(crate) async fn apply_value(&self, object: &Value) -> Result<DynamicObject, kube::Error> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
        let api = self.api((&text("/apiVersion"), &text("/kind")));
        api.patch(&text("/metadata/name"), &PatchParams::apply("user").force(), &Patch::Apply(object)).await
    }

    /// What the API server says to a new object, without keeping it.
    pub(crate) async fn try_new(&self, object: &Value) -> Result<Value, String> {
        let text = |field: &str| object[field].as_str().unwrap().to_owned();
        let api = self.api((&text("apiVersion"), &text("kind")));
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let params = PostParams { dry_run: true, ..PostParams::default() };
        match api.create(&params, &object).await {
            Ok(object) => Ok(serde_json::to_value(object).unwrap()),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn merge(&self, kind: (&str, &str), name: &str, patch: Value) {
        self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    pub(crate) async fn merge_status(&self, kind: (&str, &str), name: &str, status: Value) {
        let patch = json!({ "status": status });
        self.api(kind).patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    pub(crate) async fn delete(&self, kind: (&str, &str), name: &str) {
        self.api(kind).delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until an object is as it should be, and returns it.
    pub(crate) async fn until(
        &self,
        kind: (&str, &str),
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool + Send,
    ) -> Value {
        let of = |object: Option<&DynamicObject>| object.is_some_and(|it| holds(&serde_json::to_value(it).unwrap()));
        let found = tokio::time::timeout(PATIENCE, await_condition(self.api(kind), name, of)).await;
        if let Ok(object) = found {
            serde_json::to_value(object.unwrap()).unwrap()
        } else {
            let now = self.api(kind).get_opt(name).await.unwrap();
            panic!("waited in vain for {name}: {what}; it is {}", serde_json::to_string_pretty(&now).unwrap());
        }
    }

    /// Waits for a condition's status and reason, and returns its message.
    pub(crate) async fn until_condition(
        &self,
        kind: (&str, &str),
        name: &str,
        (of, status, reason): (&str, &str, &str),
    ) -> String {
        let holds = |object: &Value| {
            let condition = condition(object, of);
            condition["status"] == status && condition["reason"] == reason
        };
        let object = self.until(kind, name, &format!("{of} is {status}, {reason}"), holds).await;
        condition(&object, of)["message"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn until_gone(&self, kind: (&str, &str), name: &str) {
        let gone = |object: Option<&DynamicObject>| object.is_none();
        within(&format!("{name} to go"), await_condition(self.api(kind), name, gone)).await.unwrap();
    }

    /// Waits for an event about an object.
    pub(crate) async fn until_event(&self, about: &str, reason: &str) -> String {
        use futures_util::StreamExt as _;
        let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(self.client.clone(), &self.name);
        let events = kube::runtime::watcher(api, kube::runtime::watcher::Config::default());
        let found = events.filter_map(|event| {
            let event = match event {
                Ok(kube::runtime::watcher::Event::Apply(event) | kube::runtime::watcher::Event::InitApply(event)) => {
                    Some(event)
                }
                _ => None,
            };
            let matches = event.filter(|event| {
                event.reason.as_deref() == Some(reason)
                    && event.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(about)
            });
            std::future::ready(matches)
        });
        let mut found = std::pin::pin!(found);
        let event = within(&format!("event {reason} of {about}"), found.next()).await.unwrap();
        event.note.unwrap_or_default()
    }

    /// Starts an operator for this namespace.
    pub(crate) async fn operator(&self, name: &str, lease: Option<Terms>) -> Operator {
        start(app::Config { lease, ..self.config(name) }).await
    }

    /// Settings of an operator for this namespace, without a lease and without ports.
    pub(crate) fn config(&self, name: &str) -> app::Config {
        app::Config {
            kube: self.config.clone(),
            settings: Settings {
                scaler_address: "scaler.keda:9090".to_owned(),
                host_guard: HostGuard::Off,
                ports: 20_000..=20_009,
                agents: None,
            },
            interceptors: ObjectKey::new(self.name.as_str(), "interceptors"),
            lease: None,
            metrics_addr: None,
            security: Security::default(),
            health_addr: None,
            namespace: self.name.clone(),
            watch_namespace: Some(self.name.clone()),
            name: name.to_owned(),
        }
    }

    pub(crate) async fn version(&self, kind: (&str, &str), name: &str) -> String {
        self.api(kind).get(name).await.unwrap().resource_version().unwrap()
    }
}

// === impl Operator ===

impl Operator {
    /// Ends it in order.
    pub(crate) async fn end(self) {
        let Self { metrics_addr: _, trigger, task } = self;
        trigger.fire();
        within("the operator's end", task).await.unwrap().unwrap();
    }

    /// Ends it as a crash would.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// Starts an operator.
pub(crate) async fn start(config: app::Config) -> Operator {
    let bound = app::build(config).await.unwrap();
    let metrics_addr = bound.metrics_addr();
    let (trigger, shutdown) = signal::manual();
    Operator { metrics_addr, trigger, task: runtime::task::spawn("operator", bound.run(shutdown)) }
}

fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

pub(crate) fn condition<'a>(object: &'a Value, of: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == of).unwrap_or(&Value::Null)
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
