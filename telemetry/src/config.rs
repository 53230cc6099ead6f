//! What is told, and to whom: the add-on's two switches, and OpenTelemetry's own variables.
//! Reference: the OpenTelemetry specification's pages on environment variables and on OTLP exporters.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use runtime::env::{Env, EnvError};

/// Where collectors listen when nothing is said.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";

/// OpenTelemetry's defaults, in milliseconds.
const DEFAULT_INTERVAL: u64 = 60_000;
const DEFAULT_TIMEOUT: u64 = 10_000;

/// What is told to a collector.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Metrics, if they are.
    pub metrics: Option<MetricsConfig>,
    /// How traces are told, if they are. Where to, and which of them, the OpenTelemetry SDK reads itself.
    pub traces: Option<Protocol>,
}

/// How metrics are told.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// Where to.
    pub endpoint: Uri,
    /// How often.
    pub interval: Duration,
    /// How long the collector may take to answer.
    pub timeout: Duration,
    /// Fields of each request, such as credentials.
    pub headers: HeaderMap,
}

/// How traces are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// As JSON on standard output.
    Console,
    /// OTLP over HTTP.
    Http,
    /// OTLP over gRPC.
    Grpc,
}

/// The words of `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`.
const PROTOCOLS: [(&str, Protocol); 3] =
    [("console", Protocol::Console), ("http/protobuf", Protocol::Http), ("grpc", Protocol::Grpc)];

// === impl Config ===

impl Config {
    /// Reads the environment. What concerns something that is off is not looked at, but for the protocol, which the
    /// add-on refuses in any case.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let metrics = env.bool("OTEL_EXPORTER_OTLP_METRICS_ENABLED", false)?;
        let traces = env.bool("OTEL_EXPORTER_OTLP_TRACES_ENABLED", false)?;
        let protocol = protocol(env)?;
        Ok(Self {
            metrics: metrics.then(|| MetricsConfig::from_env(env)).transpose()?,
            traces: traces.then_some(protocol),
        })
    }
}

// === impl MetricsConfig ===

impl MetricsConfig {
    fn from_env(env: &Env) -> Result<Self, EnvError> {
        let timeout = either(env, "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")?.0;
        let interval = env.u64("OTEL_METRIC_EXPORT_INTERVAL", DEFAULT_INTERVAL)?;
        if interval == 0 {
            return Err(EnvError::Invalid {
                variable: "OTEL_METRIC_EXPORT_INTERVAL",
                value: "0".to_owned(),
                expected: "milliseconds above zero".to_owned(),
            });
        }
        Ok(Self {
            endpoint: endpoint(env)?,
            interval: Duration::from_millis(interval),
            timeout: Duration::from_millis(env.u64(timeout, DEFAULT_TIMEOUT)?),
            headers: headers(env)?,
        })
    }
}

fn protocol(env: &Env) -> Result<Protocol, EnvError> {
    let variable = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
    let Some(value) = env.optional_string(variable)? else { return Ok(Protocol::Console) };
    let known = PROTOCOLS.iter().find(|(word, _)| word.eq_ignore_ascii_case(&value));
    known.map(|(_, protocol)| *protocol).ok_or_else(|| EnvError::Invalid {
        variable,
        value,
        expected: "console, http/protobuf or grpc".to_owned(),
    })
}

/// The variable that wins, and its value: the one for metrics alone, else the one for everything.
fn either(env: &Env, own: &'static str, general: &'static str) -> Result<(&'static str, Option<String>), EnvError> {
    Ok(match env.optional_string(own)? {
        Some(value) => (own, Some(value)),
        None => (general, env.optional_string(general)?),
    })
}

fn endpoint(env: &Env) -> Result<Uri, EnvError> {
    let own = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    let (variable, value) = either(env, own, "OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let value = match value {
        Some(value) if variable == own => value,
        base => format!("{}/v1/metrics", base.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/')),
    };
    let is_usable = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    value.parse().ok().filter(is_usable).ok_or_else(|| EnvError::Invalid {
        variable,
        value,
        expected: "a URL such as http://collector:4318".to_owned(),
    })
}

/// `name=value` pairs with commas between them; values may be percent-encoded.
fn headers(env: &Env) -> Result<HeaderMap, EnvError> {
    let (variable, value) = either(env, "OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")?;
    let value = value.unwrap_or_default();
    let pairs = value.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let parsed: Option<HeaderMap> = pairs.map(header).collect();
    // The value may be a secret: it is not repeated.
    parsed.ok_or_else(|| EnvError::Invalid {
        variable,
        value: "…".to_owned(),
        expected: "name=value pairs with commas between them".to_owned(),
    })
}

fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value: Vec<u8> = percent_encoding::percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<Config, EnvError> {
        Config::from_env(&Env::from_pairs(pairs.iter().copied()))
    }

    fn metrics(pairs: &[(&str, &str)]) -> MetricsConfig {
        let pairs = [&[("OTEL_EXPORTER_OTLP_METRICS_ENABLED", "true")], pairs].concat();
        config(&pairs).unwrap().metrics.unwrap()
    }

    #[test]
    fn nothing_is_told_unless_asked_for() {
        let config = config(&[("OTEL_METRIC_EXPORT_INTERVAL", "soon")]).unwrap();
        assert!(config.metrics.is_none() && config.traces.is_none());
    }

    #[test]
    fn the_protocol_of_traces_is_known_in_any_spelling_and_others_are_refused() {
        let traces = |word| config(&[("OTEL_EXPORTER_OTLP_TRACES_ENABLED", "1"), named(word)]);
        assert_eq!(traces("").unwrap().traces, Some(Protocol::Console));
        assert_eq!(traces("HTTP/protobuf").unwrap().traces, Some(Protocol::Http));
        assert_eq!(traces("gRPC").unwrap().traces, Some(Protocol::Grpc));
        let error = config(&[named("zipkin")]).unwrap_err().to_string();
        assert!(error.contains("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") && error.contains("zipkin"), "{error}");
    }

    fn named(word: &str) -> (&'static str, &str) {
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", word)
    }

    #[test]
    fn metrics_go_to_the_endpoint_of_their_own_or_below_the_general_one() {
        assert_eq!(metrics(&[]).endpoint, "http://localhost:4318/v1/metrics");
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:1/base/");
        assert_eq!(metrics(&[general]).endpoint, "https://c:1/base/v1/metrics");
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:2/here");
        assert_eq!(metrics(&[general, own]).endpoint, "http://m:2/here");
    }

    #[test]
    fn headers_are_read_and_never_repeated_in_an_error() {
        let read = metrics(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc, x-tenant=a")]).headers;
        assert_eq!(
            (&read["authorization"], &read["x-tenant"]),
            (&"Bearer abc".parse().unwrap(), &"a".parse().unwrap())
        );
        let enabled = ("OTEL_EXPORTER_OTLP_METRICS_ENABLED", "true");
        let error = config(&[enabled, ("OTEL_EXPORTER_OTLP_HEADERS", "secret")]).unwrap_err().to_string();
        assert!(error.contains("OTEL_EXPORTER_OTLP_HEADERS") && !error.contains("\"secret\""), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (variable, value) in [
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1m"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        ] {
            let error = config(&[("OTEL_EXPORTER_OTLP_METRICS_ENABLED", "true"), (variable, value)]).unwrap_err();
            assert!(error.to_string().contains(variable), "{error}");
        }
    }
}
