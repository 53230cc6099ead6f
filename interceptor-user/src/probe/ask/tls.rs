//! TLS as a kubelet's probe speaks it: whatever the certificate, since a probe carries no secret and the pod is known by
//! its address.

use std::{io, net::IpAddr, sync::LazyLock};

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

static CONNECTOR: LazyLock<TlsConnector> = LazyLock::new(|| tls::client::unverified().into());

/// Speaks TLS on a connection to a pod.
pub(super) async fn handshake(pod: IpAddr, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    CONNECTOR.connect(ServerName::from(pod), stream).await
}
