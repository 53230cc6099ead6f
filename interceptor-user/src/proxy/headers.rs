//! Header rules between client and upstream: hop-by-hop fields, `X-Forwarded-*`, upgrades, the cold-start header.
//! Reference: RFC 9110 §7.6.1, and the behaviour of the KEDA HTTP Add-on.

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, Entry, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
    },
};

/// Says whether a request had to wait for its workload.
pub(crate) const COLD_START: HeaderName = HeaderName::from_static("x-keda-http-cold-start");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Fields of one connection (RFC 9110 §7.6.1, and two that are older). `Trailer` goes on: so do trailers.
static HOP_BY_HOP: [HeaderName; HOPS] =
    [CONNECTION, TRANSFER_ENCODING, KEEP_ALIVE, UPGRADE, TE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION];
const HOPS: usize = 8;
const CONNECTION_INDEX: usize = 0;
const TE_INDEX: usize = 4;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Removes what concerns one connection alone, and returns the protocol that an upgrade was asked or granted for.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, direction: Direction) -> Option<HeaderValue> {
    let mut present = [false; HOPS];
    for name in headers.keys() {
        // Most names are told apart by their first letter.
        if matches!(name.as_str().as_bytes().first(), Some(b'c' | b't' | b'k' | b'u' | b'p'))
            && let Some(index) = HOP_BY_HOP.iter().position(|hop| hop == name)
        {
            present[index] = true;
        }
    }
    let mut upgrade = None;
    let mut trailers = false;
    if present[CONNECTION_INDEX] {
        upgrade = drop_listed(headers);
    }
    if present[TE_INDEX] {
        trailers = direction == Direction::Request && accepts_trailers(headers);
    }
    for (name, present) in HOP_BY_HOP.iter().zip(present) {
        if present {
            headers.remove(name);
        }
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Request,
    Response,
}

/// Asks for, or grants, an upgrade on the next hop.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Adds what the upstream should know of the client: `host` is the client's original one, `client` its address.
pub(crate) fn set_forwarded(headers: &mut HeaderMap, client: &HeaderValue, host: &HeaderValue) {
    match headers.entry(FORWARDED_FOR) {
        Entry::Vacant(vacant) => {
            vacant.insert(client.clone());
        }
        Entry::Occupied(mut occupied) => {
            let chain = forwarded_chain(occupied.iter(), client);
            occupied.insert(chain);
        }
    }
    headers.remove(FORWARDED);
    set_if_empty(headers, FORWARDED_HOST, || host.clone());
    set_if_empty(headers, FORWARDED_PROTO, || HeaderValue::from_static("http"));
}

fn set_if_empty(headers: &mut HeaderMap, name: HeaderName, value: impl FnOnce() -> HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(value());
        }
        Entry::Occupied(mut occupied) if occupied.get().is_empty() => {
            occupied.insert(value());
        }
        Entry::Occupied(_) => {}
    }
}

/// The single host of a request: the target's authority if it has one, else its one `Host` field.
///
/// `None` when there is more than one, or none where HTTP/1.1 demands one.
pub(crate) fn host(
    headers: &HeaderMap,
    authority: Option<&http::uri::Authority>,
    version: Version,
) -> Option<HeaderValue> {
    let mut fields = headers.get_all(HOST).iter();
    let first = fields.next();
    if fields.next().is_some() {
        return None;
    }
    match (authority, first) {
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).ok(),
        (None, Some(host)) => host.as_bytes().iter().copied().all(is_of_host).then(|| host.clone()),
        (None, None) if version == Version::HTTP_11 => None,
        (None, None) => Some(HeaderValue::from_static("")),
    }
}

/// What may stand in a host, as Go's server has it: names, ports and IPv6 brackets, no path and no user.
fn is_of_host(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'$' | b'%' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
        | b',' | b'-' | b'.' | b':' | b';' | b'=' | b'[' | b']' | b'_' | b'~')
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, TE)
        .any(|token| token.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers")))
}

/// Drops the fields that `Connection` names, and returns the protocol of an upgrade if it names that.
fn drop_listed(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let only = headers.get(CONNECTION).map_or(&b""[..], HeaderValue::as_bytes);
    if only.eq_ignore_ascii_case(b"keep-alive") && headers.get_all(CONNECTION).iter().nth(1).is_none() {
        return None;
    }
    let mut upgrades = false;
    let mut listed = Vec::new();
    for token in tokens(headers, CONNECTION) {
        if token.eq_ignore_ascii_case("upgrade") {
            upgrades = true;
        } else if !["close", "keep-alive", "te", ""].iter().any(|known| token.eq_ignore_ascii_case(known)) {
            listed.extend(HeaderName::from_bytes(token.as_bytes()).ok());
        }
    }
    let upgrade = if upgrades { headers.get(UPGRADE).cloned() } else { None };
    for name in listed {
        headers.remove(name);
    }
    upgrade
}

/// All values of `X-Forwarded-For` with the client's address behind them, in one field.
fn forwarded_chain<'a>(values: impl Iterator<Item = &'a HeaderValue>, client: &HeaderValue) -> HeaderValue {
    let mut chain = Vec::new();
    for value in values {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(client.as_bytes());
    HeaderValue::from_bytes(&chain).expect("valid values and commas make a valid value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn fields_that_connection_names_go_with_it() {
        let mut map =
            headers(&[("connection", "close, X-Secret"), ("x-secret", "1"), ("x-kept", "2"), ("keep-alive", "5")]);
        assert_eq!(strip_hop_by_hop(&mut map, Direction::Request), None);
        assert_eq!(map, headers(&[("x-kept", "2")]));
    }

    #[test]
    fn an_upgrade_needs_both_of_its_fields() {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut map, Direction::Request).unwrap(), "websocket");
        assert!(map.is_empty());
        let mut map = headers(&[("upgrade", "h2c")]);
        assert_eq!(strip_hop_by_hop(&mut map, Direction::Request), None);
        assert!(map.is_empty());
    }

    #[test]
    fn trailers_are_still_asked_for() {
        let mut map = headers(&[("te", "gzip, trailers;q=0.5"), ("trailer", "x-sum")]);
        strip_hop_by_hop(&mut map, Direction::Request);
        assert_eq!(map, headers(&[("te", "trailers"), ("trailer", "x-sum")]));
    }

    #[test]
    fn the_clients_address_is_put_behind_all_earlier_ones() {
        let mut map =
            headers(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8"), ("x-forwarded-host", "keda.sh")]);
        set_forwarded(&mut map, &HeaderValue::from_static("10.0.0.9"), &HeaderValue::from_static("a.com:80"));
        assert_eq!(map["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 10.0.0.9");
        assert_eq!(map["x-forwarded-host"], "keda.sh");
        assert_eq!(map["x-forwarded-proto"], "http");
        assert_eq!(map.len(), 3);
    }

    #[test]
    fn a_request_has_one_host() {
        let two = headers(&[("host", "a"), ("host", "b")]);
        assert_eq!(host(&two, None, Version::HTTP_11), None);
        assert_eq!(host(&HeaderMap::new(), None, Version::HTTP_11), None);
        assert_eq!(host(&HeaderMap::new(), None, Version::HTTP_10).unwrap(), "");
        let authority = "b:80".parse().unwrap();
        assert_eq!(host(&headers(&[("host", "a")]), Some(&authority), Version::HTTP_11).unwrap(), "b:80");
    }
}
