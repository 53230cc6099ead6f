//! Routes, `ScaledObject`s and Services through their lives, with an operator that follows.

use interceptor_core::index::HostGuard;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{HTTP, Namespace, ROUTE, SCALED, SCHEMAS, start};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn route(name: &str, host: &str, more: &str) -> String {
    format!(
        "
apiVersion: http.keda.sh/v1beta1
kind: InterceptorRoute
metadata: {{name: {name}}}
spec:
  rules: [{{hosts: [{host}]}}]
  target: {{service: web, portName: http}}
  scalingMetric: {{concurrency: {{targetValue: 10}}}}
  {more}
"
    )
}

fn http(name: &str, more: &str) -> String {
    format!(
        "
apiVersion: http.keda.sh/v1alpha1
kind: HTTPScaledObject
metadata: {{name: {name}, labels: {{team: a}}}}
spec:
  hosts: [{name}.example]
  scaleTargetRef: {{name: app, kind: Deployment, apiVersion: apps/v1, service: web, port: 80}}
  {more}
"
    )
}

fn users(name: &str, trigger: &str) -> String {
    format!(
        "
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {{name: {name}}}
spec:
  scaleTargetRef: {{name: app}}
  triggers: [{{type: external-push, metadata: {{scalerAddress: 'elsewhere:1', {trigger}}}}}]
"
    )
}

fn deployment(probe: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 0
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers: [{{name: app, image: app, ports: [{{name: web, containerPort: 8080}}], {probe}}}]
"
    )
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn an_http_scaled_object_is_followed_through_its_life() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("http").await;
    let operator = namespace.operator("a", None).await;
    namespace.apply(SERVICE).await;
    namespace.apply(&http("old", "scaledownPeriod: 60")).await;
    let made = namespace.until(SCALED, "old", "is made", |_| true).await;
    assert_eq!(
        made["spec"]["triggers"][0]["metadata"],
        json!({"scalerAddress": "scaler.keda:9090", "httpScaledObject": "old"})
    );
    assert_eq!(made["metadata"]["labels"]["team"], "a");
    assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "HTTPScaledObject");
    let message = namespace.until_condition(HTTP, "old", ("Ready", "True", "Reconciled")).await;
    assert_eq!(message, "ScaledObject created and configured");

    namespace.merge(SCALED, "old", json!({"spec": {"cooldownPeriod": 7, "idleReplicaCount": 0}})).await;
    let repaired = |it: &Value| it["spec"]["cooldownPeriod"] == 60 && it["spec"]["idleReplicaCount"] == 0;
    namespace.until(SCALED, "old", "is repaired, and keeps what others added", repaired).await;
    namespace.apply(&http("old", "replicas: {max: 4}")).await;
    let followed = |it: &Value| it["spec"]["maxReplicaCount"] == 4 && it["spec"]["cooldownPeriod"].is_null();
    namespace.until(SCALED, "old", "has what is new and not what is gone", followed).await;

    let uid = made["metadata"]["uid"].clone();
    namespace.delete(SCALED, "old").await;
    namespace.until(SCALED, "old", "is made again", |it| it["metadata"]["uid"] != uid).await;

    // As one that the original has left behind.
    namespace.merge(HTTP, "old", json!({"metadata": {"finalizers": ["httpscaledobject.http.keda.sh"]}})).await;
    namespace.delete(HTTP, "old").await;
    namespace.until_gone(HTTP, "old").await;
    namespace.until_gone(SCALED, "old").await;
    operator.end().await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn annotations_let_a_scaled_object_go_or_be_made_by_the_user() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("annotations").await;
    let operator = namespace.operator("a", None).await;
    namespace.apply(SERVICE).await;
    namespace.apply(&http("old", "")).await;
    namespace.until(SCALED, "old", "is made", |_| true).await;
    let annotate = |name: &str, value: Value| json!({"metadata": {"annotations": {name: value}}});
    let orphan = "httpscaledobject.keda.sh/orphan-scaledobject";
    namespace.merge(HTTP, "old", annotate(orphan, "true".into())).await;
    namespace.until(SCALED, "old", "is nobody's", |it| it["metadata"]["ownerReferences"].is_null()).await;
    namespace.merge(HTTP, "old", annotate(orphan, Value::Null)).await;
    namespace.until(SCALED, "old", "is taken back", |it| it["metadata"]["ownerReferences"][0]["name"] == "old").await;
    let skip = "httpscaledobject.keda.sh/skip-scaledobject-creation";
    namespace.merge(HTTP, "old", annotate(skip, "true".into())).await;
    namespace.until_gone(SCALED, "old").await;
    namespace.until_condition(HTTP, "old", ("ScaledObject", "True", "Skipped")).await;
    namespace.until_condition(HTTP, "old", ("Ready", "True", "Reconciled")).await;
    operator.end().await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_route_asks_for_its_scaled_object_and_gives_it_up() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("scaling").await;
    let operator = namespace.operator("a", None).await;
    namespace.apply(SERVICE).await;
    namespace.apply(&deployment("readinessProbe: {httpGet: {path: /ok, port: web}}")).await;
    namespace.apply(&route("web", "a.example", "scaling: {maxReplicas: 3, cooldown: 90s}")).await;
    let made = namespace.until(SCALED, "web", "is made", |_| true).await;
    assert_eq!((&made["spec"]["maxReplicaCount"], &made["spec"]["cooldownPeriod"]), (&json!(3), &json!(90)));
    assert_eq!(made["spec"]["scaleTargetRef"]["name"], "web");
    namespace.until_condition(ROUTE, "web", ("Ready", "True", "Reconciled")).await;
    namespace.until_condition(ROUTE, "web", ("Active", "Unknown", "Pending")).await;
    let probe = |port: i32| move |it: &Value| it["status"]["readinessProbe"]["httpGet"]["port"] == port;
    namespace.until(ROUTE, "web", "has the probe with its port's number", probe(8080)).await;
    namespace.apply(&deployment("readinessProbe: {httpGet: {port: 9090}}")).await;
    namespace.until(ROUTE, "web", "follows the probe", probe(9090)).await;
    let named = "livenessProbe: {httpGet: {port: web, path: /live, httpHeaders: [{name: User-Agent, value: mine}]}}";
    namespace.apply(&deployment(&format!("readinessProbe: {{exec: {{command: ['true']}}}}, {named}"))).await;
    namespace.until(ROUTE, "web", "has no probe to run", |it| it["status"]["readinessProbe"].is_null()).await;
    let unnamed = json!([{"port": 8080, "path": "/live", "userAgent": "mine"}]);
    namespace.until(ROUTE, "web", "tells of the other", |it| it["status"]["unnamedProbes"] == unnamed).await;

    namespace.merge_status(SCALED, "web", json!({"conditions": [{"type": "Active", "status": "False"}]})).await;
    namespace.until_condition(ROUTE, "web", ("Active", "False", "Idle")).await;
    namespace.merge_status(SCALED, "web", json!({"conditions": [{"type": "Active", "status": "True"}]})).await;
    namespace.until_condition(ROUTE, "web", ("Active", "True", "Demand")).await;
    let note = namespace.until_event("web", "ColdStart").await;
    assert!(note.contains("KEDA starts the first replica"), "{note}");

    namespace.apply(&route("web", "a.example", "")).await;
    namespace.until_gone(SCALED, "web").await;
    let message = namespace.until_condition(ROUTE, "web", ("ScaledObject", "False", "NotFound")).await;
    assert!(message.contains("interceptorRoute: web"), "{message}");
    operator.end().await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_users_scaled_object_is_found_and_never_touched() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("foreign").await;
    let operator = namespace.operator("a", None).await;
    namespace.apply(SERVICE).await;
    namespace.apply(&users("web", "other: x")).await;
    namespace.apply(&users("mine", "interceptorRoute: found")).await;
    let before = [namespace.version(SCALED, "web").await, namespace.version(SCALED, "mine").await];
    namespace.apply(&route("web", "a.example", "scaling: {}")).await;
    let message = namespace.until_condition(ROUTE, "web", ("Ready", "False", "Foreign")).await;
    assert!(message.contains("ScaledObject web was not made by the operator"), "{message}");
    namespace.until_event("web", "ScaledObjectFailed").await;
    namespace.apply(&http("mine", "")).await;
    let message = namespace.until_condition(HTTP, "mine", ("Ready", "False", "CreateError")).await;
    assert!(message.starts_with("Failed to create scaled objects: ScaledObject mine was not made"), "{message}");
    namespace.apply(&route("found", "b.example", "")).await;
    namespace.until_condition(ROUTE, "found", ("ScaledObject", "True", "Found")).await;
    let after = [namespace.version(SCALED, "web").await, namespace.version(SCALED, "mine").await];
    assert_eq!(before, after, "a foreign ScaledObject was written");
    namespace.delete(SCALED, "web").await;
    namespace.until_condition(ROUTE, "web", ("Ready", "True", "Reconciled")).await;
    operator.end().await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_conflict_and_a_missing_target_are_told_until_they_are_gone() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("conflict").await;
    let operator = namespace.operator("a", None).await;
    // Of two as old the later name wins, an older one always does: whichever second it is, z is served first.
    namespace.apply(&route("z", "a.example", "")).await;
    namespace.until_condition(ROUTE, "z", ("TargetResolved", "False", "ServiceNotFound")).await;
    namespace.until_event("z", "TargetMissing").await;
    namespace.apply(SERVICE).await;
    namespace.until_condition(ROUTE, "z", ("TargetResolved", "True", "Resolved")).await;
    namespace.until_condition(ROUTE, "z", ("Ready", "True", "Reconciled")).await;
    namespace.apply(&route("b", "a.example", "")).await;
    let message = namespace.until_condition(ROUTE, "b", ("Accepted", "False", "Conflict")).await;
    assert!(message.contains(&format!("a.example/ goes to InterceptorRoute {}/z", namespace.name)), "{message}");
    namespace.until_event("b", "RouteConflict").await;
    namespace.apply(&http("b", "")).await;
    namespace.until_condition(HTTP, "b", ("Accepted", "False", "Shadowed")).await;
    namespace.delete(ROUTE, "z").await;
    namespace.until_condition(ROUTE, "b", ("Ready", "True", "Reconciled")).await;
    namespace.merge(("v1", "Service"), "web", json!({"spec": {"ports": [{"name": "other", "port": 80}]}})).await;
    let message = namespace.until_condition(ROUTE, "b", ("TargetResolved", "False", "PortNotFound")).await;
    assert!(message.contains("has no port http"), "{message}");
    operator.end().await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_scaled_object_that_the_original_made_is_taken_over_whole() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("inherited").await;
    namespace.apply(SERVICE).await;
    namespace.apply(&http("old", "scaledownPeriod: 99")).await;
    let route = namespace.api(HTTP).get("old").await.unwrap();
    let owner = json!({"apiVersion": HTTP.0, "kind": HTTP.1, "name": "old", "uid": route.metadata.uid,
        "controller": true, "blockOwnerDeletion": true});
    let made = json!({
        "apiVersion": SCALED.0, "kind": SCALED.1,
        "metadata": {"name": "old", "labels": {"team": "a"}, "ownerReferences": [owner]},
        "spec": {
            "scaleTargetRef": {"name": "app", "kind": "Deployment", "apiVersion": "apps/v1"},
            "pollingInterval": 15, "cooldownPeriod": 99,
            "advanced": {"restoreToOriginalReplicaCount": true, "scalingModifiers": {}},
            "triggers": [{"type": "external-push", "metadata": {"scalerAddress": "before:1", "httpScaledObject": "old"}}],
        },
    });
    let params = kube::api::PostParams { field_manager: Some("operator".to_owned()), ..Default::default() };
    let uid = namespace.api(SCALED).create(&params, &serde_json::from_value(made).unwrap()).await.unwrap().metadata.uid;
    let operator = namespace.operator("a", None).await;
    let ours = |it: &Value| it["spec"]["triggers"][0]["metadata"]["scalerAddress"] == "scaler.keda:9090";
    let taken = namespace.until(SCALED, "old", "calls our scaler", ours).await;
    assert_eq!(taken["metadata"]["uid"].as_str(), uid.as_deref(), "the same object");
    namespace.merge(HTTP, "old", json!({"spec": {"scaledownPeriod": null}})).await;
    namespace.until(SCALED, "old", "gives up what is gone", |it| it["spec"]["cooldownPeriod"].is_null()).await;
    operator.end().await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_host_that_the_namespace_s_annotation_does_not_list_is_told_until_it_does() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("allowed").await;
    namespace.apply(SERVICE).await;
    let mut config = namespace.config("a");
    config.settings.host_guard = HostGuard::AllowList;
    let operator = start(config).await;
    namespace.apply(&route("web", "a.example, b.example", "")).await;
    let told = ("Accepted", "False", "HostNotAllowed");
    let message = namespace.until_condition(ROUTE, "web", told).await;
    assert!(message.contains("has no annotation http.keda.sh/allowed-hosts"), "{message}");
    namespace.until_event("web", "HostNotAllowed").await;
    let annotate = async |hosts: &str| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"http.keda.sh/allowed-hosts": hosts}}}));
        let namespaces = namespace.all_api(("v1", "Namespace"));
        namespaces.patch(&namespace.name, &PatchParams::default(), &patch).await.unwrap();
    };
    annotate("b.example, not/a/host").await;
    let message = namespace.until_condition(ROUTE, "web", ("Accepted", "True", "HostNotAllowed")).await;
    assert!(message.contains("a.example/ may not be claimed") && message.contains("\"not/a/host\""), "{message}");
    annotate("*.example").await;
    namespace.until_condition(ROUTE, "web", ("Accepted", "True", "Accepted")).await;
    namespace.until_condition(ROUTE, "web", ("Ready", "True", "Reconciled")).await;
    operator.end().await;
}
