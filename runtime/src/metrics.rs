//! The process's metrics: one registry, filled at start by each component's own struct, read by the admin port and by
//! the port of `OTEL_PROM_EXPORTER_PORT`.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use http_body_util::Full;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, info::Info},
    registry::Registry,
};

mod format;
mod process;

use self::format::Format;

/// The registry while components still register with it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    refused: Counter,
}

/// The registry once all have: answers scrapes. Clones share it.
#[derive(Clone)]
pub struct Exposition {
    registry: Arc<Registry>,
    refused: Counter,
}

// === impl Metrics ===

impl Metrics {
    /// A registry that knows the process: `target_info` and `process_*`, named as the original's.
    pub fn new(service_name: &str, service_version: &str) -> Self {
        let mut registry = Registry::default();
        let labels = vec![
            ("service_name".to_owned(), service_name.to_owned()),
            ("service_version".to_owned(), service_version.to_owned()),
        ];
        registry.register("target", "Target metadata", Info::new(labels));
        registry.register_collector(Box::new(process::Process));
        let refused = Counter::default();
        let help = "Connections to the process's own ports that were closed at once because too many were open";
        registry.register("rouse_admin_connections_refused", help, refused.clone());
        Self { registry, refused }
    }

    /// Where components register.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Nothing registers any more.
    pub fn into_exposition(self) -> Exposition {
        let Self { registry, refused } = self;
        Exposition { registry: Arc::new(registry), refused }
    }
}

// === impl Exposition ===

impl Exposition {
    /// Answers a scrape in the format that its `Accept` header prefers: Prometheus text 0.0.4, or OpenMetrics 1.0.
    pub fn respond(&self, request: &HeaderMap) -> Response<Full<Bytes>> {
        let format = Format::negotiate(&request.get_all(header::ACCEPT));
        let body = self.encode(format);
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, format.content_type());
        response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
        response
    }

    /// Everything, in OpenMetrics 1.0.
    pub fn open_metrics(&self) -> String {
        self.encode(Format::OpenMetrics)
    }

    /// Counts connections that ports for operators refused.
    pub(crate) fn refused(&self) -> Counter {
        self.refused.clone()
    }

    fn encode(&self, format: Format) -> String {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.registry).expect("writing to a string does not fail");
        match format {
            Format::OpenMetrics => encoded,
            Format::Prometheus => format::to_prometheus(&encoded),
        }
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    async fn scrape(accept: &'static str) -> (String, String) {
        let mut metrics = Metrics::new("keda-http-interceptor", "0.1.0");
        let counter = Counter::<u64>::default();
        counter.inc_by(3);
        metrics.registry().register("interceptor_request_count", "Requests", counter);
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        }
        let response = metrics.into_exposition().respond(&headers);
        let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_scrape_without_preference_gets_the_prometheus_text_format() {
        let (content_type, body) = scrape("").await;
        assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
        assert!(body.contains("# TYPE interceptor_request_count_total counter\ninterceptor_request_count_total 3\n"));
        let info = "target_info{service_name=\"keda-http-interceptor\",service_version=\"0.1.0\"} 1\n";
        assert!(body.contains(&format!("# TYPE target_info gauge\n{info}")), "{body}");
        assert!(!body.contains("# EOF"));
    }

    #[tokio::test]
    async fn openmetrics_is_given_to_whom_prefers_it() {
        let (content_type, body) =
            scrape("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2").await;
        assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(body.contains("# TYPE interceptor_request_count counter\ninterceptor_request_count_total 3\n"));
        assert!(body.ends_with("# EOF\n"));
    }

    #[tokio::test]
    async fn the_process_is_described_under_the_usual_names() {
        let (_, body) = scrape("").await;
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
        ] {
            let line = body.lines().find(|line| line.starts_with(&format!("{name} ")));
            let value: f64 =
                line.unwrap_or_else(|| panic!("{name} is missing:\n{body}"))[name.len() + 1..].parse().unwrap();
            assert!(value > 0.0 || name == "process_cpu_seconds_total", "{name} is {value}");
        }
    }
}
