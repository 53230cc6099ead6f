//! Clients that stay with a pod: by a cookie of the route's, or by their address as the Service asks.

use integration::{Interceptor, Peer, Pod, World, pod::AutoPod};
use serde_json::{Value, json};

use crate::HOST;

const BODIES: [&str; 3] = ["one", "two", "three"];

/// A route of which clients stay with a pod, and three pods that tell themselves apart.
async fn three(session: Value) -> (World, Interceptor, Vec<AutoPod>) {
    let world = World::new();
    world.route_with("app", json!([{ "hosts": [HOST] }]), json!({ "sessionPersistence": session }));
    world.service("app");
    let (interceptor, pods) = with_pods(&world).await;
    (world, interceptor, pods)
}

async fn with_pods(world: &World) -> (Interceptor, Vec<AutoPod>) {
    let mut pods = Vec::new();
    for body in BODIES {
        pods.push(Pod::start().await.answering(body));
    }
    let addrs: Vec<_> = pods.iter().map(|pod| pod.addr).collect();
    world.endpoints("app", &addrs);
    let interceptor = Interceptor::start(world).await;
    interceptor.endpoints("app", 3).await;
    (interceptor, pods)
}

/// Body, and the cookie that was set.
async fn get(client: &mut Peer, more: &str) -> (String, Option<String>) {
    client.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")).await;
    let response = client.response().await;
    assert_eq!(response.status(), 200);
    (response.body.clone(), response.head.get("set-cookie").map(str::to_owned))
}

fn value(cookie: &str) -> &str {
    cookie.split(';').next().unwrap()
}

#[tokio::test]
async fn a_client_with_the_cookie_stays_with_its_pod_on_whatever_connection() {
    let (_world, interceptor, _pods) = three(json!({ "type": "Cookie" })).await;
    let (first, cookie) = get(&mut interceptor.client().await, "").await;
    let cookie = cookie.expect("the first response sets it");
    // The first 32 bits of SHA-256 of "shop/app".
    assert!(cookie.starts_with("keda-session-87bf3caf="), "{cookie}");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    for _ in 0..20 {
        let more = format!("Cookie: other=1; {}\r\n", value(&cookie));
        let (body, again) = get(&mut interceptor.client().await, &more).await;
        assert_eq!((body.as_str(), again), (first.as_str(), None), "it has the cookie already");
    }
}

#[tokio::test]
async fn a_cookie_whose_pod_has_gone_is_replaced() {
    let (world, interceptor, pods) = three(json!({ "type": "Cookie", "cookie": { "name": "mine" } })).await;
    let mut client = interceptor.client().await;
    let (first, cookie) = get(&mut client, "X-Forwarded-Proto: https\r\n").await;
    let cookie = cookie.unwrap();
    assert!(cookie.starts_with("mine=") && cookie.ends_with("; Secure"), "{cookie}");
    let left: Vec<_> = pods.iter().zip(BODIES).filter(|(_, body)| *body != first).map(|(pod, _)| pod.addr).collect();
    world.endpoints("app", &left);
    interceptor.endpoints("app", 2).await;
    let more = format!("Cookie: {}\r\n", value(&cookie));
    let (second, replaced) = get(&mut client, &more).await;
    let replaced = replaced.expect("the session has another pod");
    let more = format!("Cookie: {}\r\n", value(&replaced));
    for _ in 0..10 {
        assert_eq!(get(&mut client, &more).await, (second.clone(), None));
    }
}

#[tokio::test]
async fn a_session_that_is_too_old_is_begun_anew() {
    let session = json!({ "type": "Cookie", "absoluteTimeout": "1h", "cookie": { "name": "mine" } });
    let (_world, interceptor, _pods) = three(session).await;
    let mut client = interceptor.client().await;
    let (_, cookie) = get(&mut client, "").await;
    let cookie = cookie.unwrap();
    let (pod, issued) = value(&cookie).split_once('.').unwrap();
    let old = issued.parse::<u64>().unwrap() - 3600;
    let (_, begun) = get(&mut client, &format!("Cookie: {pod}.{old}\r\n")).await;
    assert!(begun.is_some());
    let young = issued.parse::<u64>().unwrap() - 1800;
    let (_, begun) = get(&mut client, &format!("Cookie: {pod}.{young}\r\n")).await;
    assert_eq!(begun, None);
}

#[tokio::test]
async fn a_fallback_sets_no_cookie() {
    let world = World::new();
    let more = json!({
        "sessionPersistence": { "type": "Cookie" },
        "coldStart": { "fallback": { "service": { "name": "standby", "port": 80 } } },
        "timeouts": { "readiness": "10ms" },
    });
    world.route_with("app", json!([{ "hosts": [HOST] }]), more);
    world.service("app");
    world.service("standby");
    let pod = Pod::start().await.answering("standby");
    world.endpoints("standby", &[pod.addr]);
    let interceptor = Interceptor::start(&world).await;
    assert_eq!(get(&mut interceptor.client().await, "").await, ("standby".to_owned(), None));
}

#[tokio::test]
async fn clients_of_a_service_with_affinity_stay_with_their_pod_when_more_come() {
    let world = World::new();
    world.route("app", json!([{ "hosts": [HOST] }]));
    world.object(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "app", "namespace": "shop" },
        "spec": {
            "selector": { "app": "app" }, "ports": [{ "name": "http", "port": 80 }],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
        },
    }));
    let (interceptor, pods) = with_pods(&world).await;
    let (first, cookie) = get(&mut interceptor.client().await, "").await;
    assert_eq!(cookie, None);
    for _ in 0..20 {
        assert_eq!(get(&mut interceptor.client().await, "").await.0, first);
    }
    let mut more = Vec::new();
    for _ in 0..5 {
        more.push(Pod::start().await.answering("new"));
    }
    let addrs: Vec<_> = pods.iter().chain(&more).map(|pod| pod.addr).collect();
    world.endpoints("app", &addrs);
    interceptor.endpoints("app", 8).await;
    for _ in 0..20 {
        assert_eq!(get(&mut interceptor.client().await, "").await.0, first);
    }
}

#[tokio::test]
async fn clients_that_a_trusted_proxy_names_are_told_apart() {
    let world = World::new();
    world.route("app", json!([{ "hosts": [HOST] }]));
    world.object(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "app", "namespace": "shop" },
        "spec": { "ports": [{ "name": "http", "port": 80 }], "sessionAffinity": "ClientIP" },
    }));
    let mut pods = Vec::new();
    for body in BODIES {
        pods.push(Pod::start().await.answering(body));
    }
    let addrs: Vec<_> = pods.iter().map(|pod| pod.addr).collect();
    world.endpoints("app", &addrs);
    let interceptor = Interceptor::start_with(&world, &[("ROUSE_TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    interceptor.endpoints("app", 3).await;
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..32 {
        let more = format!("X-Forwarded-For: 198.51.100.1, 192.0.2.{number}\r\n");
        let (first, _) = get(&mut interceptor.client().await, &more).await;
        assert_eq!(get(&mut interceptor.client().await, &more).await.0, first);
        seen.insert(first);
    }
    assert_eq!(seen.len(), 3, "they are spread");
}
