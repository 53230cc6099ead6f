//! What an OpenTelemetry collector is told, by a collector that the test plays over HTTP or gRPC.

use integration::{Collector, Interceptor, Pod, eventually};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::ExportMetricsServiceRequest,
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data, number_data_point},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use runtime::task;
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::HOST;

/// A caller's span, sampled.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

struct Grpc(mpsc::UnboundedSender<(String, Vec<u8>)>);

async fn grpc() -> Collector {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Grpc(tell)));
    task::spawn("collector", server.serve_with_incoming(TcpIncoming::from(listener)));
    Collector::new(addr, told)
}

/// The interceptor's environment.
fn env(collector: &Collector, protocol: &'static str) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_TRACES_ENABLED", "true".to_owned()),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol.to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.addr)),
        ("OTEL_BSP_SCHEDULE_DELAY", "20".to_owned()),
    ]
}

/// Spans, until one is the server's, which ends last.
async fn spans(collector: &mut Collector) -> Vec<Span> {
    let mut all = Vec::new();
    while !all.iter().any(|span: &Span| span.kind == i32::from(SpanKind::Server)) {
        let (path, body) = collector.told("spans").await;
        assert_eq!(path, "/v1/traces");
        let request = ExportTraceServiceRequest::decode(&*body).unwrap();
        for spans in request.resource_spans {
            let resource = spans.resource.unwrap().attributes;
            assert_eq!(text(&resource, "service.name").as_deref(), Some("keda-http-interceptor"));
            all.extend(spans.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    all
}

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(("/v1/traces".to_owned(), request.into_inner().encode_to_vec())).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|half| char::from_digit(half.into(), 16)).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} among {names:?}"))
}

fn borrowed<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    env.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn ask(interceptor: &Interceptor, flags: &str) -> integration::Peer {
    let mut client = interceptor.client().await;
    let parent = format!("00-{TRACE}-{CALLER}-{flags}");
    let head = format!("GET /a?b=c HTTP/1.1\r\nHost: {HOST}\r\nTraceparent: {parent}\r\nTracestate: vendor=1\r\n\r\n");
    client.send(&head).await;
    client
}

#[tokio::test]
async fn a_caller_s_trace_goes_on_through_the_interceptor_to_the_pod() {
    let mut collector = Collector::http();
    let env = env(&collector, "http/protobuf");
    let (_world, pod, interceptor) = crate::warm_with(&borrowed(&env)).await;
    let mut client = ask(&interceptor, "01").await;
    let (mut peer, head) = pod.request().await;
    peer.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 404);
    let spans = spans(&mut collector).await;

    let (server, attempt) = (named(&spans, "keda-http-interceptor"), named(&spans, "HTTP GET"));
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
    assert_eq!(hex(&server.parent_span_id), CALLER);
    assert_eq!(attempt.parent_span_id, server.span_id);
    assert_eq!(named(&spans, "route").parent_span_id, server.span_id);
    assert_eq!(named(&spans, "connect").parent_span_id, server.span_id);
    let parent = format!("00-{TRACE}-{}-01", hex(&attempt.span_id));
    assert_eq!(head.all("traceparent"), [parent]);
    assert_eq!(head.all("tracestate"), ["vendor=1"]);
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "404"),
        ("url.path", "/a"),
        ("url.query", "b=c"),
        ("server.address", HOST),
        ("network.protocol.version", "1.1"),
        ("cold-start", "false"),
    ] {
        assert_eq!(text(&server.attributes, key).as_deref(), Some(expected), "{key}");
    }
    assert_eq!(text(&attempt.attributes, "http.response.status_code").as_deref(), Some("404"));
    assert_eq!(text(&named(&spans, "route").attributes, "route.name").as_deref(), Some("app"));
}

#[tokio::test]
async fn a_cold_start_shows_how_long_the_request_was_held_also_over_grpc() {
    let mut collector = grpc().await;
    let env = env(&collector, "GRPC");
    let (world, interceptor) = crate::cold(&borrowed(&env)).await;
    let mut client = ask(&interceptor, "01").await;
    eventually("the request is held", async || (interceptor.queue("app").await?.concurrency == 1).then_some(())).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (mut peer, _) = pod.request().await;
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    client.response().await;
    let spans = spans(&mut collector).await;
    let (hold, connect, server) =
        (named(&spans, "hold"), named(&spans, "connect"), named(&spans, "keda-http-interceptor"));
    assert!(hold.start_time_unix_nano >= server.start_time_unix_nano);
    assert!(hold.end_time_unix_nano > hold.start_time_unix_nano);
    assert!(connect.end_time_unix_nano <= server.end_time_unix_nano);
    assert_eq!(text(&server.attributes, "cold-start").as_deref(), Some("true"));
}

#[tokio::test]
async fn a_trace_that_its_caller_does_not_sample_is_passed_on_and_not_told() {
    let mut collector = Collector::http();
    let env = env(&collector, "http/protobuf");
    let (_world, pod, interceptor) = crate::warm_with(&borrowed(&env)).await;
    let mut heads = Vec::new();
    for flags in ["00", "01"] {
        let mut client = ask(&interceptor, flags).await;
        let (mut peer, head) = pod.request().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        client.response().await;
        heads.push(head.get("traceparent").unwrap().to_owned());
    }
    assert!(heads[0].starts_with(&format!("00-{TRACE}-")) && heads[0].ends_with("-00"), "{heads:?}");
    let spans = spans(&mut collector).await;
    assert_eq!(spans.iter().filter(|span| span.name == "HTTP GET").count(), 1, "of the second request alone");
}

#[tokio::test]
async fn without_tracing_the_caller_s_fields_pass_as_they_are() {
    let (_world, pod, interceptor) = crate::warm().await;
    let _client = ask(&interceptor, "01").await;
    let (_peer, head) = pod.request().await;
    assert_eq!(head.all("traceparent"), [format!("00-{TRACE}-{CALLER}-01")]);
    assert_eq!(head.all("tracestate"), ["vendor=1"]);
}

#[tokio::test]
async fn metrics_are_told_under_the_names_that_the_add_on_has_in_opentelemetry() {
    let mut collector = Collector::http();
    let endpoint = format!("http://{}", collector.addr);
    let env = [
        ("OTEL_EXPORTER_OTLP_METRICS_ENABLED", "true"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
        // As in a minimal image, which has no authorities.
        ("SSL_CERT_FILE", "/nonexistent"),
        ("SSL_CERT_DIR", "/nonexistent"),
    ];
    let (_world, pod, interceptor) = crate::warm_with(&env).await;
    let _pod = pod.answering("hello");
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
    eventually("the request is told", async || {
        let (path, body) = collector.told("metrics").await;
        assert_eq!(path, "/v1/metrics");
        let request = ExportMetricsServiceRequest::decode(&*body).unwrap();
        let resource = &request.resource_metrics[0];
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(text(attributes, "service.name").as_deref(), Some("keda-http-interceptor"));
        told(&resource.scope_metrics[0].metrics)
    })
    .await;
}

/// The one request, in all three metrics.
fn told(metrics: &[Metric]) -> Option<()> {
    let data = |name: &str| metrics.iter().find(|metric| metric.name == name)?.data.clone();
    let Some(Data::Sum(count)) = data("interceptor.request.count") else { return None };
    let point = count.data_points.first()?;
    assert!(count.is_monotonic);
    assert_eq!(point.value, Some(number_data_point::Value::AsInt(1)));
    assert_eq!(value(&point.attributes, "code"), Some(Value::IntValue(200)));
    assert_eq!(text(&point.attributes, "route_name").as_deref(), Some("app"));
    let Some(Data::Histogram(duration)) = data("interceptor.request.duration") else { panic!("no duration") };
    assert_eq!(duration.data_points[0].count, 1);
    let Some(Data::Sum(concurrency)) = data("interceptor.request.concurrency") else { panic!("no concurrency") };
    assert!(!concurrency.is_monotonic);
    Some(())
}
