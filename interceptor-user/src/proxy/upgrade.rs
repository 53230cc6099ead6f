//! Upgraded connections (WebSocket and any other protocol): bytes are copied both ways until both ends have closed.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use runtime::drain::Phase;
use tokio::time::Instant;

use super::{inflight::InFlight, pool::Lease};
use crate::worker::Worker;

/// Buffer of each direction; measured best for tunnels against 8 KiB and `splice(2)` for mixed traffic.
const BUFFER: usize = 64 * 1024;

/// Both halves of an upgrade, before either side has switched.
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: OnUpgrade,
    /// Carries the upstream's half until it has been handed over.
    pub(crate) lease: Lease,
    /// The upgraded connection counts as one request for its whole life.
    pub(crate) in_flight: InFlight,
    pub(crate) deadline: Option<Instant>,
}

// === impl Tunnel ===

impl Tunnel {
    /// Copies in a task of the worker; ends with either side, at the request's deadline, or when draining is over.
    pub(crate) fn spawn(self, worker: &Worker) {
        let mut watch = worker.tunnel_watch();
        runtime::task::spawn_local("tunnel", async move {
            let Self { client, upstream, lease, in_flight, deadline } = self;
            let _in_flight = in_flight;
            let copy = async {
                let (client, upstream, ()) = tokio::join!(client, upstream, lease.driven());
                copy(client?, upstream?).await
            };
            let late = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = copy => if let Err(error) = result {
                    tracing::debug!(%error, "tunnel ended");
                },
                () = late => tracing::debug!("tunnel cut at the request's deadline"),
                () = watch.reached(Phase::Cut) => tracing::debug!("tunnel cut by the shutdown"),
            }
        });
    }
}

async fn copy(client: Upgraded, upstream: Upgraded) -> Result<(), Box<dyn std::error::Error>> {
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}
