//! Probes of kubelets that do not show by a name that they are such, and what they look like in clear. Written by `api`, from pod
//! templates and from routes' status; an agent tells its kernel of them.

use std::{
    net::{Ipv6Addr, SocketAddr},
    num::NonZeroU16,
};

/// How many bytes of a request are searched for the name: as many as by the programs that count.
pub const SEARCHED: usize = 256;

/// With what a kubelet begins the name that it gives itself.
const NAME: &str = "kube-probe/";

/// Most bytes of a path, a host and a `User-Agent`. Much less than that is compared.
const LONGEST: usize = 1024;

/// A probe in clear, whose request may not name itself where it is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnnamedProbe {
    port: NonZeroU16,
    target: String,
    host: Option<String>,
    user_agent: Option<String>,
}

// === impl UnnamedProbe ===

impl UnnamedProbe {
    /// Most of a route.
    pub const MOST: usize = 16;

    /// The probe of a port at a path, with a `Host` of its own unless it is empty, and a `User-Agent` of its own, which is not sent if
    /// it is empty. `None` for what a kubelet would not send as it is written.
    pub fn new(port: i32, path: &str, host: Option<&str>, user_agent: Option<&str>) -> Option<Self> {
        let port = NonZeroU16::new(u16::try_from(port).ok()?)?;
        let host = host.filter(|host| !host.is_empty());
        let fits = |text: &str| text.len() <= LONGEST;
        if !fits(path) || !host.is_none_or(|host| fits(host) && is_host(host)) {
            return None;
        }
        if !user_agent.is_none_or(|name| fits(name) && !name.bytes().any(|byte| byte.is_ascii_control())) {
            return None;
        }
        Some(Self {
            port,
            target: target(path)?,
            host: host.map(str::to_owned),
            user_agent: user_agent.map(str::to_owned),
        })
    }

    /// Which port of the pod it goes to.
    pub const fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// How the request to this address of a pod begins, as Go writes it: up to the end of the `User-Agent`, as far as it is known.
    pub fn head(&self, addr: SocketAddr) -> String {
        let Self { port: _, target, host, user_agent } = self;
        let start = match host {
            Some(host) => format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n"),
            None => format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\n"),
        };
        match user_agent.as_deref() {
            None => format!("{start}User-Agent: {NAME}"),
            Some("") => start,
            Some(name) => format!("{start}User-Agent: {}\r\n", name.trim_matches(' ')),
        }
    }

    /// Whether it names itself where it is looked for, whatever the pod's address.
    pub fn is_named(&self) -> bool {
        let longest = SocketAddr::new(Ipv6Addr::from_bits(u128::MAX).into(), self.port.get());
        let head = self.head(longest).into_bytes();
        head[..head.len().min(SEARCHED)].windows(NAME.len()).any(|bytes| bytes == NAME.as_bytes())
    }
}

/// What is asked for by a path as it is written in a template: `url.Parse` and `URL.RequestURI` of Go leave it as it is. `None` where
/// they would not, or take a part of it for something else.
fn target(path: &str) -> Option<String> {
    let (segments, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    // What begins with two is a host, and what has a colon before the first may be a scheme.
    if segments.starts_with("//") || (!segments.starts_with('/') && segments.contains(':')) {
        return None;
    }
    if !are_escaped(segments)
        || !query.is_none_or(|query| query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'))
    {
        return None;
    }
    Some(if segments.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

/// Whether a path has only what stays as it is, and `%` before two hexadecimal digits alone.
fn are_escaped(segments: &str) -> bool {
    let mut bytes = segments.bytes();
    let digit = |bytes: &mut std::str::Bytes<'_>| bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit());
    while let Some(byte) = bytes.next() {
        let stays = match byte {
            b'%' => digit(&mut bytes) && digit(&mut bytes),
            _ => byte == b'/' || stays(byte),
        };
        if !stays {
            return false;
        }
    }
    true
}

/// Whether it is a host that Go sends.
fn is_host(host: &str) -> bool {
    host.bytes().all(stays)
}

const fn stays(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+')
        || matches!(byte, b',' | b';' | b'=' | b':' | b'@' | b'[' | b']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &str, host: Option<&str>, user_agent: Option<&str>, addr: &str) -> Option<String> {
        Some(UnnamedProbe::new(8080, path, host, user_agent)?.head(addr.parse().unwrap()))
    }

    #[test]
    fn a_head_is_what_go_writes_for_each_family_with_and_without_names() {
        let cases = [
            (
                ("/ok", None, Some("health/1"), "10.0.0.1:80"),
                "GET /ok HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUser-Agent: health/1\r\n",
            ),
            (
                ("/", None, Some(" a b "), "[fd00::1]:8080"),
                "GET / HTTP/1.1\r\nHost: [fd00::1]:8080\r\nUser-Agent: a b\r\n",
            ),
            (("", Some("App.example"), Some(""), "10.0.0.1:80"), "GET / HTTP/1.1\r\nHost: App.example\r\n"),
            (
                ("ok?a=b", Some(""), None, "10.0.0.1:80"),
                "GET /ok?a=b HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUser-Agent: kube-probe/",
            ),
        ];
        for ((path, host, user_agent, addr), expected) in cases {
            assert_eq!(head(path, host, user_agent, addr).as_deref(), Some(expected));
        }
    }

    #[test]
    fn paths_are_taken_that_go_leaves_as_they_are_and_no_others() {
        for path in ["/a-b_c.~!$&'()*+,;=:@[]/d", "/a%20b%2F", "/a?b=%zz\"{}", "/a//b", "/?", "?a", "*", "a/b"] {
            assert!(UnnamedProbe::new(1, path, None, None).is_some(), "{path}");
        }
        for path in
            ["/a b", "/a%2", "/a%zz", "/a#b", "/a?b#c", "/a?b c", "//host/a", "a:b", "/\"", "/é", "/\r\n", "/{}"]
        {
            assert_eq!(UnnamedProbe::new(1, path, None, None), None, "{path}");
        }
    }

    #[test]
    fn what_no_kubelet_would_send_is_none() {
        let long = "a".repeat(LONGEST + 1);
        let fine = |port, path, host, name| UnnamedProbe::new(port, path, Some(host), Some(name)).is_some();
        assert!(fine(65535, "/", "[::1]:80", "Zürich/1 (a)"));
        for port in [-1, 0, 65536] {
            assert!(!fine(port, "/", "a", "b"), "{port}");
        }
        for (path, host, name) in [
            (long.as_str(), "a", "b"),
            ("/", &long, "b"),
            ("/", "a", &long),
            ("/", "a b", "c"),
            ("/", "a\r\nb", "c"),
            ("/", "a/b", "c"),
            ("/", "a", "b\r\nc: d"),
            ("/", "a", "b\0"),
        ] {
            assert!(!fine(1, path, host, name), "{path:.9} {host:.9} {name:.9}");
        }
    }

    #[test]
    fn a_probe_is_named_where_the_name_is_looked_for() {
        let named = |path: &str, host, name| UnnamedProbe::new(1, path, host, name).unwrap().is_named();
        assert!(named("/", None, None) && named("/", None, Some("kube-probe/mine")));
        assert!(!named("/", None, Some("")) && !named("/", None, Some("curl/8")));
        // Before the name there are 35 bytes that are always the same.
        let path = |len: usize| format!("/{}", "a".repeat(len - 1));
        assert!(named(&path(245 - 35 - 1), Some("h"), None));
        assert!(!named(&path(246 - 35 - 1), Some("h"), None));
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:1".len();
        assert!(named(&path(245 - 35 - longest), None, None));
        assert!(!named(&path(246 - 35 - longest), None, None));
    }
}
