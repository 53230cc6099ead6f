//! The answers of admin ports, in the wording that existing probes and scripts know.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;

use crate::{log::Handle, ready::Ready};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Names what keeps the process from being ready.
const PENDING: header::HeaderName = header::HeaderName::from_static("x-rouse-pending");

/// 200 without a body.
pub fn empty() -> Response<Full<Bytes>> {
    Response::default()
}

/// Plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with(status, TEXT, body.into())
}

/// 200 with JSON that is written already.
pub fn json(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with(StatusCode::OK, JSON, body.into())
}

/// The answer to a path that nobody answers.
pub(super) fn not_found() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::NOT_FOUND, "404 page not found\n");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a readiness probe. What is pending is in a header, and in the body when `verbose`: the body of the
/// plain probe is the original's.
pub(super) fn ready(ready: &Ready, verbose: bool) -> Response<Full<Bytes>> {
    let mut pending = ready.pending();
    if ready.is_draining() {
        pending.push("draining");
    }
    if pending.is_empty() {
        return text(StatusCode::OK, "OK");
    }
    let listed = pending.join(", ");
    let body =
        if verbose { format!("Service Unavailable\npending: {listed}\n") } else { "Service Unavailable".to_owned() };
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, body);
    if let Ok(value) = HeaderValue::from_str(&listed) {
        response.headers_mut().insert(PENDING, value);
    }
    response
}

/// The answer to a question about the log's filter, or to the wish for another one.
pub(super) fn log(log: &Handle, method: &Method, query: Option<&str>) -> Response<Full<Bytes>> {
    let changed = match (method, query) {
        (&Method::PUT, Some(directives)) => log.set(directives),
        (&Method::GET, None) => Ok(()),
        _ => return text(StatusCode::BAD_REQUEST, "expected GET /log, or PUT /log?info,module=debug\n"),
    };
    match changed.and_then(|()| log.current()) {
        Ok(filter) => text(StatusCode::OK, format!("{filter}\n")),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn with(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
