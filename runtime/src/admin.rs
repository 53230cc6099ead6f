//! HTTP servers for operators: probes, metrics and what a process adds, on HTTP/1.1 and cleartext HTTP/2 on one port,
//! with a gRPC service beside them. Runs on the control runtime, of one thread or many; never sees users' requests.

use std::{collections::BTreeMap, convert::Infallible, fmt, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpListener;
use tower::Service;

use crate::{log, metrics::Exposition, ready::Ready};

mod connection;
pub mod reply;

use self::connection::Grpc;

/// Answers one path. Runs on the control runtime: must not block.
pub type Handler = Arc<dyn Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync>;

/// What a port answers; not bound yet.
#[derive(Default)]
pub struct Server {
    paths: BTreeMap<&'static str, Handler>,
    grpc: Option<Grpc>,
    refused: Counter,
}

/// A server with a socket, that serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
    server: Arc<Server>,
}

// === impl Server ===

impl Server {
    /// A server that answers every path with 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `path`, exactly as written and with any method.
    #[must_use]
    pub fn path(
        mut self,
        path: &'static str,
        handler: impl Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        self.paths.insert(path, Arc::new(handler));
        self
    }

    /// Answers `/livez` and `/readyz`.
    #[must_use]
    pub fn probes(self, ready: &Ready) -> Self {
        let ready = ready.clone();
        self.path("/livez", |_| reply::empty())
            .path("/readyz", move |request| reply::ready(&ready, request.uri().query() == Some("verbose")))
    }

    /// Answers `/log`: GET tells the log's filter, `PUT /log?info,scaler=debug` changes it.
    #[must_use]
    pub fn log(self, log: &log::Handle) -> Self {
        let log = log.clone();
        self.path("/log", move |request| reply::log(&log, request.method(), request.uri().query()))
    }

    /// Answers `/metrics`, which then also tell of connections that this server refuses.
    #[must_use]
    pub fn metrics(mut self, exposition: &Exposition) -> Self {
        self.refused = exposition.refused();
        let exposition = exposition.clone();
        self.path("/metrics", move |request| exposition.respond(request.headers()))
    }

    /// Passes requests with `content-type: application/grpc` to a service such as `tonic::service::Routes`.
    #[must_use]
    pub fn grpc<S, B>(mut self, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        self.grpc = Some(connection::grpc(service));
        self
    }

    /// How many connections were closed at once because too many were open, ever.
    pub fn refused(&self) -> Counter {
        self.refused.clone()
    }

    /// Takes the port. Connections wait in the socket's queue until [`Bound::serve`].
    pub async fn bind(self, addr: SocketAddr) -> io::Result<Bound> {
        self.at(TcpListener::bind(addr).await?)
    }

    /// The same at a port that was taken before.
    pub fn at(self, listener: TcpListener) -> io::Result<Bound> {
        let addr = listener.local_addr()?;
        Ok(Bound { listener, addr, server: Arc::new(self) })
    }

    fn handler(&self, path: &str) -> Option<&Handler> {
        self.paths.get(path)
    }

    fn refuse(&self) {
        self.refused.inc();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { paths, grpc, refused } = self;
        f.debug_struct("Server")
            .field("paths", &paths.keys())
            .field("grpc", &grpc.is_some())
            .field("refused", refused)
            .finish()
    }
}

// === impl Bound ===

impl Bound {
    /// Where the server listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the future is dropped, which closes the port and all its connections.
    pub async fn serve(self) -> Result<(), Infallible> {
        let Self { listener, addr: _, server } = self;
        connection::accept(listener, server).await
    }
}

#[cfg(test)]
mod tests;
