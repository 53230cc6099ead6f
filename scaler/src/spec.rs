//! Metric names, targets and values, as KEDA is told them. Pure; used by the service alone.

use std::fmt::Write as _;

use interceptor_core::{Route, route::RouteKind};
use proto::externalscaler::{MetricSpec, MetricValue};
use thiserror::Error;

use crate::subject::Subject;

/// Target of an `HTTPScaledObject` that names none.
const DEFAULT_TARGET: u32 = 100;

/// What is measured at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests in flight: of the route, or of all if the subject is the interceptors.
    pub in_flight: u64,
    /// Requests per second.
    pub rate: f64,
    /// Connections of the route that are held or open.
    pub connections: u64,
}

/// The metadata's target is no number.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "trigger metadata interceptorTargetPendingRequests of ScaledObject {scaled_object} is {value:?}, expected a whole number"
)]
pub struct TargetError {
    scaled_object: String,
    value: String,
}

/// The metrics of the interceptors' own `ScaledObject`.
pub fn interceptor_specs(subject: &Subject) -> Result<Vec<MetricSpec>, TargetError> {
    let Subject::Interceptor { scaled_object, target } = subject else { return Ok(Vec::new()) };
    match target.parse() {
        Ok(target_size) => {
            Ok(vec![MetricSpec { metric_name: escaped(scaled_object), target_size, target_size_float: 0.0 }])
        }
        Err(_) => Err(TargetError { scaled_object: scaled_object.to_string(), value: target.clone() }),
    }
}

/// The metrics that a route asks for, with their targets.
pub fn route_specs(route: &Route) -> Vec<MetricSpec> {
    let scaling = &route.scaling;
    match route.kind {
        RouteKind::InterceptorRoute => {
            let float = |metric_name, target: u32| MetricSpec {
                metric_name,
                target_size: 0,
                target_size_float: f64::from(target),
            };
            let concurrency = scaling.concurrency.map(|target| float(concurrency_name(route), target));
            let rate = scaling.rate.map(|rate| float(rate_name(route), rate.target));
            let connections = scaling.connections.map(|target| float(connections_name(route), target));
            concurrency.into_iter().chain(rate).chain(connections).collect()
        }
        RouteKind::HttpScaledObject => {
            let target = scaling.rate.map(|rate| rate.target).or(scaling.concurrency).unwrap_or(DEFAULT_TARGET);
            vec![MetricSpec { metric_name: escaped(&route.key), target_size: target.into(), target_size_float: 0.0 }]
        }
    }
}

/// The value of the interceptors' own metric; none for another subject.
pub fn interceptor_values(subject: &Subject, sample: Sample) -> Vec<MetricValue> {
    match subject {
        Subject::Interceptor { scaled_object, target: _ } => vec![whole(escaped(scaled_object), sample.in_flight)],
        Subject::Route(..) => Vec::new(),
    }
}

/// The values of a route's metrics; of an `InterceptorRoute`, those of the name asked for, all if it is empty.
pub fn route_values(route: &Route, sample: Sample, asked: &str) -> Vec<MetricValue> {
    let Sample { in_flight, rate, connections } = sample;
    let scaling = &route.scaling;
    match route.kind {
        RouteKind::InterceptorRoute => {
            let concurrency = scaling.concurrency.map(|_| float(concurrency_name(route), as_float(in_flight)));
            let rate = scaling.rate.map(|_| float(rate_name(route), rate));
            let connections = scaling.connections.map(|_| float(connections_name(route), as_float(connections)));
            let all = concurrency.into_iter().chain(rate).chain(connections);
            all.filter(|value| asked.is_empty() || value.metric_name == asked).collect()
        }
        RouteKind::HttpScaledObject if scaling.rate.is_some() => vec![whole(escaped(&route.key), ceil(rate))],
        RouteKind::HttpScaledObject => vec![whole(escaped(&route.key), in_flight)],
    }
}

/// Whether any value is above zero.
pub fn any_positive(values: &[MetricValue]) -> bool {
    values.iter().any(|value| value.metric_value > 0 || value.metric_value_float > 0.0)
}

fn concurrency_name(route: &Route) -> String {
    format!("http_{}_concurrency", route.key.name())
}

fn connections_name(route: &Route) -> String {
    format!("http_{}_connections", route.key.name())
}

fn rate_name(route: &Route) -> String {
    format!("http_{}_rate", route.key.name())
}

fn float(metric_name: String, value: f64) -> MetricValue {
    MetricValue { metric_name, metric_value: 0, metric_value_float: value }
}

fn whole(metric_name: String, value: u64) -> MetricValue {
    MetricValue { metric_name, metric_value: i64::try_from(value).unwrap_or(i64::MAX), metric_value_float: 0.0 }
}

/// `http-` and the key, where each character outside `[-.0-9A-Za-z]` is `_` and the hexadecimal of its UTF-8 bytes, at
/// least four digits.
fn escaped(key: &impl ToString) -> String {
    let mut name = String::from("http-");
    for char in key.to_string().chars() {
        if char.is_ascii_alphanumeric() || matches!(char, '-' | '.') {
            name.push(char);
            continue;
        }
        let mut bytes = [0; 4];
        let code = char.encode_utf8(&mut bytes).bytes().fold(0_u32, |code, byte| code << 8 | u32::from(byte));
        write!(name, "_{code:04X}").expect("writing to a string does not fail");
    }
    name
}

#[expect(clippy::cast_precision_loss, reason = "the wire has a double here")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and `as` saturates"
)]
fn ceil(rate: f64) -> u64 {
    rate.ceil() as u64
}

#[cfg(test)]
mod tests {
    use interceptor_core::{ObjectKey, route::Scaling};

    use super::*;
    use crate::fixture;

    fn subject(target: &str) -> Subject {
        let scaled_object = ObjectKey::new("keda", "keda-add-ons-http-interceptor");
        Subject::Interceptor { scaled_object, target: target.into() }
    }

    fn names(values: &[MetricValue]) -> Vec<&str> {
        values.iter().map(|value| value.metric_name.as_str()).collect()
    }

    #[test]
    fn an_interceptor_route_has_one_metric_for_each_that_it_asks_for() {
        let both = fixture::interceptor_route("my-ir", Some(7), Some(3));
        let specs = route_specs(&both);
        assert_eq!(specs[0].metric_name, "http_my-ir_concurrency");
        assert_eq!((specs[0].target_size, specs[0].target_size_float.to_string()), (0, "7".to_owned()));
        assert_eq!(specs[1].metric_name, "http_my-ir_rate");
        assert_eq!((specs[1].target_size, specs[1].target_size_float.to_string()), (0, "3".to_owned()));
        assert_eq!(specs.len(), 2);
        let sample = Sample { in_flight: 5, rate: 0.25, connections: 0 };
        let values = route_values(&both, sample, "");
        assert_eq!(names(&values), ["http_my-ir_concurrency", "http_my-ir_rate"]);
        assert_eq!((values[0].metric_value, values[0].metric_value_float.to_string()), (0, "5".to_owned()));
        assert_eq!(values[1].metric_value_float.to_string(), "0.25");
        assert_eq!(names(&route_values(&both, sample, "http_my-ir_rate")), ["http_my-ir_rate"]);
        assert!(route_values(&both, sample, "nonsense").is_empty());
    }

    #[test]
    fn connections_are_a_metric_of_their_own_where_they_are_asked_for() {
        let plain = fixture::interceptor_route("db", None, None);
        let route = Route { scaling: Scaling { connections: Some(40), ..plain.scaling }, ..plain };
        let spec = &route_specs(&route)[0];
        assert_eq!(
            (spec.metric_name.as_str(), spec.target_size_float.to_string()),
            ("http_db_connections", "40".to_owned())
        );
        let values = |connections| route_values(&route, Sample { connections, in_flight: 9, rate: 1.0 }, "");
        assert_eq!(names(&values(3)), ["http_db_connections"]);
        assert_eq!(values(3)[0].metric_value_float.to_string(), "3");
        assert!(any_positive(&values(1)) && !any_positive(&values(0)));
    }

    #[test]
    fn an_http_scaled_object_has_one_whole_number_whatever_is_asked_for() {
        let route = |concurrency, rate| fixture::http_scaled_object("valid_app", concurrency, rate);
        let target = |concurrency, rate| route_specs(&route(concurrency, rate))[0].target_size;
        assert_eq!((target(None, None), target(Some(7), None), target(Some(7), Some(3))), (100, 7, 3));
        assert_eq!(route_specs(&route(None, None))[0].metric_name, "http-default_002Fvalid_005Fapp");
        let sample = Sample { in_flight: 5, rate: 0.25, connections: 0 };
        assert_eq!(route_values(&route(Some(7), None), sample, "nonsense")[0].metric_value, 5);
        assert_eq!(route_values(&route(Some(7), Some(3)), sample, "")[0].metric_value, 1);
    }

    #[test]
    fn the_interceptors_have_one_metric_with_the_target_of_the_metadata() {
        let spec = &interceptor_specs(&subject("200")).unwrap()[0];
        assert_eq!(spec.metric_name, "http-keda_002Fkeda-add-ons-http-interceptor");
        assert_eq!(spec.target_size, 200);
        let value = &interceptor_values(&subject("nonsense"), Sample { in_flight: 9, ..Sample::default() })[0];
        assert_eq!(value.metric_value, 9);
        let error = interceptor_specs(&subject("many")).unwrap_err().to_string();
        assert!(error.contains("keda/keda-add-ons-http-interceptor is \"many\", expected a whole number"), "{error}");
    }

    #[test]
    fn names_are_escaped_by_their_utf8_bytes() {
        assert_eq!(escaped(&"default/my-app"), "http-default_002Fmy-app");
        assert_eq!(escaped(&"a.é€😀"), "http-a._C3A9_E282AC_F09F9880");
    }

    #[test]
    fn a_route_is_active_if_any_value_is_above_zero() {
        let both = fixture::interceptor_route("a", Some(7), Some(3));
        let active =
            |in_flight, rate| any_positive(&route_values(&both, Sample { in_flight, rate, connections: 0 }, ""));
        assert!(!active(0, 0.0));
        assert!(active(1, 0.0));
        assert!(active(0, 0.000_001));
        let rate_only = Route { scaling: Scaling { concurrency: None, ..both.scaling }, ..both };
        assert!(!any_positive(&route_values(&rate_only, Sample { in_flight: 1, ..Sample::default() }, "")));
    }
}
