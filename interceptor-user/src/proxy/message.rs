//! Requests and responses as the stages handle them, before and after they have the form of a protocol.

use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use http::{Method, Request, StatusCode, Version};

use super::{
    body::{RequestBody, ResponseBody},
    extended::Extended,
    headers::Hop,
    interim::Interim,
    target::Target,
    upgrade::Tunnel,
};
use crate::{
    h1::{
        fields::Fields,
        framing::{self, Framing},
    },
    http2::{receive::Incoming, respond::Responder},
};

/// A request.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// `None` when the target is none.
    pub(crate) target: Option<Target>,
    pub(crate) version: Version,
    pub(crate) fields: Fields,
    pub(crate) body: RequestBody,
    /// For 1xx responses; `None` where the client can't be sent any.
    pub(crate) interim: Option<Interim>,
    /// What an extended CONNECT asks for; its stream carries no body.
    pub(crate) extended: Option<Box<Extended>>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    /// As they came from the upstream, or were made.
    pub(crate) fields: Fields,
    pub(crate) hop: Hop,
    /// Value of the cold-start header; `None` while none is due.
    pub(crate) cold: Option<bool>,
    pub(crate) body: ResponseBody,
    /// An upgrade that both sides agreed to.
    pub(crate) tunnel: Option<Box<Tunnel>>,
    /// The connection ends with it: what the client says on it can't be trusted.
    pub(crate) closes: bool,
}

// === impl Ask ===

impl Ask {
    /// A request that came over HTTP/2, and the way to answer it. The body of an extended CONNECT is given back: it is what
    /// the client says in the other protocol.
    pub(crate) fn http2(request: Request<RecvStream>, responder: &Rc<Responder>) -> (Self, Option<RecvStream>) {
        let mut request = request;
        let extended = Extended::take(&mut request);
        let (parts, body) = request.into_parts();
        let authority = parts.uri.authority().map(|authority| Bytes::copy_from_slice(authority.as_str().as_bytes()));
        let path_and_query = match parts.uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
            Some(path_and_query) => Bytes::copy_from_slice(path_and_query.as_bytes()),
            None if parts.method == Method::CONNECT => Bytes::new(),
            None => Bytes::from_static(b"/"),
        };
        let fields = Fields::from_map(&parts.headers);
        // The stream would have been reset if it were no number.
        let length = framing::length(&fields).ok().flatten();
        let awaits_continue = fields.expects_continue().then(|| Rc::clone(responder));
        let (body, tunnel) = match extended {
            Some(_) => (RequestBody::empty(Framing::None), Some(body)),
            None => (RequestBody::http2(Incoming::new(body, length), length, awaits_continue), None),
        };
        let ask = Self {
            method: parts.method,
            target: Some(Target { authority, path_and_query }),
            version: parts.version,
            fields,
            body,
            interim: Some(Interim::Http2(Rc::clone(responder))),
            extended,
        };
        (ask, tunnel)
    }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn new(status: StatusCode, fields: Fields, body: ResponseBody) -> Self {
        Self { status, hop: Hop::of(&fields), fields, cold: None, body, tunnel: None, closes: false }
    }
}
