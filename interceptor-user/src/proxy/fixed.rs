//! Responses that need no upstream: placeholders while a route is cold, and static routes.

use bytes::Bytes;
use http::{StatusCode, header};
use interceptor_core::{
    index::Snapshot,
    route::{ResponseMode, StaticBody, StaticResponse, StaticRoute},
};
use percent_encoding::percent_decode;

use super::{body::ResponseBody, error::ProxyError, media_type, message::Reply, target::Target};
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
pub(crate) fn placeholder(response: &StaticResponse, snapshot: &Snapshot, path: &[u8]) -> Result<Reply, ProxyError> {
    render(response, PLACEHOLDER, snapshot, path)
}

/// A static route's response.
pub(crate) fn answer(response: &StaticResponse, snapshot: &Snapshot, path: &[u8]) -> Result<Reply, ProxyError> {
    render(response, STATIC, snapshot, path)
}

fn render(
    response: &StaticResponse,
    default: StatusCode,
    snapshot: &Snapshot,
    path: &[u8],
) -> Result<Reply, ProxyError> {
    let StaticResponse { status, headers, body } = response;
    // The wire has no final 1xx; Go's server says 200 after such a one.
    let status = status.map(|status| if status.is_informational() { StatusCode::OK } else { status });
    let (body, by_name) = body_of(body, snapshot, path)?;
    let media_type = by_name
        .or_else(|| (!body.is_empty()).then(|| media_type::of_body(&body)))
        .filter(|_| !headers.contains_key(header::CONTENT_TYPE))
        .map(|media_type| ("content-type", media_type.as_bytes()));
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).chain(media_type);
    Ok(Reply::new(status.unwrap_or(default), Fields::from_pairs(fields), ResponseBody::full(body)))
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
