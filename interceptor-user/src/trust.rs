//! Who is believed what it says of the client before it: `X-Forwarded-*` and `Forwarded`. Decided once for a connection.

use std::net::IpAddr;

use ipnet::IpNet;

/// What an entry of the list must be.
pub(crate) const EXPECTED: &str =
    "addresses and networks such as 10.0.0.0/8, fd00::/8 or 192.0.2.7, with commas between them";

/// Whether a peer is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nobody has said: as with the add-on, `X-Forwarded-*` of everybody is kept and `Forwarded` of nobody.
    Unsaid,
    /// All of it is kept.
    Given,
    /// None of it is.
    Refused,
}

// === impl Trust ===

impl Trust {
    /// Whether `peer` is believed, if these are all who are.
    pub(crate) fn of(peer: IpAddr, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        match trusted {
            [] => Self::Unsaid,
            _ if trusted.iter().any(|network| network.contains(&peer)) => Self::Given,
            _ => Self::Refused,
        }
    }
}

/// A network, or a single address.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(peer: &str, trusted: &[&str]) -> Trust {
        let trusted: Vec<IpNet> = trusted.iter().map(|text| network(text).unwrap()).collect();
        Trust::of(peer.parse().unwrap(), &trusted)
    }

    #[test]
    fn peers_within_a_network_are_trusted_and_no_others() {
        let trusted = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];
        for peer in ["10.255.0.1", "192.0.2.7", "fd12::1", "::ffff:10.1.2.3"] {
            assert_eq!(trust(peer, &trusted), Trust::Given, "{peer}");
        }
        for peer in ["11.0.0.1", "192.0.2.8", "fe80::1", "::1"] {
            assert_eq!(trust(peer, &trusted), Trust::Refused, "{peer}");
        }
        assert_eq!(trust("10.0.0.1", &["::/0"]), Trust::Refused, "a network of IPv6 has no peers of IPv4");
    }

    #[test]
    fn without_a_list_nothing_is_said_of_anybody() {
        assert_eq!(trust("10.0.0.1", &[]), Trust::Unsaid);
    }

    #[test]
    fn what_is_no_network_is_none() {
        for text in ["", "10.0.0.0/33", "10.0.0", "proxy.test", "10.0.0.0/", "10.0.0.0/-1"] {
            assert_eq!(network(text), None, "{text}");
        }
    }
}
