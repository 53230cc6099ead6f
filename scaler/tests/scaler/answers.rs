//! Unary calls: specs, values, and errors that say what is wrong.

use interceptor_core::{ObjectKey, index::Event, route::RouteKind};
use proto::externalscaler::{GetMetricsRequest, MetricSpec, ScaledObjectRef};
use tonic::Code;

use crate::support::{Scaler, http_scaled_object, httpso, ir, no_reference, own, route};

async fn specs(scaler: &mut Scaler, of: ScaledObjectRef) -> Vec<MetricSpec> {
    scaler.client.get_metric_spec(of).await.unwrap().into_inner().metric_specs
}

#[tokio::test]
async fn an_interceptor_route_is_answered_as_the_original_does() {
    let (mut scaler, _interceptor) = Scaler::with(vec![route("a", Some(7), Some(3))], &[("a", 5, 100)]).await;
    let specs = specs(&mut scaler, ir("a")).await;
    let names: Vec<_> =
        specs.iter().map(|spec| (spec.metric_name.as_str(), spec.target_size_float.to_string())).collect();
    assert_eq!(names, [("http_a_concurrency", "7".to_owned()), ("http_a_rate", "3".to_owned())]);
    let values = scaler.metrics(ir("a"), "http_a_concurrency").await.unwrap();
    assert_eq!(values.len(), 1);
    assert_eq!((values[0].metric_value, values[0].metric_value_float.to_string()), (0, "5".to_owned()));
    assert_eq!(scaler.metrics(ir("a"), "").await.unwrap().len(), 2);
    assert!(scaler.metrics(ir("a"), "nonsense").await.unwrap().is_empty());
    assert!(scaler.is_active(ir("a")).await.unwrap());
}

#[tokio::test]
async fn an_http_scaled_object_is_answered_as_the_original_does() {
    let (mut scaler, _interceptor) =
        Scaler::with(vec![http_scaled_object("valid_app", None, None)], &[("valid_app", 5, 1)]).await;
    let specs = specs(&mut scaler, httpso("valid_app")).await;
    assert_eq!((specs[0].metric_name.as_str(), specs[0].target_size), ("http-ns_002Fvalid_005Fapp", 100));
    let values = scaler.metrics(httpso("valid_app"), "whatever").await.unwrap();
    assert_eq!((values[0].metric_value, values.len()), (5, 1));
}

#[tokio::test]
async fn the_interceptors_are_scaled_by_all_requests_in_flight() {
    let routes = vec![route("a", Some(1), None)];
    let (mut scaler, _interceptor) = Scaler::with(routes, &[("a", 5, 1), ("unknown", 6, 1)]).await;
    assert_eq!(specs(&mut scaler, own("200")).await[0].target_size, 200);
    let values = scaler.metrics(own("200"), "").await.unwrap();
    assert_eq!((values[0].metric_name.as_str(), values[0].metric_value), ("http-ns_002Fso", 11));
    assert!(scaler.is_active(own("not even a number")).await.unwrap());
    let error = scaler.client.get_metric_spec(own("many")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    assert!(error.message().contains("ns/so is \"many\", expected a whole number"), "{error}");
}

#[tokio::test]
async fn a_request_rate_is_told_per_second() {
    let (mut scaler, interceptor) = Scaler::with(vec![route("a", None, Some(3))], &[("a", 0, 100)]).await;
    assert!(!scaler.is_active(ir("a")).await.unwrap());
    interceptor.push(&[("a", 1, 130)]).await;
    scaler.in_flight(1).await;
    let values = scaler.metrics(ir("a"), "http_a_rate").await.unwrap();
    let rate = values[0].metric_value_float;
    assert!((0.5..=30.0).contains(&rate), "30 requests in the first seconds of a minute are {rate}");
    interceptor.push(&[("a", 0, 130)]).await;
    scaler.in_flight(0).await;
    assert!(scaler.is_active(ir("a")).await.unwrap());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let (mut scaler, _interceptor) = Scaler::with(vec![route("a", Some(1), None)], &[]).await;
    for (of, code, words) in [
        (ir("nobody"), Code::Unknown, "InterceptorRoute ns/nobody not found"),
        (httpso("a"), Code::Unknown, "HTTPScaledObject ns/a not found"),
        (no_reference(), Code::Unknown, "unable to get HTTPScaledObject reference"),
        (ir(""), Code::Unknown, "interceptorRoute of ScaledObject ns/so is empty"),
    ] {
        for error in [
            scaler.is_active(of.clone()).await.unwrap_err(),
            scaler.metrics(of.clone(), "").await.unwrap_err(),
            scaler.client.get_metric_spec(of).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(words), "{error}");
        }
    }
    let error = scaler.client.get_metrics(GetMetricsRequest::default()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unknown, "scaledObjectRef is missing"));
}

#[tokio::test]
async fn a_zero_that_nobody_counted_is_not_told() {
    let mut scaler = Scaler::start(9).await;
    let error = scaler.is_active(ir("a")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "the scaler has not read all objects yet"));
    scaler.apply(vec![Event::Route(route("a", Some(1), None))]).await;
    scaler.synced().await;
    scaler.standing(|standing| standing.synced).await;
    let error = scaler.is_active(ir("a")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("there isn't any valid interceptor endpoint: Service keda/admin"), "{error}");
    scaler.client.get_metric_spec(ir("a")).await.unwrap();
    // Discard: nobody listens there.
    scaler.list(&["127.0.0.1".parse().unwrap()]).await;
    scaler.census(1, 0, 1).await;
    let error = scaler.metrics(ir("a"), "").await.unwrap_err();
    assert!(error.message().contains("none of the 1 interceptors of Service keda/admin"), "{error}");
}

#[tokio::test]
async fn two_routes_of_one_name_and_different_kinds_are_told_apart() {
    let routes = vec![route("a", Some(7), None), http_scaled_object("a", Some(9), None)];
    let (mut scaler, _interceptor) = Scaler::with(routes, &[("a", 1, 1)]).await;
    assert_eq!(specs(&mut scaler, ir("a")).await[0].metric_name, "http_a_concurrency");
    assert_eq!(specs(&mut scaler, httpso("a")).await[0].target_size, 9);
    let gone = Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("ns", "a"));
    scaler.apply(vec![gone]).await;
    let mut stream = scaler.client.stream_metric_spec(httpso("a")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(specs(&mut scaler, httpso("a")).await[0].target_size, 9);
}
