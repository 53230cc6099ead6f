//! 1xx responses on their way to the client, whatever it speaks.

use std::rc::Rc;

use http::StatusCode;

use crate::{
    h1::{self, fields::Fields},
    http2::respond::Responder,
};

/// Sends 1xx responses to a client before the response.
#[derive(Clone, Debug)]
pub(crate) enum Interim {
    Http1(h1::body::Interim),
    Http2(Rc<Responder>),
}

// === impl Interim ===

impl Interim {
    pub(crate) fn send(&self, status: StatusCode, fields: &Fields) {
        match self {
            Self::Http1(interim) => interim.send(status, fields),
            Self::Http2(responder) => responder.interim(status, fields),
        }
    }
}
