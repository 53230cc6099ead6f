//! Routes for tests.

use std::time::Duration;

use interceptor_core::{
    ObjectKey, Route,
    route::{PortRef, Rate, RouteKind, Scaling, Target},
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
        scaling: Scaling { concurrency, rate, connections: None, accept_queue: None },
        ..Route::new(
            kind,
            ObjectKey::new("default", name),
            Target { service: ObjectKey::new("default", "web"), port: PortRef::Number(80) },
        )
    }
}
