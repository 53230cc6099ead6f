//! What a collector on the node is told.

use std::net::TcpListener;

use integration::{Collector, agent::Agent, eventually};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::any_value::Value,
    metrics::v1::{metric::Data, number_data_point::Value as Number},
};
use prost::Message as _;

use crate::bench::Bench;

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn an_agent_s_metrics_are_told_to_a_collector() {
    let bench = Bench::new();
    let listener = bench.net.node().run(|| TcpListener::bind("127.0.0.1:0").unwrap()).await;
    let mut collector = Collector::http_on(listener);
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{}", collector.addr);
    let env = ["env", "OTEL_EXPORTER_OTLP_METRICS_ENABLED=true", "OTEL_METRIC_EXPORT_INTERVAL=50", &endpoint];
    let _agent = Agent::start_by(&bench.net, &bench.world, &env).await;
    eventually("it tells that it holds", async || {
        let (path, body) = collector.told("metrics").await;
        assert_eq!(path, "/v1/metrics");
        let told = ExportMetricsServiceRequest::decode(&*body).unwrap().resource_metrics.remove(0);
        let attributes = told.resource.unwrap().attributes;
        let name = attributes.into_iter().find(|pair| pair.key == "service.name").unwrap().value.unwrap().value;
        assert_eq!(name, Some(Value::StringValue("rouse-agent".to_owned())));
        let mut metrics = told.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
        let Some(Data::Gauge(active)) = metrics.find(|metric| metric.name == "rouse_hold_active")?.data else {
            panic!("not a gauge")
        };
        (active.data_points[0].value == Some(Number::AsInt(1))).then_some(())
    })
    .await;
}
