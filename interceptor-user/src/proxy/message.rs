//! Requests and responses as the stages handle them, before and after they have the form of a protocol.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::{
    body::{RequestBody, ResponseBody},
    headers::{self, Hop},
    target::Target,
    upgrade::Tunnel,
};
use crate::h1::{
    body::Interim,
    fields::{Fields, Known},
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
}

// === impl Ask ===

impl Ask {
    /// A request that came over HTTP/2.
    pub(crate) fn http2(request: Request<Incoming>) -> Self {
        let (parts, body) = request.into_parts();
        let authority = parts.uri.authority().map(|authority| Bytes::copy_from_slice(authority.as_str().as_bytes()));
        let path_and_query = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let target = Target { authority, path_and_query: Bytes::copy_from_slice(path_and_query.as_bytes()) };
        let fields = Fields::from_map(&parts.headers);
        let length =
            fields.first(Known::ContentLength).and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        Self {
            method: parts.method,
            target: Some(target),
            version: parts.version,
            fields,
            body: RequestBody::http2(body, length),
            interim: None,
        }
    }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn new(status: StatusCode, fields: Fields, body: ResponseBody) -> Self {
        Self { status, hop: Hop::of(&fields), fields, cold: None, body, tunnel: None }
    }

    /// In the form of HTTP/2.
    pub(crate) fn into_http2(self) -> Response<ResponseBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let length = self.status != StatusCode::NO_CONTENT;
        headers::response(&self.fields, &self.hop, self.cold, length, response.headers_mut());
        response
    }
}
