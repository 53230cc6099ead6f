//! A request's target, taken apart (RFC 9112 §3.2).

use bytes::Bytes;

/// Where a request wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Of a target in absolute form, or of an HTTP/2 request.
    pub(crate) authority: Option<Bytes>,
    /// As it goes on to the upstream: byte for byte what came. Empty for CONNECT to a host.
    pub(crate) path_and_query: Bytes,
}

// === impl Target ===

impl Target {
    /// `None` when it is neither a path nor a URL nor an asterisk.
    pub(crate) fn parse(target: &Bytes) -> Option<Self> {
        if target.first() == Some(&b'/') || &target[..] == b"*" {
            return Some(Self { authority: None, path_and_query: target.clone() });
        }
        let scheme = target.iter().position(|byte| *byte == b':')?;
        if !(target[..scheme].eq_ignore_ascii_case(b"http") || target[..scheme].eq_ignore_ascii_case(b"https")) {
            return None;
        }
        let rest = target.slice(scheme + 1..);
        let rest = rest.starts_with(b"//").then(|| rest.slice(2..))?;
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let path_and_query = match rest.get(end) {
            Some(b'/') => rest.slice(end..),
            Some(_) => Bytes::from([b"/", &rest[end..]].concat()),
            None => Bytes::from_static(b"/"),
        };
        Some(Self { authority: Some(rest.slice(..end)), path_and_query })
    }

    /// The target of CONNECT, which is a host alone.
    pub(crate) fn connect(target: &Bytes) -> Self {
        Self { authority: Some(target.clone()), path_and_query: Bytes::new() }
    }

    /// The path without the query.
    pub(crate) fn path(&self) -> &[u8] {
        let all = &self.path_and_query[..];
        all.iter().position(|byte| *byte == b'?').map_or(all, |end| &all[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(target: &'static str) -> Option<(Option<String>, String)> {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let target = Target::parse(&Bytes::from_static(target.as_bytes()))?;
        Some((target.authority.map(text), text(target.path_and_query)))
    }

    #[test]
    fn a_target_is_a_path_or_a_url() {
        assert_eq!(parts("/a?b"), Some((None, "/a?b".to_owned())));
        assert_eq!(parts("*"), Some((None, "*".to_owned())));
        assert_eq!(parts("HTTP://a:1/x?y"), Some((Some("a:1".to_owned()), "/x?y".to_owned())));
        assert_eq!(parts("http://a?y"), Some((Some("a".to_owned()), "/?y".to_owned())));
        assert_eq!(parts("https://a"), Some((Some("a".to_owned()), "/".to_owned())));
        for target in ["", "a", "a:1", "ftp://a/", "http:/a", "a/b"] {
            assert_eq!(parts(target), None, "{target}");
        }
    }

    #[test]
    fn the_path_ends_before_the_query() {
        let path = |target| Target::parse(&Bytes::from_static(target)).unwrap().path().to_vec();
        assert_eq!((path(b"/a/b?c/d"), path(b"/a")), (b"/a/b".to_vec(), b"/a".to_vec()));
    }
}
