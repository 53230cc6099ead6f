//! An InterceptorRoute as a route.

use std::{
    num::{NonZeroU16, NonZeroU64, TryFromIntError},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use interceptor_core::{
    ObjectKey, Route,
    kubelet::UnnamedProbe,
    network::{Ignored, NetworkError},
    route::{self as core, Holding, RouteKind, Rule, Scaling, Session, Timeouts},
};
use sha2::{Digest as _, Sha256};

use super::{ConvertError, key, parts, probe};
use crate::{
    InterceptorRoute, InterceptorRouteSpec,
    duration::GoDuration,
    interceptor_route::{
        ColdStart, ConfigMapRef, DataPath, Fallback, FallbackService, IgnoredClients, InterceptorRouteStatus,
        InterceptorRouteTimeouts, Overflow, Placeholder, Protocol, ResponseMode, RoutingRule, ScalingMetric,
        SessionCookie, SessionPersistence, SessionType, ShadowStatus, StaticResponse, StaticRoute, TargetRef,
        TargetTls,
    },
};

/// The route that `object` describes.
pub fn route(object: &InterceptorRoute) -> Result<Route, ConvertError> {
    let key = key(&object.metadata)?;
    // How it is scaled is the operator's business.
    let InterceptorRouteSpec {
        cold_start,
        data_path,
        demand,
        protocol: _,
        rules,
        scaling: _,
        scaling_metric,
        session_persistence,
        static_routes,
        target,
        timeouts,
    } = &object.spec;
    let TargetRef { port, port_name, service, tls } = target;
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
    let scaling = scaling(scaling_metric)?;
    let is_direct = *data_path == Some(DataPath::Direct);
    if scaling.connections.is_some() && !is_direct {
        return Err(ConvertError::new("spec.scalingMetric.connections", "without dataPath Direct", "dataPath Direct"));
    }
    if scaling.accept_queue.is_some() && !is_direct {
        return Err(ConvertError::new("spec.scalingMetric.acceptQueue", "without dataPath Direct", "dataPath Direct"));
    }
    if demand.is_some() && !is_direct {
        return Err(ConvertError::new("spec.demand", "without dataPath Direct", "dataPath Direct"));
    }
    let ignored = demand.as_ref().and_then(|demand| demand.ignore.as_ref()).map(ignored).transpose()?;
    parts::checked(Route {
        kind: RouteKind::InterceptorRoute,
        created: parts::created(&object.metadata),
        rules: self::rules("spec", rules)?,
        target,
        data_path: if is_direct { core::DataPath::Direct } else { core::DataPath::Proxy },
        shadow: object.status.as_ref().and_then(|status| shadow(status.shadow.as_ref()?)),
        uncounted: object.status.as_ref().is_some_and(|status| status.uncounted),
        traffic: traffic(&object.spec)?,
        fallback: fallback.transpose()?,
        placeholder: placeholder.transpose()?,
        static_routes: self::static_routes(key.namespace(), static_routes)?,
        probing: probe::probing(object.refuses_probes(), object.readiness_probe()),
        holding: holding(cold_start.as_ref(), &scaling)?,
        session: session_persistence.as_ref().map(|session| self::session(&key, session)).transpose()?.map(Arc::new),
        identity: tls.as_ref().map(|tls| identity(&key, tls)).transpose()?,
        ignored: ignored.unwrap_or_default(),
        unnamed_probes: object.status.as_ref().map(unnamed_probes).unwrap_or_default(),
        scaling,
        timeouts: timeouts.as_ref().map(self::timeouts).transpose()?.unwrap_or_default(),
        key,
    })
}

/// Who the proxy is to the pods.
fn identity(route: &ObjectKey, tls: &TargetTls) -> Result<ObjectKey, ConvertError> {
    let TargetTls { secret_name } = tls;
    if secret_name.is_empty() {
        return Err(ConvertError::new("spec.target.tls.secretName", "empty", "the name of a Secret"));
    }
    Ok(ObjectKey::new(route.namespace(), secret_name.as_str()))
}

/// What the operator wrote; what cannot be has not been written by it.
fn shadow(status: &ShadowStatus) -> Option<core::Shadow> {
    let ShadowStatus { after_seconds, port, published } = status;
    Some(core::Shadow {
        port: NonZeroU16::new(u16::try_from(*port).ok()?)?,
        published: *published,
        after: after_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs),
    })
}

/// Likewise; and there are no more than the operator writes.
fn unnamed_probes(status: &InterceptorRouteStatus) -> Vec<UnnamedProbe> {
    status.unnamed_probes.iter().take(UnnamedProbe::MOST).filter_map(crate::UnnamedProbe::read).collect()
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

/// Whose connections are no demand. Both lists are bounded, whoever has let the object in.
fn ignored(ignore: &IgnoredClients) -> Result<Ignored, ConvertError> {
    const PATH: &str = "spec.demand.ignore";
    const MOST: [usize; 2] = [64, 16];
    let IgnoredClients { cidrs, namespaces } = ignore;
    for ((list, field), most) in [(cidrs, "cidrs"), (namespaces, "namespaces")].into_iter().zip(MOST) {
        if list.len() > most {
            let found = format!("a list of {}", list.len());
            return Err(ConvertError::new(format!("{PATH}.{field}"), found, format!("at most {most}")));
        }
    }
    let network = |(index, text): (usize, &String)| {
        text.parse().map_err(|_unreadable: NetworkError| {
            let field = format!("{PATH}.cidrs[{index}]");
            ConvertError::new(field, parts::quoted(text), "an address or a network such as 10.0.0.0/8")
        })
    };
    let networks = cidrs.iter().enumerate().map(network).collect::<Result<_, _>>()?;
    Ok(Ignored { networks, namespaces: namespaces.iter().map(|namespace| namespace.as_str().into()).collect() })
}

fn holding(cold_start: Option<&ColdStart>, scaling: &Scaling) -> Result<Holding, ConvertError> {
    const PATH: &str = "spec.coldStart";
    let Some(cold_start) = cold_start else { return Ok(parts::holding(None, scaling)) };
    let ColdStart {
        fallback: _,
        max_pending_requests,
        max_requests_per_pod,
        overflow,
        placeholder,
        probe_readiness: _,
    } = cold_start;
    let overflow = match overflow {
        Overflow::Reject => core::Overflow::Reject,
        Overflow::Placeholder if placeholder.is_none() => {
            return Err(ConvertError::new(format!("{PATH}.overflow"), "Placeholder", "a placeholder beside it"));
        }
        Overflow::Placeholder => core::Overflow::Placeholder,
    };
    let most = max_pending_requests.map(|most| parts::positive(&format!("{PATH}.maxPendingRequests"), most));
    let per_pod = max_requests_per_pod.map(|most| {
        let field = format!("{PATH}.maxRequestsPerPod");
        u32::try_from(most).map_err(|_negative: TryFromIntError| ConvertError::new(field, most, "a number from 0"))
    });
    let holding = parts::holding(per_pod.transpose()?, scaling);
    Ok(Holding { most: most.transpose()?.and_then(|most| NonZeroU64::new(most.into())), overflow, ..holding })
}

fn session(route: &ObjectKey, session: &SessionPersistence) -> Result<Session, ConvertError> {
    const PATH: &str = "spec.sessionPersistence";
    let SessionPersistence { absolute_timeout, cookie, kind: SessionType::Cookie } = session;
    let name = cookie.as_ref().and_then(|SessionCookie { name }| name.as_deref());
    let cookie = match name {
        Some(name) if http::HeaderName::from_bytes(name.as_bytes()).is_err() => {
            let field = format!("{PATH}.cookie.name");
            return Err(ConvertError::new(field, parts::quoted(name), "a cookie's name"));
        }
        Some(name) => name.into(),
        None => default_cookie(route),
    };
    let field = format!("{PATH}.absoluteTimeout");
    let lifetime = absolute_timeout.as_ref().map(|text| match parts::duration(&field, text)? {
        lifetime if lifetime < Duration::from_secs(1) => {
            Err(ConvertError::new(&field, parts::quoted(&text.0), "a duration of 1s or more"))
        }
        lifetime => Ok(lifetime),
    });
    Ok(Session { cookie, lifetime: lifetime.transpose()? })
}

/// The KEDA HTTP Add-on's name for the cookie of a route.
fn default_cookie(route: &ObjectKey) -> Arc<str> {
    let hash = Sha256::digest(route.to_string());
    format!("keda-session-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]).into()
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
    let ScalingMetric { accept_queue, concurrency, connections, request_rate } = metric;
    if accept_queue.is_none() && concurrency.is_none() && connections.is_none() && request_rate.is_none() {
        let expected = "at least one of concurrency, requestRate, connections and acceptQueue";
        return Err(ConvertError::new(PATH, "empty", expected));
    }
    let accept_queue = accept_queue
        .as_ref()
        .map(|queue| parts::positive(&format!("{PATH}.acceptQueue.targetValue"), queue.target_value));
    let concurrency = concurrency
        .as_ref()
        .map(|concurrency| parts::positive(&format!("{PATH}.concurrency.targetValue"), concurrency.target_value));
    let connections = connections
        .as_ref()
        .map(|connections| parts::positive(&format!("{PATH}.connections.targetValue"), connections.target_value));
    let rate = request_rate
        .as_ref()
        .map(|rate| parts::rate(&format!("{PATH}.requestRate"), rate.target_value, &rate.window, &rate.granularity));
    Ok(Scaling {
        concurrency: concurrency.transpose()?,
        rate: rate.transpose()?,
        connections: connections.transpose()?,
        accept_queue: accept_queue.transpose()?,
    })
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
