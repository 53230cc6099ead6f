//! The scaler in process: a real gRPC client on one side, interceptors made of sockets on the other.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agents;
mod answers;
mod health;
mod sources;
mod streams;
mod support;
