//! The time until all objects have been read, in which no signs of life are given: what is cold is not known, and nobody who is
//! held would be sent on.

use std::time::Duration;

use interceptor_common::hold::HEARTBEAT_NS;
use tokio::{sync::watch, time::timeout};

/// Why nothing is held or steered until then.
pub(super) const UNREAD: &str = "not all objects have been read yet";

/// What an agent before has left goes on for so long after its last sign of life.
const SILENCE: Duration = Duration::from_nanos(HEARTBEAT_NS);

/// Waits until they have, or nobody reads them any more; says what is not `done` if that takes longer than what an agent before has left
/// goes on.
pub(super) async fn wait<T>(told: &mut watch::Receiver<T>, done: &'static str, mut are_read: impl FnMut(&T) -> bool) {
    if timeout(SILENCE, told.wait_for(&mut are_read)).await.is_err() {
        tracing::warn!("not all objects have been read for {} s: no connection is {done}", SILENCE.as_secs());
        _ = told.wait_for(are_read).await;
    }
}
