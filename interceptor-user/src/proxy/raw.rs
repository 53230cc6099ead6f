//! A connection as one request: its bytes go to a pod as they come, and back. For protocols that nobody here speaks, and for
//! TLS that ends at the pod, where interceptors stand in for a Service.

use std::{pin::pin, rc::Rc};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::{io::Interest, net::TcpStream};

use super::{
    body::RequestBody,
    hold::{self, Limits, Need},
    inflight::{InFlight, Told},
    session::Wish,
    upgrade::{Handover, Tunnel, Upstream},
    verdict,
};
use crate::{
    h1::framing::Framing,
    server::connection::Connection,
    worker::{LocalRoute, Received, Worker},
};

/// Serves a connection to a route's target, from its opening to its end. What there is to count is one request, of the
/// method CONNECT.
///
/// Dropping the future ends it everywhere.
pub(crate) async fn serve(worker: &Rc<Worker>, connection: &Rc<Connection>, route: &Rc<LocalRoute>, client: TcpStream) {
    let told = Told { line: None, trace: None };
    let mut in_flight = InFlight::new(Rc::clone(worker), Rc::clone(connection), &Method::CONNECT, told);
    in_flight.set_route(route);
    in_flight.count(route);
    let arrived = in_flight.arrived();
    let timeouts = route.timeouts();
    let readiness = timeouts.readiness.unwrap_or(worker.shared.config.readiness_timeout);
    let limits = Limits {
        readiness: (!readiness.is_zero()).then(|| arrived.checked_add(readiness)).flatten(),
        // A deadline of requests says nothing of how long a connection may live.
        request: None,
    };
    let need = Need { received: Received::Raw, upgraded: true, wish: Wish::Any(connection.peer().ip()) };
    let body = RequestBody::empty(Framing::None);
    let acquired = {
        let mut acquired = pin!(hold::acquire(worker, route, (limits, need), (&body, &in_flight), arrived));
        tokio::select! {
            acquired = &mut acquired => acquired,
            () = gone(&client) => return tracing::debug!(client = %connection.peer(), "client has left"),
        }
    };
    let lease = match acquired {
        Ok(acquired) => acquired.lease,
        Err(error) => {
            let error = error.error;
            in_flight.set_status(verdict(&error).status);
            worker.shared.metrics.failed(verdict(&error));
            return tracing::debug!(client = %connection.peer(), %error, "no pod for a connection");
        }
    };
    in_flight.set_status(StatusCode::OK);
    let upstream = Upstream::Http1(lease);
    let tunnel = Tunnel { protocol: Bytes::new(), upstream, in_flight: Some(in_flight), deadline: None };
    let handover = Handover { client, ahead: Bytes::new(), head: Vec::new() };
    // Its buffers would be a part of every other connection's task.
    Box::pin(tunnel.run(handover, worker.tunnel_watch())).await;
}

/// Resolves when a client that waits has reset its connection, or has closed it without having sent anything: one that has
/// may still wait for what is said to it.
async fn gone(client: &TcpStream) {
    let mut byte = [0; 1];
    let closed = async {
        match client.peek(&mut byte).await {
            Ok(0) | Err(_) => {}
            Ok(_) => std::future::pending().await,
        }
    };
    let reset = async {
        // An error that is told is one of the connection's.
        let _ = client.ready(Interest::ERROR).await;
    };
    tokio::select! {
        () = closed => {}
        () = reset => {}
    }
}

/// Whether a client begins with a TLS handshake: the content type of its first record (RFC 8446 §5.1). `None` when it has left.
pub(crate) async fn is_tls(client: &TcpStream) -> Option<bool> {
    const HANDSHAKE: u8 = 22;
    let mut byte = [0; 1];
    matches!(client.peek(&mut byte).await, Ok(1..)).then(|| byte[0] == HANDSHAKE)
}
