//! Responses that need no pod: placeholders and static routes.

use integration::{Interceptor, Pod, World};
use serde_json::{Value, json};

use crate::HOST;

/// An app with this in its route's spec.
async fn app_with(more: Value) -> (World, Interceptor) {
    let world = World::new();
    world.service("app");
    world.route_with("app", json!([{ "hosts": [HOST] }]), more);
    let interceptor = Interceptor::start(&world).await;
    (world, interceptor)
}

fn placeholder(response: &Value) -> Value {
    json!({ "coldStart": { "placeholder": { "response": response } } })
}

/// A ConfigMap that may be served.
fn pages(world: &World, data: Value) {
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "pages", "namespace": "shop", "labels": { "http.keda.sh/response-body": "true" } },
    });
    object["data"] = data;
    world.object(&object);
}

async fn warm(world: &World, interceptor: &Interceptor) -> integration::pod::AutoPod {
    let pod = Pod::start().await.answering("from the pod");
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    pod
}

#[tokio::test]
async fn a_placeholder_is_answered_at_once_and_wakes_the_workload() {
    let (world, interceptor) =
        app_with(placeholder(&json!({ "body": "<h1>Starting</h1>", "headers": { "Retry-After": "5" } }))).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (503, "<h1>Starting</h1>"));
    assert_eq!(response.head.get("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.head.get("retry-after"), Some("5"));
    assert_eq!(response.cold_start(), None);
    let queue = interceptor.queue("app").await.unwrap();
    assert_eq!(queue.count, 1, "it is demand");
    interceptor.in_flight("app", 0).await;
    let _pod = warm(&world, &interceptor).await;
    assert_eq!(interceptor.get(HOST, "/").await.body, "from the pod");
}

#[tokio::test]
async fn a_placeholder_stands_before_the_fallback() {
    let (world, interceptor) = app_with(json!({ "coldStart": {
        "placeholder": { "response": { "statusCode": 202, "body": "{}" } },
        "fallback": { "service": { "name": "standby", "port": 80 } },
    }}))
    .await;
    world.service("standby");
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (202, "{}"));
    assert_eq!(response.head.get("content-type"), Some("text/plain; charset=utf-8"));
}

#[tokio::test]
async fn a_head_request_gets_the_placeholder_without_its_body() {
    let (_world, interceptor) = app_with(placeholder(&json!({ "body": "wait" }))).await;
    let mut client = interceptor.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: app.test\r\n\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("content-length")), (503, Some("4")));
    assert_eq!(client.response().await.body, "wait");
}

#[tokio::test]
async fn an_interim_status_is_said_before_a_200() {
    let early = json!({ "statusCode": 103, "headers": { "Link": "</a>" }, "body": "wait" });
    let (_world, interceptor) = app_with(placeholder(&early)).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("link"), head.get("content-type")), (103, Some("</a>"), None));
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str(), response.head.get("link")), (200, "wait", Some("</a>")));
}

#[tokio::test]
async fn a_status_without_a_body_has_no_media_type_of_one() {
    let (_world, interceptor) = app_with(placeholder(&json!({ "statusCode": 204, "body": "wait" }))).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str(), response.head.get("content-type")), (204, "", None));
}

#[tokio::test]
async fn a_body_comes_from_a_config_map_by_key_or_by_path() {
    let by_key = placeholder(&json!({ "bodyFromConfigMap": { "name": "pages", "key": "wait.json" } }));
    let (world, interceptor) = app_with(by_key).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 500, "the ConfigMap is not there");
    pages(&world, json!({ "wait.json": "{}", "index.html": "<p>wait</p>" }));
    let response = integration::eventually("the ConfigMap is served", async || {
        let response = interceptor.get(HOST, "/any/path").await;
        (response.status() == 503).then_some(response)
    })
    .await;
    assert_eq!((response.body.as_str(), response.head.get("content-type")), ("{}", Some("application/json")));

    let by_path = json!({ "staticRoutes": [{
        "rules": [{}],
        "responseMode": "Always",
        "response": { "bodyFromConfigMap": { "name": "pages" } },
    }] });
    world.route_with("files", json!([{ "hosts": ["files.test"] }]), by_path);
    world.service("files");
    let index = integration::eventually("the route is there", async || {
        let response = interceptor.get("files.test", "/").await;
        (response.status() == 200).then_some(response)
    })
    .await;
    assert_eq!(
        (index.body.as_str(), index.head.get("content-type")),
        ("<p>wait</p>", Some("text/html; charset=utf-8"))
    );
    assert_eq!(interceptor.get("files.test", "/wait%2ejson").await.body, "{}");
    let missing = interceptor.get("files.test", "/favicon.ico").await;
    assert_eq!((missing.status(), missing.body.as_str(), missing.head.get("content-type")), (200, "", None));
}

#[tokio::test]
async fn a_config_map_without_the_label_is_never_served() {
    let (world, interceptor) =
        app_with(placeholder(&json!({ "bodyFromConfigMap": { "name": "secret", "key": "k" } }))).await;
    world.object(&json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "secret", "namespace": "shop" }, "data": { "k": "private" },
    }));
    // The neighbour's route is written later, so when it is there the ConfigMap has been read.
    world.app("later", "later.test");
    interceptor.endpoints("later", 0).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (500, "Internal Server Error\n"));
}

#[tokio::test]
async fn static_routes_answer_always_or_while_the_workload_is_cold_and_are_no_demand() {
    let (world, interceptor) = app_with(json!({ "staticRoutes": [
        { "rules": [{ "paths": [{ "value": "/healthz" }] }], "responseMode": "Always", "response": { "body": "fine" } },
        { "rules": [{ "headers": [{ "name": "x-probe" }] }], "response": { "statusCode": 204 } },
    ] }))
    .await;
    assert_eq!(interceptor.get(HOST, "/healthz/deep").await.body, "fine");
    let mut client = interceptor.client().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nX-Probe: 1\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 204);
    assert_eq!(interceptor.queue("app").await.unwrap().count, 0);

    let _pod = warm(&world, &interceptor).await;
    assert_eq!(interceptor.get(HOST, "/healthz").await.body, "fine");
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nX-Probe: 1\r\n\r\n").await;
    let forwarded = client.response().await;
    assert_eq!((forwarded.body.as_str(), forwarded.cold_start()), ("from the pod", None));
    assert_eq!(interceptor.queue("app").await.unwrap().count, 0, "what static routes take is no demand");
    assert_eq!(interceptor.get(HOST, "/").await.cold_start(), Some("false"));
}
