//! Ports at which interceptors stand in for Services: whoever connects there has asked for that Service, whatever name its
//! requests have.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use crate::{
    ObjectKey, RouteEntry, RouteTable,
    route::{Headers, RouteKind, Traffic},
};

/// A port of interceptors that stands for a Service.
#[derive(Clone, Debug)]
pub struct Entrance {
    table: RouteTable,
    first: Arc<RouteEntry>,
}

/// All of them, and which routes each is made of.
#[derive(Debug, Default)]
pub(super) struct Entrances {
    all: imbl::OrdMap<NonZeroU16, Arc<Entrance>>,
    routes: BTreeMap<NonZeroU16, BTreeMap<Rank, Arc<RouteEntry>>>,
}

/// The older route goes before the younger.
type Rank = (i64, ObjectKey, RouteKind);

// === impl Entrance ===

impl Entrance {
    /// Of the routes of one port, in order. Two Services can have got the same port only by a hand that is not the operator's:
    /// it is the first one's.
    fn new<'a>(mut routes: impl Iterator<Item = &'a Arc<RouteEntry>> + Clone) -> Option<Self> {
        let mut table = RouteTable::default();
        let all = routes.clone();
        let first = Arc::clone(routes.next()?);
        for entry in all.filter(|entry| entry.route.target.service == first.route.target.service) {
            table.insert(entry);
        }
        Some(Self { table, first })
    }

    /// The Service that it stands for.
    pub fn service(&self) -> &ObjectKey {
        &self.first.route.target.service
    }

    /// What its clients speak.
    pub fn traffic(&self) -> Traffic {
        self.first.route.traffic
    }

    /// The route of what no rule matches: the oldest.
    pub fn first(&self) -> &Arc<RouteEntry> {
        &self.first
    }

    /// The route of a request: that of a rule that matches, or else the oldest of the Service's.
    pub fn lookup(
        &self,
        authority: &str,
        path: &(impl AsRef<[u8]> + ?Sized),
        headers: &impl Headers,
    ) -> &Arc<RouteEntry> {
        self.table.lookup(authority, path, headers).unwrap_or(&self.first)
    }
}

// === impl Entrances ===

impl Entrances {
    pub(super) fn all(&self) -> &imbl::OrdMap<NonZeroU16, Arc<Entrance>> {
        &self.all
    }

    pub(super) fn insert(&mut self, entry: &Arc<RouteEntry>) {
        let Some(port) = entry.route.entrance() else { return };
        self.routes.entry(port).or_default().insert(rank(entry), Arc::clone(entry));
        self.make(port);
    }

    pub(super) fn remove(&mut self, entry: &RouteEntry) {
        let Some(port) = entry.route.entrance() else { return };
        if let Some(routes) = self.routes.get_mut(&port) {
            routes.remove(&rank(entry));
        }
        self.make(port);
    }

    fn make(&mut self, port: NonZeroU16) {
        if let Some(entrance) = self.routes.get(&port).and_then(|routes| Entrance::new(routes.values())) {
            self.all.insert(port, Arc::new(entrance));
        } else {
            self.all.remove(&port);
            self.routes.remove(&port);
        }
    }
}

fn rank(entry: &RouteEntry) -> Rank {
    (entry.route.created, entry.route.key.clone(), entry.route.kind)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Index, Route,
        index::Event,
        inflight::NoSink,
        route::{DataPath, PortRef, Rule, Shadow, Target},
    };

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    fn route(name: &str, created: i64, (service, at): (&str, u16), hosts: &[&str]) -> Route {
        Route {
            created,
            rules: vec![Rule { hosts: hosts.iter().map(ToString::to_string).collect(), ..Rule::default() }],
            data_path: DataPath::Direct,
            shadow: Some(Shadow { port: port(at), published: true, after: Some(Duration::ZERO) }),
            ..Route::new(
                RouteKind::InterceptorRoute,
                ObjectKey::new("n", name),
                Target { service: ObjectKey::new("n", service), port: PortRef::Number(80) },
            )
        }
    }

    fn index(routes: impl IntoIterator<Item = Route>) -> Index {
        let mut index = Index::new(1, Arc::new(NoSink));
        routes.into_iter().for_each(|route| index.apply(Event::Route(route)));
        index
    }

    fn found(index: &Index, at: u16, host: &str) -> Option<String> {
        let snapshot = index.snapshot();
        let entrance = snapshot.entrances.get(&port(at))?;
        Some(entrance.lookup(host, "/", &http::HeaderMap::new()).route.key.name().to_owned())
    }

    #[test]
    fn a_host_that_no_rule_knows_is_the_oldest_routes() {
        let mut index =
            index([route("young", 2, ("web", 1), &["young.test"]), route("old", 1, ("web", 1), &["old.test"])]);
        assert_eq!(found(&index, 1, "young.test").as_deref(), Some("young"));
        assert_eq!(found(&index, 1, "10.96.0.1").as_deref(), Some("old"));
        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("n", "old")));
        assert_eq!(found(&index, 1, "10.96.0.1").as_deref(), Some("young"));
        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("n", "young")));
        assert!(index.snapshot().entrances.is_empty());
    }

    #[test]
    fn a_port_leads_to_one_service_alone() {
        let index = index([route("mine", 1, ("web", 1), &["a.test"]), route("theirs", 2, ("other", 1), &["b.test"])]);
        assert_eq!(found(&index, 1, "b.test").as_deref(), Some("mine"));
        assert_eq!(index.snapshot().entrances[&port(1)].service().name(), "web");
    }

    #[test]
    fn a_route_that_moves_to_another_port_or_to_the_proxy_leaves_its_own() {
        let mut index = index([route("r", 1, ("web", 1), &["a.test"])]);
        index.apply(Event::Route(route("r", 1, ("web", 2), &["a.test"])));
        assert_eq!((found(&index, 1, "x"), found(&index, 2, "x").as_deref()), (None, Some("r")));
        index.apply(Event::Route(Route { data_path: DataPath::Proxy, ..route("r", 1, ("web", 2), &["a.test"]) }));
        assert!(index.snapshot().entrances.is_empty());
    }
}
