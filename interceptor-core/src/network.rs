//! Networks of clients, and whose connections a route leaves out of its demand.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

/// A network in CIDR notation, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// Its address; bits beyond the prefix are not looked at.
    pub addr: IpAddr,
    /// How many bits of the address are its prefix.
    pub bits: u8,
}

/// The text is no network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected an address or a network such as 10.0.0.0/8")]
pub struct NetworkError(String);

/// Whose connections are no demand of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Clients with these addresses.
    pub networks: Vec<Network>,
    /// Pods of these namespaces.
    pub namespaces: Vec<Arc<str>>,
}

// === impl Network ===

impl Network {
    /// Only this address.
    pub const fn one(addr: IpAddr) -> Self {
        Self { addr, bits: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether an address belongs to it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let prefix = |bits: u128, width: u32| bits.checked_shr(width - u32::from(self.bits)).unwrap_or(0);
        match (self.addr, addr) {
            (IpAddr::V4(own), IpAddr::V4(addr)) => {
                prefix(own.to_bits().into(), 32) == prefix(addr.to_bits().into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(addr)) => prefix(own.to_bits(), 128) == prefix(addr.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NetworkError(text.to_owned());
        let (addr, bits) = match text.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits)),
            None => (text, None),
        };
        let one = Self::one(addr.parse().ok().ok_or_else(wrong)?);
        let Some(bits) = bits else { return Ok(one) };
        let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits: u8 = bits.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        if bits > one.bits { Err(wrong()) } else { Ok(Self { bits, ..one }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

// === impl Ignored ===

impl Ignored {
    /// Whether nobody's connections are left out.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.namespaces.is_empty()
    }

    /// Whether a client's connections are left out; `is_of` says whether its address is of a namespace.
    pub fn contains(&self, client: IpAddr, is_of: impl Fn(&str) -> bool) -> bool {
        self.networks.iter().any(|network| network.contains(client))
            || self.namespaces.iter().any(|namespace| is_of(namespace))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_read_in_either_family_and_nonsense_is_refused() {
        for (text, shown) in [("10.1.0.0/16", "10.1.0.0/16"), ("10.1.2.3", "10.1.2.3/32"), ("fd00::/8", "fd00::/8")] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "a/8", "10.0.0.0/-1", "10.0.0.0/+1", "10.0.0.0/", "10.0.0.0/8/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_belongs_to_the_networks_of_its_prefixes_alone() {
        let belongs = |network: &str, addr: &str| network.parse::<Network>().unwrap().contains(addr.parse().unwrap());
        assert!(belongs("10.1.0.0/16", "10.1.255.3") && !belongs("10.1.0.0/16", "10.2.0.0"));
        assert!(belongs("10.1.2.3", "10.1.2.3") && !belongs("10.1.2.3", "10.1.2.4"));
        assert!(belongs("0.0.0.0/0", "255.1.2.3") && !belongs("0.0.0.0/0", "::"));
        assert!(belongs("::/0", "fd00::1") && belongs("fd00::/8", "fdff::1") && !belongs("fd00::/8", "fe00::1"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,24}") {
            if let Ok(network) = text.parse::<Network>() {
                prop_assert!(network.contains(network.addr));
                prop_assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
            }
        }
    }
}
