//! The addresses of the pods of those namespaces that routes leave out of their demand, as EndpointSlices list them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use interceptor_core::{ObjectKey, Snapshot, index::Event, service::Slice};
use tokio::sync::watch;

/// Addresses of one namespace. Each takes a place in a map of the kernel's for each route that leaves it out; those beyond
/// count as demand.
const MOST: usize = 1024;

/// By namespace.
pub(crate) type Addresses = Arc<BTreeMap<Arc<str>, BTreeSet<IpAddr>>>;

/// Follows what slices list. Owned by discovery.
#[derive(Debug)]
pub(super) struct Namespaces {
    wanted: BTreeSet<Arc<str>>,
    /// Of the wanted namespaces alone.
    slices: HashMap<ObjectKey, BTreeSet<IpAddr>>,
    changed: bool,
    routes_changed: bool,
    addresses: watch::Sender<Addresses>,
}

// === impl Namespaces ===

impl Namespaces {
    /// Follows none until a route names one.
    pub(super) fn new() -> (Self, watch::Receiver<Addresses>) {
        let (addresses, told) = watch::channel(Addresses::default());
        let (wanted, slices) = (BTreeSet::new(), HashMap::new());
        (Self { wanted, slices, changed: false, routes_changed: false, addresses }, told)
    }

    /// Takes a change in, before [`publish`](Self::publish).
    pub(super) fn take(&mut self, change: &Event) {
        match change {
            Event::Route(_) | Event::RouteGone(..) => self.routes_changed = true,
            Event::Slice(slice) if self.wanted.contains(slice.key.namespace()) => {
                self.changed = true;
                self.slices.insert(slice.key.clone(), listed(slice));
            }
            Event::SliceGone(key) => self.changed |= self.slices.remove(key).is_some(),
            _ => {}
        }
    }

    /// Tells what has changed. `known` are all slices of a namespace, to begin with.
    pub(super) fn publish<'a, I: Iterator<Item = &'a Slice>>(
        &mut self,
        snapshot: &Snapshot,
        known: impl Fn(Arc<str>) -> I,
    ) {
        if std::mem::take(&mut self.routes_changed) {
            let routes = snapshot.routes.values();
            let wanted: BTreeSet<_> = routes.flat_map(|entry| &entry.route.ignored.namespaces).cloned().collect();
            self.changed |= wanted != self.wanted;
            self.slices.retain(|key, _| wanted.contains(key.namespace()));
            for new in wanted.difference(&self.wanted) {
                self.slices.extend(known(Arc::clone(new)).map(|slice| (slice.key.clone(), listed(slice))));
            }
            self.wanted = wanted;
        }
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut all: BTreeMap<_, BTreeSet<_>> =
            self.wanted.iter().map(|name| (Arc::clone(name), BTreeSet::new())).collect();
        for (key, addresses) in &self.slices {
            if let Some(of) = all.get_mut(key.namespace()) {
                of.extend(addresses);
            }
        }
        for (namespace, addresses) in &mut all {
            if let Some(first) = addresses.iter().nth(MOST).copied() {
                tracing::warn!(%namespace, most = MOST, "a namespace has more pods than can be left out of demand");
                addresses.split_off(&first);
            }
        }
        self.addresses.send_replace(Arc::new(all));
    }
}

fn listed(slice: &Slice) -> BTreeSet<IpAddr> {
    slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).copied().collect()
}

#[cfg(test)]
mod tests {
    use interceptor_core::{
        Index, Route,
        index::Event,
        inflight::NoSink,
        network::Ignored,
        route::{DataPath, PortRef, RouteKind, Target, Traffic},
        service::SliceEndpoint,
    };

    use super::*;

    fn route(namespaces: &[&str]) -> Event {
        let key = ObjectKey::new("shop", "web");
        Event::Route(Route {
            data_path: DataPath::Direct,
            traffic: Traffic::Tcp,
            ignored: Ignored {
                networks: Vec::new(),
                namespaces: namespaces.iter().map(|name| (*name).into()).collect(),
            },
            ..Route::new(RouteKind::InterceptorRoute, key.clone(), Target { service: key, port: PortRef::Number(80) })
        })
    }

    fn slice(namespace: &str, name: &str, addresses: std::ops::Range<u32>) -> Event {
        let endpoint = |last: u32| SliceEndpoint {
            addresses: vec![IpAddr::V4((0x0a00_0000 + last).into())],
            ready: false,
            terminating: false,
            pod: None,
            uid: None,
            node: None,
        };
        let key = ObjectKey::new(namespace, name);
        let service = ObjectKey::new(namespace, "s");
        Event::Slice(Slice { key, service, ports: Vec::new(), endpoints: addresses.map(endpoint).collect() })
    }

    struct World(Index, Namespaces, watch::Receiver<Addresses>);

    impl World {
        fn new() -> Self {
            let (namespaces, told) = Namespaces::new();
            Self(Index::new(1, Arc::new(NoSink)), namespaces, told)
        }

        fn apply(&mut self, event: Event) {
            let Self(index, namespaces, _) = self;
            namespaces.take(&event);
            index.apply(event);
            let index = &*index;
            namespaces.publish(&index.snapshot(), |namespace| index.slices_in(namespace));
        }

        /// How many addresses each namespace has, if there is news.
        fn told(&mut self) -> Option<Vec<(String, usize)>> {
            let Self(_, _, told) = self;
            let is_new = told.has_changed().unwrap();
            let all = told.borrow_and_update();
            is_new.then(|| all.iter().map(|(name, addresses)| (name.to_string(), addresses.len())).collect())
        }
    }

    fn of(namespace: &str, addresses: usize) -> Vec<(String, usize)> {
        vec![(namespace.to_owned(), addresses)]
    }

    #[test]
    fn pods_of_a_namespace_are_known_while_a_route_names_it() {
        let mut world = World::new();
        world.apply(slice("monitoring", "a", 1..4));
        world.apply(slice("shop", "b", 4..5));
        assert_eq!(world.told(), None, "nobody has asked");
        world.apply(route(&["monitoring"]));
        assert_eq!(world.told(), Some(of("monitoring", 3)));
        world.apply(slice("monitoring", "c", 3..6));
        assert_eq!(world.told(), Some(of("monitoring", 5)), "one is in both");
        world.apply(Event::SliceGone(ObjectKey::new("monitoring", "a")));
        assert_eq!(world.told(), Some(of("monitoring", 3)));
        world.apply(slice("other", "d", 7..9));
        assert_eq!(world.told(), None);
        world.apply(route(&[]));
        assert_eq!(world.told(), Some(Vec::new()));
    }

    #[test]
    fn of_a_namespace_with_very_many_pods_some_are_left_out_of_what_is_left_out() {
        let mut world = World::new();
        world.apply(route(&["monitoring"]));
        world.apply(slice("monitoring", "a", 0..5000));
        assert_eq!(world.told(), Some(of("monitoring", MOST)));
    }
}
