//! Which route a request takes.

use integration::{Interceptor, Peer, Pod, World, eventually, pod::AutoPod};
use serde_json::json;

use crate::HOST;

/// Several apps, each with a pod that answers with the app's name.
struct Apps {
    world: World,
    pods: Vec<AutoPod>,
}

impl Apps {
    fn new() -> Self {
        Self { world: World::new(), pods: Vec::new() }
    }

    async fn add(&mut self, name: &'static str, rules: serde_json::Value) {
        self.world.route(name, rules);
        self.world.service(name);
        let pod = Pod::start().await.answering(name);
        self.world.endpoints(name, &[pod.addr]);
        self.pods.push(pod);
    }
}

/// The name of the app that answers, or the status.
async fn answers(interceptor: &Interceptor, host: &str, target: &str, headers: &str) -> String {
    let mut client = interceptor.client().await;
    client.send(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")).await;
    let response = client.response().await;
    if response.status() == 200 { response.body } else { response.status().to_string() }
}

#[tokio::test]
async fn the_most_specific_host_wins_and_a_path_that_misses_falls_through() {
    let mut apps = Apps::new();
    apps.add("exact", json!([{ "hosts": ["a.b.example.com"], "paths": [{ "value": "/api" }] }])).await;
    apps.add("near", json!([{ "hosts": ["*.b.example.com"] }])).await;
    apps.add("far", json!([{ "hosts": ["*.com"] }])).await;
    apps.add("port", json!([{ "hosts": ["port.test:8080"] }])).await;
    let interceptor = Interceptor::start(&apps.world).await;
    for (host, target, expected) in [
        ("a.b.example.com", "/api", "exact"),
        ("a.b.example.com", "/api/v1?x=/", "exact"),
        ("a.b.example.com:8080", "/api/", "exact"),
        ("A.B.Example.COM", "/api", "exact"),
        ("a.b.example.com", "/apix", "near"),
        ("x.b.example.com", "/", "near"),
        ("y.x.b.example.com", "/", "near"),
        ("b.example.com", "/", "far"),
        ("com", "/", "404"),
        ("port.test", "/", "port"),
        ("port.test:1", "/", "port"),
        ("elsewhere.test", "/", "404"),
    ] {
        assert_eq!(answers(&interceptor, host, target, "").await, expected, "{host}{target}");
    }
}

#[tokio::test]
async fn the_catch_all_takes_what_nobody_else_does() {
    let mut apps = Apps::new();
    apps.add("rest", json!([{ "hosts": ["*"] }])).await;
    apps.add("health", json!([{ "paths": [{ "value": "/health" }] }])).await;
    let interceptor = Interceptor::start(&apps.world).await;
    for (host, target, expected) in
        [("any.test", "/", "rest"), ("[::1]:80", "/healthz", "rest"), ("127.0.0.1", "/health/live", "health")]
    {
        assert_eq!(answers(&interceptor, host, target, "").await, expected, "{host}{target}");
    }
}

#[tokio::test]
async fn header_matchers_decide_among_routes_of_one_host_and_path() {
    let mut apps = Apps::new();
    let rule =
        |headers: serde_json::Value| json!([{ "hosts": [HOST], "paths": [{ "value": "/api" }], "headers": headers }]);
    apps.add("foo", rule(json!([{ "name": "X-Custom-Header", "value": "foo" }]))).await;
    apps.add("bar", rule(json!([{ "name": "X-Custom-Header", "value": "bar" }]))).await;
    apps.add("baz", rule(json!([]))).await;
    apps.add("key-only", rule(json!([{ "name": "X-Custom-Header" }]))).await;
    let another = json!({ "name": "X-Another-Header", "value": "baz" });
    apps.add("many", rule(json!([{ "name": "X-Custom-Header", "value": "foo" }, another]))).await;
    apps.add("many-key", rule(json!([{ "name": "X-Custom-Header" }, another]))).await;
    let other = json!([{ "hosts": [HOST], "paths": [{ "value": "/other" }],
        "headers": [{ "name": "X-Custom-Header", "value": "foo" }] }]);
    apps.add("other", other).await;
    let interceptor = Interceptor::start(&apps.world).await;
    for (target, headers, expected) in [
        ("/api/x", "X-Custom-Header: foo\r\n", "foo"),
        ("/api/x", "x-custom-header: bar\r\n", "bar"),
        ("/api/x", "X-Custom-Header: any-value\r\n", "key-only"),
        ("/api/x", "X-Custom-Header:\r\n", "key-only"),
        ("/api/x", "", "baz"),
        ("/api/x", "X-Other-Header: foo\r\n", "baz"),
        ("/api/x", "X-Custom-Header: foo\r\nX-Another-Header: baz\r\n", "many"),
        ("/api/x", "X-Custom-Header: x\r\nX-Another-Header: baz\r\n", "many-key"),
        ("/api/x", "X-Custom-Header: x\r\nX-Custom-Header: foo\r\n", "foo"),
        ("/other/resource", "X-Custom-Header: foo\r\n", "other"),
        ("/other/resource", "X-Custom-Header: bar\r\n", "404"),
    ] {
        assert_eq!(answers(&interceptor, HOST, target, headers).await, expected, "{target} {headers:?}");
    }
}

#[tokio::test]
async fn a_longer_path_whose_headers_miss_gives_way_to_a_shorter_one() {
    let mut apps = Apps::new();
    apps.add("short", json!([{ "hosts": [HOST], "paths": [{ "value": "/api" }] }])).await;
    let long = json!([{ "hosts": [HOST], "paths": [{ "value": "/api/v1" }], "headers": [{ "name": "X" }] }]);
    apps.add("long", long).await;
    let interceptor = Interceptor::start(&apps.world).await;
    assert_eq!(answers(&interceptor, HOST, "/api/v1/foo", "X: 1\r\n").await, "long");
    assert_eq!(answers(&interceptor, HOST, "/api/v1/foo", "").await, "short");
}

#[tokio::test]
async fn an_absolute_target_routes_by_its_own_authority() {
    let mut apps = Apps::new();
    apps.add("app", json!([{ "hosts": [HOST] }])).await;
    let interceptor = Interceptor::start(&apps.world).await;
    assert_eq!(answers(&interceptor, "elsewhere.test", "http://app.test/x", "").await, "app");
}

#[tokio::test]
async fn options_of_the_server_itself_are_answered_without_routing() {
    let world = World::new();
    let interceptor = Interceptor::start(&world).await;
    let mut client = interceptor.client().await;
    client.send("OPTIONS * HTTP/1.1\r\nHost: any.test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_request_without_route_gets_the_original_s_404() {
    let world = World::new();
    let interceptor = Interceptor::start(&world).await;
    let response = interceptor.get("nobody.test", "/").await;
    assert_eq!((response.status(), response.body.as_str()), (404, "Not Found\n"));
    assert_eq!(response.head.get("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.head.get("x-content-type-options"), Some("nosniff"));
    assert_eq!(response.cold_start(), None);
}

#[tokio::test]
async fn an_http_1_0_request_without_host_can_only_take_the_catch_all() {
    let mut apps = Apps::new();
    apps.add("app", json!([{ "hosts": [HOST] }])).await;
    let interceptor = Interceptor::start(&apps.world).await;
    let mut old = interceptor.client().await;
    old.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.response().await.status(), 404);
    apps.add("rest", json!([{ "hosts": ["*"] }])).await;
    interceptor.endpoints("rest", 1).await;
    let mut old = interceptor.client().await;
    old.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.response().await.body, "rest");
}

#[tokio::test]
async fn an_edit_of_a_manifest_takes_effect_on_open_connections() {
    let mut apps = Apps::new();
    apps.add("app", json!([{ "hosts": [HOST] }])).await;
    let interceptor = Interceptor::start(&apps.world).await;
    let mut client = interceptor.client().await;
    apps.world.route("app", json!([{ "hosts": ["moved.test"] }]));
    status_becomes(&mut client, HOST, 404).await;
    status_becomes(&mut client, "moved.test", 200).await;
    apps.world.remove("InterceptorRoute", "app");
    status_becomes(&mut client, "moved.test", 404).await;
}

async fn status_becomes(client: &mut Peer, host: &str, status: u16) {
    eventually(&format!("{host} is answered with {status}"), async || {
        client.get(host, "/").await;
        (client.response().await.status() == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_http_scaled_object_routes_too_unless_a_route_of_its_name_exists() {
    let mut apps = Apps::new();
    apps.add("app", json!([{ "hosts": [HOST] }])).await;
    let object = |name: &str, host: &str, service: &str| {
        json!({
            "apiVersion": "http.keda.sh/v1alpha1", "kind": "HTTPScaledObject",
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "hosts": [host], "pathPrefixes": ["/old"],
                "scaleTargetRef": { "name": service, "kind": "Deployment", "apiVersion": "apps/v1",
                    "service": service, "port": 80 } },
        })
    };
    apps.world.object(&object("legacy", "legacy.test", "app"));
    apps.world.object(&object("app", "shadowed.test", "app"));
    let interceptor = Interceptor::start(&apps.world).await;
    assert_eq!(answers(&interceptor, "legacy.test", "/old/x", "").await, "app");
    assert_eq!(answers(&interceptor, "legacy.test", "/new", "").await, "404");
    assert_eq!(answers(&interceptor, "shadowed.test", "/old", "").await, "404");
    assert_eq!(answers(&interceptor, HOST, "/", "").await, "app");
}

#[tokio::test]
async fn on_the_same_key_the_older_route_wins_and_the_other_is_reported() {
    let apps = {
        let mut apps = Apps::new();
        apps.add("newer", json!([{ "hosts": [HOST] }])).await;
        apps.add("older", json!([{ "hosts": [HOST] }])).await;
        apps
    };
    let older = json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": "older", "namespace": "shop", "creationTimestamp": "2025-01-01T00:00:00Z" },
        "spec": { "target": { "service": "older", "port": 80 }, "rules": [{ "hosts": [HOST] }],
            "scalingMetric": { "concurrency": { "targetValue": 1 } } },
    });
    apps.world.object(&older);
    let interceptor = Interceptor::start(&apps.world).await;
    assert_eq!(answers(&interceptor, HOST, "/", "").await, "older");
    let problem = interceptor.problem("newer").await;
    assert!(problem.contains("older"), "names whom it conflicts with: {problem}");
}

#[tokio::test]
async fn a_named_port_is_found_and_may_differ_per_endpoint() {
    let world = World::new();
    let target = json!({ "target": { "service": "app", "portName": "http" } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), target);
    world.service("app");
    let (one, two) = (Pod::start().await.answering("app"), Pod::start().await.answering("app"));
    world.endpoints("app", &[one.addr, two.addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 2).await;
    eventually("both pods are sent requests", async || {
        assert_eq!(interceptor.get(HOST, "/").await.body, "app");
        (one.requests() > 0 && two.requests() > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_guarded_host_stays_with_the_namespace_that_named_it_first_and_the_other_is_told() {
    let world = World::new();
    let route = |namespace: &str, created: &str, status: u16| {
        let route = json!({
            "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
            "metadata": { "name": "app", "namespace": namespace, "creationTimestamp": created },
            "spec": {
                "target": { "service": "app", "port": 80 }, "rules": [{ "hosts": [HOST] }],
                "scalingMetric": { "concurrency": { "targetValue": 1 } },
                "staticRoutes": [{ "rules": [{}], "responseMode": "Always", "response": { "statusCode": status } }],
            },
        });
        world.file(&format!("route-{namespace}.json"), &route.to_string());
    };
    let service = |namespace: &str| {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "app", "namespace": namespace },
            "spec": { "ports": [{ "port": 80 }] },
        });
        world.file(&format!("service-{namespace}.json"), &service.to_string());
    };
    service("first");
    service("second");
    route("first", "2026-01-01T00:00:00Z", 201);
    route("second", "2026-01-02T00:00:00Z", 202);
    let interceptor = Interceptor::start_with(&world, &[("ROUSE_HOST_GUARD", "first-come")]).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 201);
    let problem = interceptor.problem("InterceptorRoute second/app").await;
    assert!(problem.contains("belongs to namespace first: InterceptorRoute first/app was there first"), "{problem}");
    let line = "rouse_route_conflicts{route_name=\"app\",route_namespace=\"second\"} 1";
    let metrics = interceptor.metrics().await;
    assert!(metrics.lines().any(|have| have == line), "{metrics}");
}

#[tokio::test]
async fn with_an_allow_list_a_route_gets_the_hosts_of_its_namespace_s_annotation_alone() {
    let mut apps = Apps::new();
    apps.add("app", json!([{ "hosts": ["a.test", "x.wild.test", "b.test"] }])).await;
    let namespace = |annotations| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "annotations": annotations } });
    apps.world.object(&namespace(json!({ "http.keda.sh/allowed-hosts": "a.test, *.wild.test" })));
    let interceptor = Interceptor::start_with(&apps.world, &[("ROUSE_HOST_GUARD", "allow-list")]).await;
    interceptor.endpoints("app", 1).await;
    assert_eq!(answers(&interceptor, "a.test", "/", "").await, "app");
    assert_eq!(answers(&interceptor, "x.wild.test", "/", "").await, "app");
    assert_eq!(answers(&interceptor, "b.test", "/", "").await, "404");
    let problem = interceptor.problem("shop/app").await;
    assert!(problem.contains("b.test/ may not be claimed: the annotation http.keda.sh/allowed-hosts"), "{problem}");
    let metrics = interceptor.metrics().await;
    let lost = "rouse_route_conflicts{route_name=\"app\",route_namespace=\"shop\"} 1";
    assert!(metrics.contains(lost), "{metrics}");
    apps.world.object(&namespace(json!({ "http.keda.sh/allowed-hosts": "b.test, http://a.test" })));
    eventually("the new list is heeded", async || {
        (answers(&interceptor, "b.test", "/", "").await == "app").then_some(())
    })
    .await;
    assert_eq!(answers(&interceptor, "a.test", "/", "").await, "404");
    let problem = interceptor.problem("these entries are no hosts").await;
    assert!(problem.contains("http://a.test"), "{problem}");
    apps.world.object(&namespace(json!({})));
    eventually("nothing is allowed without the annotation", async || {
        (answers(&interceptor, "b.test", "/", "").await == "404").then_some(())
    })
    .await;
}
