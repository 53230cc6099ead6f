//! Header rules between client and upstream: hop-by-hop fields, `X-Forwarded-*`, upgrades, the cold-start header.
//! Reference: RFC 9110 §7.6.1, and the behaviour of the KEDA HTTP Add-on.
//!
//! Nothing is changed in place: the fields that go on are written straight to where they go.

use bytes::Bytes;
use http::Version;

use super::{target::Target, trace::Parent};
use crate::{
    h1::{
        encode::Sink,
        fields::{Field, Fields, Known},
    },
    trust::Trust,
};

/// What a message says of its own hop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The protocol that an upgrade is asked or granted for.
    pub(crate) upgrade: Option<Bytes>,
    /// Names of fields that end with this hop, too.
    listed: Vec<Bytes>,
}

/// What the upstream is to know beside the client's own fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// The client's original host.
    pub(crate) host: &'a [u8],
    /// The client's address.
    pub(crate) client: &'a [u8],
    /// It speaks TLS.
    pub(crate) encrypted: bool,
    /// Whether it is believed what it says of a client before it.
    pub(crate) trust: Trust,
    pub(crate) hop: &'a Hop,
    /// Whether the next hop can be upgraded, too.
    pub(crate) upgradable: bool,
    /// What the upstream's spans are to be below, where traces are made.
    pub(crate) trace: Option<&'a Parent>,
}

// === impl Hop ===

impl Hop {
    /// What `fields` say.
    pub(crate) fn of(fields: &Fields) -> Self {
        let mut hop = Self::default();
        if !fields.has(Known::Connection) {
            return hop;
        }
        let mut upgrades = false;
        for token in tokens(fields, Known::Connection) {
            if token.eq_ignore_ascii_case(b"upgrade") {
                upgrades = true;
            } else if ![&b"close"[..], b"keep-alive", b"te", b""].iter().any(|known| token.eq_ignore_ascii_case(known))
            {
                hop.listed.push(fields.bytes().slice_ref(token));
            }
        }
        if upgrades {
            hop.upgrade = fields.first(Known::Upgrade).map(|protocol| fields.bytes().slice_ref(protocol));
        }
        hop
    }

    /// What an upgrade to `protocol` says.
    pub(crate) fn upgrade(protocol: &Bytes) -> Self {
        Self { upgrade: Some(protocol.clone()), listed: Vec::new() }
    }

    fn ends(&self, fields: &Fields, field: &Field) -> bool {
        field.known.is_hop_by_hop()
            || !self.listed.is_empty() && self.listed.iter().any(|name| name.eq_ignore_ascii_case(fields.name(field)))
    }
}

/// Writes the fields that a request goes on with, but for host and framing, which depend on the connection.
pub(crate) fn request(fields: &Fields, outgoing: &Outgoing<'_>, sink: &mut impl Sink) {
    let Outgoing { host, client, encrypted, trust, hop, upgradable, trace } = *outgoing;
    let (mut chain, mut has_host, mut has_proto) = (Vec::new(), false, false);
    let mut forwarded = Vec::new();
    for field in fields.iter().filter(|field| !hop.ends(fields, field)) {
        match field.known {
            Known::ContentLength | Known::Host => {}
            Known::Forwarded => {
                if trust == Trust::Given {
                    forwarded.extend_from_slice(fields.value(field));
                    forwarded.extend_from_slice(b", ");
                }
            }
            Known::ForwardedFor | Known::ForwardedHost | Known::ForwardedProto | Known::Other
                if trust == Trust::Refused && is_forwarded(fields.name(field)) => {}
            Known::ForwardedFor => {
                chain.extend_from_slice(fields.value(field));
                chain.extend_from_slice(b", ");
            }
            Known::ForwardedHost | Known::ForwardedProto if fields.value(field).is_empty() => {}
            Known::Other if trace.is_some() && is_of_trace(fields.name(field)) => {}
            known => {
                has_host |= known == Known::ForwardedHost;
                has_proto |= known == Known::ForwardedProto;
                sink.line(fields, field);
            }
        }
    }
    if chain.is_empty() {
        sink.pair("x-forwarded-for", client);
    } else {
        chain.extend_from_slice(client);
        sink.pair("x-forwarded-for", &chain);
    }
    if !has_host {
        sink.pair("x-forwarded-host", host);
    }
    if !has_proto {
        sink.pair("x-forwarded-proto", if encrypted { b"https" } else { b"http" });
    }
    if !forwarded.is_empty() {
        element(&mut forwarded, outgoing);
        sink.pair("forwarded", &forwarded);
    }
    if fields.has(Known::Te) && accepts_trailers(fields) {
        sink.pair("te", b"trailers");
    }
    if let Some(Parent { parent, state }) = trace {
        sink.pair("traceparent", parent.as_bytes());
        if !state.is_empty() {
            sink.pair("tracestate", state.as_bytes());
        }
    }
    if let Some(protocol) = hop.upgrade.as_ref().filter(|_| upgradable) {
        upgrade(protocol, sink);
    }
}

/// Writes the fields that a response goes on with. `cold` is the value of the cold-start header, if one is due;
/// `length` says whether the response's own length goes on although no body comes with it.
pub(crate) fn response(fields: &Fields, hop: &Hop, cold: Option<bool>, length: bool, sink: &mut impl Sink) {
    for field in fields.iter().filter(|field| !hop.ends(fields, field)) {
        match field.known {
            Known::ContentLength if !length => {}
            // Replaced, not added: a workload that sends the field itself does not know better.
            Known::ColdStart if cold.is_some() => {}
            _ => sink.line(fields, field),
        }
    }
    if let Some(cold) = cold {
        sink.pair("x-keda-http-cold-start", if cold { b"true" } else { b"false" });
    }
}

/// Asks for, or grants, an upgrade on the next hop.
pub(crate) fn upgrade(protocol: &[u8], sink: &mut impl Sink) {
    sink.pair("connection", b"Upgrade");
    sink.pair("upgrade", protocol);
}

/// The single host of a request: the target's authority if it has one, else its one `Host` field.
///
/// `None` when there is more than one, or none where HTTP/1.1 demands one.
pub(crate) fn host(fields: &Fields, target: &Target, version: Version) -> Option<Bytes> {
    let mut all = fields.all(Known::Host);
    let (first, second) = (all.next(), all.next());
    if second.is_some() {
        return None;
    }
    let host = match (&target.authority, first) {
        (Some(authority), _) => authority.clone(),
        (None, Some(b"")) => Bytes::new(),
        (None, Some(host)) => fields.bytes().slice_ref(host),
        (None, None) if version == Version::HTTP_11 => return None,
        (None, None) => Bytes::new(),
    };
    host.iter().copied().all(is_of_host).then_some(host)
}

/// What may stand in a host, as Go's server has it: names, ports and IPv6 brackets, no path and no user.
fn is_of_host(byte: u8) -> bool {
    const ALLOWED: [bool; 256] = {
        let mut allowed = [false; 256];
        let bytes = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!$%&'()*+,-.:;=[]_~";
        let mut at = 0;
        while at < bytes.len() {
            allowed[bytes[at] as usize] = true;
            at += 1;
        }
        allowed
    };
    ALLOWED[usize::from(byte)]
}

/// Whether a field tells of a client before the one that sent it: `X-Forwarded-` and anything.
fn is_forwarded(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-forwarded-";
    name.get(..PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
}

/// Puts what is known here behind what `Forwarded` says (RFC 7239 §4).
fn element(forwarded: &mut Vec<u8>, outgoing: &Outgoing<'_>) {
    let Outgoing { host, client, encrypted, .. } = *outgoing;
    let parts: [&[u8]; 5] = if client.contains(&b':') {
        [b"for=\"[", client, b"]\"", b";host=\"", host]
    } else {
        [b"for=", client, b"", b";host=\"", host]
    };
    forwarded.extend(parts.into_iter().flatten());
    forwarded.extend_from_slice(if encrypted { b"\";proto=https" } else { b"\";proto=http" });
}

fn is_of_trace(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"traceparent") || name.eq_ignore_ascii_case(b"tracestate")
}

fn tokens(fields: &Fields, known: Known) -> impl Iterator<Item = &[u8]> {
    fields.all(known).flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

fn accepts_trailers(fields: &Fields) -> bool {
    let mut names = tokens(fields, Known::Te).filter_map(|token| token.split(|byte| *byte == b';').next());
    names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields::from_pairs(pairs.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.pair(name, value.as_bytes());
        }
        map
    }

    /// What goes on of a request, without what is made for the upstream each time.
    fn sent(pairs: &[(&str, &str)]) -> HeaderMap {
        sent_by(b"10.0.0.9", Trust::Unsaid, pairs)
    }

    /// The same from this client.
    fn sent_by(client: &[u8], trust: Trust, pairs: &[(&str, &str)]) -> HeaderMap {
        let fields = fields(pairs);
        let hop = Hop::of(&fields);
        let outgoing =
            Outgoing { host: b"a.com:80", client, encrypted: false, trust, hop: &hop, upgradable: true, trace: None };
        let (mut map, mut bytes) = (HeaderMap::new(), Vec::new());
        request(&fields, &outgoing, &mut map);
        request(&fields, &outgoing, &mut bytes);
        assert_eq!(String::from_utf8(bytes).unwrap().lines().count(), map.len(), "both sinks get the same");
        map
    }

    fn unforwarded(mut map: HeaderMap) -> HeaderMap {
        for name in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"] {
            map.remove(name);
        }
        map
    }

    #[test]
    fn fields_that_connection_names_go_with_it() {
        let pairs = [("Connection", "close, X-Secret"), ("x-secret", "1"), ("x-kept", "2"), ("Keep-Alive", "5")];
        assert_eq!(unforwarded(sent(&pairs)), map(&[("x-kept", "2")]));
        let (fields, mut answer) = (fields(&pairs), HeaderMap::new());
        response(&fields, &Hop::of(&fields), None, false, &mut answer);
        assert_eq!(answer, map(&[("x-kept", "2")]));
    }

    #[test]
    fn an_upgrade_needs_both_of_its_fields() {
        let sent_upgrade = sent(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(unforwarded(sent_upgrade), map(&[("connection", "Upgrade"), ("upgrade", "websocket")]));
        assert!(unforwarded(sent(&[("upgrade", "h2c")])).is_empty());
        assert!(unforwarded(sent(&[("connection", "upgrade")])).is_empty());
    }

    #[test]
    fn trailers_are_still_asked_for() {
        let sent = sent(&[("te", "gzip, trailers;q=0.5"), ("trailer", "x-sum")]);
        assert_eq!(unforwarded(sent), map(&[("te", "trailers"), ("trailer", "x-sum")]));
    }

    #[test]
    fn the_clients_address_is_put_behind_all_earlier_ones() {
        let sent = sent(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("x-forwarded-host", "keda.sh"),
            ("x-forwarded-proto", ""),
            ("forwarded", "for=1.2.3.4"),
        ]);
        assert_eq!(sent["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 10.0.0.9");
        assert_eq!(
            (&sent["x-forwarded-host"], &sent["x-forwarded-proto"]),
            (&"keda.sh".parse().unwrap(), &"http".parse().unwrap())
        );
        assert_eq!(sent.len(), 3);
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_extended() {
        let pairs = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "keda.sh"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("forwarded", "for=1.2.3.4"),
            ("forwarded", "for=_a;proto=https"),
        ];
        let sent = sent_by(b"10.0.0.9", Trust::Given, &pairs);
        assert_eq!(sent["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(
            (&sent["x-forwarded-host"], &sent["x-forwarded-port"]),
            (&"keda.sh".parse().unwrap(), &"443".parse().unwrap())
        );
        assert_eq!(sent["forwarded"], "for=1.2.3.4, for=_a;proto=https, for=10.0.0.9;host=\"a.com:80\";proto=http");
        let sent = sent_by(b"fd00::9", Trust::Given, &[("forwarded", "for=1.2.3.4")]);
        assert_eq!(sent["forwarded"], "for=1.2.3.4, for=\"[fd00::9]\";host=\"a.com:80\";proto=http");
        assert_eq!(sent_by(b"10.0.0.9", Trust::Given, &[]).get("forwarded"), None, "nobody asked for another field");
    }

    #[test]
    fn nobody_else_is_believed_where_some_are_trusted() {
        let pairs = [
            ("x-forwarded-for", "1.2.3.4"),
            ("X-Forwarded-Host", "keda.sh"),
            ("x-forwarded-proto", "https"),
            ("X-Forwarded-Port", "443"),
            ("x-forwarded-prefix", "/admin"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarder", "kept"),
        ];
        let forwarded =
            [("x-forwarded-for", "10.0.0.9"), ("x-forwarded-host", "a.com:80"), ("x-forwarded-proto", "http")];
        let expected: Vec<_> = [("x-forwarder", "kept")].into_iter().chain(forwarded).collect();
        assert_eq!(sent_by(b"10.0.0.9", Trust::Refused, &pairs), map(&expected));
    }

    #[test]
    fn framing_and_host_of_the_client_s_connection_end_with_it() {
        let pairs = [("host", "a"), ("content-length", "3"), ("transfer-encoding", "chunked"), ("x", "1")];
        assert_eq!(unforwarded(sent(&pairs)), map(&[("x", "1")]));
    }

    #[test]
    fn the_cold_start_header_is_ours() {
        let fields = fields(&[("X-KEDA-HTTP-Cold-Start", "maybe"), ("content-length", "3")]);
        let answer = |cold, length| {
            let mut answer = HeaderMap::new();
            response(&fields, &Hop::default(), cold, length, &mut answer);
            answer
        };
        assert_eq!(answer(Some(true), false), map(&[("x-keda-http-cold-start", "true")]));
        assert_eq!(answer(None, true), map(&[("x-keda-http-cold-start", "maybe"), ("content-length", "3")]));
    }

    #[test]
    fn a_request_has_one_host() {
        let path = Target::parse(&Bytes::from_static(b"/")).unwrap();
        let of = |pairs: &[(&str, &str)], version| host(&fields(pairs), &path, version);
        assert_eq!(of(&[("host", "a"), ("host", "b")], Version::HTTP_11), None);
        assert_eq!(of(&[("host", "a/b")], Version::HTTP_11), None);
        assert_eq!(of(&[], Version::HTTP_11), None);
        assert_eq!(of(&[], Version::HTTP_10).unwrap(), "");
        assert_eq!(of(&[("host", "")], Version::HTTP_11).unwrap(), "");
        let url = Target::parse(&Bytes::from_static(b"http://b:80/")).unwrap();
        assert_eq!(host(&fields(&[("host", "a")]), &url, Version::HTTP_11).unwrap(), "b:80");
    }
}
