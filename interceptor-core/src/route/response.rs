//! Responses that need no endpoint: placeholders while a route is cold, and static routes.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

use super::{
    Headers, Rule,
    host::{self, HostBuf, HostPattern},
    path,
};
use crate::ObjectKey;

/// A response that is made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticResponse {
    /// Its status; without one, whoever answers has a default.
    pub status: Option<StatusCode>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: StaticBody,
}

/// Where a body comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaticBody {
    /// It stands in the route; empty for none.
    Inline(Bytes),
    /// It stands in a ConfigMap of [`Snapshot::bodies`](crate::index::Snapshot::bodies).
    ConfigMap {
        /// Which ConfigMap.
        name: ObjectKey,
        /// Which of its keys; `None` takes the request's path.
        key: Option<Arc<str>>,
    },
}

/// Requests of a route that are answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// Which of the route's requests; any rule may match.
    pub rules: Vec<Rule>,
    /// The answer.
    pub response: StaticResponse,
    /// When it is given.
    pub mode: ResponseMode,
}

/// When a static route answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseMode {
    /// Always.
    Always,
    /// While the target has no ready endpoint.
    #[default]
    WhenUnavailable,
}

// === impl StaticRoute ===

impl StaticRoute {
    /// Whether it takes a request. `authority` is the `Host` field or `:authority` as received, `path` the raw path.
    pub fn matches(&self, authority: &str, path: &(impl AsRef<[u8]> + ?Sized), headers: &impl Headers) -> bool {
        let path = path::decoded(path.as_ref());
        let mut buf = HostBuf::new();
        let host = host::normalise(authority, &mut buf);
        self.rules.iter().any(|rule| rule.matches(host, &path, headers))
    }
}

// === impl Rule ===

impl Rule {
    fn matches(&self, host: Option<&str>, path: &[u8], headers: &impl Headers) -> bool {
        let Self { hosts, paths, headers: wanted } = self;
        (hosts.is_empty() || hosts.iter().any(|pattern| names(pattern, host)))
            && (paths.is_empty() || paths.iter().any(|prefix| leads_to(prefix, path)))
            && wanted.iter().all(|header| header.matches(headers.map()))
    }
}

fn names(pattern: &str, host: Option<&str>) -> bool {
    match (HostPattern::parse(pattern), host) {
        (Some(HostPattern::Any), _) => true,
        (Some(HostPattern::Exact(name)), Some(host)) => *name == *host,
        (Some(HostPattern::Suffix(suffix)), Some(host)) => host::suffixes(host).any(|candidate| candidate == &*suffix),
        (None, _) | (_, None) => false,
    }
}

fn leads_to(prefix: &str, path: &[u8]) -> bool {
    let mut segments = path::segments(path);
    path::segments(prefix.as_bytes()).all(|wanted| segments.next() == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::HeaderMatch;

    fn matches(hosts: &[&str], paths: &[&str], authority: &str, path: &str) -> bool {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let rule = Rule { hosts: owned(hosts), paths: owned(paths), headers: Vec::new() };
        let body = StaticBody::Inline(Bytes::new());
        let response = StaticResponse { status: None, headers: HeaderMap::new(), body };
        StaticRoute { rules: vec![rule], response, mode: ResponseMode::Always }.matches(
            authority,
            path,
            &HeaderMap::new(),
        )
    }

    #[test]
    fn an_empty_rule_takes_everything() {
        assert!(matches(&[], &[], "example.com", "/x"));
        assert!(matches(&["*"], &["/"], "", "/x"));
        assert!(matches(&[""], &[""], "example.com:8080", "/"));
    }

    #[test]
    fn hosts_are_alternatives_and_wildcards_stand_for_one_or_more_labels() {
        assert!(matches(&["a.com", "*.b.com"], &[], "A.com:80", "/"));
        assert!(matches(&["a.com", "*.b.com"], &[], "x.y.b.com", "/"));
        assert!(!matches(&["a.com", "*.b.com"], &[], "b.com", "/"));
        assert!(!matches(&["*.b.com"], &[], "xb.com", "/"));
    }

    #[test]
    fn paths_are_prefixes_in_whole_segments() {
        assert!(matches(&[], &["/api/"], "a.com", "/api/v1"));
        assert!(matches(&[], &["api"], "a.com", "/api"));
        assert!(matches(&[], &["/b", "/api"], "a.com", "/%61pi/"));
        assert!(!matches(&[], &["/api"], "a.com", "/apis"));
        assert!(!matches(&[], &["/api/v1"], "a.com", "/api"));
    }

    #[test]
    fn all_headers_must_be_there() {
        let header = |name: &str| HeaderMatch { name: name.parse().unwrap(), value: None };
        let rule = Rule { headers: vec![header("x-a"), header("x-b")], ..Rule::default() };
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        assert!(!rule.matches(Some("a.com"), b"/", &headers));
        headers.insert("x-b", "2".parse().unwrap());
        assert!(rule.matches(Some("a.com"), b"/", &headers));
    }
}
