//! How bytes that are to go to a pod were received.

use interceptor_core::upstream::{Encryption, Protocol};

use crate::secrets::IdentityId;

/// How bytes were received, which decides how they go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// As requests, in clear.
    Clear,
    /// As requests, encrypted.
    Encrypted,
    /// As bytes in which nobody here looks for requests: they go on as they are.
    Raw,
}

/// How an upstream's connections are made. Those of one kind are never used for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Manner {
    Clear,
    Encrypted,
    /// With a certificate of the route's own.
    EncryptedAs(IdentityId),
    /// Whatever the client says is said to the pod.
    Raw,
}

// === impl Received ===

impl Received {
    pub(crate) const COUNT: usize = 3;

    pub(crate) fn requests(encrypted: bool) -> Self {
        if encrypted { Self::Encrypted } else { Self::Clear }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Clear => 0,
            Self::Encrypted => 1,
            Self::Raw => 2,
        }
    }

    pub(crate) fn goes_on(self, encryption: Encryption) -> Manner {
        match self {
            Self::Raw => Manner::Raw,
            _ if encryption.applies(self == Self::Encrypted) => Manner::Encrypted,
            Self::Clear | Self::Encrypted => Manner::Clear,
        }
    }
}

// === impl Manner ===

impl Manner {
    pub(crate) fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted | Self::EncryptedAs(_))
    }

    /// What is spoken on the connections of an upstream that speaks `protocol`. HTTP/1.1 is what a connection has over which
    /// nothing has been said.
    pub(crate) fn spoken(self, protocol: Protocol) -> Protocol {
        match self {
            Self::Raw => Protocol::Http1,
            Self::Clear | Self::Encrypted | Self::EncryptedAs(_) => protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_neither_encrypted_nor_framed_whatever_the_service_says_of_requests() {
        for encryption in [Encryption::AsReceived, Encryption::Never, Encryption::Always] {
            assert_eq!(Received::Raw.goes_on(encryption), Manner::Raw);
        }
        assert_eq!(Manner::Raw.spoken(Protocol::H2c), Protocol::Http1);
        assert_eq!(Received::requests(true).goes_on(Encryption::AsReceived), Manner::Encrypted);
        assert_eq!(Received::requests(true).goes_on(Encryption::Never), Manner::Clear);
    }
}
