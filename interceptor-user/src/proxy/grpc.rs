//! Errors as callers of gRPC understand them: a response that is all trailers (gRPC over HTTP/2, "Trailers-Only").
//!
//! The codes are those that a caller derives from the HTTP status by itself (gRPC, "HTTP to gRPC Status Code Mapping"), so that
//! rules for retries keep their meaning; but a request that a pod has had may not be unavailable, which says that nothing was
//! done.

use http::StatusCode;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::error::ProxyError;
use crate::h1::fields::Fields;

const MEDIA_TYPE: &[u8] = b"application/grpc";

/// What stands for itself in a message is visible ASCII and the space.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// A status code of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Code {
    Unknown = 2,
    DeadlineExceeded = 4,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// Whether a request is a call of gRPC. One of gRPC-Web is none: a browser does not show its page what stands in fields.
pub(super) fn is_call(fields: &Fields) -> bool {
    let Some(media_type) = fields.find("content-type") else { return false };
    let Some((own, rest)) = media_type.split_at_checked(MEDIA_TYPE.len()) else { return false };
    own.eq_ignore_ascii_case(MEDIA_TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// The fields that tell of `error`, whose HTTP status is `status`.
pub(super) fn fields(error: &ProxyError, status: StatusCode, message: &str) -> Fields {
    let code = (code(error, status) as u8).to_string();
    let message = utf8_percent_encode(message, ENCODED).to_string();
    Fields::from_pairs([
        ("content-type", MEDIA_TYPE),
        ("grpc-status", code.as_bytes()),
        ("grpc-message", message.as_bytes()),
    ])
}

fn code(error: &ProxyError, status: StatusCode) -> Code {
    match error {
        ProxyError::RequestTimeout | ProxyError::ResponseHeaderTimeout => Code::DeadlineExceeded,
        _ => match status {
            StatusCode::BAD_REQUEST => Code::Internal,
            StatusCode::NOT_FOUND => Code::Unimplemented,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Code::Unavailable
            }
            _ => Code::Unknown,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_call_with(media_type: &str) -> bool {
        is_call(&Fields::from_pairs([("Content-Type", media_type.as_bytes())]))
    }

    #[test]
    fn a_call_is_known_by_its_media_type() {
        for media_type in ["application/grpc", "Application/gRPC+proto", "application/grpc; charset=utf-8"] {
            assert!(is_call_with(media_type), "{media_type}");
        }
        for media_type in ["", "application/grp", "application/json", "application/grpc-web+proto", "application/grpcx"]
        {
            assert!(!is_call_with(media_type), "{media_type}");
        }
        assert!(!is_call(&Fields::default()));
    }

    #[test]
    fn errors_have_the_codes_that_callers_derive_from_their_status() {
        let code_of = |error: ProxyError| code(&error, super::super::verdict(&error).status);
        assert_eq!(code_of(ProxyError::NoRoute), Code::Unimplemented);
        assert_eq!(code_of(ProxyError::BadHost), Code::Internal);
        assert_eq!(code_of(ProxyError::HoldFull), Code::Unavailable);
        assert_eq!(code_of(ProxyError::HoldTimeout), Code::Unavailable);
        assert_eq!(code_of(ProxyError::UpstreamClosed), Code::Unavailable);
        assert_eq!(code_of(ProxyError::Unresolved), Code::Unknown);
        assert_eq!(code_of(ProxyError::RequestTimeout), Code::DeadlineExceeded);
    }

    #[test]
    fn a_message_is_percent_encoded() {
        let fields = fields(&ProxyError::NoRoute, StatusCode::NOT_FOUND, "100 % of é\n");
        assert_eq!(fields.find("grpc-message"), Some(&b"100 %25 of %C3%A9%0A"[..]));
        assert_eq!(fields.find("grpc-status"), Some(&b"12"[..]));
    }
}
