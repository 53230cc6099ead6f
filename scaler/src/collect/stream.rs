//! `Counts/Watch` of one interceptor: each message becomes one report.

use std::{net::SocketAddr, time::Duration};

use interceptor_core::{
    ObjectKey,
    demand::{Kernel, Observed, Report},
};
use proto::counts::{CountsUpdate, KernelCounts, RouteCounts, RouteRef, WatchRequest, counts_client::CountsClient};
use thiserror::Error;
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Endpoint};

/// A pod that doesn't take a connection for so long counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may take from the connection to its first message.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// An interceptor says something every few seconds, be it that nothing changed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer whose host is gone is noticed after an interval and a timeout.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A complete message of 100,000 routes with long names takes about 12 MiB.
const MAX_MESSAGE: usize = 32 << 20;

/// A stream that has said its first, complete message.
#[derive(Debug)]
pub(super) struct Counts {
    stream: Streaming<CountsUpdate>,
    first: Option<CountsUpdate>,
}

/// Why there is no stream, or no more.
#[derive(Debug, Error)]
pub(super) enum StreamError {
    /// Nobody takes the connection.
    #[error("connecting to the interceptor failed")]
    Unreachable(#[source] tonic::transport::Error),
    /// The peer takes the connection but doesn't answer in time.
    #[error("the interceptor accepted the connection but began no counts stream within {}s", OPEN_TIMEOUT.as_secs())]
    Mute,
    /// The peer refuses; perhaps it is an interceptor of the original add-on.
    #[error("the interceptor serves no counts stream")]
    Refused(#[source] Status),
    /// The first message didn't list everything.
    #[error("the interceptor's first counts message is not complete")]
    Incomplete,
    /// It broke.
    #[error("the interceptor's counts stream broke")]
    Broken(#[source] Status),
    /// It was ended by the interceptor.
    #[error("the interceptor ended its counts stream")]
    Ended,
    /// Nothing came for too long.
    #[error("the interceptor's counts stream has been silent for {}s", SILENCE_TIMEOUT.as_secs())]
    Silent,
}

// === impl Counts ===

impl Counts {
    /// Connects and waits for the first message. Cancel safe: dropped, the connection is closed.
    pub(super) async fn open(address: SocketAddr, scaler: &str) -> Result<Self, StreamError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(StreamError::Unreachable)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(StreamError::Unreachable)?;
        let mut client = CountsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let first = async {
            let request = WatchRequest { scaler: scaler.to_owned() };
            let mut stream = client.watch(request).await.map_err(StreamError::Refused)?.into_inner();
            match stream.message().await.map_err(StreamError::Refused)? {
                Some(first) if first.complete => Ok(Self { stream, first: Some(first) }),
                Some(_) => Err(StreamError::Incomplete),
                None => Err(StreamError::Ended),
            }
        };
        timeout(OPEN_TIMEOUT, first).await.unwrap_or(Err(StreamError::Mute))
    }

    /// The next report. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Report, StreamError> {
        if let Some(first) = self.first.take() {
            return Ok(report(first));
        }
        match timeout(SILENCE_TIMEOUT, self.stream.message()).await {
            Ok(Ok(Some(update))) => Ok(report(update)),
            Ok(Ok(None)) => Err(StreamError::Ended),
            Ok(Err(status)) => Err(StreamError::Broken(status)),
            Err(_) => Err(StreamError::Silent),
        }
    }
}

/// What a message says; routes without a name are left out.
fn report(update: CountsUpdate) -> Report {
    let CountsUpdate { incarnation, complete, routes, removed, uptime_ms } = update;
    Report {
        incarnation: (!incarnation.is_empty()).then(|| incarnation.into()),
        uptime: (uptime_ms > 0).then(|| Duration::from_millis(uptime_ms)),
        complete,
        routes: routes.into_iter().filter_map(counts).collect(),
        removed: removed.into_iter().filter_map(key).collect(),
    }
}

fn counts(counts: RouteCounts) -> Option<(ObjectKey, Observed)> {
    let RouteCounts {
        route,
        concurrency,
        request_count,
        held,
        kernel,
        connections,
        accept_queue,
        accept_queue_unknown,
        uncounted,
    } = counts;
    let kernel = kernel.map(|kernel| {
        let KernelCounts { opened, closed, failed, srtt_us, idle_ms: _ } = kernel;
        Kernel { opened, closed, failed, srtt: Duration::from_micros(srtt_us) }
    });
    let observed = Observed {
        in_flight: concurrency,
        total: request_count,
        held,
        kernel,
        connections,
        accept_queue,
        accept_queue_unknown,
        uncounted,
    };
    Some((key(route?)?, observed))
}

fn key(route: RouteRef) -> Option<ObjectKey> {
    let RouteRef { namespace, name } = route;
    (!namespace.is_empty() && !name.is_empty()).then(|| ObjectKey::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_a_report_without_its_nameless_routes() {
        let name = |name: &str| Some(RouteRef { namespace: "ns".into(), name: name.into() });
        let kernel = KernelCounts { opened: 4, closed: 3, failed: 2, srtt_us: 1500, idle_ms: 9 };
        let full = RouteCounts {
            route: name("a"),
            concurrency: 1,
            request_count: 2,
            held: 1,
            kernel: Some(kernel),
            connections: 5,
            accept_queue: 6,
            accept_queue_unknown: true,
            uncounted: true,
        };
        let nameless = [RouteCounts { route: None, ..full.clone() }, RouteCounts { route: name(""), ..full.clone() }];
        let update = CountsUpdate {
            incarnation: String::new(),
            complete: true,
            routes: [full].into_iter().chain(nameless).collect(),
            removed: [name("b"), name("")].into_iter().flatten().collect(),
            uptime_ms: 0,
        };
        let Report { incarnation, uptime, complete, routes, removed } = report(update);
        assert_eq!((incarnation, uptime, complete), (None, None, true));
        let kernel = Kernel { opened: 4, closed: 3, failed: 2, srtt: Duration::from_micros(1500) };
        let observed = Observed {
            in_flight: 1,
            total: 2,
            held: 1,
            kernel: Some(kernel),
            connections: 5,
            accept_queue: 6,
            accept_queue_unknown: true,
            uncounted: true,
        };
        assert_eq!(routes, [(ObjectKey::new("ns", "a"), observed)]);
        assert_eq!(removed, [ObjectKey::new("ns", "b")]);
    }
}
