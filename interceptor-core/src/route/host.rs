//! Hosts of rules and of requests, brought to one form: without port, case and trailing dot. Read by the table.

use std::{
    fmt::Write as _,
    net::Ipv6Addr,
    str::{self, FromStr as _},
    sync::Arc,
};

/// The longest name DNS allows; a longer one matches only the catch-all, so that looking it up costs no more.
pub const MAX_HOST: usize = 253;

/// A host of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HostPattern {
    /// `*` or nothing.
    Any,
    /// `*.suffix`: one or more labels before the suffix.
    Suffix(Arc<str>),
    /// One name.
    Exact(Arc<str>),
}

/// Room for a host that has to be rewritten before it is compared.
pub(crate) struct HostBuf {
    bytes: [u8; MAX_HOST],
    len: usize,
}

// === impl HostPattern ===

impl HostPattern {
    /// `None` when the host is longer than a name can be.
    pub(crate) fn parse(host: &str) -> Option<Self> {
        let mut buf = HostBuf::new();
        let host = normalise(host, &mut buf)?;
        Some(match host {
            "" | "*" => Self::Any,
            _ => match host.strip_prefix("*.") {
                Some(suffix) if !suffix.is_empty() => Self::Suffix(suffix.into()),
                _ => Self::Exact(host.into()),
            },
        })
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
            Self::Exact(host) => f.write_str(host),
        }
    }
}

// === impl HostBuf ===

impl HostBuf {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; MAX_HOST], len: 0 }
    }

    fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.len]).expect("only whole strings are written to it")
    }
}

impl std::fmt::Write for HostBuf {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// The host of `authority` in the form in which hosts are compared; `None` when it is too long to be one.
/// Copies into `buf` only what is not in that form already.
pub(crate) fn normalise<'a>(authority: &'a str, buf: &'a mut HostBuf) -> Option<&'a str> {
    let host = without_port(authority);
    let host = host.strip_suffix('.').filter(|rest| *rest != "*").unwrap_or(host);
    if host.len() > MAX_HOST {
        return None;
    }
    if host.contains(':')
        && let Ok(address) = Ipv6Addr::from_str(host)
    {
        write!(buf, "{address}").expect("an address is shorter than a name");
        return Some(buf.as_str());
    }
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        buf.write_str(host).expect("its length was checked");
        buf.bytes[..buf.len].make_ascii_lowercase();
        return Some(buf.as_str());
    }
    Some(host)
}

/// The suffixes under which a wildcard may list `host`, the longest first: `b.c` and `c` of `a.b.c`.
pub(crate) fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.').map(|(at, _)| &host[at + 1..])
}

fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((literal, port)) if port.is_empty() || port.starts_with(':') => literal,
            _ => authority,
        };
    }
    match authority.split_once(':') {
        // More than one colon without brackets: an IPv6 address that never had a port.
        Some((_, port)) if port.contains(':') => authority,
        Some((host, _)) => host,
        None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(authority: &str) -> Option<String> {
        normalise(authority, &mut HostBuf::new()).map(str::to_owned)
    }

    #[test]
    fn port_case_and_trailing_dot_do_not_matter() {
        for authority in
            ["example.com", "Example.COM", "example.com.", "example.com:80", "EXAMPLE.com.:8080", "example.com:"]
        {
            assert_eq!(normal(authority).as_deref(), Some("example.com"), "{authority}");
        }
    }

    #[test]
    fn ipv6_literals_are_compared_as_addresses() {
        for authority in ["::1", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "0::1"] {
            assert_eq!(normal(authority).as_deref(), Some("::1"), "{authority}");
        }
        assert_eq!(normal("[fe80::1%eth0]:80").as_deref(), Some("fe80::1%eth0"));
        assert_eq!(normal("[2001:DB8::A]").as_deref(), Some("2001:db8::a"));
    }

    #[test]
    fn malformed_authorities_stay_as_they_are() {
        for authority in ["[::1", "[::1]x", "a:b:c", ":", "]"] {
            assert!(normal(authority).is_some(), "{authority}");
        }
        assert_eq!(normal("[::1]x").as_deref(), Some("[::1]x"));
        assert_eq!(normal(&"a".repeat(MAX_HOST + 1)), None);
        assert_eq!(normal(&"A".repeat(MAX_HOST)), Some("a".repeat(MAX_HOST)));
    }

    #[test]
    fn patterns_are_exact_wildcard_or_any() {
        assert_eq!(HostPattern::parse("*"), Some(HostPattern::Any));
        assert_eq!(HostPattern::parse(""), Some(HostPattern::Any));
        assert_eq!(HostPattern::parse("*:8080"), Some(HostPattern::Any));
        assert_eq!(HostPattern::parse("*.Example.com"), Some(HostPattern::Suffix("example.com".into())));
        assert_eq!(HostPattern::parse("*.example.com.:80"), Some(HostPattern::Suffix("example.com".into())));
        assert_eq!(HostPattern::parse("a.*.com"), Some(HostPattern::Exact("a.*.com".into())));
        assert_eq!(HostPattern::parse("*."), Some(HostPattern::Exact("*.".into())));
    }

    #[test]
    fn wildcards_are_tried_from_the_most_specific() {
        assert_eq!(suffixes("a.b.example.com").collect::<Vec<_>>(), ["b.example.com", "example.com", "com"]);
        assert_eq!(suffixes("localhost").count(), 0);
    }
}
