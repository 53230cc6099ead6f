//! Which Services are steered, and to which port of interceptors. Pure; owned by the steering's task.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use interceptor_core::{
    ObjectKey, Snapshot, Upstream, UpstreamId,
    frontends::{Claims, Heat, Room, claim},
};

use crate::agent::{
    hold::{leads_to, left_to_interceptors},
    settle::Settling,
};

/// What is known of Services that may be steered.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    settling: Settling,
    claims: Claims<NonZeroU16>,
    /// What an agent before has steered, if there was one just before the first snapshot.
    steered: Option<BTreeSet<SocketAddr>>,
}

// === impl Wanted ===

impl Wanted {
    /// Goes on where an agent before has ended, that has steered these, if there was one: what else has a pod had settled.
    pub(super) fn after(steered: Option<BTreeSet<SocketAddr>>) -> Self {
        Self { steered, ..Self::default() }
    }

    /// Takes a snapshot in; `all` takes every cold Service of a direct route for steered, and not only those that are left to
    /// interceptors. When to look again though nothing was published.
    pub(super) fn update(
        &mut self,
        snapshot: &Snapshot,
        all: bool,
        (node, room): (&[IpAddr], Room),
        now: Duration,
    ) -> Option<Duration> {
        let (left, ports) = (left_to_interceptors(snapshot), ports(snapshot));
        let port = |id| snapshot.upstream(id).and_then(|upstream| ports.get(&upstream.target.service).copied());
        let may = || {
            let direct = snapshot.upstreams().map(AsRef::as_ref).filter(|upstream| upstream.direct.is_some());
            direct.filter(|upstream| (all || leads_to(upstream, &left)) && port(upstream.id).is_some())
        };
        let steered = self.steered.take();
        let had_settled = |upstream: &Upstream| steered.as_ref().is_some_and(|steered| !leads_to(upstream, steered));
        let again = self.settling.update(may(), had_settled, now);
        let cold: BTreeMap<UpstreamId, NonZeroU16> = may()
            .filter(|upstream| self.settling.heat(upstream.id, now) == Heat::Cold)
            .filter_map(|upstream| Some((upstream.id, port(upstream.id)?)))
            .collect();
        self.claims = claim(may().filter(|upstream| cold.contains_key(&upstream.id)), node, |id| cold[&id], room);
        again
    }

    /// What the kernel's maps should hold.
    pub(super) fn claims(&self) -> &Claims<NonZeroU16> {
        &self.claims
    }
}

/// The port of interceptors that stands for each Service, where they are sure to listen at it: the operator has listed them
/// there, or would have by now.
fn ports(snapshot: &Snapshot) -> BTreeMap<&ObjectKey, NonZeroU16> {
    let mut ports = BTreeMap::new();
    for entry in snapshot.routes.values() {
        let service = &entry.route.target.service;
        let is_known = entry.route.shadow.is_some_and(|shadow| shadow.published || shadow.after.is_some());
        let Some(port) = entry.route.entrance().filter(|_| is_known) else { continue };
        // What comes there is another Service's, if two have got the same.
        if snapshot.entrances.get(&port).is_some_and(|entrance| entrance.service() == service) {
            ports.entry(service).and_modify(|first: &mut NonZeroU16| *first = port.min(*first)).or_insert(port);
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::{
        Index, Route,
        index::Event,
        inflight::NoSink,
        route::{DataPath, PortRef, RouteKind, Shadow, Target},
        service::{Reach, Service, ServicePort, Slice, SliceEndpoint, SlicePort},
    };

    use super::*;
    use crate::agent::settle::SETTLE;

    const ROOM: Room = Room { frontends: 10, services: 10 };

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    /// A direct route to the Service of the same name, with a fallback if it needs a proxy while it is cold.
    fn route(name: &str, shadow: Option<Shadow>, needs_proxy: bool) -> Route {
        let target = |name: &str| Target { service: key(name), port: PortRef::Number(80) };
        Route {
            data_path: DataPath::Direct,
            fallback: needs_proxy.then(|| target("other")),
            shadow,
            ..Route::new(RouteKind::InterceptorRoute, key(name), target(name))
        }
    }

    fn published(port: u16) -> Shadow {
        Shadow { port: port.try_into().unwrap(), published: true, after: None }
    }

    fn service(name: &str, ip: &str) -> Event {
        let port = ServicePort { name: "".into(), port: 80, app_protocol: None, node_port: Some(30_080) };
        let addresses = vec![ip.parse().unwrap()];
        Event::Service(Service { key: key(name), ports: vec![port], addresses, reach: Reach::default() })
    }

    fn slice(name: &str, pods: &[&str]) -> Event {
        let endpoint = |pod: &&str| SliceEndpoint {
            addresses: vec![pod.parse().unwrap()],
            ready: true,
            terminating: false,
            pod: None,
            uid: None,
            node: None,
        };
        Event::Slice(Slice {
            key: key(&format!("{name}-1")),
            service: key(name),
            ports: vec![SlicePort { name: "".into(), port: 8080 }],
            endpoints: pods.iter().map(endpoint).collect(),
        })
    }

    fn index(routes: impl IntoIterator<Item = Route>) -> Index {
        let mut index = Index::new(1, Arc::new(NoSink));
        for route in routes {
            index.apply(Event::Route(route));
        }
        index.apply(service("web", "10.96.0.1"));
        index.apply(service("db", "10.96.0.2"));
        index
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Where connections are steered, and to which port.
    fn steered_by(wanted: &Wanted) -> Vec<(String, u16)> {
        let table = &wanted.claims().table;
        let entry = |(addr, service): (&SocketAddr, &u32)| (addr.to_string(), table.services[service].get());
        table.frontends.iter().map(entry).collect()
    }

    fn of(routes: impl IntoIterator<Item = Route>, all: bool) -> Vec<(String, u16)> {
        let mut wanted = Wanted::default();
        wanted.update(&index(routes).snapshot(), all, (&[], ROOM), secs(1));
        steered_by(&wanted)
    }

    #[test]
    fn what_is_left_to_interceptors_is_steered_and_the_rest_if_all_is() {
        let routes = || [route("web", Some(published(20_000)), true), route("db", Some(published(20_001)), false)];
        assert_eq!(of(routes(), false), [("10.96.0.1:80".to_owned(), 20_000)]);
        let both = [("10.96.0.1:80".to_owned(), 20_000), ("10.96.0.2:80".to_owned(), 20_001)];
        assert_eq!(of(routes(), true), both);
        assert_eq!(of([route("web", None, true)], true), [], "there is no port to steer to");
        let proxied = Route { data_path: DataPath::Proxy, ..route("web", Some(published(20_000)), true) };
        assert_eq!(of([proxied], true), []);
    }

    #[test]
    fn a_port_at_which_interceptors_may_not_listen_yet_is_not_steered_to() {
        let shadow = |published, after| Some(Shadow { published, after, port: 20_000.try_into().unwrap() });
        let is_steered = |shadow| !of([route("web", shadow, true)], false).is_empty();
        assert!(!is_steered(shadow(false, None)));
        assert!(is_steered(shadow(true, None)));
        assert!(is_steered(shadow(false, Some(secs(0)))), "pods have been ready with it");
    }

    #[test]
    fn a_port_that_two_services_have_is_the_first_ones() {
        let mut second = route("web", Some(published(20_000)), true);
        second.created = 1;
        assert_eq!(
            of([route("db", Some(published(20_000)), true), second], false),
            [("10.96.0.2:80".to_owned(), 20_000)]
        );
    }

    #[test]
    fn a_service_is_left_alone_when_the_nodes_own_rules_are_sure_to_know_its_pod() {
        let mut index = index([route("web", Some(published(20_000)), true)]);
        let mut wanted = Wanted::default();
        let node: [IpAddr; 1] = [[192, 0, 2, 1].into()];
        let mut at = |index: &Index, now| {
            let again = wanted.update(&index.snapshot(), false, (&node, ROOM), now);
            (again, steered_by(&wanted).len())
        };
        assert_eq!(at(&index, secs(1)), (None, 2), "node ports, too");
        index.apply(slice("web", &["10.0.0.1"]));
        assert_eq!(at(&index, secs(10)), (Some(secs(10) + SETTLE), 2));
        assert_eq!(at(&index, secs(10) + SETTLE), (None, 0));
        index.apply(slice("web", &[]));
        assert_eq!(at(&index, secs(20)), (None, 2), "at once");
    }

    #[test]
    fn what_an_agent_before_has_not_steered_is_left_alone_if_it_has_a_pod() {
        let mut index =
            index([route("web", Some(published(20_000)), true), route("db", Some(published(20_001)), true)]);
        for name in ["web", "db"] {
            index.apply(slice(name, &["10.0.0.1"]));
        }
        let of = |steered: Option<&str>| {
            let mut wanted = Wanted::after(steered.map(|address| [address.parse().unwrap()].into()));
            wanted.update(&index.snapshot(), false, (&[], ROOM), secs(10));
            steered_by(&wanted)
        };
        assert_eq!(of(None).len(), 2, "there was none");
        assert_eq!(of(Some("10.96.0.2:80")), [("10.96.0.2:80".to_owned(), 20_001)]);
    }
}
