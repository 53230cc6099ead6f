//! Clients that come by an entrance: a port that stands for one Service, in whose EndpointSlices interceptors are listed.

use std::{net::SocketAddr, num::NonZeroU16, pin::pin, rc::Rc};

use interceptor_core::route::Traffic;
use runtime::listen::canonical;
use tokio::{net::TcpStream, sync::mpsc};

use super::{
    Ended, Stream,
    connection::{Connection, Serve},
    h1, h2,
};
use crate::{proxy::raw, trust::Trust, worker::Worker};

/// A client that was accepted at an entrance.
#[derive(Debug)]
pub(crate) struct Entered {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) port: NonZeroU16,
}

/// Serves clients until no more can come, which is when listeners have been closed and the last one was taken.
pub(crate) async fn serve_loop(worker: Rc<Worker>, mut entered: mpsc::Receiver<Entered>) {
    loop {
        worker.room_for_connection().await;
        let Some(Entered { stream, peer, port }) = entered.recv().await else { return };
        match TcpStream::from_std(stream) {
            Ok(stream) => serve(&worker, stream, canonical(peer), port),
            Err(error) => {
                worker.shared.metrics.accept_failed();
                tracing::debug!(%error, "a connection cannot be handed over");
            }
        }
    }
}

fn serve(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, port: NonZeroU16) {
    let trust = Trust::of(peer.ip(), &worker.shared.config.trusted_proxies);
    let connection = Rc::new(Connection::new(peer, false, trust).entered_by(port));
    let place = worker.register(&connection);
    let worker = Rc::clone(worker);
    runtime::task::spawn_local("client", async move {
        let _place = place;
        let served = pin!(speak(&worker, &connection, stream, port));
        Serve { inner: served, connection: &connection }.await;
    });
}

/// Finds out what the client speaks. One that says nothing at all is cut like one whose request never ends.
async fn speak(worker: &Rc<Worker>, connection: &Rc<Connection>, stream: TcpStream, port: NonZeroU16) {
    // It has gone since the client was accepted: the client's next connection goes elsewhere.
    let Some((route, traffic)) = worker.entrance(port) else { return };
    let is_tcp = match traffic {
        Traffic::Tcp => true,
        Traffic::Http => match raw::is_tls(&stream).await {
            Some(is_tls) => is_tls,
            None => return,
        },
    };
    if is_tcp {
        return Box::pin(raw::serve(worker, connection, &route, stream)).await;
    }
    if let Ended::Http2(stream, ahead) = h1::serve(worker, connection, Stream::Plain(stream)).await {
        Box::pin(h2::serve(worker, connection, stream, ahead)).await;
    }
}
