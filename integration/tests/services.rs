//! What a Service says of how its pods are reached.

use integration::{Interceptor, Pod, World};
use serde_json::json;

use crate::HOST;

#[tokio::test]
async fn a_service_of_type_external_name_is_reached_by_that_name_at_the_port_of_the_route() {
    let world = World::new();
    let pod = Pod::start().await.answering("elsewhere");
    let target = json!({ "target": { "service": "app", "port": pod.addr.port() } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), target);
    let interceptor = Interceptor::start(&world).await;
    let mut waits = interceptor.client().await;
    waits.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    world.object(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "app", "namespace": "shop" },
        "spec": { "type": "ExternalName", "externalName": "localhost" },
    }));
    assert_eq!(waits.response().await.body, "elsewhere");
    assert_eq!(interceptor.get(HOST, "/").await.cold_start(), Some("false"));
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_holds_its_requests_alone() {
    let world = World::new();
    world.route("app", json!([{ "hosts": [HOST] }]));
    world.object(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "app", "namespace": "shop" },
        "spec": { "type": "ExternalName", "externalName": "nowhere.invalid" },
    }));
    let interceptor = Interceptor::start(&world).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let mut waits = interceptor.client().await;
    waits.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    crate::assert_neighbour_is_well(&interceptor).await;
    integration::eventually("the failure is told", async || {
        let metrics = interceptor.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with("rouse_name_lookup_failures_total "))?;
        (!line.ends_with(" 0")).then_some(())
    })
    .await;
}
