//! KEDA's external scaler: collects the counts of interceptors, answers and pushes to KEDA.
//!
//! ```text
//! watched objects ─► discover ─┬─ addresses ─► collect (one task per interceptor) ─┐
//!                              └─ routes ─────────────────────────────────────────┴► news ─► board
//!                                                                                             │
//! KEDA ◄─ gRPC ─ service (subject, spec: pure; streams: push, pure) ◄──── read, subscribe ────┤
//! kubelet ◄─ health ◄─────────────────────────────────────────────────────────────────────────┤
//! Prometheus ◄─ metrics ◄─────────────────────────────────────────────────────────────────────┘
//! ```

#![forbid(unsafe_code)]

pub mod app;
pub mod args;
pub mod board;
pub mod collect;
pub mod discover;
pub mod health;
pub mod incoming;
pub mod metrics;
pub mod push;
pub mod service;
pub mod shadow;
pub mod spec;
pub mod subject;

#[cfg(test)]
mod fixture;
