//! An API server that goes, that does not know our kinds, and that holds what it should not.

use integration::{CRDS, Cluster, Interceptor, eventually};
use serde_json::{Value, json};

use super::{HOST, answers, app, interceptor, pod};

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn without_its_api_server_an_interceptor_serves_on_and_catches_up_when_it_is_back() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("outage").await;
    let mut route = app(&cluster).await;
    let gone = cluster.route("gone", "gone.test", &json!({ "port": 80 }));
    cluster.apply(&gone).await;
    let pod = pod(&cluster).await.answering("well");
    cluster.apply(&cluster.slice("app", "http", pod.addr, true)).await;
    let gate = cluster.gate().await;
    let kubeconfig = cluster.kubeconfig(Some(&gate), None);
    let interceptor = Interceptor::start_in(&kubeconfig, &cluster.namespace).await.is_ready().await;
    interceptor.endpoints("app", 1).await;

    gate.close();
    eventually("the loss is noticed by every watch", async || {
        let metrics = interceptor.metrics().await;
        let down = metrics.lines().filter(|line| line.starts_with("rouse_watch_connected{") && line.ends_with(" 0"));
        (down.count() == 5).then_some(())
    })
    .await;
    route["spec"]["rules"] = json!([{ "hosts": ["new.test"] }]);
    cluster.apply(&route).await;
    cluster.delete(&gone).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
    assert_eq!(interceptor.ready().await.status(), 200);

    gate.open().await;
    answers(&interceptor, "new.test", 200).await;
    answers(&interceptor, "gone.test", 404).await;
    eventually("the recovery is told", async || {
        interceptor.log().contains("the Kubernetes API server answers again").then_some(())
    })
    .await;
    let log = interceptor.log();
    for told_once in ["the Kubernetes API server does not answer", "the Kubernetes API server answers again"] {
        assert_eq!(log.matches(told_once).count(), 1, "{log}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn an_interceptor_waits_for_definitions_that_are_not_installed_yet() {
    let _crds = CRDS.write().await;
    let cluster = Cluster::with_crds("no-crds").await;
    let crds = api::crd::all().map(|(_, crd)| crd);
    for crd in &crds {
        cluster.delete(crd).await;
    }
    let interceptor = Interceptor::start_in(&cluster.kubeconfig(None, None), &cluster.namespace).await;
    eventually("it says what is missing", async || {
        let log = interceptor.log();
        let told = log.matches("does not know the kind: install the CRDs").count();
        (told == 2 && log.contains("HTTPScaledObject")).then_some(())
    })
    .await;
    assert_eq!(interceptor.ready().await.status(), 503);
    cluster.install(&crds).await;
    let interceptor = interceptor.is_ready().await;
    app(&cluster).await;
    eventually("the route is known", async || interceptor.route_state("app").await).await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn an_interceptor_is_ready_where_the_older_kind_of_route_is_no_more() {
    let _crds = CRDS.write().await;
    let cluster = Cluster::with_crds("newer").await;
    app(&cluster).await;
    let crds = api::crd::all().map(|(_, crd)| crd);
    let old = crds.iter().find(|crd| crd["spec"]["names"]["kind"] == "HTTPScaledObject").unwrap();
    cluster.delete(old).await;
    let interceptor = interceptor(&cluster).await;
    eventually("the route is known", async || interceptor.route_state("app").await).await;
    cluster.install(&crds).await;
}

/// Our definitions with a schema that takes anything.
fn loose() -> Vec<Value> {
    let loosened = |mut crd: Value| {
        let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
        crd
    };
    api::crd::all().map(|(_, crd)| loosened(crd)).into()
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_malformed_route_that_got_past_validation_harms_itself_alone() {
    let _crds = CRDS.write().await;
    let cluster = Cluster::with_crds("malformed").await;
    app(&cluster).await;
    let before = interceptor(&cluster).await;
    cluster.install(&loose()).await;
    let mut bad = cluster.route("bad", "bad.test", &json!({ "port": 80 }));
    bad["spec"]["target"] = json!("nonsense");
    eventually("the malformed route is taken", async || cluster.try_apply(&bad).await.ok()).await;
    cluster.install(&api::crd::all().map(|(_, crd)| crd)).await;

    let after = interceptor(&cluster).await;
    for interceptor in [&before, &after] {
        let problem = interceptor.problem("bad").await;
        assert!(problem.contains("InterceptorRoute") && problem.contains("nonsense"), "{problem}");
        assert!(interceptor.route_state("app").await.is_some());
    }
    cluster.delete(&bad).await;
    for interceptor in [&before, &after] {
        eventually("there is no problem any more", async || {
            (!interceptor.state().await["problems"].to_string().contains("bad")).then_some(())
        })
        .await;
    }
    cluster.apply(&cluster.route("bad", "bad.test", &json!({ "port": 80 }))).await;
    for interceptor in [&before, &after] {
        eventually("the route is known", async || interceptor.route_state("bad").await).await;
    }
}
