//! Why a request could not be proxied. Made by the stages, turned into a response by `respond` alone.

use std::{io, sync::Arc};

use api::names::RESPONSE_BODY_LABEL;

use super::body::RequestBodyError;
use crate::{h1::client::ClientError, secrets::Unknown};

/// A request's failure, before any byte of a response was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("request has no host, or more than one")]
    BadHost,
    #[error("request's target is neither a path nor a URL")]
    BadTarget,
    #[error("no route matches the request")]
    NoRoute,
    #[error("the target's service or port does not exist")]
    Unresolved,
    #[error(
        "the ConfigMap of the response's body is missing, has no such key, or has not the label {RESPONSE_BODY_LABEL}"
    )]
    NoBody,
    #[error("too many requests are held for this route, or in all")]
    HoldFull,
    #[error("no endpoint became ready in time")]
    HoldTimeout,
    #[error("no endpoint accepted a connection in time")]
    ConnectTimeout(#[source] Option<io::Error>),
    #[error("upstream's response head did not come in time")]
    ResponseHeaderTimeout,
    #[error("request's deadline has passed")]
    RequestTimeout,
    #[error("upstream failed before its response")]
    Http1(#[source] ClientError),
    #[error("upstream failed before its response")]
    Http2(#[source] h2::Error),
    #[error("upstream closed its connection before its response")]
    UpstreamClosed,
    #[error("upstream agreed to an upgrade that was not asked for")]
    UpgradeMismatch,
    #[error("client's body is malformed")]
    BadBody(#[source] RequestBodyError),
    #[error("upstream could not agree upon TLS")]
    Handshake(#[source] io::Error),
    #[error("TLS for upstreams cannot be had: {0}")]
    Tls(Arc<str>),
    #[error("no certificate for the target's pods")]
    NoIdentity(#[source] Unknown),
    #[error("client left")]
    ClientGone,
}
