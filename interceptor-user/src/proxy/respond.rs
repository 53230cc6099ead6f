//! The one function from error to response: status, reason label, and whose fault it is.

use bytes::Bytes;
use http::StatusCode;

use super::{body::ResponseBody, error::ProxyError, grpc, message::Reply};
use crate::h1::fields::Fields;

/// Who has to act for the error to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    Downstream,
    Upstream,
    Us,
}

/// What an error means to a client and to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Of the response; statuses are those of the KEDA HTTP Add-on.
    pub(crate) status: StatusCode,
    /// Label of the error metric.
    pub(crate) reason: &'static str,
    pub(crate) fault: Fault,
}

// === impl Fault ===

impl Fault {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Us => "us",
        }
    }
}

/// Status recorded for a client that left before a response; nobody receives it.
/// nginx's number, which the add-on took over in 0.16.
pub(crate) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What `error` means.
pub(crate) fn verdict(error: &ProxyError) -> Verdict {
    use Fault::{Downstream, Upstream, Us};
    let (status, reason, fault) = match error {
        ProxyError::BadHost => (StatusCode::BAD_REQUEST, "bad_host", Downstream),
        ProxyError::BadTarget => (StatusCode::BAD_REQUEST, "bad_target", Downstream),
        ProxyError::BadBody(_) => (StatusCode::BAD_REQUEST, "bad_body", Downstream),
        ProxyError::NoRoute => (StatusCode::NOT_FOUND, "no_route", Downstream),
        ProxyError::Unresolved => (StatusCode::INTERNAL_SERVER_ERROR, "target_unresolved", Us),
        ProxyError::NoBody => (StatusCode::INTERNAL_SERVER_ERROR, "body_missing", Us),
        ProxyError::HoldFull => (StatusCode::SERVICE_UNAVAILABLE, "hold_full", Us),
        ProxyError::HoldTimeout => (StatusCode::GATEWAY_TIMEOUT, "hold_timeout", Upstream),
        ProxyError::ConnectTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "connect_timeout", Upstream),
        ProxyError::ResponseHeaderTimeout => (StatusCode::GATEWAY_TIMEOUT, "response_header_timeout", Upstream),
        ProxyError::RequestTimeout => (StatusCode::GATEWAY_TIMEOUT, "request_timeout", Upstream),
        ProxyError::Http1(_) | ProxyError::Http2(_) => (StatusCode::BAD_GATEWAY, "upstream_error", Upstream),
        ProxyError::Handshake(_) => (StatusCode::BAD_GATEWAY, "tls_handshake", Upstream),
        ProxyError::Tls(_) => (StatusCode::BAD_GATEWAY, "tls_settings", Us),
        ProxyError::NoIdentity(_) => (StatusCode::BAD_GATEWAY, "no_identity", Us),
        ProxyError::UpstreamClosed => (StatusCode::BAD_GATEWAY, "upstream_closed", Upstream),
        ProxyError::UpgradeMismatch => (StatusCode::BAD_GATEWAY, "upgrade_mismatch", Upstream),
        ProxyError::ClientGone => {
            let status = StatusCode::from_u16(CLIENT_CLOSED_REQUEST).expect("499 is within 100..=999");
            (status, "client_gone", Downstream)
        }
    };
    Verdict { status, reason, fault }
}

/// The response to `error`.
pub(crate) fn respond(error: &ProxyError) -> Reply {
    let status = verdict(error).status;
    let text = match error {
        ProxyError::HoldFull => "too many pending requests\n".to_owned(),
        _ => format!("{}\n", status.canonical_reason().unwrap_or("Error")),
    };
    let fields = [("content-type", &b"text/plain; charset=utf-8"[..]), ("x-content-type-options", b"nosniff")];
    let mut reply = Reply::new(status, Fields::from_pairs(fields), ResponseBody::full(Bytes::from(text)));
    reply.closes = status == StatusCode::BAD_REQUEST;
    reply
}

/// The same to a call of gRPC.
pub(crate) fn respond_grpc(error: &ProxyError) -> Reply {
    let status = verdict(error).status;
    let message = match error {
        // Says more than callers need to know.
        ProxyError::Tls(_) => status.canonical_reason().unwrap_or_default().to_owned(),
        _ => error.to_string(),
    };
    Reply::new(StatusCode::OK, grpc::fields(error, status, &message), ResponseBody::empty())
}

/// The answer to `OPTIONS *`, which is about the proxy itself.
pub(crate) fn options_asterisk() -> Reply {
    Reply::new(StatusCode::OK, Fields::default(), ResponseBody::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_route_is_answered_as_the_add_on_does() {
        let reply = respond(&ProxyError::NoRoute);
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        assert_eq!(reply.fields.find("content-type"), Some(&b"text/plain; charset=utf-8"[..]));
        assert_eq!(reply.fields.find("x-content-type-options"), Some(&b"nosniff"[..]));
        assert_eq!(reply.body.as_full(), Some(&b"Not Found\n"[..]));
    }

    #[test]
    fn a_full_hold_queue_says_so() {
        let reply = respond(&ProxyError::HoldFull);
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.body.as_full(), Some(&b"too many pending requests\n"[..]));
    }
}
