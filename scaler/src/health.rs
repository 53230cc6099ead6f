//! `grpc.health.v1`: `liveness`, `readiness` and the empty name. Written by [`run`] from the board.

use std::convert::Infallible;

use runtime::signal::Shutdown;
use tokio::time::sleep_until;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::board::{Board, Standing};

const LIVENESS: &str = "liveness";
const READINESS: &str = "readiness";

/// Keeps the health service up to date, and says that nothing is served once shutdown is requested.
///
/// Alive as long as the process answers: a restart doesn't bring interceptors back. Ready while what is told to KEDA
/// means something, so that a scaler that sees nothing leaves the answer to one that does, and one that starts before it has heard
/// the agents.
pub async fn run(board: Board, reporter: HealthReporter, mut shutdown: Shutdown) -> Result<(), Infallible> {
    let mut changes = board.subscribe_standing();
    // A node that comes later is no reason to be taken for one that starts.
    let mut settled = false;
    set(&reporter, LIVENESS, true).await;
    while !shutdown.is_requested() {
        let standing = board.standing();
        settled |= is_ready(standing) && standing.settles_at.is_none();
        set(&reporter, READINESS, settled && is_ready(standing)).await;
        let settles = async {
            match standing.settles_at.filter(|_| !settled) {
                Some(at) => sleep_until(board.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changes.changed() => {}
            () = settles => {}
            () = shutdown.requested() => {}
        }
    }
    for name in [LIVENESS, READINESS, ""] {
        set(&reporter, name, false).await;
    }
    std::future::pending().await
}

async fn set(reporter: &HealthReporter, name: &str, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status(name, status).await;
}

/// All objects have been read, and an interceptor is heard.
pub(crate) fn is_ready(standing: Standing) -> bool {
    let Standing { synced, census, refused: _, refused_agents: _, settles_at: _ } = standing;
    synced && census.reported > 0 && census.silent < census.listed
}

#[cfg(test)]
mod tests {
    use interceptor_core::demand::Census;

    use super::*;

    #[test]
    fn ready_when_objects_are_read_and_an_interceptor_is_heard() {
        let ready = |synced, listed, reported, silent| {
            is_ready(Standing { synced, census: Census { listed, reported, silent }, ..Standing::default() })
        };
        assert!(ready(true, 2, 1, 1));
        assert!(!ready(false, 2, 2, 0));
        assert!(!ready(true, 0, 0, 0));
        assert!(!ready(true, 2, 0, 0));
        assert!(!ready(true, 2, 2, 2));
    }
}
