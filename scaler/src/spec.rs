//! Metric names, targets and values, as KEDA is told them. Pure; used by the service alone.

use std::fmt::Write as _;

use interceptor_core::{
    Route,
    route::{RouteKind, Scaling},
};
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
    /// Connections of the route that are held, or that pods have not accepted yet.
    pub accept_queue: u64,
    /// How many node agents can't tell of all pods how many they have not accepted.
    pub accept_queue_unknown: u64,
}

/// Some nodes cannot tell how many connections wait to be accepted: what is known may be far too little.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the accept queues of pods on {nodes} nodes cannot be read, their agents' /state says why")]
pub struct UnknownQueue {
    nodes: u64,
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
            let accept_queue = scaling.accept_queue.map(|target| float(accept_queue_name(route), target));
            concurrency.into_iter().chain(rate).chain(connections).chain(accept_queue).collect()
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

/// The values of a route's metrics; of an `InterceptorRoute`, those of the name asked for, all if it is empty. If one of
/// them is not known there is none: KEDA and the autoscaler take an error for what it is, and a number for the truth.
pub fn route_values(route: &Route, sample: Sample, asked: &str) -> Result<Vec<MetricValue>, UnknownQueue> {
    let nodes = sample.accept_queue_unknown;
    let is_asked = route.scaling.accept_queue.is_some() && (asked.is_empty() || asked == accept_queue_name(route));
    if nodes > 0 && is_asked { Err(UnknownQueue { nodes }) } else { Ok(values(route, sample, asked)) }
}

/// Whether a route's workload has something to do. One that scales by connections has also when requests are in flight:
/// those of interceptors are no connections of its own, and nobody waits to be accepted where pods are quick.
pub fn is_active(route: &Route, sample: Sample) -> bool {
    let Scaling { connections, accept_queue, .. } = route.scaling;
    let by_connections = connections.is_some() || accept_queue.is_some();
    any_positive(&values(route, sample, "")) || (by_connections && sample.in_flight > 0)
}

fn values(route: &Route, sample: Sample, asked: &str) -> Vec<MetricValue> {
    let Sample { in_flight, rate, connections, accept_queue, accept_queue_unknown: _ } = sample;
    let scaling = &route.scaling;
    match route.kind {
        RouteKind::InterceptorRoute => {
            let concurrency = scaling.concurrency.map(|_| float(concurrency_name(route), as_float(in_flight)));
            let rate = scaling.rate.map(|_| float(rate_name(route), rate));
            let connections = scaling.connections.map(|_| float(connections_name(route), as_float(connections)));
            let accept_queue = scaling.accept_queue.map(|_| float(accept_queue_name(route), as_float(accept_queue)));
            let all = concurrency.into_iter().chain(rate).chain(connections).chain(accept_queue);
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

fn accept_queue_name(route: &Route) -> String {
    format!("http_{}_accept_queue", route.key.name())
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
    use interceptor_core::ObjectKey;

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
        let sample = Sample { in_flight: 5, rate: 0.25, ..Sample::default() };
        let values = route_values(&both, sample, "").unwrap();
        assert_eq!(names(&values), ["http_my-ir_concurrency", "http_my-ir_rate"]);
        assert_eq!((values[0].metric_value, values[0].metric_value_float.to_string()), (0, "5".to_owned()));
        assert_eq!(values[1].metric_value_float.to_string(), "0.25");
        assert_eq!(names(&route_values(&both, sample, "http_my-ir_rate").unwrap()), ["http_my-ir_rate"]);
        assert!(route_values(&both, sample, "nonsense").unwrap().is_empty());
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
        let sample = |connections| Sample { connections, in_flight: 9, rate: 1.0, ..Sample::default() };
        let values = |connections| route_values(&route, sample(connections), "").unwrap();
        assert_eq!(names(&values(3)), ["http_db_connections"]);
        assert_eq!(values(3)[0].metric_value_float.to_string(), "3");
        assert!(any_positive(&values(1)) && !any_positive(&values(0)));
        assert!(is_active(&route, sample(0)), "what interceptors hold is no connection, and wakes all the same");
        assert!(!is_active(&route, Sample { in_flight: 0, ..sample(0) }));
    }

    #[test]
    fn connections_that_wait_to_be_accepted_are_a_metric_that_is_known_or_not() {
        let plain = fixture::interceptor_route("db", Some(7), None);
        let route = Route { scaling: Scaling { accept_queue: Some(20), ..plain.scaling }, ..plain };
        let spec = &route_specs(&route)[1];
        assert_eq!(
            (spec.metric_name.as_str(), spec.target_size_float.to_string()),
            ("http_db_accept_queue", "20".to_owned())
        );
        let sample = Sample { in_flight: 2, accept_queue: 5, ..Sample::default() };
        let values = route_values(&route, sample, "http_db_accept_queue").unwrap();
        assert_eq!(values[0].metric_value_float.to_string(), "5");
        let unknown = Sample { accept_queue_unknown: 1, ..sample };
        for asked in ["", "http_db_accept_queue"] {
            assert_eq!(route_values(&route, unknown, asked), Err(UnknownQueue { nodes: 1 }));
        }
        assert_eq!(names(&route_values(&route, unknown, "http_db_concurrency").unwrap()), ["http_db_concurrency"]);
        // A workload whose pods accept at once must not be taken for one that has nothing to do.
        assert!(is_active(&route, Sample { accept_queue: 0, ..unknown }));
        let alone = Route { scaling: Scaling { concurrency: None, ..route.scaling }, ..route };
        assert!(is_active(&alone, Sample { accept_queue: 0, ..sample }));
        assert!(is_active(&alone, Sample { in_flight: 0, ..sample }));
        assert!(!is_active(&alone, Sample::default()));
    }

    #[test]
    fn an_http_scaled_object_has_one_whole_number_whatever_is_asked_for() {
        let route = |concurrency, rate| fixture::http_scaled_object("valid_app", concurrency, rate);
        let target = |concurrency, rate| route_specs(&route(concurrency, rate))[0].target_size;
        assert_eq!((target(None, None), target(Some(7), None), target(Some(7), Some(3))), (100, 7, 3));
        assert_eq!(route_specs(&route(None, None))[0].metric_name, "http-default_002Fvalid_005Fapp");
        let sample = Sample { in_flight: 5, rate: 0.25, ..Sample::default() };
        assert_eq!(route_values(&route(Some(7), None), sample, "nonsense").unwrap()[0].metric_value, 5);
        assert_eq!(route_values(&route(Some(7), Some(3)), sample, "").unwrap()[0].metric_value, 1);
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
        let active = |in_flight, rate| is_active(&both, Sample { in_flight, rate, ..Sample::default() });
        assert!(!active(0, 0.0));
        assert!(active(1, 0.0));
        assert!(active(0, 0.000_001));
        let rate_only = Route { scaling: Scaling { concurrency: None, ..both.scaling }, ..both };
        assert!(!is_active(&rate_only, Sample { in_flight: 1, ..Sample::default() }));
    }
}
