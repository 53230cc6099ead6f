//! One probe of one pod, as a kubelet runs it: HTTP, HTTPS, a connection, or gRPC's health service. Goes to the pod and
//! nowhere else, whatever the pod answers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use interceptor_common::probe::WINDOW;
use interceptor_core::probe::{Action, Probe};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::metrics::Outcome;

mod http;
mod tls;

#[cfg(test)]
mod tests;

/// How long a connection may take to open. The first packet to a pod whose network is not up yet is lost, and its kernel
/// sends the next after a second: better to begin anew.
const CONNECT: Duration = Duration::from_millis(100);

/// Asks once. Ends within the probe's own time.
///
/// Cancel safe: dropped, the connection is closed.
pub(super) async fn ask(pod: IpAddr, probe: &Probe) -> Outcome {
    let deadline = Instant::now() + probe.timeout;
    let answer = async {
        match &probe.action {
            Action::Http(get) => http::get(pod, get).await,
            Action::Tcp(port) => match connect((pod, *port).into()).await {
                Ok(_opened) => Outcome::Ready,
                Err(outcome) => outcome,
            },
            Action::Grpc { port, service } => grpc((pod, *port).into(), service).await,
        }
    };
    timeout_at(deadline, answer).await.unwrap_or(Outcome::Timeout)
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, Outcome> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(_refused)) => Err(Outcome::Refused),
        Err(_elapsed) => Err(Outcome::Timeout),
    }
}

async fn grpc(addr: SocketAddr, service: &str) -> Outcome {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address is an authority");
    let endpoint = endpoint.initial_stream_window_size(WINDOW).connect_timeout(CONNECT);
    let Ok(channel) = endpoint.connect().await else { return Outcome::Refused };
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Outcome::Ready,
        Ok(_) | Err(_) => Outcome::Unready,
    }
}
