//! What the API server takes of the custom resources, fills in, and refuses, and in which words.

use serde_json::{Map, Value, json};

use crate::support::{HTTP, Namespace, ROUTE, SCHEMAS};

const PATTERN: &str = "should match '^\\+?(0|";
const LEAST: &str = "should be greater than or equal to 1";
const PORT_XOR: &str = "exactly one of 'port' or 'portName' must be set";
const HTTP_XOR: &str = "must define either the 'portName' or the 'port'";
const BODY: &str = "at most one of 'body' or 'bodyFromConfigMap' may be set";

fn route(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": ROUTE.0, "kind": ROUTE.1, "metadata": {"name": "r"},
        "spec": {"target": {"service": "web", "port": 80}, "scalingMetric": {"concurrency": {"targetValue": 1}}},
    });
    patch(&mut object["spec"], spec);
    object
}

fn http(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": HTTP.0, "kind": HTTP.1, "metadata": {"name": "r"},
        "spec": {"scaleTargetRef": {"service": "web", "port": 80}},
    });
    patch(&mut object["spec"], spec);
    object
}

/// Merges as a JSON merge patch does: null takes away.
fn patch(into: &mut Value, from: &Value) {
    let Some(from) = from.as_object() else {
        *into = from.clone();
        return;
    };
    if !into.is_object() {
        *into = Map::new().into();
    }
    let into = into.as_object_mut().unwrap();
    for (name, value) in from {
        if value.is_null() {
            into.remove(name);
        } else {
            patch(into.entry(name).or_insert(Value::Null), value);
        }
    }
}

async fn refused(namespace: &Namespace, cases: &[(Value, &str)]) {
    for (object, expected) in cases {
        match namespace.try_new(object).await {
            Ok(_) => panic!("accepted: {}", object["spec"]),
            Err(message) => assert!(message.contains(expected), "{}: {message}", object["spec"]),
        }
    }
}

fn bad_targets_and_metrics() -> Vec<(Value, &'static str)> {
    let fallback = |service: Value| route(&json!({"coldStart": {"fallback": {"service": service}}}));
    let rate = |rate: Value| route(&json!({"scalingMetric": {"requestRate": rate}}));
    vec![
        (json!({"apiVersion": ROUTE.0, "kind": ROUTE.1, "metadata": {"name": "r"}}), "spec: Required value"),
        (route(&json!({"target": null})), "spec.target: Required value"),
        (route(&json!({"target": {"service": ""}})), "spec.target.service"),
        (route(&json!({"target": {"service": null}})), "spec.target.service: Required value"),
        (route(&json!({"target": {"portName": "http"}})), PORT_XOR),
        (route(&json!({"target": {"port": null}})), PORT_XOR),
        (route(&json!({"target": {"port": 0}})), LEAST),
        (route(&json!({"target": {"port": 65536}})), "should be less than or equal to 65535"),
        (route(&json!({"target": {"port": null, "portName": ""}})), "spec.target.portName"),
        (route(&json!({"target": {"tls": {}}})), "spec.target.tls.secretName: Required value"),
        (route(&json!({"target": {"tls": {"secretName": ""}}})), "spec.target.tls.secretName"),
        (route(&json!({"scalingMetric": null})), "spec.scalingMetric: Required value"),
        (
            route(&json!({"scalingMetric": {"concurrency": null}})),
            "at least one of 'concurrency', 'requestRate', 'connections' or 'acceptQueue' must be set",
        ),
        (route(&json!({"scalingMetric": {"concurrency": {"targetValue": 0}}})), LEAST),
        (route(&json!({"scalingMetric": {"concurrency": {"targetValue": null}}})), "targetValue: Required value"),
        (rate(json!({})), "targetValue: Required value"),
        (rate(json!({"targetValue": 0})), LEAST),
        (rate(json!({"targetValue": 1, "window": "1 minute"})), PATTERN),
        (rate(json!({"targetValue": 1, "granularity": "-1s"})), PATTERN),
        (route(&json!({"timeouts": {"readiness": "10"}})), PATTERN),
        (route(&json!({"timeouts": {"request": ""}})), PATTERN),
        (route(&json!({"timeouts": {"responseHeader": "1d"}})), PATTERN),
        (
            route(&json!({"coldStart": {}})),
            "at least one of 'fallback', 'placeholder', 'maxPendingRequests', 'maxRequestsPerPod' or 'probeReadiness' must be set",
        ),
        (route(&json!({"coldStart": {"maxPendingRequests": 0}})), LEAST),
        (route(&json!({"coldStart": {"maxRequestsPerPod": -1}})), "should be greater than or equal to 0"),
        (
            route(&json!({"coldStart": {"maxPendingRequests": 1, "overflow": "Placeholder"}})),
            "'placeholder' must be set when 'overflow' is Placeholder",
        ),
        (
            route(&json!({"coldStart": {"maxPendingRequests": 1, "overflow": "Drop"}})),
            "supported values: \"Reject\", \"Placeholder\"",
        ),
        (route(&json!({"sessionPersistence": {}})), "sessionPersistence.type: Required value"),
        (route(&json!({"sessionPersistence": {"type": "Header"}})), "supported values: \"Cookie\""),
        (
            route(&json!({"sessionPersistence": {"type": "Cookie", "absoluteTimeout": "999ms"}})),
            "absoluteTimeout must be at least 1s",
        ),
        (route(&json!({"sessionPersistence": {"type": "Cookie", "absoluteTimeout": "1d"}})), PATTERN),
        (route(&json!({"sessionPersistence": {"type": "Cookie", "cookie": {"name": "a b"}}})), "cookie.name"),
        (fallback(json!({"name": "b"})), PORT_XOR),
        (fallback(json!({"name": "", "port": 1})), "fallback.service.name"),
        (fallback(json!({"name": "b", "port": 70000})), "should be less than or equal to 65535"),
    ]
}

fn bad_direct_routes() -> Vec<(Value, &'static str)> {
    let ignore = |ignore: Value| route(&json!({"dataPath": "Direct", "demand": {"ignore": ignore}}));
    vec![
        (route(&json!({"scalingMetric": {"connections": {"targetValue": 1}}})), "connections needs dataPath Direct"),
        (route(&json!({"scalingMetric": {"acceptQueue": {"targetValue": 1}}})), "acceptQueue needs dataPath Direct"),
        (route(&json!({"demand": {}})), "demand needs dataPath Direct"),
        (ignore(json!({"cidrs": ["10.0.0.0/8 or so"]})), "demand.ignore.cidrs[0]"),
        (ignore(json!({"cidrs": vec!["10.0.0.1"; 2]})), "Duplicate value"),
        (ignore(json!({"namespaces": ["Monitoring"]})), "demand.ignore.namespaces[0]"),
    ]
}

fn bad_answers_and_rules() -> Vec<(Value, &'static str)> {
    let rules = |rule: Value| route(&json!({"rules": [rule]}));
    let answer = |response: Value| route(&json!({"coldStart": {"placeholder": {"response": response}}}));
    let fixed = |fixed: Value| route(&json!({"staticRoutes": [fixed]}));
    vec![
        (answer(json!({"statusCode": 99})), "should be greater than or equal to 100"),
        (answer(json!({"statusCode": 600})), "should be less than or equal to 599"),
        (answer(json!({"body": "a", "bodyFromConfigMap": {"name": "b"}})), BODY),
        (answer(json!({"bodyFromConfigMap": {"name": ""}})), "bodyFromConfigMap.name"),
        (answer(json!({"body": "a".repeat(32769)})), "may not be more than 32768 bytes"),
        (fixed(json!({"response": {}, "rules": []})), "should have at least 1 items"),
        (fixed(json!({"rules": [{}]})), "response: Required value"),
        (
            fixed(json!({"response": {}, "rules": [{}], "responseMode": "Never"})),
            "supported values: \"Always\", \"WhenUnavailable\"",
        ),
        (rules(json!({"hosts": ["a", "a"]})), "Duplicate value"),
        (rules(json!({"paths": [{"value": ""}]})), "paths[0].value"),
        (rules(json!({"headers": [{"name": ""}]})), "headers[0].name"),
        (rules(json!({"headers": [{"name": "a"}, {"name": "a"}]})), "Duplicate value"),
        (route(&json!({"scaling": {"minReplicas": 3, "maxReplicas": 2}})), "minReplicas must not be above maxReplicas"),
        (route(&json!({"scaling": {"minReplicas": -1}})), "should be greater than or equal to 0"),
        (route(&json!({"scaling": {"maxReplicas": 0}})), LEAST),
        (route(&json!({"scaling": {"cooldown": "five minutes"}})), PATTERN),
        (route(&json!({"scaling": {"initialCooldown": "5"}})), PATTERN),
        (route(&json!({"scaling": {"scaleTargetRef": {"kind": "Deployment"}}})), "scaleTargetRef.name: Required value"),
    ]
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_route_with_every_field_is_kept_whole_and_gets_its_defaults() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("schema-route").await;
    let response = json!({"statusCode": 503, "headers": {"a": "b"}, "bodyFromConfigMap": {"name": "page", "key": "k"}});
    let rule = json!({"hosts": ["a.example", "*.b.example"], "paths": [{"value": "/api"}],
        "headers": [{"name": "x", "value": ""}, {"name": "y"}]});
    let whole = route(&json!({
        "target": {"port": null, "portName": "http", "tls": {"secretName": "client"}},
        "dataPath": "Direct",
        "demand": {"ignore": {"cidrs": ["10.1.0.0/16", "fd00::1"], "namespaces": ["monitoring"]}},
        "rules": [rule],
        "scalingMetric": {"requestRate": {"targetValue": 5, "window": "1m30s", "granularity": "500ms"}},
        "coldStart": {"fallback": {"service": {"name": "b", "port": 65535}}, "placeholder": {"response": response},
            "probeReadiness": false, "maxPendingRequests": 9, "maxRequestsPerPod": 0, "overflow": "Placeholder"},
        "sessionPersistence": {"type": "Cookie", "absoluteTimeout": "1s", "cookie": {"name": "a-b"}},
        "timeouts": {"readiness": "0s", "request": "0", "responseHeader": "1.5h"},
        "staticRoutes": [{"rules": [rule], "response": {"body": "hi"}, "responseMode": "Always"}],
        "scaling": {"minReplicas": 1, "maxReplicas": 1, "cooldown": "5m", "initialCooldown": "+1µs",
            "scaleTargetRef": {"apiVersion": "a/v1", "kind": "K", "name": "n"}},
    }));
    let kept = namespace.try_new(&whole).await.unwrap();
    assert_eq!(kept["spec"], whole["spec"]);

    let least = route(&json!({
        "scalingMetric": {"requestRate": {"targetValue": 1}}, "scaling": {"scaleTargetRef": {"name": "n"}},
        "staticRoutes": [{"rules": [{}], "response": {}}], "coldStart": {"probeReadiness": true},
    }));
    let kept = namespace.try_new(&least).await.unwrap();
    assert_eq!(
        kept["spec"]["scalingMetric"]["requestRate"],
        json!({"targetValue": 1, "window": "1m", "granularity": "1s"})
    );
    assert_eq!(kept["spec"]["staticRoutes"][0]["responseMode"], "WhenUnavailable");
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "n"});
    assert_eq!(kept["spec"]["scaling"], json!({"minReplicas": 0, "scaleTargetRef": target}));
    assert_eq!(kept["spec"].get("timeouts"), None);
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn a_bad_field_of_a_route_is_refused_in_words() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("schema-bad-route").await;
    refused(&namespace, &bad_targets_and_metrics()).await;
    refused(&namespace, &bad_direct_routes()).await;
    refused(&namespace, &bad_answers_and_rules()).await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn an_http_scaled_object_is_taken_and_refused_as_by_the_original() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("schema-http").await;
    let bare = json!({"apiVersion": HTTP.0, "kind": HTTP.1, "metadata": {"name": "r"}});
    assert!(namespace.try_new(&bare).await.is_ok(), "nothing is required at the top");
    let whole = http(&json!({
        "hosts": ["a", "a"], "pathPrefixes": ["/"], "headers": [{"name": "x", "value": "y"}],
        "scaleTargetRef": {"name": "n", "apiVersion": "v", "kind": "K"},
        "coldStartTimeoutFailoverRef": {"service": "b", "portName": "p", "timeoutSeconds": 5},
        "replicas": {"min": 0, "max": 0}, "targetPendingRequests": -1, "scaledownPeriod": 1, "initialCooldownPeriod": 2,
        "scalingMetric": {"concurrency": {"targetValue": 1}, "requestRate": {"targetValue": 2, "window": "2m", "granularity": "2s"}},
        "timeouts": {"conditionWait": "1ms", "responseHeader": "1h1m1s"},
    }));
    assert_eq!(namespace.try_new(&whole).await.unwrap()["spec"], whole["spec"]);
    let defaults = http(&json!({
        "scalingMetric": {"concurrency": {}, "requestRate": {}}, "coldStartTimeoutFailoverRef": {"service": "b", "port": 1},
    }));
    let kept = namespace.try_new(&defaults).await.unwrap();
    assert_eq!(kept["spec"]["coldStartTimeoutFailoverRef"]["timeoutSeconds"], 30);
    let metric = json!({"concurrency": {"targetValue": 100},
        "requestRate": {"targetValue": 100, "window": "1m", "granularity": "1s"}});
    assert_eq!(kept["spec"]["scalingMetric"], metric);
    assert_eq!(kept["spec"].get("targetPendingRequests"), None);

    refused(
        &namespace,
        &[
            (http(&json!({"scaleTargetRef": null})), "spec.scaleTargetRef: Required value"),
            (http(&json!({"scaleTargetRef": {"service": null}})), "spec.scaleTargetRef.service: Required value"),
            (http(&json!({"scaleTargetRef": {"port": null}})), HTTP_XOR),
            (http(&json!({"scaleTargetRef": {"portName": "http"}})), HTTP_XOR),
            (http(&json!({"coldStartTimeoutFailoverRef": {"service": "b"}})), HTTP_XOR),
            (http(&json!({"headers": [{"name": ""}]})), "headers[0].name"),
            (http(&json!({"headers": [{"name": "a"}, {"name": "a"}]})), "Duplicate value"),
            (http(&json!({"timeouts": {"conditionWait": "soon"}})), PATTERN),
            (http(&json!({"scalingMetric": {"requestRate": {"window": "1"}}})), PATTERN),
        ],
    )
    .await;
}
