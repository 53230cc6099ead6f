//! From Kubernetes objects to the core's types. A value that can't be is an error that names field, value and expectation.

use std::fmt;

use interceptor_core::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

mod config_map;
mod endpoint_slice;
mod http_scaled_object;
mod interceptor_route;
mod namespace;
mod parts;
mod probe;
mod service;

#[cfg(test)]
mod tests;

pub use self::{
    config_map::response_bodies,
    endpoint_slice::{is_shadow, slice},
    http_scaled_object::{DEFAULT_TARGET, route as http_scaled_object},
    interceptor_route::route as interceptor_route,
    namespace::namespace,
    service::service,
};

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A field whose value can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: expected {expected}")]
pub struct ConvertError {
    /// Path of the field.
    pub field: String,
    /// Its value, for people.
    pub value: String,
    /// What it should be.
    pub expected: String,
}

// === impl ConvertError ===

impl ConvertError {
    pub(crate) fn new(field: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), expected: expected.into() }
    }
}

/// Namespace and name of an object.
pub fn key(metadata: &ObjectMeta) -> Result<ObjectKey, ConvertError> {
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    match metadata.name.as_deref() {
        None | Some("") => Err(ConvertError::new("metadata.name", "empty", "a name")),
        Some(name) => Ok(ObjectKey::new(namespace.unwrap_or(DEFAULT_NAMESPACE), name)),
    }
}
