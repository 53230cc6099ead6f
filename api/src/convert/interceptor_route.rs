//! An InterceptorRoute as a route.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use interceptor_core::{
    ObjectKey, Route,
    route::{self as core, RouteKind, Rule, Scaling, Timeouts},
};

use super::{ConvertError, key, parts, probe};
use crate::{
    InterceptorRoute, InterceptorRouteSpec,
    duration::GoDuration,
    interceptor_route::{
        ConfigMapRef, DataPath, Fallback, FallbackService, InterceptorRouteTimeouts, Placeholder, Protocol,
        ResponseMode, RoutingRule, ScalingMetric, StaticResponse, StaticRoute, TargetRef,
    },
};

/// The route that `object` describes.
pub fn route(object: &InterceptorRoute) -> Result<Route, ConvertError> {
    let key = key(&object.metadata)?;
    // How it is scaled is the operator's business.
    let InterceptorRouteSpec {
        cold_start,
        data_path,
        protocol: _,
        rules,
        scaling: _,
        scaling_metric,
        static_routes,
        target,
        timeouts,
    } = &object.spec;
    let TargetRef { port, port_name, service } = target;
    let target = parts::target("spec.target", key.namespace(), ("service", service), *port, port_name.as_deref())?;
    let placeholder = cold_start.as_ref().and_then(|cold_start| cold_start.placeholder.as_ref());
    let placeholder = placeholder.map(|Placeholder { response }| {
        static_response("spec.coldStart.placeholder.response", key.namespace(), response).map(Arc::new)
    });
    let fallback = cold_start.as_ref().and_then(|cold_start| cold_start.fallback.as_ref());
    let fallback = fallback.map(|Fallback { service: FallbackService { name, port, port_name } }| {
        let path = "spec.coldStart.fallback.service";
        parts::target(path, key.namespace(), ("name", name), *port, port_name.as_deref())
    });
    parts::checked(Route {
        kind: RouteKind::InterceptorRoute,
        created: parts::created(&object.metadata),
        rules: self::rules("spec", rules)?,
        target,
        data_path: match data_path {
            Some(DataPath::Direct) => core::DataPath::Direct,
            Some(DataPath::Proxy) | None => core::DataPath::Proxy,
        },
        traffic: traffic(&object.spec)?,
        fallback: fallback.transpose()?,
        placeholder: placeholder.transpose()?,
        static_routes: self::static_routes(key.namespace(), static_routes)?,
        probing: probe::probing(object.refuses_probes(), object.readiness_probe()),
        scaling: scaling(scaling_metric)?,
        timeouts: timeouts.as_ref().map(self::timeouts).transpose()?.unwrap_or_default(),
        key,
    })
}

/// What the route's clients speak. TCP has nothing that a rule could look at, and no proxy of ours speaks it.
fn traffic(spec: &InterceptorRouteSpec) -> Result<core::Traffic, ConvertError> {
    const PATH: &str = "spec.protocol";
    match spec.protocol {
        Some(Protocol::Tcp) if !spec.rules.is_empty() || !spec.static_routes.is_empty() => {
            Err(ConvertError::new(PATH, "TCP beside rules or staticRoutes", "HTTP, or TCP without either"))
        }
        Some(Protocol::Tcp) if spec.data_path != Some(DataPath::Direct) => {
            Err(ConvertError::new(PATH, "TCP without dataPath Direct", "HTTP, or TCP with dataPath Direct"))
        }
        Some(Protocol::Tcp) => Ok(core::Traffic::Tcp),
        Some(Protocol::Http) | None => Ok(core::Traffic::Http),
    }
}

fn rules(path: &str, rules: &[RoutingRule]) -> Result<Vec<Rule>, ConvertError> {
    let rule = |(index, rule): (usize, &RoutingRule)| {
        let RoutingRule { headers, hosts, paths } = rule;
        Ok(Rule {
            hosts: hosts.clone(),
            paths: paths.iter().map(|path| path.value.clone()).collect(),
            headers: parts::headers(&format!("{path}.rules[{index}].headers"), headers)?,
        })
    };
    rules.iter().enumerate().map(rule).collect()
}

fn static_routes(namespace: &str, routes: &[StaticRoute]) -> Result<Vec<core::StaticRoute>, ConvertError> {
    let route = |(index, route): (usize, &StaticRoute)| {
        let StaticRoute { response, response_mode, rules } = route;
        let path = format!("spec.staticRoutes[{index}]");
        Ok(core::StaticRoute {
            rules: self::rules(&path, rules)?,
            response: static_response(&format!("{path}.response"), namespace, response)?,
            mode: match response_mode {
                ResponseMode::Always => core::ResponseMode::Always,
                ResponseMode::WhenUnavailable => core::ResponseMode::WhenUnavailable,
            },
        })
    };
    routes.iter().enumerate().map(route).collect()
}

fn static_response(
    path: &str,
    namespace: &str,
    response: &StaticResponse,
) -> Result<core::StaticResponse, ConvertError> {
    let StaticResponse { body, body_from_config_map, headers, status_code } = response;
    let body = match (body, body_from_config_map) {
        (Some(_), Some(_)) => {
            return Err(ConvertError::new(path, "with both body and bodyFromConfigMap", "at most one of them"));
        }
        (None, Some(ConfigMapRef { key, name })) => core::StaticBody::ConfigMap {
            name: ObjectKey::new(namespace, name.as_str()),
            key: key.as_deref().filter(|key| !key.is_empty()).map(Into::into),
        },
        (text, None) => core::StaticBody::Inline(Bytes::from(text.clone().unwrap_or_default())),
    };
    let status = |code: i32| {
        let status = u16::try_from(code).ok().filter(|code| (100..600).contains(code));
        let status = status.and_then(|code| StatusCode::from_u16(code).ok());
        status.ok_or_else(|| ConvertError::new(format!("{path}.statusCode"), code, "a number from 100 to 599"))
    };
    Ok(core::StaticResponse {
        status: status_code.map(status).transpose()?,
        headers: parts::fields(&format!("{path}.headers"), headers)?,
        body,
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
