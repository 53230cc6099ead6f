//! Health, reflection and metrics: what a kubelet, a curious person and Prometheus see.

use interceptor_core::{ObjectKey, index::Event, route::RouteKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Interceptor, PATIENCE, Scaler, active, ir, listeners, route};

const SERVING: i32 = ServingStatus::Serving as i32;
const NOT_SERVING: i32 = ServingStatus::NotServing as i32;

/// Waits until a service's health is as wanted.
async fn health(scaler: &Scaler, service: &str, wanted: i32) {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut stream = HealthClient::new(scaler.channel.clone()).watch(request).await.unwrap().into_inner();
    let reached = async { while stream.message().await.unwrap().unwrap().status != wanted {} };
    timeout(PATIENCE, reached).await.expect("health becomes what is wanted");
}

async fn scrape(scaler: &Scaler) -> String {
    let mut stream = TcpStream::connect(scaler.metrics).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_scaler_without_interceptors_lives_and_is_not_ready() {
    let (sockets, addresses, port) = listeners(1).await;
    let scaler = Scaler::start(port).await;
    health(&scaler, "", SERVING).await;
    health(&scaler, "liveness", SERVING).await;
    health(&scaler, "readiness", NOT_SERVING).await;
    scaler.list(&addresses).await;
    scaler.synced().await;
    let _interceptor = Interceptor::serve(sockets.into_iter().next().unwrap(), "one", &[]);
    health(&scaler, "readiness", SERVING).await;
    scaler.list(&[]).await;
    health(&scaler, "readiness", NOT_SERVING).await;
    health(&scaler, "liveness", SERVING).await;
    let mut client = HealthClient::new(scaler.channel.clone());
    let unknown = client.check(HealthCheckRequest { service: "nobody".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn the_service_describes_itself() {
    let scaler = Scaler::start(9).await;
    let request =
        |message_request| ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
    let requests = [
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol("externalscaler.ExternalScaler".to_owned())),
    ];
    let mut client = ServerReflectionClient::new(scaler.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = first else { panic!("{first:?} is no list") };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["externalscaler.ExternalScaler", "grpc.health.v1.Health"]);
    let second = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(second, Some(MessageResponse::FileDescriptorResponse(_))), "{second:?}");
}

#[tokio::test]
async fn metrics_have_the_originals_names_and_one_series_a_route() {
    let routes = vec![route("a", Some(1), Some(1)), route("b", Some(1), None)];
    let (mut scaler, interceptor) = Scaler::with(routes, &[("a", 3, 3), ("ghost", 1, 1)]).await;
    let stream = scaler.stream(ir("a")).await;
    interceptor.push(&[("a", 4, 4)]).await;
    scaler.in_flight(5).await;
    let metrics = scrape(&scaler).await;
    for line in [
        "# TYPE scaler_pinger_fetch_duration_seconds histogram",
        "scaler_pinger_fetch_duration_seconds_count 1",
        "scaler_pinger_fetch_errors_total 0",
        "scaler_pinger_unreachable_pods 0",
        "scaler_pinger_endpoints 1",
        "scaler_streams 1",
        "scaler_streams_refused_total 0",
        "scaler_route_concurrency{route_name=\"a\",route_namespace=\"ns\"} 4",
        "scaler_route_concurrency{route_name=\"b\",route_namespace=\"ns\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found.trim_end_matches(".0") == line), "{line} is missing:\n{metrics}");
    }
    assert!(metrics.contains("scaler_route_request_rate{route_name=\"a\"") && !metrics.contains("ghost"), "{metrics}");
    assert!(!metrics.contains("scaler_route_request_rate{route_name=\"b\""), "{metrics}");
    drop(stream);
    scaler.apply(vec![Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("ns", "a"))]).await;
    let mut activity = scaler.stream(ir("a")).await;
    while active(&mut activity).await {}
    let metrics = scrape(&scaler).await;
    assert!(!metrics.contains("route_name=\"a\""), "{metrics}");
}
