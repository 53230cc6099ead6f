//! The interceptor: an HTTP proxy that holds requests while their workload wakes.
//!
//! ```text
//! args ─► Config ─► app::build ─► Bound::run
//!                                   ├─ worker threads: server (accept) ─► proxy: route ─► count ─► hold ─► forward
//!                                   │                     ▲ snapshot           │ edges
//!                                   └─ control thread: discover ─► snapshot    ▼
//!                                                      probe (held requests' pods) ─► discover
//!                                                      kernel (maps, counters) counts (gRPC), /queue, /state, /metrics
//! ```

#![forbid(unsafe_code)]

pub mod agent;
pub mod app;
pub mod config;
pub mod secrets;

mod coldstart;
mod control;
pub mod encryption;
mod entrances;
#[cfg(any(test, fuzzing))]
pub mod foreign;
mod h1;
mod http2;
mod memory;
mod metrics;
mod names;
mod net;
mod probe;
mod proxy;
mod rt;
mod server;
mod trust;
mod worker;
