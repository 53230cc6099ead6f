//! The custom resources and the operator against a real API server.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod leader;
mod malformed;
mod reconcile;
mod schema;
mod secured;
mod support;
