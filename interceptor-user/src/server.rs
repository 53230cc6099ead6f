//! Accepts clients on one worker and serves them over HTTP/1.1 or HTTP/2: in clear whichever they speak first, with TLS what
//! the handshake agreed upon.

use std::{io, pin::pin, rc::Rc, time::Duration};

use bytes::Bytes;

use runtime::listen::canonical;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsStream};

pub(crate) mod connection;
mod date;
mod entered;
mod h1;
mod h2;

pub(crate) use self::entered::{Entered, serve_loop};
use self::{
    connection::{Connection, Serve},
    h1::Ended,
};
use crate::{net::Stream, trust::Trust, worker::Worker};

/// Pause after an accept error that is not the client's: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the worker closes; with `tls`, clients shake hands first.
pub(crate) async fn accept_loop(worker: Rc<Worker>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = worker.closing() => return,
            accepted = async {
                worker.room_for_connection().await;
                listener.accept().await
            } => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let peer = canonical(peer);
                let trust = Trust::of(peer.ip(), &worker.shared.config.trusted_proxies);
                let connection = Rc::new(Connection::new(peer, tls.is_some(), trust));
                serve(Rc::clone(&worker), connection, stream, tls.clone());
            }
            Err(error) if is_clients_fault(&error) => {}
            Err(error) => {
                worker.shared.metrics.accept_failed();
                // Once, and not again at every try: the metric counts them.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn serve(worker: Rc<Worker>, connection: Rc<Connection>, stream: TcpStream, tls: Option<TlsAcceptor>) {
    let place = worker.register(&connection);
    runtime::task::spawn_local("client", async move {
        let _place = place;
        let served = pin!(async {
            let stream = match tls {
                None => Stream::Plain(stream),
                // As long as a request's head may take: the same watch ends it.
                Some(tls) => match Box::pin(tls.accept(stream)).await {
                    Ok(stream) => Stream::Tls(Box::new(TlsStream::Server(stream))),
                    Err(error) => {
                        tracing::debug!(client = %connection.peer(), %error, "client could not agree upon TLS");
                        return worker.shared.metrics.handshake_failed();
                    }
                },
            };
            if stream.alpn() == Some(b"h2") {
                return Box::pin(h2::serve(&worker, &connection, stream, Bytes::new())).await;
            }
            if let Ended::Http2(stream, ahead) = h1::serve(&worker, &connection, stream).await {
                // Few connections are, and each of their futures is large.
                Box::pin(h2::serve(&worker, &connection, stream, ahead)).await;
            }
        });
        Serve { inner: served, connection: &connection }.await;
    });
}

fn is_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
