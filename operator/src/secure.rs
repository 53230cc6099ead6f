//! Metrics by TLS, and for those who may read them: `--metrics-secure` and `--metrics-auth`. A bearer token is shown to the API
//! server, which tells whose it is and whether they may `get` the path; answers are remembered for a minute.

use std::{collections::HashMap, convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use runtime::{admin::reply, metrics::Exposition};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use thiserror::Error;
use tls::{Certificates, Paths, Resolver};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::apply::describe;

const PATH: &str = "/metrics";

/// Scrapers are few; others wait.
const MAX_CONNECTIONS: usize = 64;

/// How often the certificate's files are read again.
const REREAD: Duration = Duration::from_secs(10);

/// Longest time for a handshake or a request's head.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer about a token holds, and of how many tokens answers are kept.
const REMEMBERED: Duration = Duration::from_mins(1);
const MAX_REMEMBERED: usize = 256;

/// How metrics are kept from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// By TLS.
    pub tls: bool,
    /// Where `tls.crt` and `tls.key` are; without it the certificate is made anew and signed by nobody.
    pub certificates: Option<PathBuf>,
    /// For those who may read them.
    pub auth: bool,
}

/// The certificate can't be used.
#[derive(Debug, Error)]
pub enum SecurityError {
    /// The files can't be used.
    #[error("--metrics-cert-dir")]
    Files(#[source] tls::FileError),
    /// None could be made.
    #[error("cannot make a certificate for metrics")]
    Make(#[source] rcgen::Error),
    /// It does not fit its key.
    #[error("cannot serve metrics by TLS")]
    Tls(#[source] rustls::Error),
    /// The port can't be had.
    #[error("--metrics-bind-address: cannot listen on {addr}")]
    Bind {
        /// Which port.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A port for metrics, that serves nobody yet.
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    files: Option<(Paths, Resolver)>,
    auth: bool,
    exposition: Exposition,
}

/// Asks the API server who may read.
struct Gate {
    client: Client,
    known: Mutex<HashMap<String, (Instant, Answer)>>,
}

/// What the API server says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allowed,
    Forbidden,
    Unknown,
}

/// Binds the port and reads the certificate.
pub async fn bind(addr: SocketAddr, security: &Security, exposition: Exposition) -> Result<Bound, SecurityError> {
    let Security { tls, certificates, auth } = security;
    let mut files = None;
    let acceptor = if *tls {
        let config = match certificates {
            Some(folder) => {
                let default = Some((folder.join("tls.crt"), folder.join("tls.key")));
                let paths = Paths { default, stores: Vec::new() };
                let loaded = Certificates::load(&paths, &ring::default_provider()).map_err(SecurityError::Files)?;
                let resolver = Resolver::new(loaded);
                files = Some((paths, resolver.clone()));
                builder()?.with_cert_resolver(Arc::new(resolver))
            }
            None => self_signed()?,
        };
        Some(TlsAcceptor::from(Arc::new(config)))
    } else {
        None
    };
    let failed = |source| SecurityError::Bind { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok(Bound { listener, addr, acceptor, files, auth: *auth, exposition })
}

type Builder = rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>;

fn builder() -> Result<Builder, SecurityError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(SecurityError::Tls)?.with_no_client_auth())
}

fn self_signed() -> Result<ServerConfig, SecurityError> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(SecurityError::Make)?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    builder()?.with_single_cert(vec![made.cert.der().clone()], key).map_err(SecurityError::Tls)
}

// === impl Bound ===

impl Bound {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the future is dropped, which closes the port and all its connections.
    pub async fn serve(self, client: Client) -> Result<(), Infallible> {
        let Self { listener, addr: _, acceptor, files, auth, exposition } = self;
        let gate = auth.then(|| Arc::new(Gate { client, known: Mutex::default() }));
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        if let Some((paths, resolver)) = files {
            connections.spawn(async move {
                reload(paths, resolver).await;
            });
        }
        loop {
            while connections.try_join_next().is_some() {}
            let slot = Arc::clone(&slots).acquire_owned().await;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "metrics port cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, gate, exposition) = (acceptor.clone(), gate.clone(), exposition.clone());
            connections.spawn(async move {
                connection(stream, acceptor, gate, exposition).await;
                drop(slot);
            });
        }
    }
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("addr", &self.addr).field("auth", &self.auth).finish_non_exhaustive()
    }
}

async fn connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, gate: Option<Arc<Gate>>, exposition: Exposition) {
    let Some(acceptor) = acceptor else { return serve(stream, gate, exposition).await };
    match timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, gate, exposition).await,
        Ok(Err(error)) => tracing::debug!(%error, "no handshake with a reader of metrics"),
        Err(_elapsed) => tracing::debug!("a reader of metrics took too long for its handshake"),
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, gate: Option<Arc<Gate>>, exposition: Exposition) {
    let service = service_fn(|request: Request<Incoming>| {
        let (gate, exposition) = (gate.clone(), exposition.clone());
        async move { Ok::<_, Infallible>(answer(&request, gate.as_deref(), &exposition).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a reader of metrics has gone");
    }
}

async fn answer(request: &Request<Incoming>, gate: Option<&Gate>, exposition: &Exposition) -> Response<Full<Bytes>> {
    if let Some(gate) = gate {
        let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = token.and_then(|value| value.strip_prefix("Bearer ")) else {
            return reply::text(StatusCode::UNAUTHORIZED, "Unauthorized\n");
        };
        match gate.ask(token, request.uri().path()).await {
            Ok(Answer::Allowed) => {}
            Ok(Answer::Forbidden) => return reply::text(StatusCode::FORBIDDEN, "Forbidden\n"),
            Ok(Answer::Unknown) => return reply::text(StatusCode::UNAUTHORIZED, "Unauthorized\n"),
            Err(error) => {
                tracing::warn!(error = describe(&error), "cannot ask who may read metrics");
                return reply::text(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n");
            }
        }
    }
    if request.uri().path() != PATH {
        return reply::text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    exposition.respond(request.headers())
}

async fn reload(paths: Paths, resolver: Resolver) {
    let mut ticks = tokio::time::interval(REREAD);
    let mut failing = false;
    loop {
        ticks.tick().await;
        match Certificates::load(&paths, &ring::default_provider()) {
            Ok(certificates) => {
                resolver.replace(certificates);
                failing = false;
            }
            Err(error) => {
                // Once, and not again at every try.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the certificate for metrics cannot be read again: the one in use stays");
                }
            }
        }
    }
}

// === impl Gate ===

impl Gate {
    /// Cancel safe: an answer that was not waited for is asked for again.
    async fn ask(&self, token: &str, path: &str) -> Result<Answer, kube::Error> {
        let question = format!("{path} {token}");
        let known = self.known.lock().get(&question).copied();
        if let Some((at, answer)) = known
            && at.elapsed() < REMEMBERED
        {
            return Ok(answer);
        }
        let answer = self.review(token, path).await?;
        let mut known = self.known.lock();
        known.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        if known.len() < MAX_REMEMBERED {
            known.insert(question, (Instant::now(), answer));
        }
        Ok(answer)
    }

    async fn review(&self, token: &str, path: &str) -> Result<Answer, kube::Error> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let Some(status) = review.status.filter(|status| status.authenticated == Some(true)) else {
            return Ok(Answer::Unknown);
        };
        let user = status.user.unwrap_or_default();
        let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".to_owned()) };
        let spec = SubjectAccessReviewSpec {
            extra: user.extra,
            groups: user.groups,
            non_resource_attributes: Some(attributes),
            uid: user.uid,
            user: user.username,
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let review = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let allowed = review.status.is_some_and(|status| status.allowed);
        Ok(if allowed { Answer::Allowed } else { Answer::Forbidden })
    }
}

#[cfg(test)]
mod tests {
    use runtime::metrics::Metrics;

    use super::*;

    async fn bound(security: Security) -> Result<Bound, SecurityError> {
        bind(([127, 0, 0, 1], 0).into(), &security, Metrics::new("test", "0").into_exposition()).await
    }

    #[tokio::test]
    async fn a_certificate_is_made_where_there_is_none() {
        let bound = bound(Security { tls: true, ..Security::default() }).await.unwrap();
        assert!(bound.acceptor.is_some() && bound.addr().port() > 0);
    }

    #[tokio::test]
    async fn a_folder_without_a_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let security = Security { tls: true, certificates: Some(folder.path().to_owned()), auth: false };
        let SecurityError::Files(error) = bound(security).await.unwrap_err() else { panic!("another error") };
        assert!(error.to_string().contains("tls.crt"), "{error}");
    }
}
