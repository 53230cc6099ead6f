//! The interceptor as its clients, its pods and its operators see it: one module for each behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use integration::{Interceptor, Pod, World};

mod bad_input;
mod burst;
mod cluster;
mod connect;
mod counts;
mod drain;
mod endpoints;
mod entrance;
mod errors;
mod fallback;
mod fidelity;
mod fixed;
mod foreign;
mod garbage;
mod h2;
mod headers;
mod hold;
mod interim;
mod kernel;
#[cfg(ebpf_object)]
mod levels;
mod probe;
mod routing;
mod scaler;
mod secrets;
mod services;
mod session;
mod smuggling;
mod streaming;
mod telemetry;
mod tls;
mod upgrade;

/// The host of the app that most tests use.
const HOST: &str = "app.test";

/// An app without endpoints.
async fn cold(env: &[(&str, &str)]) -> (World, Interceptor) {
    let world = World::with_app("app", HOST);
    let interceptor = Interceptor::start_with(&world, env).await;
    (world, interceptor)
}

/// An app with one pod, which the test plays.
async fn warm() -> (World, Pod, Interceptor) {
    warm_with(&[]).await
}

/// As [`warm`], with more environment variables.
async fn warm_with(env: &[(&str, &str)]) -> (World, Pod, Interceptor) {
    let world = World::with_app("app", HOST);
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start_with(&world, env).await;
    interceptor.endpoints("app", 1).await;
    (world, pod, interceptor)
}

/// A second app with a pod that answers by itself, to show that a fault of the first harms nobody else.
async fn neighbour(world: &World, interceptor: &Interceptor) -> integration::pod::AutoPod {
    world.app("neighbour", "neighbour.test");
    let pod = Pod::start().await.answering("well");
    world.endpoints("neighbour", &[pod.addr]);
    interceptor.endpoints("neighbour", 1).await;
    pod
}

/// The neighbour still answers.
async fn assert_neighbour_is_well(interceptor: &Interceptor) {
    let response = interceptor.get("neighbour.test", "/").await;
    assert_eq!((response.status(), response.body.as_str()), (200, "well"));
}
