//! The custom resources and the operator against a real API server.

#![forbid(unsafe_code)]

mod leader;
mod malformed;
mod reconcile;
mod schema;
mod support;
