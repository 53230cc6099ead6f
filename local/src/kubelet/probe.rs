//! Readiness: one try of a probe, and the thresholds that turn tries into a verdict.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use runtime::task;
use tokio::{net::TcpStream, time::timeout};

use crate::workload::{Probe, ProbeAction};

/// Successes and failures in a row, and what follows from them.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    ready: bool,
    successes: u32,
    failures: u32,
    success_threshold: u32,
    failure_threshold: u32,
}

// === impl Verdict ===

impl Verdict {
    /// Not ready, before the first try.
    pub fn new(probe: &Probe) -> Self {
        Self {
            ready: false,
            successes: 0,
            failures: 0,
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
        }
    }

    /// Counts one try; the new verdict if it changed.
    pub fn count(&mut self, success: bool) -> Option<bool> {
        let (run, threshold) = if success {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            (self.successes, self.success_threshold)
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            (self.failures, self.failure_threshold)
        };
        let changed = self.ready != success && run >= threshold;
        changed.then(|| {
            self.ready = success;
            success
        })
    }
}

/// Tries once; false when it fails or takes too long.
pub async fn attempt(probe: &Probe, address: IpAddr) -> bool {
    let tried = async {
        match &probe.action {
            ProbeAction::Tcp { port } => TcpStream::connect(SocketAddr::new(address, *port)).await.is_ok(),
            ProbeAction::HttpGet { port, path, headers } => {
                let status = get(SocketAddr::new(address, *port), path, headers).await;
                status.is_some_and(|status| (200..400).contains(&status.as_u16()))
            }
        }
    };
    timeout(probe.timeout, tried).await.unwrap_or(false)
}

async fn get(address: SocketAddr, path: &str, headers: &[(String, String)]) -> Option<StatusCode> {
    let mut request = Request::get(path).header(header::USER_AGENT, "kube-probe/rouse-local");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header(header::HOST, address.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    // Ends by itself: the sender is dropped on return, whatever happened.
    task::spawn("probe", timeout(Duration::from_mins(1), connection));
    Some(sender.send_request(request).await.ok()?.status())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn tcp(port: u16) -> Probe {
        Probe {
            action: ProbeAction::Tcp { port },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            success_threshold: 2,
            failure_threshold: 3,
        }
    }

    #[test]
    fn readiness_changes_after_as_many_tries_in_a_row_as_the_thresholds_say() {
        let mut verdict = Verdict::new(&tcp(80));
        let tries = [true, false, true, true, true, false, false, true, false, false, false, false];
        let changes: Vec<_> = tries.into_iter().map(|success| verdict.count(success)).collect();
        let mut expected = [None; 12];
        expected[3] = Some(true);
        expected[10] = Some(false);
        assert_eq!(changes, expected);
    }

    #[tokio::test]
    async fn a_port_where_somebody_listens_passes_and_a_free_one_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(attempt(&tcp(address.port()), address.ip()).await);
        drop(listener);
        assert!(!attempt(&tcp(address.port()), address.ip()).await);
    }
}
