//! Which direct Services are cold, and which pods their held connections may go to. Pure; owned by the hold's task.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use interceptor_core::{
    Endpoints, ObjectKey, Route, RouteEntry, Snapshot, Upstream, UpstreamId,
    direct::Direct,
    frontends::{Claims, Full, Heat, Room, claim},
    holding::Flow,
    route::{DataPath, Target},
};

use crate::agent::settle::Settling;

/// What is known of the direct Services.
#[derive(Debug, Default)]
pub(super) struct Services {
    settling: Settling,
    pods: BTreeMap<UpstreamId, Pods>,
    /// What each is: ids are used again.
    targets: BTreeMap<UpstreamId, Target>,
    /// The direct routes that lead to each.
    routes: HashMap<UpstreamId, Vec<Arc<RouteEntry>>>,
    claims: Claims,
    outside: bool,
    /// Addresses that were warm for an agent before, until the first snapshot.
    warm: BTreeSet<SocketAddr>,
}

/// The ready pods of an upstream, and where they are.
#[derive(Debug)]
struct Pods {
    endpoints: Endpoints,
    direct: Arc<Direct>,
    addresses: Vec<SocketAddr>,
}

/// What a change of the snapshot, or the time, means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Upstreams whose pods have changed.
    pub(super) pods: Vec<UpstreamId>,
    /// Upstreams that have just settled.
    pub(super) settled: Vec<UpstreamId>,
    /// When to look again though nothing was published.
    pub(super) again: Option<Duration>,
    /// Addresses that led to another upstream before, or to one that is another Service's now.
    pub(super) moved: BTreeSet<SocketAddr>,
    /// Upstreams that other routes lead to.
    pub(super) recounted: BTreeSet<UpstreamId>,
}

// === impl Services ===

impl Services {
    /// Goes on where an agent before has ended: with what was warm at these addresses, the node's own rules are sure to know of pods.
    pub(super) fn after(warm: BTreeSet<SocketAddr>) -> Self {
        Self { warm, ..Self::default() }
    }

    /// Takes a snapshot in.
    pub(super) fn update(&mut self, snapshot: &Snapshot, node: &[IpAddr], room: Room, now: Duration) -> Change {
        let mut change = Change::default();
        let left = left_to_interceptors(snapshot);
        let held = || snapshot.upstreams().map(AsRef::as_ref).filter(|upstream| !leads_to(upstream, &left));
        let direct = || held().filter(|upstream| upstream.direct.is_some());
        let warm = mem::take(&mut self.warm);
        let was_warm = |direct: &Direct| {
            !direct.frontends.is_empty() && direct.frontends.iter().all(|address| warm.contains(address))
        };
        let had_settled = |upstream: &Upstream| upstream.direct.as_deref().is_some_and(was_warm);
        change.again = self.settling.update(direct(), had_settled, now);
        let mut pods = BTreeMap::new();
        for (upstream, direct) in held().filter_map(|upstream| Some((upstream, upstream.direct.as_ref()?))) {
            let current = match self.pods.remove(&upstream.id) {
                Some(known) if known.are_of(upstream, direct) => known,
                known => {
                    let new = Pods::of(upstream, direct);
                    if known.is_none_or(|known| known.addresses != new.addresses) {
                        change.pods.push(upstream.id);
                    }
                    new
                }
            };
            pods.insert(upstream.id, current);
        }
        self.pods = pods;
        let is_for_outside = |direct: &Direct| direct.node_port.is_some() || !direct.external.is_empty();
        self.outside = direct().filter_map(|upstream| upstream.direct.as_deref()).any(is_for_outside);
        let heat = |id| self.heat(id, now);
        let claims = claim(held(), node, heat, room);
        let warm = |table: &Claims, id: &u32| table.table.services.get(id) == Some(&Heat::Warm);
        let settled = claims.table.services.keys().filter(|id| warm(&claims, id) && !warm(&self.claims, id));
        change.settled = settled.map(|id| UpstreamId(*id)).collect();
        let targets: BTreeMap<_, _> = direct().map(|upstream| (upstream.id, upstream.target.clone())).collect();
        let is_same = |id: &UpstreamId| self.targets.get(id) == targets.get(id);
        if self.claims.upstreams != claims.upstreams || !self.targets.keys().all(is_same) {
            let first =
                |claims: &Claims, addr: &SocketAddr| claims.upstreams.get(addr).and_then(|ids| ids.first()).copied();
            let stays = |addr: &SocketAddr| {
                let before = first(&self.claims, addr);
                before == first(&claims, addr) && before.is_none_or(|id| is_same(&id))
            };
            change.moved = self.claims.upstreams.keys().filter(|addr| !stays(addr)).copied().collect();
        }
        let routes = routes_by_upstream(snapshot);
        let ids = |routes: &[Arc<RouteEntry>]| routes.iter().map(|entry| entry.id).collect::<Vec<_>>();
        let are_others =
            |(id, of): &(&UpstreamId, &Vec<_>)| ids(of) != self.routes.get(id).map(|of| ids(of)).unwrap_or_default();
        change.recounted = routes.iter().filter(are_others).map(|(id, _)| *id).collect();
        (self.routes, self.targets, self.claims) = (routes, targets, claims);
        change
    }

    /// What the kernel's maps should hold.
    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether clients from outside may connect to any.
    pub(super) fn has_outside(&self) -> bool {
        self.outside
    }

    /// The upstreams that clients reach at an address; the first is the one that connections are held for.
    pub(super) fn at(&self, address: SocketAddr) -> &[UpstreamId] {
        self.claims.upstreams.get(&address).map(Vec::as_slice).unwrap_or_default()
    }

    /// The routes that clients at an address are counted for, and how long a connection of theirs may wait: the longest that
    /// any of them allows; for ever, if one does not say.
    pub(super) fn routes_at(&self, address: SocketAddr) -> (Vec<&Arc<RouteEntry>>, Option<Duration>) {
        let routes: Vec<_> = self.at(address).iter().filter_map(|id| self.routes.get(id)).flatten().collect();
        let waits = routes.iter().map(|entry| entry.route.timeouts.readiness.filter(|wait| !wait.is_zero()));
        let longest = waits.reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten();
        (routes, longest)
    }

    /// Whether an address takes this client's connections, at a node with these: a load balancer's may be for some networks alone.
    pub(super) fn takes(&self, flow: &Flow, node: &[(IpAddr, String)]) -> bool {
        let known = self.at(flow.service).first().and_then(|id| self.pods.get(id));
        let of_client = (flow.service, flow.client.ip());
        known.is_none_or(|known| known.direct.takes(of_client, node.iter().map(|(ip, _)| *ip)))
    }

    /// The ready pods of an upstream.
    pub(super) fn pods(&self, id: UpstreamId) -> &[SocketAddr] {
        self.pods.get(&id).map(|pods| pods.addresses.as_slice()).unwrap_or_default()
    }

    /// Whether the node's own rules are sure to know the pods behind an address, too.
    pub(super) fn is_settled(&self, address: SocketAddr, now: Duration) -> bool {
        self.at(address).first().is_some_and(|id| self.heat(*id, now) == Heat::Warm)
    }

    fn heat(&self, id: UpstreamId, now: Duration) -> Heat {
        self.settling.heat(id, now)
    }
}

// === impl Pods ===

impl Pods {
    fn of(upstream: &Upstream, direct: &Arc<Direct>) -> Self {
        let endpoints = upstream.endpoints.clone();
        let others = direct.of_the_other_family(&endpoints);
        let addresses = endpoints.keys().chain(&others).copied().collect();
        Self { endpoints, direct: Arc::clone(direct), addresses }
    }

    /// Whether they are those of an upstream as it is now, as far as can be told without a look at each.
    fn are_of(&self, upstream: &Upstream, direct: &Arc<Direct>) -> bool {
        Arc::ptr_eq(&self.direct, direct) && self.endpoints == upstream.endpoints
    }
}

/// Addresses of Services whose cold connections must be requests to interceptors, which are listed as their endpoints: the
/// node's own rules lead there.
pub(crate) fn left_to_interceptors(snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
    let routes = snapshot.routes.values().filter(|entry| is_left_to_interceptors(&entry.route));
    let upstreams = routes.filter_map(|entry| snapshot.upstream_of(entry)?.direct.as_ref());
    upstreams.flat_map(|direct| direct.frontends.iter().copied()).collect()
}

/// Whether connections to a route's target are not held.
pub(crate) fn is_left_to_interceptors(route: &Route) -> bool {
    route.entrance().is_some() && route.needs_proxy_while_cold()
}

/// Whether one of an upstream's addresses is among these.
pub(crate) fn leads_to(upstream: &Upstream, addresses: &BTreeSet<SocketAddr>) -> bool {
    upstream.direct.as_ref().is_some_and(|direct| direct.frontends.iter().any(|addr| addresses.contains(addr)))
}

/// The direct routes by where they lead.
fn routes_by_upstream(snapshot: &Snapshot) -> HashMap<UpstreamId, Vec<Arc<RouteEntry>>> {
    let mut routes = HashMap::<_, Vec<_>>::new();
    for entry in snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct) {
        routes.entry(entry.upstream).or_default().push(Arc::clone(entry));
    }
    routes
}

/// Names of the Services that the maps have no room for, and why.
pub(crate) fn left_out<S>(snapshot: &Snapshot, claims: &Claims<S>) -> Vec<(ObjectKey, String)> {
    let why = |full: &Full| match full {
        Full::Frontends => "the map of Services' addresses is full".to_owned(),
        Full::Services => "the map of Services is full".to_owned(),
    };
    let named = claims.left_out.iter();
    named.filter_map(|(id, full)| Some((snapshot.upstream(*id)?.target.service.clone(), why(full)))).collect()
}

#[cfg(test)]
mod tests {
    use interceptor_core::{
        Index, Route,
        index::Event,
        inflight::NoSink,
        route::{PortRef, RouteKind, Shadow, Target, Timeouts, Traffic},
        service::{Reach, Service, ServicePort, Slice, SliceEndpoint, SlicePort},
    };

    use super::*;
    use crate::agent::settle::SETTLE;

    const ROOM: Room = Room { frontends: 10, services: 10 };
    const ADDRESS: &str = "10.96.0.1:80";

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn route(name: &str, data_path: DataPath, readiness: Option<u64>) -> Event {
        Event::Route(Route {
            data_path,
            traffic: Traffic::Tcp,
            timeouts: Timeouts { readiness: readiness.map(Duration::from_secs), ..Timeouts::default() },
            ..Route::new(
                RouteKind::InterceptorRoute,
                key(name),
                Target { service: key("web"), port: PortRef::Number(80) },
            )
        })
    }

    #[test]
    fn what_needs_a_proxy_while_cold_is_left_to_interceptors_if_any_stand_in_for_it() {
        let wants = |port: Option<u16>, change: fn(&mut Route)| {
            let Event::Route(mut route) = route("web", DataPath::Direct, None) else { unreachable!("it is one") };
            route.traffic = Traffic::Http;
            route.shadow = port.map(|port| Shadow { port: port.try_into().unwrap(), published: true, after: None });
            change(&mut route);
            let mut services = Services::default();
            services.update(&index(vec![Event::Route(route)]).snapshot(), &[], ROOM, secs(1));
            services.claims().table.frontends.is_empty()
        };
        let fallback: fn(&mut Route) = |route| {
            route.fallback = Some(Target { service: key("other"), port: PortRef::Number(80) });
        };
        let patient: fn(&mut Route) = |route| route.timeouts.readiness = Some(secs(128));
        assert!(wants(Some(20_000), fallback) && wants(Some(20_000), patient));
        assert!(!wants(None, fallback), "nobody else would take its connections");
        assert!(!wants(Some(20_000), |route| route.timeouts.readiness = Some(secs(127))));
        assert!(!wants(Some(20_000), |_| {}));
        assert!(!wants(Some(20_000), |route| {
            route.traffic = Traffic::Tcp;
            route.timeouts.readiness = Some(secs(600));
        }));
    }

    fn slice(pods: &[&str]) -> Event {
        let endpoint = |pod: &&str| SliceEndpoint {
            addresses: vec![pod.parse().unwrap()],
            ready: true,
            terminating: false,
            pod: None,
            uid: None,
            node: None,
        };
        Event::Slice(Slice {
            key: key("web-1"),
            service: key("web"),
            ports: vec![SlicePort { name: "".into(), port: 8080 }],
            endpoints: pods.iter().map(endpoint).collect(),
        })
    }

    fn index(routes: Vec<Event>) -> Index {
        let mut index = Index::new(1, Arc::new(NoSink));
        for route in routes {
            index.apply(route);
        }
        let port = ServicePort { name: "".into(), port: 80, app_protocol: None, node_port: None };
        let addresses = vec!["10.96.0.1".parse().unwrap()];
        index.apply(Event::Service(Service { key: key("web"), ports: vec![port], addresses, reach: Reach::default() }));
        index
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_service_stays_cold_until_the_nodes_own_rules_are_sure_to_know_its_pod() {
        let mut index = index(vec![route("direct", DataPath::Direct, None)]);
        let mut services = Services::default();
        let id = UpstreamId(0);
        let change = services.update(&index.snapshot(), &[], ROOM, secs(1));
        assert_eq!((change.again, services.claims().table.services[&0]), (None, Heat::Cold));
        index.apply(slice(&["10.0.0.1"]));
        let change = services.update(&index.snapshot(), &[], ROOM, secs(10));
        assert_eq!(change, Change { pods: vec![id], again: Some(secs(10) + SETTLE), ..Change::default() });
        assert_eq!(services.claims().table.services[&0], Heat::Cold);
        assert_eq!(services.pods(id).len(), 1);
        let address = ADDRESS.parse().unwrap();
        assert!(!services.is_settled(address, secs(10)));
        let change = services.update(&index.snapshot(), &[], ROOM, secs(10) + SETTLE);
        assert_eq!(change, Change { settled: vec![id], ..Change::default() });
        assert!(services.is_settled(address, secs(10) + SETTLE));
        assert_eq!(services.claims().table.services[&0], Heat::Warm);
        index.apply(slice(&[]));
        services.update(&index.snapshot(), &[], ROOM, secs(20));
        assert_eq!(services.claims().table.services[&0], Heat::Cold, "at once");
    }

    #[test]
    fn a_service_that_was_warm_for_an_agent_before_is_warm_at_once_and_never_again_without_a_wait() {
        let mut index = index(vec![route("direct", DataPath::Direct, None)]);
        index.apply(slice(&["10.0.0.1"]));
        let mut services = Services::after([ADDRESS.parse().unwrap()].into());
        let mut heat = |index: &Index, now| {
            services.update(&index.snapshot(), &[], ROOM, now);
            services.claims().table.services[&0]
        };
        assert_eq!(heat(&index, secs(10)), Heat::Warm);
        index.apply(slice(&[]));
        assert_eq!(heat(&index, secs(11)), Heat::Cold);
        index.apply(slice(&["10.0.0.1"]));
        assert_eq!(heat(&index, secs(12)), Heat::Cold);
        assert_eq!(heat(&index, secs(12) + SETTLE), Heat::Warm);
        other(&mut index, "cold", "10.96.0.2");
        let mut services = Services::after(["10.96.0.2:80".parse().unwrap()].into());
        services.update(&index.snapshot(), &[], ROOM, secs(20));
        assert!(services.claims().table.services.values().all(|heat| *heat == Heat::Cold), "one was, one has no pod");
    }

    /// A direct route to a Service of this name, which has this address.
    fn other(index: &mut Index, name: &str, address: &str) {
        index.apply(Event::Route(Route {
            data_path: DataPath::Direct,
            traffic: Traffic::Tcp,
            ..Route::new(
                RouteKind::InterceptorRoute,
                key(name),
                Target { service: key(name), port: PortRef::Number(80) },
            )
        }));
        let port = ServicePort { name: "".into(), port: 80, app_protocol: None, node_port: None };
        let addresses = vec![address.parse().unwrap()];
        index.apply(Event::Service(Service { key: key(name), ports: vec![port], addresses, reach: Reach::default() }));
    }

    #[test]
    fn an_address_whose_route_has_gone_leads_elsewhere_also_when_its_id_is_used_again() {
        let mut index = index(vec![route("direct", DataPath::Direct, None)]);
        index.apply(slice(&["10.0.0.1"]));
        let mut services = Services::default();
        services.update(&index.snapshot(), &[], ROOM, secs(1));
        services.update(&index.snapshot(), &[], ROOM, secs(1) + SETTLE);
        let address = ADDRESS.parse().unwrap();
        assert!(services.is_settled(address, secs(1) + SETTLE));
        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("direct")));
        other(&mut index, "other", "10.96.0.1");
        let change = services.update(&index.snapshot(), &[], ROOM, secs(10));
        assert_eq!(services.at(address), [UpstreamId(0)], "the same id, and the same address");
        assert_eq!(change.moved, BTreeSet::from([address]));
        assert!(services.pods(UpstreamId(0)).is_empty());
        assert!(!services.is_settled(address, secs(10)), "another Service's pods have settled");
        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("other")));
        let change = services.update(&index.snapshot(), &[], ROOM, secs(11));
        assert_eq!(change.moved, BTreeSet::from([address]), "it leads nowhere");
    }

    #[test]
    fn a_route_that_is_made_anew_is_another_that_is_to_be_counted_for() {
        let mut index = index(vec![route("direct", DataPath::Direct, None)]);
        let mut services = Services::default();
        services.update(&index.snapshot(), &[], ROOM, secs(1));
        let recounted = |change: Change| {
            assert!(change.moved.is_empty());
            change.recounted
        };
        index.apply(route("direct", DataPath::Direct, Some(5)));
        assert!(
            recounted(services.update(&index.snapshot(), &[], ROOM, secs(2))).is_empty(),
            "an edit keeps its counters"
        );
        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("direct")));
        index.apply(route("direct", DataPath::Direct, None));
        let id = BTreeSet::from([UpstreamId(0)]);
        assert_eq!(recounted(services.update(&index.snapshot(), &[], ROOM, secs(3))), id);
        index.apply(route("second", DataPath::Direct, None));
        assert_eq!(recounted(services.update(&index.snapshot(), &[], ROOM, secs(4))), id);
    }

    #[test]
    fn only_direct_routes_count_and_the_longest_wait_that_any_allows_holds() {
        let direct = |name, wait| route(name, DataPath::Direct, wait);
        let waits = |routes: Vec<Event>| {
            let snapshot = index(routes).snapshot();
            let mut services = Services::default();
            services.update(&snapshot, &[], ROOM, secs(1));
            let (routes, wait) = services.routes_at(ADDRESS.parse().unwrap());
            (routes.len(), wait)
        };
        assert_eq!(waits(vec![route("p", DataPath::Proxy, Some(5))]), (0, None));
        assert_eq!(waits(vec![direct("a", Some(5)), direct("b", Some(9))]), (2, Some(secs(9))));
        assert_eq!(waits(vec![direct("a", Some(5)), direct("b", None)]), (2, None));
        assert_eq!(waits(vec![direct("a", Some(0))]), (1, None), "zero is none");
    }
}
