//! Extended CONNECT (RFC 8441): an upgrade that a client asks for over HTTP/2 is one of HTTP/1.1 towards the pod, unless the pod
//! takes it over HTTP/2 too, and the other way round. A WebSocket's keys belong to HTTP/1.1 alone, so that they are made and
//! checked here.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use ring::{
    digest::{Context, SHA1_FOR_LEGACY_USE_ONLY},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::h1::fields::Fields;

const WEBSOCKET: &str = "websocket";

/// What a server puts behind a key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What an extended CONNECT asks for.
#[derive(Debug)]
pub(crate) struct Extended {
    pub(crate) protocol: Bytes,
    /// What the pod must say to a WebSocket's key.
    accept: Option<String>,
}

// === impl Extended ===

impl Extended {
    /// Makes of an extended CONNECT the request that HTTP/1.1 has for it; `None` for any other request.
    pub(crate) fn take<B>(request: &mut Request<B>) -> Option<Box<Self>> {
        let protocol = request.extensions_mut().remove::<h2::ext::Protocol>()?;
        *request.method_mut() = Method::GET;
        let accept = protocol.as_str().eq_ignore_ascii_case(WEBSOCKET).then(|| give_key(request.headers_mut()));
        Some(Box::new(Self { protocol: Bytes::copy_from_slice(protocol.as_str().as_bytes()), accept }))
    }

    /// Whether a `101` with these fields is an answer to what was asked.
    pub(crate) fn is_accepted(&self, fields: &Fields) -> bool {
        let said = fields.find(header::SEC_WEBSOCKET_ACCEPT.as_str());
        self.accept.as_ref().is_none_or(|accept| said == Some(accept.as_bytes()))
    }
}

/// What a server says to a WebSocket's key; `None` where it is asked without one.
pub(crate) fn acceptance(fields: &Fields) -> Option<String> {
    fields.find(header::SEC_WEBSOCKET_KEY.as_str()).map(answer)
}

/// Asks with a new key; returns what the answer must be.
fn give_key(headers: &mut HeaderMap) -> String {
    let mut nonce = [0; 16];
    // Without randomness it is no worse a key: it only shows that the answer belongs to the question.
    let _ = SystemRandom::new().fill(&mut nonce);
    let key = STANDARD.encode(nonce);
    if let Ok(value) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, value);
    }
    answer(key.as_bytes())
}

fn answer(key: &[u8]) -> String {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(GUID);
    STANDARD.encode(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_standard() {
        assert_eq!(answer(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_request_that_asks_for_no_protocol_stays_as_it_is() {
        let mut request = Request::connect("app.test:80").body(()).unwrap();
        assert!(Extended::take(&mut request).is_none());
        assert_eq!((request.method(), request.headers().len()), (&Method::CONNECT, 0));
    }

    #[test]
    fn only_a_websocket_has_keys() {
        for (protocol, keys) in [("websocket", 1), ("WebSocket", 1), ("connect-udp", 0)] {
            let mut request = Request::connect("http://app.test/").body(()).unwrap();
            request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
            let extended = Extended::take(&mut request).unwrap();
            assert_eq!(
                (request.method(), request.headers().len(), &extended.protocol[..]),
                (&Method::GET, keys, protocol.as_bytes())
            );
            assert_eq!(extended.is_accepted(&Fields::default()), keys == 0);
        }
    }
}
