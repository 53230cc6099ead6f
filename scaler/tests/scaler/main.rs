//! The scaler in process: a real gRPC client on one side, interceptors made of sockets on the other.

#![forbid(unsafe_code)]

mod answers;
mod health;
mod sources;
mod streams;
mod support;
