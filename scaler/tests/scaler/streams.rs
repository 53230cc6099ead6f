//! What is pushed, and when streams end.

use interceptor_core::{ObjectKey, index::Event, route::RouteKind};
use tonic::Code;

use crate::support::{
    Interceptor, Scaler, active, http_scaled_object, httpso, ir, listeners, next, no_reference, own, route, unattended,
};

#[tokio::test]
async fn a_request_is_pushed_and_so_is_its_end() {
    let (mut scaler, interceptor) = Scaler::with(vec![route("a", Some(1), None)], &[("a", 0, 0)]).await;
    let mut stream = scaler.stream(ir("a")).await;
    assert!(!active(&mut stream).await);
    for round in 1..4 {
        interceptor.push(&[("a", 1, round)]).await;
        assert!(active(&mut stream).await);
        interceptor.push(&[("a", 0, round)]).await;
        assert!(!active(&mut stream).await);
    }
}

#[tokio::test]
async fn a_stream_that_opens_on_an_active_route_says_so_at_once() {
    let (mut scaler, _interceptor) = Scaler::with(vec![http_scaled_object("a", None, None)], &[("a", 2, 2)]).await;
    assert!(active(&mut scaler.stream(httpso("a")).await).await);
    assert!(active(&mut scaler.stream(own("1")).await).await);
}

#[tokio::test]
async fn a_request_too_short_to_be_seen_in_flight_is_pushed() {
    let (mut scaler, interceptor) = Scaler::with(vec![route("a", Some(1), None)], &[("a", 0, 10)]).await;
    let mut stream = scaler.stream(ir("a")).await;
    assert!(!active(&mut stream).await);
    interceptor.push(&[("a", 0, 11)]).await;
    assert!(active(&mut stream).await);
    assert!(!active(&mut stream).await);
}

#[tokio::test]
async fn a_route_that_is_missing_for_a_moment_does_not_end_its_streams() {
    let (mut scaler, interceptor) = Scaler::with(vec![route("a", Some(1), None)], &[("a", 1, 1)]).await;
    let mut activity = scaler.stream(ir("a")).await;
    let mut specs = scaler.client.stream_metric_spec(ir("a")).await.unwrap().into_inner();
    assert!(active(&mut activity).await);
    assert!(next(&mut specs).await.is_some());
    scaler.apply(vec![Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("ns", "a"))]).await;
    assert!(!active(&mut activity).await);
    assert_eq!(scaler.is_active(ir("a")).await.unwrap_err().code(), Code::Unknown);
    interceptor.push(&[("a", 2, 2)]).await;
    scaler.apply(vec![Event::Route(route("a", Some(5), None))]).await;
    assert!(active(&mut activity).await);
    assert_eq!(next(&mut specs).await.unwrap().metric_specs[0].target_size_float.to_string(), "5");
}

#[tokio::test]
async fn a_stream_may_be_opened_before_its_route_exists() {
    let (mut scaler, interceptor) = Scaler::with(Vec::new(), &[("a", 0, 0)]).await;
    let mut activity = scaler.stream(ir("a")).await;
    assert!(!active(&mut activity).await);
    scaler.apply(vec![Event::Route(route("a", Some(5), None))]).await;
    interceptor.push(&[("a", 1, 1)]).await;
    assert!(active(&mut activity).await);
}

#[tokio::test]
async fn specs_are_pushed_at_once_and_when_the_targets_change() {
    let (mut scaler, interceptor) = Scaler::with(vec![route("a", Some(1), None)], &[("a", 0, 0)]).await;
    let mut specs = scaler.client.stream_metric_spec(ir("a")).await.unwrap().into_inner();
    assert_eq!(next(&mut specs).await.unwrap().metric_specs[0].target_size_float.to_string(), "1");
    // Neither a request nor an edit that leaves the targets as they are is a change.
    interceptor.push(&[("a", 1, 1)]).await;
    scaler.apply(vec![Event::Route(route("a", Some(1), None))]).await;
    scaler.apply(vec![Event::Route(route("a", Some(1), Some(9)))]).await;
    let changed = next(&mut specs).await.unwrap().metric_specs;
    assert_eq!(changed.len(), 2);
    assert_eq!(scaler.client.get_metric_spec(ir("a")).await.unwrap().into_inner().metric_specs, changed);
}

#[tokio::test]
async fn a_stream_about_nobody_is_refused() {
    let (mut scaler, _interceptor) = Scaler::with(Vec::new(), &[]).await;
    let refused = scaler.client.stream_is_active(no_reference()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown);
    let refused = scaler.client.stream_metric_spec(own("many")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown);
}

#[tokio::test]
async fn open_streams_end_when_the_scaler_is_asked_to() {
    let (mut scaler, _interceptor) = Scaler::with(vec![route("a", Some(1), None)], &[("a", 0, 0)]).await;
    let mut activity = scaler.stream(ir("a")).await;
    let mut specs = scaler.client.stream_metric_spec(ir("a")).await.unwrap().into_inner();
    assert!(!active(&mut activity).await);
    assert!(next(&mut specs).await.is_some());
    scaler.stop().await.unwrap();
    assert!(next(&mut activity).await.is_none());
    assert!(next(&mut specs).await.is_none());
}

#[tokio::test]
async fn a_scaler_that_is_asked_to_end_does_not_wait_for_an_idle_client() {
    let (scaler, _interceptor) = Scaler::with(Vec::new(), &[]).await;
    let _idle = scaler.channel.clone();
    scaler.stop().await.unwrap();
}

#[tokio::test]
async fn an_end_that_was_asked_for_is_no_failure_whatever_ends_first() {
    for _ in 0..30 {
        // Without a client the gRPC server ends at once.
        unattended().await.unwrap();
    }
}

#[tokio::test]
async fn routes_and_interceptors_come_from_a_folder_of_manifests() {
    let (sockets, addresses, port) = listeners(1).await;
    let _interceptor = Interceptor::serve(sockets.into_iter().next().unwrap(), "one", &[("a", 1, 1)]);
    let folder = tempfile::tempdir().unwrap();
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: admin-1, namespace: keda, labels: \
         {{kubernetes.io/service-name: admin}}}}\naddressType: IPv4\nports: [{{port: {port}}}]\nendpoints: \
         [{{addresses: [{}], conditions: {{ready: true}}}}]\n",
        addresses[0]
    );
    let route = |target: u32| {
        format!(
            "apiVersion: http.keda.sh/v1beta1\nkind: InterceptorRoute\nmetadata: {{name: a, namespace: ns}}\nspec: \
             {{target: {{service: web, port: 80}}, scalingMetric: {{concurrency: {{targetValue: {target}}}}}}}\n"
        )
    };
    std::fs::write(folder.path().join("slice.yaml"), slice).unwrap();
    std::fs::write(folder.path().join("route.yaml"), route(7)).unwrap();
    let mut scaler = Scaler::of_folder(folder.path(), port).await;
    scaler.in_flight(1).await;
    assert!(active(&mut scaler.stream(ir("a")).await).await);
    let mut specs = scaler.client.stream_metric_spec(ir("a")).await.unwrap().into_inner();
    assert_eq!(next(&mut specs).await.unwrap().metric_specs[0].target_size_float.to_string(), "7");
    std::fs::write(folder.path().join("route.yaml"), route(8)).unwrap();
    assert_eq!(next(&mut specs).await.unwrap().metric_specs[0].target_size_float.to_string(), "8");
    scaler.stop().await.unwrap();
}
