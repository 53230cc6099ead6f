//! The objects of one name. Written and read under the board's lock.

use std::sync::Arc;

use interceptor_core::{
    Route,
    route::{DataPath, RouteKind},
    window::Shape,
};

/// The routes of one name: counts can't tell them apart.
#[derive(Debug, Default)]
pub(super) struct Pair {
    interceptor_route: Option<Arc<Route>>,
    http_scaled_object: Option<Arc<Route>>,
}

// === impl Pair ===

impl Pair {
    pub(super) fn get(&self, kind: RouteKind) -> Option<&Arc<Route>> {
        match kind {
            RouteKind::InterceptorRoute => self.interceptor_route.as_ref(),
            RouteKind::HttpScaledObject => self.http_scaled_object.as_ref(),
        }
    }

    pub(super) fn slot(&mut self, kind: RouteKind) -> &mut Option<Arc<Route>> {
        match kind {
            RouteKind::InterceptorRoute => &mut self.interceptor_route,
            RouteKind::HttpScaledObject => &mut self.http_scaled_object,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.interceptor_route.is_none() && self.http_scaled_object.is_none()
    }

    /// The window that either asks for; the `InterceptorRoute`'s if both do.
    pub(super) fn shape(&self) -> Option<Shape> {
        let rate = |route: &Option<Arc<Route>>| route.as_ref().and_then(|route| route.scaling.rate);
        let rate = rate(&self.interceptor_route).or_else(|| rate(&self.http_scaled_object))?;
        Some(Shape::new(rate.window, rate.granularity))
    }

    /// Whether clients reach its pods without a proxy.
    pub(super) fn is_direct(&self) -> bool {
        self.interceptor_route.as_ref().is_some_and(|route| route.data_path == DataPath::Direct)
    }
}
