//! Accepts clients on one worker and serves them over HTTP/1.1 or cleartext HTTP/2, whichever they speak first.

use std::{io as stdio, pin::Pin, rc::Rc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};

pub(crate) mod connection;
pub(crate) mod io;

use self::{
    connection::{Connection, Graceful, Phase, Serve},
    io::ClientIo,
};
use crate::{
    proxy::{self, body::ResponseBody},
    rt::LocalExec,
    worker::Worker,
};

/// HTTP/2 streams a client may have open at once on one connection; Go's server's value, which the add-on has.
const MAX_STREAMS: u32 = 250;

/// Most bytes of a request's header fields; Go's server's value, which the add-on has.
const MAX_HEAD: usize = 1024 * 1024;

/// Pause after an accept error that is not the client's: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the worker closes.
pub(crate) async fn accept_loop(worker: Rc<Worker>, listener: TcpListener) {
    let builder = Rc::new(builder());
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
                let (io, shared) = ClientIo::new(stream_options(stream));
                let connection = Rc::new(Connection::new(peer, shared));
                serve(Rc::clone(&worker), Rc::clone(&builder), connection, io);
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

fn serve(worker: Rc<Worker>, builder: Rc<auto::Builder<LocalExec>>, connection: Rc<Connection>, io: ClientIo) {
    let place = worker.register(&connection);
    runtime::task::spawn_local("client", async move {
        let _place = place;
        let service = {
            let connection = Rc::clone(&connection);
            service_fn(move |request: Request<Incoming>| {
                proxy::handle(Rc::clone(&worker), Rc::clone(&connection), request)
            })
        };
        let inner = Box::pin(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
        let ended = Serve { inner, connection: Rc::clone(&connection), seen: Phase::Running }.await;
        if let Some(Err(error)) = ended {
            tracing::debug!(client = %connection.peer(), %error, "connection ended");
        }
    });
}

fn builder() -> auto::Builder<LocalExec> {
    let mut builder = auto::Builder::new(LocalExec);
    // Not hyper's own time-out for heads: it counts while a kept connection rests, and arms a timer for each request.
    builder.http1().max_buf_size(MAX_HEAD).header_read_timeout(None);
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("1 MiB fits into 32 bits"))
        .timer(TokioTimer::new());
    builder
}

fn stream_options(stream: TcpStream) -> TcpStream {
    // Without it a small response may wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    stream
}

fn is_clients_fault(error: &stdio::Error) -> bool {
    matches!(
        error.kind(),
        stdio::ErrorKind::ConnectionAborted | stdio::ErrorKind::ConnectionReset | stdio::ErrorKind::Interrupted
    )
}

impl<I, S> Graceful for auto::UpgradeableConnection<'_, I, S, LocalExec>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<ResponseBody>>,
    S::Future: 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        Self::graceful_shutdown(self);
    }
}
