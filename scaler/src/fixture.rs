//! Routes for tests.

use std::time::Duration;

use interceptor_core::{
    ObjectKey, Route,
    route::{DataPath, PortRef, Rate, RouteKind, Scaling, Target, Timeouts, Traffic},
};

pub(crate) fn interceptor_route(name: &str, concurrency: Option<u32>, rate: Option<u32>) -> Route {
    route(RouteKind::InterceptorRoute, name, concurrency, rate)
}

pub(crate) fn http_scaled_object(name: &str, concurrency: Option<u32>, rate: Option<u32>) -> Route {
    route(RouteKind::HttpScaledObject, name, concurrency, rate)
}

fn route(kind: RouteKind, name: &str, concurrency: Option<u32>, rate: Option<u32>) -> Route {
    let window = Duration::from_secs(10);
    let rate = rate.map(|target| Rate { target, window, granularity: Duration::from_secs(1) });
    Route {
        kind,
        key: ObjectKey::new("default", name),
        created: 0,
        rules: Vec::new(),
        target: Target { service: ObjectKey::new("default", "web"), port: PortRef::Number(80) },
        data_path: DataPath::default(),
        traffic: Traffic::default(),
        fallback: None,
        placeholder: None,
        static_routes: Vec::new(),
        holding: interceptor_core::route::Holding::default(),
        shadow: None,
        session: None,
        identity: None,
        ignored: interceptor_core::network::Ignored::default(),
        probing: interceptor_core::probe::Probing::default(),
        scaling: Scaling { concurrency, rate, connections: None, accept_queue: None },
        timeouts: Timeouts::default(),
    }
}
