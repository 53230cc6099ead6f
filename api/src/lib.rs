//! The custom resources, and how Kubernetes objects become the core's types.
//!
//! ```text
//! InterceptorRoute  ─┐
//! HTTPScaledObject  ─┼► convert ─► interceptor_core::{Route, Service, Slice} ─► Index
//! Service           ─┤      └───► ConvertError: field, value, what was expected
//! EndpointSlice     ─┘
//! ScaledObject (KEDA's, what we read and write of it)
//! ```

#![forbid(unsafe_code)]

pub mod convert;
pub mod crd;
pub mod duration;
pub mod http_scaled_object;
pub mod interceptor_route;
pub mod names;
pub mod readiness_probe;
pub mod scaled_object;
pub mod unnamed_probe;

mod schema;

pub use self::{
    convert::ConvertError,
    duration::GoDuration,
    http_scaled_object::{HTTPScaledObject, HTTPScaledObjectSpec},
    interceptor_route::{InterceptorRoute, InterceptorRouteSpec},
    readiness_probe::ReadinessProbe,
    scaled_object::{ScaledObject, ScaledObjectSpec},
    unnamed_probe::UnnamedProbe,
};
