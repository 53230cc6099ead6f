//! Upgraded connections (WebSocket and any other protocol): bytes are copied both ways until both ends have closed.

use std::io;

use bytes::Bytes;
use runtime::drain::{Phase, TunnelWatch};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

use super::{inflight::InFlight, pool::Lease};
use crate::http2::duplex::Duplex;

/// Buffer of each direction; measured best for tunnels against 8 KiB and `splice(2)` for mixed traffic.
const BUFFER: usize = 64 * 1024;

/// The upstream's half of an upgrade, before the client has been told.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The protocol that both agreed to.
    pub(crate) protocol: Bytes,
    pub(crate) upstream: Upstream,
    /// The upgraded connection counts as one request for its whole life.
    pub(crate) in_flight: Option<InFlight>,
    pub(crate) deadline: Option<Instant>,
}

/// The upstream's connection, or a stream of it; the lease lasts as long as that.
#[derive(Debug)]
pub(crate) enum Upstream {
    Http1(Lease),
    Http2(Duplex, Lease),
}

/// The client's half.
#[derive(Debug)]
pub(crate) struct Handover<C> {
    pub(crate) client: C,
    /// Was read from the client behind its request.
    pub(crate) ahead: Bytes,
    /// Is still to be written to the client: the response.
    pub(crate) head: Vec<u8>,
}

// === impl Tunnel ===

impl Tunnel {
    /// Copies until either side ends, the request's deadline passes, or draining is over.
    pub(crate) async fn run<C: AsyncRead + AsyncWrite + Unpin>(self, handover: Handover<C>, mut watch: TunnelWatch) {
        let Self { protocol: _, upstream, in_flight, deadline } = self;
        let _in_flight = in_flight;
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let copied = async {
            match upstream {
                Upstream::Http1(lease) => match lease.into_socket() {
                    Some(socket) => copy(handover, socket).await,
                    None => Ok(()),
                },
                Upstream::Http2(stream, _lease) => copy(handover, (stream, Bytes::new())).await,
            }
        };
        tokio::select! {
            result = copied => if let Err(error) = result {
                tracing::debug!(%error, "tunnel ended");
            },
            () = late => tracing::debug!("tunnel cut at the request's deadline"),
            () = watch.reached(Phase::Cut) => tracing::debug!("tunnel cut by the shutdown"),
        }
    }
}

/// Copies both ways, first what was read ahead of either side.
async fn copy<C: AsyncRead + AsyncWrite + Unpin, U: AsyncRead + AsyncWrite + Unpin>(
    handover: Handover<C>,
    (mut upstream, greeting): (U, Bytes),
) -> io::Result<()> {
    let Handover { mut client, ahead, mut head } = handover;
    head.extend_from_slice(&greeting);
    tokio::try_join!(upstream.write_all(&ahead), client.write_all(&head))?;
    tokio::try_join!(upstream.flush(), client.flush())?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}
