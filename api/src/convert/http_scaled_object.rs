//! An HTTPScaledObject as a route.

use std::{num::ParseIntError, time::Duration};

use interceptor_core::{
    Route,
    route::{RouteKind, Rule, Scaling, Timeouts},
};

use super::{ConvertError, key, parts, probe};
use crate::{
    HTTPScaledObject, HTTPScaledObjectSpec,
    duration::GoDuration,
    http_scaled_object::{FailoverRef, HTTPScaledObjectTimeouts, ScaleTargetRef, ScalingMetricSpec},
    names::MAX_REQUESTS_PER_POD_ANNOTATION,
};

/// Requests in flight per replica of an HTTPScaledObject that says nothing.
pub const DEFAULT_TARGET: i32 = 100;

/// The route that `object` describes.
pub fn route(object: &HTTPScaledObject) -> Result<Route, ConvertError> {
    let key = key(&object.metadata)?;
    let HTTPScaledObjectSpec {
        cold_start_timeout_failover_ref: failover,
        headers,
        hosts,
        initial_cooldown_period: _,
        path_prefixes,
        replicas: _,
        scale_target_ref,
        scaledown_period: _,
        scaling_metric,
        target_pending_requests,
        timeouts,
    } = &object.spec;
    let ScaleTargetRef { api_version: _, kind: _, name: _, port, port_name, service } = scale_target_ref;
    let path = "spec.scaleTargetRef";
    let target = parts::target(path, key.namespace(), ("service", service), *port, port_name.as_deref())?;
    let fallback = failover.as_ref().map(|FailoverRef { port, port_name, service, timeout_seconds: _ }| {
        let path = "spec.coldStartTimeoutFailoverRef";
        parts::target(path, key.namespace(), ("service", service), *port, port_name.as_deref())
    });
    let rule =
        Rule { hosts: hosts.clone(), paths: path_prefixes.clone(), headers: parts::headers("spec.headers", headers)? };
    let scaling = scaling(*target_pending_requests, scaling_metric.as_ref())?;
    parts::checked(Route {
        created: parts::created(&object.metadata),
        rules: vec![rule],
        fallback: fallback.transpose()?,
        probing: probe::probing(object.refuses_probes(), object.readiness_probe()),
        holding: parts::holding(per_pod(object)?, &scaling),
        scaling,
        timeouts: self::timeouts(timeouts.as_ref(), failover.as_ref())?,
        ..Route::new(RouteKind::HttpScaledObject, key, target)
    })
}

fn per_pod(object: &HTTPScaledObject) -> Result<Option<u32>, ConvertError> {
    let annotations = object.metadata.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(MAX_REQUESTS_PER_POD_ANNOTATION));
    let parse = |text: &String| {
        text.parse().map_err(|_no_number: ParseIntError| {
            let field = format!("metadata.annotations[{MAX_REQUESTS_PER_POD_ANNOTATION:?}]");
            ConvertError::new(field, parts::quoted(text), "a number from 0")
        })
    };
    text.map(parse).transpose()
}

/// The rate stands before concurrency, and both before the older field.
fn scaling(pending: Option<i32>, metric: Option<&ScalingMetricSpec>) -> Result<Scaling, ConvertError> {
    let (concurrency, rate) = metric.map_or((None, None), |metric| {
        let ScalingMetricSpec { concurrency, request_rate } = metric;
        (concurrency.as_ref(), request_rate.as_ref())
    });
    if let Some(rate) = rate {
        let path = "spec.scalingMetric.requestRate";
        let rate = parts::rate(path, rate.target_value, &rate.window, &rate.granularity)?;
        return Ok(Scaling { rate: Some(rate), ..Scaling::default() });
    }
    let (field, value) = match concurrency {
        Some(concurrency) => ("spec.scalingMetric.concurrency.targetValue", concurrency.target_value),
        None => ("spec.targetPendingRequests", pending.unwrap_or(DEFAULT_TARGET)),
    };
    Ok(Scaling { concurrency: Some(parts::positive(field, value)?), ..Scaling::default() })
}

/// Only what is above zero counts here.
fn timeouts(
    timeouts: Option<&HTTPScaledObjectTimeouts>,
    failover: Option<&FailoverRef>,
) -> Result<Timeouts, ConvertError> {
    let parse = |name: &str, text: Option<&GoDuration>| {
        let duration = text.map(|text| parts::duration(&format!("spec.timeouts.{name}"), text)).transpose()?;
        Ok(duration.filter(|duration| !duration.is_zero()))
    };
    let condition_wait = parse("conditionWait", timeouts.and_then(|timeouts| timeouts.condition_wait.as_ref()))?;
    let response_header = parse("responseHeader", timeouts.and_then(|timeouts| timeouts.response_header.as_ref()))?;
    let failover = failover.and_then(|failover| u64::try_from(failover.timeout_seconds).ok());
    let failover = failover.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    Ok(Timeouts { readiness: failover.or(condition_wait), request: None, response_header })
}
