//! A GET over HTTP/1.1 or HTTPS: ready by a status from 200 to 399. Redirects are followed as long as they stay with the
//! pod and its port; one that leads elsewhere is an answer like any other.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use interceptor_common::probe::{HEADER, VALUE};
use interceptor_core::probe::HttpGet;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{super::metrics::Outcome, connect, tls};

/// Redirects that are followed, as many as a kubelet does.
const MAX_REDIRECTS: usize = 10;

/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Begins like a kubelet's: applications tell probes by it.
const USER_AGENT: HeaderValue = HeaderValue::from_static("kube-probe/rouse-interceptor");

/// By this the agent of the pod's node knows that it is asked by another one.
const OURS: (HeaderName, HeaderValue) = (HeaderName::from_static(HEADER), HeaderValue::from_static(VALUE));

/// Asks once.
pub(super) async fn get(pod: IpAddr, get: &HttpGet) -> Outcome {
    let addr = SocketAddr::new(pod, get.port);
    let mut path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    for _ in 0..=MAX_REDIRECTS {
        let Ok(request) = request(addr, &path, &get.headers) else { return Outcome::Unready };
        let head = match exchange(addr, get.tls, request).await {
            Ok(head) => head,
            Err(outcome) => return outcome,
        };
        let status = head.status();
        if !(status.is_success() || status.is_redirection()) {
            return Outcome::Unready;
        }
        match next(addr, get.tls, &path, status, head.headers()) {
            Some(next) => path = next,
            None => return Outcome::Ready,
        }
    }
    Outcome::Unready
}

fn request(
    addr: SocketAddr,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut all = HeaderMap::new();
    let (ours, value) = OURS;
    for (name, value) in headers.iter().filter(|(name, _)| *name != ours) {
        all.append(name, value.clone());
    }
    all.entry(header::HOST).or_insert(HeaderValue::from_str(&addr.to_string()).expect("an address is a header value"));
    all.entry(header::USER_AGENT).or_insert(USER_AGENT);
    all.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    all.insert(header::CONNECTION, HeaderValue::from_static("close"));
    // The last one, where it is looked for.
    all.insert(ours, value);
    let mut request = Request::get(path).body(Empty::new())?;
    *request.headers_mut() = all;
    Ok(request)
}

async fn exchange(
    addr: SocketAddr,
    is_tls: bool,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, Outcome> {
    let stream = connect(addr).await?;
    if is_tls {
        return exchange_on(tls::handshake(addr.ip(), stream).await.map_err(|_no_tls| Outcome::Unready)?, request)
            .await;
    }
    exchange_on(stream, request).await
}

async fn exchange_on(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, Outcome> {
    let mut client = http1::Builder::new();
    let handshake = client.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_broken| Outcome::Unready)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The answer may have been the last thing it did.
        _ended = &mut connection => answer.await,
    };
    answer.map_err(|_broken| Outcome::Unready)
}

/// Path and query of a redirect that stays with the pod.
fn next(addr: SocketAddr, is_tls: bool, path: &str, status: StatusCode, headers: &HeaderMap) -> Option<String> {
    let followed = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = headers.get(header::LOCATION).filter(|_| followed)?.to_str().ok()?;
    if location.starts_with("//") {
        return None;
    }
    if location.starts_with('/') {
        return Some(location.to_owned());
    }
    let Some((scheme, _)) = location.split_once("://") else {
        let folder = path.split('?').next().and_then(|path| path.rsplit_once('/'));
        return Some(format!("{}/{location}", folder.map_or("", |(folder, _)| folder)));
    };
    let uri: Uri = location.parse().ok()?;
    let (ours, default) = if is_tls { ("https", 443) } else { ("http", 80) };
    let same = scheme.eq_ignore_ascii_case(ours)
        && uri.host()?.trim_matches(['[', ']']).parse() == Ok(addr.ip())
        && uri.port_u16().unwrap_or(default) == addr.port();
    same.then(|| uri.path_and_query().map_or("/", |path| path.as_str()).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_followed_if_it_stays_with_the_pod() {
        let addr = SocketAddr::from(([10, 0, 0, 1], 8080));
        let next = |status: u16, location: &str| {
            let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(location).unwrap())]);
            next(addr, false, "/a/b", StatusCode::from_u16(status).unwrap(), &headers)
        };
        assert_eq!(next(302, "/login?x=1").as_deref(), Some("/login?x=1"));
        assert_eq!(next(302, "http://10.0.0.1:8080/c").as_deref(), Some("/c"));
        assert_eq!(next(302, "c").as_deref(), Some("/a/c"));
        let elsewhere = ["//evil.example/", "http://evil.example/", "http://10.0.0.1/", "https://10.0.0.1:8080/"];
        for location in elsewhere {
            assert_eq!(next(302, location), None, "{location}");
        }
        assert_eq!(next(304, "/c"), None, "that is no redirect");
    }
}
