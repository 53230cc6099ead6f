//! What the processes share: arguments, logs, admin port, readiness, drain, tasks, watch and snapshot.
//!
//! ```text
//! args + env ─► typed configs ─► app::build ─► Bound
//!                                                │ run
//! SIGTERM ─► signal::Shutdown ─► drain::Drain ───┤
//! latches ─► ready::Ready ───────► admin::Server ┤  /livez /readyz /metrics, own paths, gRPC
//! metrics::Metrics ─► Exposition ─► admin::Server┤  OTEL_PROM_EXPORTER_PORT
//! task::Group ◄──────────────────────────────────┘  the end of a long-lived task is an error
//! ```

#![forbid(unsafe_code)]

pub mod admin;
pub mod args;
pub mod backoff;
pub mod descriptors;
pub mod drain;
pub mod env;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod signal;
pub mod snapshot;
pub mod task;
pub mod watch;
