//! Keeps `ScaledObjects` and statuses in step with `InterceptorRoutes` and `HTTPScaledObjects`.
//!
//! ```text
//! API server ─► watch ─► object (reduced, readable or not) ─► world ─► observe: all about one route
//!                                                               │             │
//!                                        reconcile (queue) ◄────┘             ▼
//!                                             │            plan (pure: drift, scaled_object, status, notice)
//! API server ◄─ apply, only while ◄───────────┘                               │
//!               lease is held       ◄─────────────────────────────────────────┘
//! ```

#![forbid(unsafe_code)]

pub mod app;
pub mod apply;
pub mod args;
pub mod connect;
pub mod crds;
pub mod demand;
pub mod lease;
pub mod metrics;
pub mod notice;
pub mod object;
pub mod observe;
pub mod plan;
pub mod queue;
pub mod reconcile;
pub mod secure;
pub mod shadow;
pub mod status;
pub mod watch;
pub mod world;
