//! Plans against a model of an API server.

use interceptor_core::{ObjectKey, index::HostGuard};
use kube::api::DynamicObject;

use super::*;
use crate::{
    object::Object,
    world::{Event, Item, Kind, World},
};

mod probes;
mod properties;
mod shadow;

/// A model of an API server with one namespace: what it holds, and what our writes do to it.
#[derive(Clone, Debug, Default)]
struct Server {
    routes: Vec<Value>,
    scaled: Vec<Value>,
    keda: bool,
    made: u32,
}

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn settings() -> Settings {
    Settings {
        scaler_address: "scaler.keda:9090".to_owned(),
        host_guard: HostGuard::Off,
        ports: 20_000..=20_009,
        agents: None,
    }
}

fn subject(kind: RouteKind) -> Subject {
    Subject { kind, key: ObjectKey::new("n", "r") }
}

fn dynamic(value: &Value) -> DynamicObject {
    serde_json::from_value(value.clone()).unwrap()
}

impl Server {
    fn with(route: Value, scaled: Vec<Value>) -> Self {
        Self { routes: vec![route], scaled, keda: true, made: 0 }
    }

    fn kind(&self) -> RouteKind {
        match self.routes[0]["kind"].as_str() {
            Some("HTTPScaledObject") => RouteKind::HttpScaledObject,
            _ => RouteKind::InterceptorRoute,
        }
    }

    fn observe(&self) -> Observed {
        let mut world = World::default();
        let kind = self.kind();
        let routes = self
            .routes
            .iter()
            .map(|route| Event::Put(Item::Route(Box::new(Object::read(kind, &dynamic(route)).unwrap()))));
        let scaled = self
            .scaled
            .iter()
            .map(|scaled| Event::Put(Item::Scaled(Box::new(Scaled::read(&dynamic(scaled)).unwrap()))));
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(
            json!({"metadata": {"namespace": "n", "name": "web"}, "spec": {"ports": [{"port": 80}]}}),
        )
        .unwrap();
        world.apply(routes.chain(scaled));
        world.apply([Event::Put(Item::Service(api::convert::service(&service).unwrap()))]);
        if !self.keda {
            world.apply([Event::Absent(Kind::ScaledObjects)]);
        }
        world.observe(&subject(kind)).unwrap()
    }

    fn plan(&self) -> Plan {
        plan(&self.observe(), &settings(), NOW)
    }

    /// Plans and carries out once, as the API server would.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        for action in &plan.actions {
            match action {
                Action::Unfinalize { rest, .. } => self.routes[0]["metadata"]["finalizers"] = json!(rest),
                Action::Apply { body, over, inherit: _ } => self.apply(body, over.is_none()),
                Action::Delete { uid } => self.scaled.retain(|scaled| scaled["metadata"]["uid"] != **uid),
                Action::Publish { .. } | Action::Withdraw { .. } => panic!("this model has no slices"),
                Action::Release { rest, .. } => self.named("r").unwrap()["metadata"]["ownerReferences"] = rest.clone(),
            }
        }
        if let Some(write) = &plan.status {
            let status = &mut self.routes[0]["status"];
            if !status.is_object() || write.reset {
                *status = json!({});
            }
            for (field, value) in write.status.as_object().unwrap() {
                status[field] = value.clone();
            }
        }
        plan
    }

    fn named(&mut self, name: &str) -> Option<&mut Value> {
        self.scaled.iter_mut().find(|scaled| scaled["metadata"]["name"] == name)
    }

    fn apply(&mut self, body: &Value, new: bool) {
        let mut live = if let Some(live) = self.named("r").cloned() {
            live
        } else {
            assert!(new, "what is to be changed is there");
            self.made += 1;
            json!({"metadata": {"uid": format!("made-{}", self.made)}})
        };
        let before = live.pointer("/metadata/managedFields/0/body").cloned().unwrap_or_default();
        remove_dropped(&mut live, &before, body);
        merge(&mut live, body);
        live["metadata"]["managedFields"] = json!([{
            "manager": names::FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields(body), "body": body,
        }]);
        self.scaled.retain(|scaled| scaled["metadata"]["name"] != "r");
        self.scaled.push(live);
    }
}

fn merge(live: &mut Value, body: &Value) {
    match (live, body) {
        (Value::Object(live), Value::Object(body)) => {
            for (name, value) in body {
                merge(live.entry(name).or_insert(Value::Null), value);
            }
        }
        (live, body) => *live = body.clone(),
    }
}

fn remove_dropped(live: &mut Value, before: &Value, body: &Value) {
    let (Some(live), Some(before)) = (live.as_object_mut(), before.as_object()) else { return };
    for (name, before) in before {
        match (live.get_mut(name), body.get(name)) {
            (Some(live), Some(body)) => remove_dropped(live, before, body),
            (Some(_), None) => {
                live.remove(name);
            }
            (None, _) => {}
        }
    }
}

fn fields(body: &Value) -> Value {
    match body {
        Value::Object(map) => {
            let is_identity = |name: &str| ["apiVersion", "kind", "name", "namespace"].contains(&name);
            let identified =
                map.contains_key("ownerReferences") || map.contains_key("apiVersion") && map.contains_key("spec");
            let inner = map.iter().filter(|(name, _)| !(identified && is_identity(name)));
            inner.map(|(name, value)| (format!("f:{name}"), fields(value))).collect::<serde_json::Map<_, _>>().into()
        }
        _ => json!({}),
    }
}

fn http(more: &Value) -> Value {
    let mut route = json!({
        "apiVersion": "http.keda.sh/v1alpha1", "kind": "HTTPScaledObject",
        "metadata": {"namespace": "n", "name": "r", "uid": "u", "generation": 2},
        "spec": {"hosts": ["a.example"], "scaleTargetRef": {"name": "app", "service": "web", "port": 80}},
    });
    merge(&mut route, more);
    route
}

fn route(more: &Value) -> Value {
    let mut route = json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": {"namespace": "n", "name": "r", "uid": "u", "generation": 2},
        "spec": {"rules": [{"hosts": ["a.example"]}], "target": {"service": "web", "port": 80},
            "scalingMetric": {"concurrency": {"targetValue": 10}}},
    });
    merge(&mut route, more);
    route
}

fn users(name: &str, metadata: &Value) -> Value {
    json!({
        "metadata": {"namespace": "n", "name": name, "uid": format!("users-{name}")},
        "spec": {"scaleTargetRef": {"name": "app"}, "triggers": [{"type": "external-push", "metadata": metadata}]},
    })
}

fn finding<'a>(server: &'a Server, kind: &str) -> (&'a str, &'a str, &'a str) {
    let conditions = server.routes[0]["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == kind).unwrap();
    let text = |field: &str| condition[field].as_str().unwrap();
    (text("status"), text("reason"), text("message"))
}

#[test]
fn an_http_scaled_object_gets_the_scaled_object_of_the_original() {
    let more = json!({
        "metadata": {"labels": {"team": "a"}, "annotations": {"autoscaling.keda.sh/paused": "true"}},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment"}, "scaledownPeriod": 60,
            "initialCooldownPeriod": 5, "replicas": {"min": 1, "max": 7}},
    });
    let mut server = Server::with(http(&more), vec![]);
    let Action::Apply { body, over: None, inherit: None } = server.plan().actions.remove(0) else { panic!("not made") };
    let expected = json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {
            "name": "r", "namespace": "n",
            "labels": {"team": "a"}, "annotations": {"autoscaling.keda.sh/paused": "true"},
            "ownerReferences": [{"apiVersion": "http.keda.sh/v1alpha1", "kind": "HTTPScaledObject", "name": "r", "uid": "u",
                "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
            "pollingInterval": 15, "cooldownPeriod": 60, "initialCooldownPeriod": 5,
            "minReplicaCount": 1, "maxReplicaCount": 7,
            "advanced": {"restoreToOriginalReplicaCount": true, "scalingModifiers": {}},
            "triggers": [{"type": "external-push",
                "metadata": {"scalerAddress": "scaler.keda:9090", "httpScaledObject": "r"}}],
        },
    });
    assert_eq!(body, expected);
    server.step();
    assert_eq!(finding(&server, "Ready"), ("True", "Reconciled", "ScaledObject created and configured"));
    assert_eq!(server.routes[0]["status"]["targetWorkload"], "apps/v1/Deployment/app");
    assert_eq!(server.routes[0]["status"]["targetService"], "web:80");
}

#[test]
fn drift_is_repaired_and_what_others_added_stays() {
    let mut server = Server::with(http(&json!({"spec": {"scaledownPeriod": 60}})), vec![]);
    server.step();
    server.step();
    assert!(server.plan().is_empty());
    let live = server.named("r").unwrap();
    live["spec"]["cooldownPeriod"] = 1.into();
    live["spec"]["advanced"]["horizontalPodAutoscalerConfig"] = json!({"behavior": {}});
    server.step();
    let live = server.named("r").unwrap();
    assert_eq!(live["spec"]["cooldownPeriod"], 60);
    assert_eq!(live["spec"]["advanced"]["horizontalPodAutoscalerConfig"], json!({"behavior": {}}));
    server.routes[0]["spec"].as_object_mut().unwrap().remove("scaledownPeriod");
    server.step();
    assert_eq!(server.named("r").unwrap()["spec"].get("cooldownPeriod"), None, "what was dropped is taken away");
    server.scaled.clear();
    server.step();
    assert_eq!(server.scaled.len(), 1, "what was deleted is made again");
}

#[test]
fn a_foreign_scaled_object_stays_as_it_is_and_is_told_of() {
    for metadata in [json!({}), json!({"interceptorRoute": "other"})] {
        let foreign = users("r", &metadata);
        for wanting in [http(&json!({})), route(&json!({"spec": {"scaling": {"maxReplicas": 3}}}))] {
            let mut server = Server::with(wanting, vec![foreign.clone()]);
            assert!(server.step().actions.is_empty());
            assert_eq!(server.scaled, std::slice::from_ref(&foreign));
            let (status, _, message) = finding(&server, "Ready");
            assert_eq!(status, "False");
            assert!(message.contains("ScaledObject r was not made by the operator and stays as it is"), "{message}");
            assert_eq!(finding(&server, "ScaledObject").1, "Foreign");
        }
    }
}

#[test]
fn a_users_scaled_object_is_found_by_its_trigger() {
    let mine = users("mine", &json!({"interceptorRoute": "r"}));
    let mut server = Server::with(route(&json!({})), vec![mine.clone()]);
    assert!(server.step().actions.is_empty());
    assert_eq!(finding(&server, "ScaledObject"), ("True", "Found", "ScaledObject mine names this route"));
    assert_eq!(finding(&server, "Ready"), ("True", "Reconciled", "InterceptorRoute reconciled"));

    let mut server = Server::with(route(&json!({"spec": {"scaling": {}}})), vec![mine.clone()]);
    assert!(server.step().actions.is_empty());
    let (status, reason, message) = finding(&server, "Ready");
    assert_eq!((status, reason), ("False", "Foreign"));
    assert!(message.contains("ScaledObject mine names this route already"), "{message}");
}

#[test]
fn a_route_without_a_scaled_object_routes_all_the_same() {
    let mut server = Server::with(route(&json!({})), vec![]);
    server.step();
    assert_eq!(finding(&server, "Ready").0, "True");
    assert_eq!(finding(&server, "ScaledObject").1, "NotFound");
    assert_eq!(finding(&server, "Active").0, "Unknown");
    assert_eq!(finding(&server, "DataPath").1, "Proxy");
}

#[test]
fn a_route_without_rules_is_ready_as_with_the_original_and_told_that_it_takes_no_request() {
    let mut server = Server::with(route(&json!({"spec": {"rules": []}})), vec![]);
    server.step();
    assert_eq!(finding(&server, "Ready"), ("True", "Reconciled", "InterceptorRoute reconciled"));
    assert_eq!(finding(&server, "Accepted").1, "NoRules");
}

#[test]
fn a_missing_target_is_told_with_what_to_do() {
    let mut server = Server::with(route(&json!({"spec": {"target": {"port": 81}}})), vec![]);
    let plan = server.step();
    let message = "Service n/web has no port 81: it has 80: name one of them";
    assert_eq!(finding(&server, "TargetResolved"), ("False", "PortNotFound", message));
    assert_eq!(finding(&server, "Ready"), ("True", "Reconciled", "InterceptorRoute reconciled"));
    assert_eq!(finding(&server, "DataPath"), ("False", "NoPath", "see TargetResolved: PortNotFound"));
    let notices = plan.status.unwrap().notices;
    assert_eq!(notices.iter().map(|notice| notice.reason).collect::<Vec<_>>(), ["TargetMissing"]);
}

#[test]
fn a_route_that_no_longer_asks_gives_its_scaled_object_up() {
    let mut server = Server::with(route(&json!({"spec": {"scaling": {"cooldown": "90s", "minReplicas": 1}}})), vec![]);
    server.step();
    let made = server.named("r").unwrap();
    assert_eq!(made["spec"]["cooldownPeriod"], 90);
    assert_eq!(made["spec"]["scaleTargetRef"], json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}));
    server.routes[0]["spec"].as_object_mut().unwrap().remove("scaling");
    server.step();
    assert!(server.scaled.is_empty());
}

#[test]
fn annotations_let_go_of_the_scaled_object_or_make_none() {
    let mut server = Server::with(http(&json!({})), vec![]);
    server.step();
    server.routes[0]["metadata"]["annotations"] = json!({ORPHAN_ANNOTATION: "true", SKIP_ANNOTATION: "true"});
    server.step();
    assert_eq!(server.named("r").unwrap()["metadata"]["ownerReferences"], json!([]));
    assert!(server.plan().actions.is_empty());
    assert_eq!(finding(&server, "Ready").2, "ScaledObject created and configured");
    server.routes[0]["metadata"]["annotations"] = json!({});
    server.step();
    assert_eq!(server.named("r").unwrap()["metadata"]["ownerReferences"][0]["uid"], "u", "taken back");
    server.routes[0]["metadata"]["annotations"] = json!({SKIP_ANNOTATION: "true"});
    server.step();
    assert!(server.scaled.is_empty());
}

#[test]
fn an_object_that_cannot_be_read_harms_nothing_that_works() {
    let mut server = Server::with(http(&json!({})), vec![]);
    server.step();
    server.routes[0]["spec"]["scaleTargetRef"]["port"] = "eighty".into();
    server.step();
    assert_eq!(server.scaled.len(), 1);
    let (status, reason, message) = finding(&server, "Ready");
    assert_eq!((status, reason), ("False", "CreateError"));
    assert!(
        message.starts_with("Failed to create scaled objects: spec.scaleTargetRef.port cannot be read"),
        "{message}"
    );
    assert_eq!(finding(&server, "Accepted").1, "Invalid");
}

#[test]
fn a_value_that_interceptors_cannot_use_is_told_and_the_workload_scales_all_the_same() {
    let mut server = Server::with(http(&json!({"spec": {"timeouts": {"conditionWait": "soon"}}})), vec![]);
    server.step();
    assert_eq!(server.scaled.len(), 1);
    let (status, reason, message) = finding(&server, "Ready");
    assert_eq!((status, reason), ("False", "Invalid"));
    assert!(message.starts_with("spec.timeouts.conditionWait is \"soon\""), "{message}");
}

#[test]
fn both_metrics_at_once_are_refused_in_the_status() {
    let metric = json!({"spec": {"scalingMetric": {"concurrency": {}, "requestRate": {}}}});
    let mut server = Server::with(http(&metric), vec![]);
    assert!(server.step().actions.is_empty());
    let message =
        "Failed to create scaled objects: spec.scalingMetric has both concurrency and requestRate: set one of them";
    assert_eq!(finding(&server, "Ready"), ("False", "CreateError", message));
}

#[test]
fn the_finalizer_of_the_original_is_taken_away_and_others_stay() {
    let finalizers = json!({"metadata": {"finalizers": [names::FINALIZER, "other/one"], "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let mut server = Server::with(http(&finalizers), vec![]);
    let plan = server.step();
    assert_eq!(server.routes[0]["metadata"]["finalizers"], json!(["other/one"]));
    assert_eq!((plan.actions.len(), plan.status), (1, None));
    assert!(server.plan().is_empty());
}

#[test]
fn a_write_that_fails_is_told_in_the_words_of_the_api_server() {
    let server = Server::with(http(&json!({})), vec![]);
    let write = failed(&server.observe(), &server.plan(), "the webhook refused", NOW).unwrap();
    let ready = &write.status["conditions"][0];
    assert_eq!(ready["message"], "Failed to create scaled objects: the webhook refused");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("CreateError")));
}

#[test]
fn a_cold_start_is_told_when_demand_begins() {
    let active = |status: &str, min: i32| {
        let mut mine = users("mine", &json!({"interceptorRoute": "r"}));
        mine["spec"]["minReplicaCount"] = min.into();
        mine["status"] = json!({"conditions": [{"type": "Active", "status": status}]});
        mine
    };
    for (min, expected) in [(0, vec!["ColdStart"]), (1, vec![])] {
        let mut server = Server::with(route(&json!({})), vec![active("False", min)]);
        server.step();
        server.scaled = vec![active("True", min)];
        let notices = server.step().status.unwrap().notices;
        assert_eq!(notices.iter().map(|notice| notice.reason).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn conditions_of_the_old_form_go() {
    let old = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "timestamp": "then"}]}});
    let mut server = Server::with(http(&old), vec![]);
    assert!(server.step().status.unwrap().reset);
    server.step();
    assert!(server.plan().is_empty());
}

#[test]
fn what_keda_complains_of_is_repeated_with_where_to_look() {
    let mut mine = users("mine", &json!({"interceptorRoute": "r"}));
    mine["status"] = json!({"conditions": [{"type": "Ready", "status": "False", "message": "no such Deployment"}]});
    let mut server = Server::with(route(&json!({})), vec![mine]);
    server.step();
    let (status, reason, message) = finding(&server, "ScaledObject");
    assert_eq!((status, reason), ("False", "KedaError"));
    assert!(
        message.ends_with("KEDA says of it: no such Deployment: see kubectl describe scaledobject mine"),
        "{message}"
    );
}
