//! Where connections come from that are no demand: interceptors, whose requests they have counted already, what routes
//! leave out, and the kubelet of this machine. Pure.

use std::net::IpAddr;

use interceptor_common::Origin;
use interceptor_core::{UpstreamId, network::Network};

use super::{maps::Prefixes, octets};

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

// === impl Origins ===

impl Origins {
    /// As the map of the programs has them, for those upstreams that have a slot. What an upstream leaves out comes before
    /// what holds for all, an interceptor's address before the machine's own.
    pub(super) fn entries(&self, slot_of: impl Fn(UpstreamId) -> Option<u32>) -> Prefixes<Origin> {
        let Self { own, interceptors, ignored } = self;
        let mut entries = Prefixes::new();
        let mut set = |slot: u32, Network { addr, bits }: Network, meaning| {
            let above = if addr.is_ipv4() { 96 } else { 0 };
            let key = Origin::new(slot, octets(addr));
            entries.insert((Origin::SLOT_BITS + above + u32::from(bits), key), meaning);
        };
        for addr in own {
            set(0, Network::one(*addr), Origin::HOST);
        }
        for addr in interceptors {
            set(0, Network::one(*addr), Origin::OUT);
        }
        for (upstream, network) in ignored {
            if let Some(slot) = slot_of(*upstream) {
                set(slot, *network, Origin::OUT);
            }
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interceptor_on_this_machine_is_left_out_and_a_route_without_slot_says_nothing() {
        let here: IpAddr = "10.0.0.1".parse().unwrap();
        let network: Network = "10.1.0.0/16".parse().unwrap();
        let ignored = vec![(UpstreamId(1), network), (UpstreamId(2), network)];
        let origins = Origins { own: vec![here], interceptors: vec![here], ignored };
        let entries = origins.entries(|upstream| (upstream == UpstreamId(2)).then_some(7));
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[255, 255, 10, 0, 0, 1]);
        assert_eq!(entries.get(&(160, Origin { slot: [0; 4], addr: mapped })), Some(&Origin::OUT));
        mapped[12..].copy_from_slice(&[10, 1, 0, 0]);
        assert_eq!(entries.get(&(144, Origin { slot: [0, 0, 0, 7], addr: mapped })), Some(&Origin::OUT));
        assert_eq!(entries.len(), 2);
    }
}
