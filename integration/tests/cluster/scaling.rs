//! From a held request to what KEDA is told, by way of a real API server.

use integration::{CRDS, Cluster, Scaler, soon, world::INTERCEPTORS};
use serde_json::json;

use super::{HOST, app, interceptor, pod};

/// What a chart lets the scaler do.
async fn scaler_user(cluster: &Cluster) -> String {
    let watch = json!(["get", "list", "watch"]);
    let rules = json!([
        { "apiGroups": ["http.keda.sh"], "resources": ["interceptorroutes", "httpscaledobjects"], "verbs": watch },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch },
    ]);
    cluster.user("scaler", &rules).await
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_held_request_is_pushed_to_keda_by_every_scaler_that_found_its_interceptor() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("scaling").await;
    app(&cluster).await;
    let interceptor = interceptor(&cluster).await;
    let mut admin = interceptor.admin;
    admin.set_ip(cluster.address().await);
    cluster.apply(&cluster.service(INTERCEPTORS, "admin")).await;
    let listed = cluster.slice(INTERCEPTORS, "admin", admin, true);
    cluster.apply(&listed).await;

    let kubeconfig = cluster.kubeconfig(None, Some(&scaler_user(&cluster).await));
    let mut scalers = Vec::new();
    for _replica in 0..2 {
        let mut scaler = Scaler::start_in(&kubeconfig, &cluster.namespace, &interceptor).await;
        scaler.active_is("app", false).await;
        scalers.push(scaler);
    }
    let mut streams = Vec::new();
    for scaler in &mut scalers {
        streams.push(scaler.stream("app").await);
    }
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    for stream in &mut streams {
        soon("an active route is pushed", async {
            while !stream.message().await.unwrap().expect("the stream goes on").result {}
        })
        .await;
    }
    let pod = pod(&cluster).await.answering("awake");
    cluster.apply(&cluster.slice("app", "http", pod.addr, true)).await;
    assert_eq!(client.response().await.body, "awake");
    for scaler in &mut scalers {
        scaler.active_is("app", false).await;
        assert_eq!(scaler.concurrency("app").await, Some(0.0));
    }
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_starting_pod_answers_its_probe_before_its_slice_is_ready() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("probing").await;
    let route = app(&cluster).await;
    let pod = pod(&cluster).await;
    cluster.status(&route, &json!({ "readinessProbe": { "tcpSocket": { "port": pod.addr.port() } } })).await;
    cluster.apply(&cluster.slice("app", "http", pod.addr, false)).await;
    let interceptor = interceptor(&cluster).await;
    let pod = pod.answering("early");
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (200, "early"));
    assert!(pod.connections() > 0);
}
