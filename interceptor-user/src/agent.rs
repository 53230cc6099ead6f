//! `interceptor agent`: the data plane of one node. Watches what interceptors watch, keeps the kernel's maps in step, and
//! tells scalers what waits and what runs.
//!
//! ```text
//! args ─► Config ─► build ─► Bound::run, one thread
//!                              ├─ discover ─► snapshot ─► hold (tc: held connections) ─► Edges ─► counts (gRPC), /state, /metrics
//!                              │                 ├─► steer (connect: what is an interceptor's while cold)
//!                              │                 ├─► count (pods' cgroups) ─► Taken ─► the same
//!                              │                 ├─► uncounted (pods that are not) ─► Uncounted ─► the same
//!                              │                 └─► backlog (pods' accept queues, if asked) ─► Waiting ─► the same
//!                              └─ probe (pods of held connections) ─► discover
//! ```

mod alone;
mod app;
mod backlog;
mod config;
mod count;
mod hold;
mod pins;
mod settle;
mod state;
mod steer;
mod uncounted;
mod unread;

pub use self::{
    app::{AgentError, Bound, build},
    config::{Args, Config, Holds},
    steer::Steering,
};
