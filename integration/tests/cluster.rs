//! Interceptor and scaler with a real API server. What they do with what they read is tested beside this, without one.

mod guards;
mod scaling;
mod trouble;

use std::net::SocketAddr;

use integration::{CRDS, Cluster, Interceptor, Pod, eventually};
use serde_json::{Value, json};

const HOST: &str = "app.test";

/// What a chart lets interceptors do.
fn rules() -> Value {
    let watch = json!(["get", "list", "watch"]);
    json!([
        { "apiGroups": ["http.keda.sh"], "resources": ["interceptorroutes", "httpscaledobjects"], "verbs": watch },
        { "apiGroups": [""], "resources": ["services", "configmaps"], "verbs": watch },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch },
    ])
}

async fn pod(cluster: &Cluster) -> Pod {
    Pod::start_at(SocketAddr::new(cluster.address().await, 0)).await
}

/// A route with its Service, whose port is called http.
async fn app(cluster: &Cluster) -> Value {
    let route = cluster.route("app", HOST, &json!({ "portName": "http" }));
    cluster.apply(&cluster.service("app", "http")).await;
    cluster.apply(&route).await;
    route
}

/// An interceptor that may do no more than the chart lets it.
async fn interceptor(cluster: &Cluster) -> Interceptor {
    interceptor_of(cluster, &rules(), &[]).await
}

/// One that may do this, with more environment variables.
async fn interceptor_of(cluster: &Cluster, rules: &Value, env: &[(&str, &str)]) -> Interceptor {
    let user = cluster.user("interceptor", rules).await;
    let kubeconfig = cluster.kubeconfig(None, Some(&user));
    Interceptor::start_in_with(&kubeconfig, &cluster.namespace, env).await.is_ready().await
}

async fn answers(interceptor: &Interceptor, host: &str, status: u16) {
    eventually(&format!("{host} answers {status}"), async || {
        (interceptor.get(host, "/").await.status() == status).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_route_of_the_cluster_is_taken_in_as_it_comes_changes_and_goes() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("routes").await;
    let pod = pod(&cluster).await.answering("well");
    let interceptor = interceptor(&cluster).await;
    answers(&interceptor, HOST, 404).await;
    let mut route = app(&cluster).await;
    cluster.apply(&cluster.slice("app", "http", pod.addr, true)).await;
    answers(&interceptor, HOST, 200).await;
    route["spec"]["rules"] = json!([{ "hosts": ["new.test"] }]);
    cluster.apply(&route).await;
    answers(&interceptor, "new.test", 200).await;
    answers(&interceptor, HOST, 404).await;
    cluster.delete(&route).await;
    answers(&interceptor, "new.test", 404).await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn an_http_scaled_object_of_the_cluster_is_a_route_too() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("httpso").await;
    let pod = pod(&cluster).await.answering("well");
    cluster.apply(&cluster.service("app", "http")).await;
    cluster.apply(&cluster.slice("app", "http", pod.addr, true)).await;
    cluster
        .apply(&json!({
            "apiVersion": "http.keda.sh/v1alpha1", "kind": "HTTPScaledObject",
            "metadata": { "name": "app", "namespace": cluster.namespace },
            "spec": {
                "hosts": [HOST],
                "scaleTargetRef": { "name": "app", "kind": "Deployment", "apiVersion": "apps/v1", "service": "app", "port": 80 },
            },
        }))
        .await;
    let interceptor = interceptor(&cluster).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200, "what was there is known when it is ready");
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_service_port_that_is_renamed_and_slices_that_change_are_followed() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("ports").await;
    let mut route = app(&cluster).await;
    let first = pod(&cluster).await;
    let slice = cluster.slice("app", "http", first.addr, true);
    cluster.apply(&slice).await;
    let interceptor = interceptor(&cluster).await;
    interceptor.endpoints("app", 1).await;

    cluster.apply(&cluster.service("app", "web")).await;
    interceptor.endpoints("app", 0).await;
    interceptor.problem("app").await;
    route["spec"]["target"]["portName"] = json!("web");
    cluster.apply(&route).await;
    let second = pod(&cluster).await;
    cluster.apply(&cluster.slice("app", "web", second.addr, true)).await;
    interceptor.endpoints("app", 1).await;
    cluster.apply(&cluster.slice("app", "web", first.addr, true)).await;
    interceptor.endpoints("app", 2).await;
    cluster.delete(&slice).await;
    interceptor.endpoints("app", 1).await;
    cluster.apply(&cluster.slice("app", "web", second.addr, false)).await;
    interceptor.endpoints("app", 0).await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn objects_of_another_namespace_are_not_read_when_one_is_named() {
    let _crds = CRDS.read().await;
    let (ours, other) = (Cluster::with_crds("ours").await, Cluster::with_crds("other").await);
    other.apply(&other.route("elsewhere", "elsewhere.test", &json!({ "port": 80 }))).await;
    app(&ours).await;
    let interceptor = interceptor(&ours).await;
    assert!(interceptor.route_state("elsewhere").await.is_none());
    assert!(interceptor.route_state("app").await.is_some());
}
