//! What a target is, given its Service, slices and the pods that have answered: what slices list is kept, so that a change
//! of one of them costs as much as it changes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::OrdMap;

use crate::{
    Endpoints, Upstream, UpstreamId,
    direct::{Direct, Pod},
    probe::Probe,
    route::{PortRef, Target},
    service::{Service, ServicePort, Slice, SliceEndpoint, SlicePort},
    upstream::{Encryption, Protocol, Resolution},
};

/// All that slices list for a target, under the terms that they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Joined {
    terms: Terms,
    /// By [`Place`]; those of the family that is preferred, and the others.
    places: [[Listed<Option<Arc<str>>>; 2]; Place::COUNT],
    pods: Listed<Pod>,
}

/// What decides, beside slices, what becomes of what they list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Terms {
    port: Port,
    is_probed: bool,
    is_direct: bool,
    prefers_v6: Option<bool>,
    /// Pods that are ready by their own word.
    answered: BTreeSet<IpAddr>,
}

/// Which of a slice's ports is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Port {
    #[default]
    None,
    Named(Arc<str>),
    /// There is no Service that could tell.
    Unknown(PortRef),
}

/// What is listed, by address.
#[derive(Debug)]
struct Listed<V> {
    all: OrdMap<SocketAddr, V>,
    /// What else is listed at an address of `all`, and stands behind.
    behind: BTreeMap<SocketAddr, Vec<V>>,
}

/// What becomes of an endpoint.
#[derive(Clone, Copy, Debug)]
enum Place {
    Ready,
    /// It is ready by its own word alone.
    Early,
    /// Pods that go, and are published all the same: better than none.
    Leaving,
    Pending,
}

/// One change of a slice: how it was, and how it is.
pub(super) type Change<'a> = (Option<&'a Slice>, Option<&'a Slice>);

/// What a target is called, what its Service says, and how its pods are asked, if they are.
pub(super) struct Subject<'a> {
    pub(super) id: UpstreamId,
    pub(super) target: &'a Target,
    pub(super) service: Option<&'a Service>,
    pub(super) probe: Option<Arc<Probe>>,
    pub(super) is_direct: bool,
}

/// What a port's `appProtocol` says of how its pods are spoken to.
fn spoken(app_protocol: Option<&str>) -> (Protocol, Encryption) {
    match app_protocol {
        Some("kubernetes.io/h2c") => (Protocol::H2c, Encryption::AsReceived),
        Some("http" | "kubernetes.io/ws") => (Protocol::Http1, Encryption::Never),
        Some("https" | "kubernetes.io/wss") => (Protocol::Http1, Encryption::Always),
        _ => (Protocol::Http1, Encryption::AsReceived),
    }
}

/// The pod's address, if it may get ready and is not.
pub(super) fn pending(endpoint: &SliceEndpoint) -> Option<IpAddr> {
    endpoint.addresses.first().copied().filter(|_| !endpoint.ready && !endpoint.terminating)
}

// === impl Subject ===

impl Subject<'_> {
    fn port(&self) -> Option<&ServicePort> {
        self.service?.ports.iter().find(|port| self.target.port.names(port))
    }

    /// Whether Service and port exist. A name for something elsewhere needs no list of ports.
    fn resolution(&self) -> Resolution {
        let needs_none = |service: &Service| service.reach.external_name.is_some() && service.ports.is_empty();
        match (self.service, self.port()) {
            (None, _) => Resolution::NoService,
            (Some(service), None) if needs_none(service) && matches!(self.target.port, PortRef::Number(_)) => {
                Resolution::Found
            }
            (Some(_), None) => Resolution::NoPort,
            (Some(_), Some(_)) => Resolution::Found,
        }
    }

    fn terms(&self, answered: &BTreeSet<IpAddr>) -> Terms {
        let port = match (self.resolution(), self.port()) {
            (Resolution::Found, Some(port)) => Port::Named(Arc::clone(&port.name)),
            (Resolution::NoService, _) => Port::Unknown(self.target.port.clone()),
            _ => Port::None,
        };
        Terms {
            port,
            is_probed: self.probe.is_some(),
            is_direct: self.is_direct,
            prefers_v6: self.service.and_then(|service| service.reach.prefers_v6),
            answered: answered.clone(),
        }
    }

    /// The target, of which slices list so much.
    pub(super) fn upstream(self, joined: &Joined) -> Upstream {
        let (resolution, port) = (self.resolution(), self.port());
        let (protocol, encryption) = spoken(port.and_then(|port| port.app_protocol.as_deref()));
        let (endpoints, early) = joined.endpoints();
        let direct = || Direct::new(self.target, self.service, port, joined.pods.all.clone());
        let direct = self.is_direct.then(|| Arc::new(direct()));
        Upstream {
            id: self.id,
            target: self.target.clone(),
            resolution,
            protocol,
            encryption,
            affinity: self.service.and_then(|service| service.reach.affinity),
            endpoints,
            early,
            pending: joined.preferred(Place::Pending),
            probe: self.probe,
            direct,
        }
    }
}

// === impl Joined ===

impl Joined {
    /// Takes in a change of one slice, after which `slices` are all there are.
    pub(super) fn update<'a>(
        &mut self,
        (subject, answered): (&Subject<'_>, &BTreeSet<IpAddr>),
        (was, is): Change<'_>,
        slices: impl Iterator<Item = &'a Slice>,
    ) {
        let terms = subject.terms(answered);
        if self.terms == terms {
            if let Some(slice) = was {
                self.remove(slice);
            }
            if let Some(slice) = is {
                self.add(slice);
            }
        } else {
            *self = Self { terms, ..Self::default() };
            slices.for_each(|slice| self.add(slice));
        }
    }

    fn add(&mut self, slice: &Slice) {
        let Self { terms, places, pods } = self;
        for (addr, endpoint) in terms.listed(slice) {
            if terms.is_direct {
                pods.add(addr, Pod::new(endpoint));
            }
            if let Some((place, family)) = terms.place(addr, endpoint) {
                places[place as usize][family].add(addr, endpoint.pod.clone());
            }
        }
    }

    fn remove(&mut self, slice: &Slice) {
        let Self { terms, places, pods } = self;
        for (addr, endpoint) in terms.listed(slice) {
            if terms.is_direct {
                pods.remove(&addr, &Pod::new(endpoint));
            }
            if let Some((place, family)) = terms.place(addr, endpoint) {
                places[place as usize][family].remove(&addr, &endpoint.pod);
            }
        }
    }

    /// Those that are ready, and which of them by their own word alone.
    fn endpoints(&self) -> (Endpoints, Arc<[SocketAddr]>) {
        let [ready, early] = [Place::Ready, Place::Early].map(|place| &self.places[place as usize]);
        let mut families = ready.iter().zip(early).map(|(ready, early)| (&ready.all, &early.all));
        let Some((ready, early)) = families.find(|(ready, early)| !ready.is_empty() || !early.is_empty()) else {
            return (self.preferred(Place::Leaving), Arc::default());
        };
        let mut endpoints = ready.clone();
        for (addr, pod) in early {
            endpoints.entry(*addr).or_insert_with(|| pod.clone());
        }
        (endpoints, early.keys().copied().collect())
    }

    /// Those of the family that is preferred, if there are any: each pod of a Service with two has an address of either.
    fn preferred(&self, place: Place) -> Endpoints {
        let families = &self.places[place as usize];
        families.iter().map(|listed| &listed.all).find(|all| !all.is_empty()).cloned().unwrap_or_default()
    }
}

// === impl Terms ===

impl Terms {
    /// What a slice lists at the port, with its address there.
    fn listed<'a>(&self, slice: &'a Slice) -> impl Iterator<Item = (SocketAddr, &'a SliceEndpoint)> + use<'a> {
        let port = match &self.port {
            Port::Named(name) => slice.ports.iter().find(|port| port.name == *name),
            Port::Unknown(port) => without_service(port, &slice.ports),
            Port::None => None,
        };
        let listed = move |port: &SlicePort| {
            let port = port.port;
            let endpoints = slice.endpoints.iter();
            endpoints.filter_map(move |endpoint| Some(((*endpoint.addresses.first()?, port).into(), endpoint)))
        };
        port.map(listed).into_iter().flatten()
    }

    fn place(&self, addr: SocketAddr, endpoint: &SliceEndpoint) -> Option<(Place, usize)> {
        let place = match (endpoint.ready, endpoint.terminating) {
            (true, false) => Place::Ready,
            (true, true) => Place::Leaving,
            (false, false) if !self.is_probed => return None,
            (false, false) if self.answered.contains(&addr.ip()) => Place::Early,
            (false, false) => Place::Pending,
            (false, true) => return None,
        };
        Some((place, usize::from(self.prefers_v6.is_some_and(|v6| addr.is_ipv6() != v6))))
    }
}

// === impl Place ===

impl Place {
    const COUNT: usize = 4;
}

// === impl Listed ===

impl<V: Clone + Ord> Listed<V> {
    /// Of those at one address the greatest is in front, as is one with a name before one without.
    fn add(&mut self, addr: SocketAddr, mut value: V) {
        if let Some(known) = self.all.get_mut(&addr) {
            if *known < value {
                mem::swap(known, &mut value);
            }
            self.behind.entry(addr).or_default().push(value);
        } else {
            self.all.insert(addr, value);
        }
    }

    /// Takes out what was added.
    fn remove(&mut self, addr: &SocketAddr, value: &V) {
        let Some(behind) = self.behind.get_mut(addr) else {
            self.all.remove(addr);
            return;
        };
        behind.sort_unstable();
        if let Ok(at) = behind.binary_search(value) {
            behind.remove(at);
        } else if let Some(next) = behind.pop() {
            self.all.insert(*addr, next);
        }
        if behind.is_empty() {
            self.behind.remove(addr);
        }
    }
}

impl<V> Default for Listed<V> {
    fn default() -> Self {
        Self { all: OrdMap::new(), behind: BTreeMap::new() }
    }
}

/// Slices without a Service object don't tell its port numbers: then a number means the target port of that number, or
/// the only one there is.
fn without_service<'a>(port: &PortRef, ports: &'a [SlicePort]) -> Option<&'a SlicePort> {
    let PortRef::Number(number) = port else { return None };
    let same = ports.iter().find(|candidate| candidate.port == *number);
    same.or(match ports {
        [only] => Some(only),
        _ => None,
    })
}
