//! Where connections come from that are no demand: interceptors, whose requests they have counted already, what routes
//! leave out, and the kubelet of this machine, whose probes may have to be known one by one. Pure.

use std::net::{IpAddr, SocketAddr};

use interceptor_common::{
    AddrKey, Origin,
    kubelet::{self, ProbeHead},
};
use interceptor_core::{
    UpstreamId,
    kubelet::{SEARCHED, UnnamedProbe},
    network::Network,
};

use super::{maps::Prefixes, octets};

// Who calls a probe unnamed has to know where the programs look for the name.
const _: () = assert!(SEARCHED == kubelet::SEARCHED);

/// Everything that is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Addresses of this machine, from which the kubelet's probes come.
    pub own: Vec<IpAddr>,
    /// Left out for all routes: addresses of interceptors.
    pub interceptors: Vec<IpAddr>,
    /// Left out for one upstream.
    pub ignored: Vec<(UpstreamId, Network)>,
    /// How the kubelet of this machine probes an upstream's pods, where it does not say that it is the kubelet.
    pub probes: Vec<(UpstreamId, UnnamedProbe)>,
}

/// What did not fit into the kernel's maps, and so counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Of networks and addresses.
    pub origins: usize,
    /// Of probes, each once for every pod.
    pub probes: usize,
}

// === impl Origins ===

impl Origins {
    /// As the map of the programs has them, for those upstreams that have a slot. What an upstream leaves out comes before
    /// what holds for all, an interceptor's address before the machine's own.
    pub(super) fn entries(&self, slot_of: impl Fn(UpstreamId) -> Option<u32>) -> Prefixes<Origin> {
        let Self { own, interceptors, ignored, probes: _ } = self;
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

    /// How the probes' requests begin at those pods of their upstreams that are here.
    pub(super) fn heads<P: Iterator<Item = SocketAddr>>(
        &self,
        pods_of: impl Fn(UpstreamId) -> P,
    ) -> Prefixes<ProbeHead> {
        let mut entries = Prefixes::new();
        for (upstream, probe) in &self.probes {
            for addr in pods_of(*upstream).filter(|addr| addr.port() == probe.port().get()) {
                entries.insert(ProbeHead::new(AddrKey::new(addr), probe.head(addr).as_bytes()), 1);
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
        let origins = Origins { own: vec![here], interceptors: vec![here], ignored, probes: Vec::new() };
        let entries = origins.entries(|upstream| (upstream == UpstreamId(2)).then_some(7));
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[255, 255, 10, 0, 0, 1]);
        assert_eq!(entries.get(&(160, Origin { slot: [0; 4], addr: mapped })), Some(&Origin::OUT));
        mapped[12..].copy_from_slice(&[10, 1, 0, 0]);
        assert_eq!(entries.get(&(144, Origin { slot: [0, 0, 0, 7], addr: mapped })), Some(&Origin::OUT));
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn a_probe_is_known_at_each_pod_of_its_upstream_that_has_its_port() {
        let probe = |port, name| UnnamedProbe::new(port, "/ok", None, Some(name)).unwrap();
        let long = "a".repeat(200);
        let probes = vec![(UpstreamId(1), probe(80, "health")), (UpstreamId(2), probe(81, &long))];
        let origins = Origins { probes, ..Origins::default() };
        let pods: [SocketAddr; 3] = ["10.0.0.1:80", "[fd00::1]:80", "10.0.0.1:81"].map(|addr| addr.parse().unwrap());
        let heads = origins.heads(|_| pods.into_iter());
        let of = |addr: SocketAddr, head: &str| ProbeHead::new(AddrKey::new(addr), head.as_bytes());
        let expected = [
            of(pods[0], "GET /ok HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUser-Agent: health\r\n"),
            of(pods[1], "GET /ok HTTP/1.1\r\nHost: [fd00::1]:80\r\nUser-Agent: health\r\n"),
            of(pods[2], &format!("GET /ok HTTP/1.1\r\nHost: 10.0.0.1:81\r\nUser-Agent: {long}")),
        ];
        assert!(expected.iter().all(|head| heads.contains_key(head)), "{heads:?}");
        assert_eq!((heads.len(), expected[2].0), (3, 160 + 8 * 128));
    }
}
