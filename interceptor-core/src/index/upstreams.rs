//! Targets joined with Services and EndpointSlices: each change concerns the targets of its Service alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foldhash::quality::RandomState;
use imbl::Vector;

use super::{
    join::{Joined, Subject, pending},
    way::{Way, way},
};
use crate::{
    Endpoints, ObjectKey, Upstream, UpstreamId,
    probe::Probing,
    route::{Backend, DataPath, PortRef, Target},
    service::{Service, ServicePort, Slice, SliceEndpoint},
    upstream::Resolution,
};

/// All targets that routes refer to, and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    all: Vector<Option<Arc<Upstream>>>,
    /// By id: which routes refer to it, as what, and what they ask of it.
    users: Vec<Users>,
    /// By id: what slices list for it.
    joined: Vec<Joined>,
    ids: HashMap<Target, UpstreamId, RandomState>,
    free: BTreeSet<u32>,
    services: HashMap<ObjectKey, Backing, RandomState>,
    slices: HashMap<ObjectKey, Slice, RandomState>,
    unresolved: BTreeSet<UpstreamId>,
    changed: BTreeSet<UpstreamId>,
    through_services: bool,
    /// Those whose Service's name is to be looked up.
    by_name: BTreeSet<UpstreamId>,
    names: imbl::OrdMap<ObjectKey, Arc<str>>,
}

pub(super) type Users = BTreeMap<(ObjectKey, Backend), Wish>;

/// What a route asks of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// What it says of probing the pods.
    pub(super) probing: Probing,
    /// How clients reach them.
    pub(super) data_path: DataPath,
}

/// What is known of one Service name.
#[derive(Debug, Default)]
struct Backing {
    service: Option<Service>,
    slices: BTreeSet<ObjectKey>,
    upstreams: BTreeSet<UpstreamId>,
    /// Pods that answered their probe before the slices said that they are ready: listed by a slice, each of them.
    answered: BTreeSet<IpAddr>,
    /// What its name was found to be.
    found: Vec<IpAddr>,
}

// === impl Upstreams ===

impl Upstreams {
    pub(super) fn all(&self) -> &Vector<Option<Arc<Upstream>>> {
        &self.all
    }

    pub(super) fn names(&self) -> &imbl::OrdMap<ObjectKey, Arc<str>> {
        &self.names
    }

    pub(super) fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.values()
    }

    /// Before anything else.
    pub(super) fn go_through_services(&mut self, through_services: bool) {
        self.through_services = through_services;
    }

    /// See [`Index::service_port`](super::Index::service_port).
    pub(super) fn service_port(&self, target: &Target) -> Option<(&Service, &ServicePort)> {
        let service = self.services.get(&target.service)?.service.as_ref()?;
        let port = service.ports.iter().find(|port| target.port.names(port))?;
        Some((service, port))
    }

    pub(super) fn take_changed(&mut self) -> Vec<UpstreamId> {
        std::mem::take(&mut self.changed).into_iter().collect()
    }

    /// Upstreams without Service or port, with the Service and the routes that want them.
    pub(super) fn unresolved(&self) -> impl Iterator<Item = (&Upstream, Option<&Service>, &Users)> {
        self.unresolved.iter().filter_map(|id| {
            let at = index(*id);
            let upstream = self.all.get(at)?.as_deref()?;
            let service = self.services.get(&upstream.target.service).and_then(|backing| backing.service.as_ref());
            Some((upstream, service, &self.users[at]))
        })
    }

    /// The id of `target`, held for the route and the use it makes of it.
    pub(super) fn acquire(
        &mut self,
        target: &Target,
        (route, backend): (&ObjectKey, Backend),
        wish: &Wish,
    ) -> UpstreamId {
        let user = (route.clone(), backend);
        if let Some(id) = self.ids.get(target).copied() {
            let before = self.users[index(id)].insert(user, wish.clone());
            if before.as_ref() != Some(wish) {
                self.resolve(id, target, (None, None));
            }
            return id;
        }
        let id = self.free.pop_first().map_or_else(|| self.grow(), UpstreamId);
        self.ids.insert(target.clone(), id);
        self.users[index(id)].insert(user, wish.clone());
        self.services.entry(target.service.clone()).or_default().upstreams.insert(id);
        self.resolve(id, target, (None, None));
        id
    }

    /// Ends the route's hold; the last one frees the id. Waiters look again, since their route may have moved away.
    pub(super) fn release(&mut self, id: UpstreamId, (route, backend): (&ObjectKey, Backend)) {
        let at = index(id);
        let said = self.users[at].remove(&(route.clone(), backend));
        self.changed.insert(id);
        if !self.users[at].is_empty() {
            if said.is_some_and(|said| said != Wish::default()) {
                let target = self.all.get(at).and_then(Option::as_ref).map(|upstream| upstream.target.clone());
                self.resolve(id, &target.expect("it has users"), (None, None));
            }
            return;
        }
        let Some(upstream) = self.all.set(at, None) else { return };
        self.joined[at] = Joined::default();
        self.ids.remove(&upstream.target);
        self.unresolved.remove(&id);
        self.by_name.remove(&id);
        self.free.insert(id.0);
        let service = &upstream.target.service;
        if let Some(backing) = self.services.get_mut(service) {
            backing.upstreams.remove(&id);
        }
        self.note_name(service);
        self.forget(service);
    }

    pub(super) fn put_service(&mut self, service: Service) {
        let key = service.key.clone();
        self.services.entry(key.clone()).or_default().service = Some(service);
        self.note_name(&key);
        self.resolve_all(&key);
    }

    pub(super) fn take_service(&mut self, key: &ObjectKey) {
        let Some(backing) = self.services.get_mut(key) else { return };
        backing.service = None;
        self.note_name(key);
        self.resolve_all(key);
        self.forget(key);
    }

    pub(super) fn put_slice(&mut self, slice: Slice) {
        let (key, service) = (slice.key.clone(), slice.service.clone());
        let was = self.slices.get(&key);
        if was == Some(&slice) {
            return;
        }
        if was.is_some_and(|was| was.service != service) {
            self.take_slice(&key);
        }
        let was = self.slices.insert(key.clone(), slice);
        self.services.entry(service.clone()).or_default().slices.insert(key.clone());
        self.slice_changed(&service, was.as_ref(), Some(&key));
    }

    pub(super) fn take_slice(&mut self, key: &ObjectKey) {
        let Some(was) = self.slices.remove(key) else { return };
        if let Some(backing) = self.services.get_mut(&was.service) {
            backing.slices.remove(key);
        }
        self.slice_changed(&was.service, Some(&was), None);
        self.forget(&was.service);
    }

    pub(super) fn reset_services(&mut self, services: Vec<Service>) {
        let listed: HashSet<&ObjectKey> = services.iter().map(|service| &service.key).collect();
        let known = self.services.iter().filter(|(_, backing)| backing.service.is_some()).map(|(key, _)| key);
        let gone: Vec<_> = known.filter(|key| !listed.contains(*key)).cloned().collect();
        for key in &gone {
            self.take_service(key);
        }
        for service in services {
            self.put_service(service);
        }
    }

    pub(super) fn reset_slices(&mut self, slices: Vec<Slice>) {
        let listed: HashSet<&ObjectKey> = slices.iter().map(|slice| &slice.key).collect();
        let gone: Vec<_> = self.slices.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in &gone {
            self.take_slice(key);
        }
        for slice in slices {
            self.put_slice(slice);
        }
    }

    /// See [`Index::answered`](super::Index::answered).
    pub(super) fn put_answer(&mut self, service: &ObjectKey, pod: IpAddr) {
        if let Some(backing) = self.services.get_mut(service)
            && backing.answered.insert(pod)
        {
            self.resolve_all(service);
        }
    }

    /// The answer counts no longer.
    pub(super) fn take_answer(&mut self, service: &ObjectKey, pod: IpAddr) {
        if let Some(backing) = self.services.get_mut(service)
            && backing.answered.remove(&pod)
        {
            self.resolve_all(service);
        }
    }

    /// See [`Index::found`](super::Index::found).
    pub(super) fn put_found(&mut self, service: &ObjectKey, addresses: &[IpAddr]) {
        if let Some(backing) = self.services.get_mut(service)
            && backing.found != addresses
        {
            backing.found = addresses.to_vec();
            self.resolve_all(service);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.services.is_empty() && self.slices.is_empty() && self.unresolved.is_empty()
    }

    /// Forgets answers of pods that slices do not list as starting any more.
    fn check_answers(&mut self, service: &ObjectKey) {
        let Some(backing) = self.services.get_mut(service).filter(|backing| !backing.answered.is_empty()) else {
            return;
        };
        let slices = backing.slices.iter().filter_map(|key| self.slices.get(key));
        let pending: BTreeSet<_> = slices.flat_map(|slice| &slice.endpoints).filter_map(pending).collect();
        backing.answered.retain(|pod| pending.contains(pod));
    }

    fn forget(&mut self, service: &ObjectKey) {
        if self.services.get(service).is_some_and(Backing::is_empty) {
            self.services.remove(service);
        }
    }

    /// Keeps the name by which a Service's endpoints are reached among those to be looked up, as long as a route wants it.
    fn note_name(&mut self, key: &ObjectKey) {
        let backing = self.services.get_mut(key);
        let wanted = backing.as_ref().filter(|backing| !backing.upstreams.is_disjoint(&self.by_name));
        let name = wanted.map(|backing| {
            let external = backing.service.as_ref().and_then(|service| service.reach.external_name.clone());
            external.unwrap_or_else(|| format!("{}.{}", key.name(), key.namespace()).into())
        });
        if self.names.get(key) == name.as_ref() {
            return;
        }
        // What was found was another name's.
        if let Some(backing) = backing {
            backing.found.clear();
        }
        match name {
            Some(name) => self.names.insert(key.clone(), name),
            None => self.names.remove(key),
        };
    }

    fn grow(&mut self) -> UpstreamId {
        let id = UpstreamId(u32::try_from(self.all.len()).expect("memory ends before the ids do"));
        self.all.push_back(None);
        self.users.push(Users::new());
        self.joined.push(Joined::default());
        id
    }

    fn resolve_all(&mut self, service: &ObjectKey) {
        self.slice_changed(service, None, None);
    }

    /// Takes in that a slice of the Service has changed, if one has: how it was, and which it is.
    fn slice_changed(&mut self, service: &ObjectKey, was: Option<&Slice>, is: Option<&ObjectKey>) {
        self.check_answers(service);
        let Some(backing) = self.services.get(service) else { return };
        let upstreams: Vec<_> = backing.upstreams.iter().copied().collect();
        for id in upstreams {
            let target = self.all.get(index(id)).and_then(Option::as_ref).map(|upstream| upstream.target.clone());
            self.resolve(id, &target.expect("a Service lists only upstreams that are in use"), (was, is));
        }
    }

    fn resolve(&mut self, id: UpstreamId, target: &Target, (was, is): (Option<&Slice>, Option<&ObjectKey>)) {
        static NONE: BTreeSet<IpAddr> = BTreeSet::new();
        let at = index(id);
        let backing = self.services.get(&target.service);
        let slices = || backing.into_iter().flat_map(|backing| &backing.slices).filter_map(|key| self.slices.get(key));
        let targets = self.users[at].iter().filter(|((_, backend), _)| *backend == Backend::Target);
        let service = backing.and_then(|backing| backing.service.as_ref());
        let subject = Subject {
            id,
            target,
            service,
            probe: Probing::of_all(targets.clone().map(|(_, wish)| &wish.probing)),
            is_direct: targets.clone().any(|(_, wish)| wish.data_path == DataPath::Direct),
        };
        let answered = backing.map_or(&NONE, |backing| &backing.answered);
        let change = (was, is.and_then(|key| self.slices.get(key)));
        self.joined[at].update((&subject, answered), change, slices());
        let mut upstream = subject.upstream(&self.joined[at]);
        let is_ready = slices().flat_map(|slice| &slice.endpoints).any(SliceEndpoint::is_ready);
        let has_slices = backing.is_some_and(|backing| !backing.slices.is_empty());
        let may_be_cold = targets.clone().next().is_some() || has_slices;
        let way = way(&upstream, service, self.through_services, is_ready || !may_be_cold);
        let is_changed = match way {
            Way::Pods => self.by_name.remove(&id),
            Way::Name { .. } => self.by_name.insert(id),
        };
        if is_changed {
            self.note_name(&target.service);
        }
        if let Way::Name { port: Some(port) } = way {
            let found = self.services.get(&target.service).map(|backing| backing.found.as_slice()).unwrap_or_default();
            let addrs = found.iter().map(|address| SocketAddr::new(address.to_canonical(), port));
            upstream.endpoints = addrs.map(|addr| (addr, None)).collect();
            upstream.early = Arc::default();
        } else if way == (Way::Name { port: None }) {
            upstream.endpoints = Endpoints::new();
        }
        if upstream.resolution == Resolution::Found {
            self.unresolved.remove(&id);
        } else {
            self.unresolved.insert(id);
        }
        if self.all.get(at).and_then(Option::as_deref) != Some(&upstream) {
            self.all.set(at, Some(Arc::new(upstream)));
            self.changed.insert(id);
        }
    }
}

// === impl Backing ===

impl Backing {
    fn is_empty(&self) -> bool {
        let Self { service, slices, upstreams, answered: _, found: _ } = self;
        service.is_none() && slices.is_empty() && upstreams.is_empty()
    }
}

fn index(id: UpstreamId) -> usize {
    usize::try_from(id.0).expect("a usize holds 32 bits")
}

impl PortRef {
    pub(super) fn names(&self, port: &ServicePort) -> bool {
        match self {
            Self::Number(number) => port.port == *number,
            Self::Name(name) => port.name == *name,
        }
    }
}
