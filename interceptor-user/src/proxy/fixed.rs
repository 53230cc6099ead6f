//! Responses that need no upstream: placeholders while a route is cold, and static routes.

use bytes::Bytes;
use http::{StatusCode, header};
use interceptor_core::{
    index::Snapshot,
    route::{ResponseMode, StaticBody, StaticResponse, StaticRoute},
};
use percent_encoding::percent_decode;

use super::{body::ResponseBody, error::ProxyError, interim::Interim, media_type, message::Reply, target::Target};
use crate::h1::fields::{Fields, Lazy};

/// Status of a placeholder that names none; the add-on's value.
const PLACEHOLDER: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// Status of a static route that names none.
const STATIC: StatusCode = StatusCode::OK;

/// What a static route looks at of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a [u8],
    pub(crate) target: &'a Target,
    pub(crate) fields: &'a Fields,
}

/// For whom a response is rendered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipient<'a> {
    /// Of the request, as it came.
    pub(crate) path: &'a [u8],
    /// The way to send a 1xx response, if the client can be sent one.
    pub(crate) interim: Option<&'a Interim>,
}

/// What a route's static routes say to a request.
#[derive(Debug)]
pub(crate) enum Static<'a> {
    /// None takes it.
    Pass,
    /// One takes it, but leaves the answer to the workload, which is there. Such a request is no demand.
    Forward,
    /// This is the answer.
    Answer(&'a StaticResponse),
}

/// What `routes` say to a request, while the route's target is cold or is not.
pub(crate) fn static_route<'a>(routes: &'a [StaticRoute], is_cold: bool, asked: &Asked<'_>) -> Static<'a> {
    let Asked { host, target, fields } = *asked;
    let authority = std::str::from_utf8(host).unwrap_or_default();
    let headers = Lazy::new(fields);
    match routes.iter().find(|route| route.matches(authority, target.path(), &headers)) {
        None => Static::Pass,
        Some(route) if is_cold || route.mode == ResponseMode::Always => Static::Answer(&route.response),
        Some(_) => Static::Forward,
    }
}

/// A placeholder's response.
pub(crate) fn placeholder(
    response: &StaticResponse,
    snapshot: &Snapshot,
    recipient: Recipient<'_>,
) -> Result<Reply, ProxyError> {
    render(response, PLACEHOLDER, snapshot, recipient)
}

/// A static route's response.
pub(crate) fn answer(
    response: &StaticResponse,
    snapshot: &Snapshot,
    recipient: Recipient<'_>,
) -> Result<Reply, ProxyError> {
    render(response, STATIC, snapshot, recipient)
}

fn render(
    response: &StaticResponse,
    default: StatusCode,
    snapshot: &Snapshot,
    recipient: Recipient<'_>,
) -> Result<Reply, ProxyError> {
    let StaticResponse { status, headers, body } = response;
    let (body, by_name) = body_of(body, snapshot, recipient.path)?;
    let own = |media_type: Option<&'static str>| {
        let media_type = media_type
            .filter(|_| !headers.contains_key(header::CONTENT_TYPE))
            .map(|media_type| ("content-type", media_type.as_bytes()));
        Fields::from_pairs(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).chain(media_type))
    };
    // A 1xx is no end: as Go's server, it is said first, and then 200.
    let status = match status.unwrap_or(default) {
        early if early.is_informational() => {
            if let Some(interim) = recipient.interim.filter(|_| early != StatusCode::SWITCHING_PROTOCOLS) {
                interim.send(early, &own(by_name));
            }
            StatusCode::OK
        }
        status => status,
    };
    let has_body = !body.is_empty() && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let media_type = by_name.or_else(|| has_body.then(|| media_type::of_body(&body)));
    Ok(Reply::new(status, own(media_type), ResponseBody::full(body)))
}

/// The body, and the type that its name tells. A key that only the path has asked for may be missing: then the body is
/// empty, so that a browser's request for an icon is no error.
fn body_of(body: &StaticBody, snapshot: &Snapshot, path: &[u8]) -> Result<(Bytes, Option<&'static str>), ProxyError> {
    let (name, key) = match body {
        StaticBody::Inline(body) => return Ok((body.clone(), None)),
        StaticBody::ConfigMap { name, key } => (name, key),
    };
    let bodies = snapshot.bodies.get(name).ok_or(ProxyError::NoBody)?;
    if let Some(key) = key {
        let body = bodies.data.get(key).ok_or(ProxyError::NoBody)?;
        return Ok((body.clone(), media_type::of_name(key)));
    }
    let key = percent_decode(path.strip_prefix(b"/").unwrap_or(path)).decode_utf8_lossy();
    let key = if key.is_empty() { "index.html" } else { &*key };
    let body = bodies.data.get(key);
    Ok((body.cloned().unwrap_or_default(), body.and_then(|_| media_type::of_name(key))))
}
