//! Accepts clients on one worker and serves them over HTTP/1.1 or cleartext HTTP/2, whichever they speak first.

use std::{io, pin::pin, rc::Rc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

pub(crate) mod connection;
mod date;
mod h1;
mod h2;

use self::{
    connection::{Connection, Serve},
    h1::Ended,
};
use crate::worker::Worker;

/// Pause after an accept error that is not the client's: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the worker closes.
pub(crate) async fn accept_loop(worker: Rc<Worker>, listener: TcpListener) {
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
                serve(Rc::clone(&worker), Rc::new(Connection::new(peer)), stream_options(stream));
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

fn serve(worker: Rc<Worker>, connection: Rc<Connection>, stream: TcpStream) {
    let place = worker.register(&connection);
    runtime::task::spawn_local("client", async move {
        let _place = place;
        let served = pin!(async {
            if let Ended::Http2(stream, ahead) = h1::serve(&worker, &connection, stream).await {
                // Few connections are, and each of their futures is large.
                Box::pin(h2::serve(&worker, &connection, stream, ahead)).await;
            }
        });
        Serve { inner: served, connection: &connection }.await;
    });
}

fn stream_options(stream: TcpStream) -> TcpStream {
    // Without it a small response may wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    stream
}

fn is_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
