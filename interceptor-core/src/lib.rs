//! Routing, endpoints, counting and demand: pure decisions, without async, clock or sockets.
//!
//! ```text
//! watch events ─► Index (apply / delete / reset) ─► Snapshot { routes, upstreams }
//!                                                       │
//! request ─► RouteTable::lookup ─► RouteEntry ─► upstreams.get(id) ─► pick ─► endpoint
//!                 │
//!                 └► RouteCounters::enter ─► Guard (dropped at the end of the response body)
//!
//! counts of many interceptors ─► demand ─► window ─► what KEDA is told
//! upstreams × what the kernel has ─► mapops
//! ```

#![forbid(unsafe_code)]

mod key;

pub mod demand;
pub mod direct;
pub mod endpoint;
pub mod frontends;
pub mod gate;
pub mod go_duration;
pub mod holding;
pub mod index;
pub mod inflight;
pub mod kubelet;
pub mod mapops;
pub mod network;
pub mod pick;
pub mod probe;
pub mod route;
pub mod service;
pub mod upstream;
pub mod window;

pub use self::{
    endpoint::Endpoints,
    index::{Index, Snapshot},
    key::ObjectKey,
    route::{Route, RouteEntry, RouteId, RouteTable},
    upstream::{Upstream, UpstreamId},
};
