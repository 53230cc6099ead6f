//! Where connections come from that are no demand: interceptors, whose requests they have counted already, what routes
//! leave out, and the kubelet of this machine. Pure.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use interceptor_common::Origin;
use interceptor_core::UpstreamId;

use super::{maps::OriginTable, octets};

/// In the map: its connections are no demand. The programs have the same numbers.
const OUT: u32 = 1;
/// In the map: it is this machine, and may be the kubelet.
const HOST: u32 = 2;

/// A network in CIDR notation, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    addr: IpAddr,
    bits: u8,
}

/// Everything that is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Addresses of this machine, from which the kubelet's probes come.
    pub own: Vec<IpAddr>,
    /// Left out for all routes: addresses of interceptors.
    pub interceptors: Vec<IpAddr>,
    /// Left out for one upstream.
    pub ignored: Vec<(UpstreamId, Network)>,
}

/// The text is no network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected an address or a network such as 10.0.0.0/8")]
pub struct NetworkError(String);

// === impl Network ===

impl Network {
    /// Only this address.
    pub const fn one(addr: IpAddr) -> Self {
        Self { addr, bits: if addr.is_ipv4() { 32 } else { 128 } }
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
        let bits: u8 = bits.parse().ok().ok_or_else(wrong)?;
        if bits > one.bits { Err(wrong()) } else { Ok(Self { bits, ..one }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

// === impl Origins ===

impl Origins {
    /// As the map of the programs has them, for those upstreams that have a slot. What an upstream leaves out comes before
    /// what holds for all, an interceptor's address before the machine's own.
    pub(super) fn entries(&self, slot_of: impl Fn(UpstreamId) -> Option<u32>) -> OriginTable {
        let Self { own, interceptors, ignored } = self;
        let mut entries = BTreeMap::new();
        let mut set = |slot: u32, Network { addr, bits }: Network, meaning| {
            let above = if addr.is_ipv4() { 96 } else { 0 };
            let key = Origin::new(slot, octets(addr));
            entries.insert((Origin::SLOT_BITS + above + u32::from(bits), key.slot, key.addr), meaning);
        };
        for addr in own {
            set(0, Network::one(*addr), HOST);
        }
        for addr in interceptors {
            set(0, Network::one(*addr), OUT);
        }
        for (upstream, network) in ignored {
            if let Some(slot) = slot_of(*upstream) {
                set(slot, *network, OUT);
            }
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_in_either_family_and_nonsense_is_refused() {
        for (text, shown) in [("10.1.0.0/16", "10.1.0.0/16"), ("10.1.2.3", "10.1.2.3/32"), ("fd00::/8", "fd00::/8")] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "a/8", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_interceptor_on_this_machine_is_left_out_and_a_route_without_slot_says_nothing() {
        let here: IpAddr = "10.0.0.1".parse().unwrap();
        let network: Network = "10.1.0.0/16".parse().unwrap();
        let ignored = vec![(UpstreamId(1), network), (UpstreamId(2), network)];
        let origins = Origins { own: vec![here], interceptors: vec![here], ignored };
        let entries = origins.entries(|upstream| (upstream == UpstreamId(2)).then_some(7));
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[255, 255, 10, 0, 0, 1]);
        assert_eq!(entries.get(&(160, [0; 4], mapped)), Some(&OUT));
        mapped[12..].copy_from_slice(&[10, 1, 0, 0]);
        assert_eq!(entries.get(&(144, [0, 0, 0, 7], mapped)), Some(&OUT));
        assert_eq!(entries.len(), 2);
    }
}
