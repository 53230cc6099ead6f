//! An InterceptorRoute as a route.

use interceptor_core::{
    Route,
    route::{RouteKind, Rule, Scaling, Timeouts},
};

use super::{ConvertError, key, parts};
use crate::{
    InterceptorRoute, InterceptorRouteSpec,
    duration::GoDuration,
    interceptor_route::{Fallback, FallbackService, InterceptorRouteTimeouts, RoutingRule, ScalingMetric, TargetRef},
};

/// The route that `object` describes.
pub fn route(object: &InterceptorRoute) -> Result<Route, ConvertError> {
    let key = key(&object.metadata)?;
    // Placeholders and static routes have no counterpart in the core yet; scaling is the operator's.
    let InterceptorRouteSpec { cold_start, rules, scaling: _, scaling_metric, static_routes: _, target, timeouts } =
        &object.spec;
    let TargetRef { port, port_name, service } = target;
    let target = parts::target("spec.target", key.namespace(), ("service", service), *port, port_name.as_deref())?;
    let fallback = cold_start.as_ref().and_then(|cold_start| cold_start.fallback.as_ref());
    let fallback = fallback.map(|Fallback { service: FallbackService { name, port, port_name } }| {
        let path = "spec.coldStart.fallback.service";
        parts::target(path, key.namespace(), ("name", name), *port, port_name.as_deref())
    });
    parts::checked(Route {
        kind: RouteKind::InterceptorRoute,
        created: parts::created(&object.metadata),
        rules: rules.iter().enumerate().map(|(index, rule)| self::rule(index, rule)).collect::<Result<_, _>>()?,
        target,
        fallback: fallback.transpose()?,
        scaling: scaling(scaling_metric)?,
        timeouts: timeouts.as_ref().map(self::timeouts).transpose()?.unwrap_or_default(),
        key,
    })
}

fn rule(index: usize, rule: &RoutingRule) -> Result<Rule, ConvertError> {
    let RoutingRule { headers, hosts, paths } = rule;
    Ok(Rule {
        hosts: hosts.clone(),
        paths: paths.iter().map(|path| path.value.clone()).collect(),
        headers: parts::headers(&format!("spec.rules[{index}].headers"), headers)?,
    })
}

fn scaling(metric: &ScalingMetric) -> Result<Scaling, ConvertError> {
    const PATH: &str = "spec.scalingMetric";
    let ScalingMetric { concurrency, request_rate } = metric;
    if concurrency.is_none() && request_rate.is_none() {
        return Err(ConvertError::new(PATH, "empty", "at least one of concurrency and requestRate"));
    }
    let concurrency = concurrency
        .as_ref()
        .map(|concurrency| parts::positive(&format!("{PATH}.concurrency.targetValue"), concurrency.target_value));
    let rate = request_rate
        .as_ref()
        .map(|rate| parts::rate(&format!("{PATH}.requestRate"), rate.target_value, &rate.window, &rate.granularity));
    Ok(Scaling { concurrency: concurrency.transpose()?, rate: rate.transpose()? })
}

fn timeouts(timeouts: &InterceptorRouteTimeouts) -> Result<Timeouts, ConvertError> {
    let InterceptorRouteTimeouts { readiness, request, response_header } = timeouts;
    let parse = |name: &str, text: &Option<GoDuration>| {
        text.as_ref().map(|text| parts::duration(&format!("spec.timeouts.{name}"), text)).transpose()
    };
    Ok(Timeouts {
        readiness: parse("readiness", readiness)?,
        request: parse("request", request)?,
        response_header: parse("responseHeader", response_header)?,
    })
}
