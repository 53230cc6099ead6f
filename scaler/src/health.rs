//! `grpc.health.v1`: `liveness`, `readiness` and the empty name. Written by [`run`] from the board.

use std::convert::Infallible;

use runtime::signal::Shutdown;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::board::{Board, Standing};

const LIVENESS: &str = "liveness";
const READINESS: &str = "readiness";

/// Keeps the health service up to date, and says that nothing is served once shutdown is requested.
///
/// Alive as long as the process answers: a restart doesn't bring interceptors back. Ready while what is told to KEDA
/// means something, so that a scaler that sees nothing leaves the answer to one that does.
pub async fn run(board: Board, reporter: HealthReporter, mut shutdown: Shutdown) -> Result<(), Infallible> {
    let mut changes = board.subscribe_standing();
    set(&reporter, LIVENESS, true).await;
    while !shutdown.is_requested() {
        set(&reporter, READINESS, is_ready(board.standing())).await;
        tokio::select! {
            () = changes.changed() => {}
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
    let Standing { synced, census, refused: _ } = standing;
    synced && census.reported > 0 && census.silent < census.listed
}

#[cfg(test)]
mod tests {
    use interceptor_core::demand::Census;

    use super::*;

    #[test]
    fn ready_when_objects_are_read_and_an_interceptor_is_heard() {
        let ready = |synced, listed, reported, silent| {
            is_ready(Standing { synced, census: Census { listed, reported, silent }, refused: 0 })
        };
        assert!(ready(true, 2, 1, 1));
        assert!(!ready(false, 2, 2, 0));
        assert!(!ready(true, 0, 0, 0));
        assert!(!ready(true, 2, 0, 0));
        assert!(!ready(true, 2, 2, 2));
    }
}
