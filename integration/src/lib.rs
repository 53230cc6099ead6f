//! Tests of the whole: real processes, foreign peers, both data plane levels. This library is what the tests stand on;
//! each of them plays client and pod itself, step by step, so that what was seen before what is certain.
//!
//! ```text
//! test ─ World (a folder of manifests) ──► interceptor process (--source dir:…)
//!   │                                        │ proxy           │ admin
//!   ├─ Peer::connect ────────────────────────┘                 │
//!   ├─ Pod::accept ─ Peer (what the interceptor sends on)      │
//!   └─ Interceptor::{queue, state, ready, metrics} ────────────┘
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::missing_panics_doc, reason = "as above, everywhere")]

pub mod agent;
pub mod cgroup;
pub mod cluster;
pub mod collector;
pub mod h2;
pub mod interceptor;
pub mod net;
pub mod peer;
pub mod pod;
pub mod process;
pub mod scaler;
pub mod world;

pub use self::{
    cluster::{CRDS, Cluster},
    collector::Collector,
    interceptor::Interceptor,
    peer::{Head, Peer},
    pod::Pod,
    scaler::Scaler,
    world::World,
};

use std::{future::Future, time::Duration};

/// How long anything may take before a test is taken to hang. Not a measure: nothing is asserted about time.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many times as long on a machine that is as much slower than others; once if it is not told.
const SLOWNESS: &str = "ROUSE_TEST_SLOWNESS";

/// How often a condition is looked at again.
const LOOK: Duration = Duration::from_millis(2);

/// The same on this machine.
pub fn patience() -> Duration {
    PATIENCE * std::env::var(SLOWNESS).map_or(1, |times| times.parse().unwrap())
}

/// Waits for what must happen, and says what it was if it does not.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(patience(), future).await;
    ended.unwrap_or_else(|_elapsed| panic!("did not happen: {what}"))
}

/// Waits until `check` gives a value, and says what was waited for if it never does.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let mut look = tokio::time::interval(LOOK);
    soon(what, async {
        loop {
            look.tick().await;
            if let Some(value) = check().await {
                return value;
            }
        }
    })
    .await
}
