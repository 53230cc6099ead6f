//! What holds for any sequence of events.

use std::collections::{BTreeSet, HashMap as Std};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

/// All that can be seen of an index, but for ids, which depend on the order of events.
#[derive(Debug, PartialEq)]
struct View {
    routes: Vec<(Route, [Option<Upstream>; 2])>,
    hits: Vec<Option<(RouteKind, ObjectKey)>>,
    bodies: BTreeMap<ObjectKey, ResponseBodies>,
    problems: Vec<Problem>,
}

/// What the last events said of each object.
#[derive(Clone, Debug, Default)]
struct Objects {
    routes: BTreeMap<(RouteKind, ObjectKey), Route>,
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, Slice>,
    bodies: BTreeMap<ObjectKey, ResponseBodies>,
}

const PODS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "::1"];
const HOSTS: [&str; 4] = ["a.com", "b.com", "*.com", "*"];

fn view(index: &Index) -> View {
    let snapshot = index.snapshot();
    let upstream = |entry: &RouteEntry, backend| {
        Some(Upstream { id: UpstreamId(0), ..(**snapshot.backend_of(entry, backend)?).clone() })
    };
    let backends = |entry: &RouteEntry| [Backend::Target, Backend::Fallback].map(|backend| upstream(entry, backend));
    let requests = HOSTS.iter().flat_map(|host| ["/", "/x"].map(|path| (host.replace('*', "z"), path)));
    let found = |(host, path): (String, &str)| {
        let entry = snapshot.table.lookup(&host, path, &HeaderMap::new())?;
        Some((entry.route.kind, entry.route.key.clone()))
    };
    let mut problems = index.problems();
    problems.sort();
    View {
        routes: snapshot.routes.values().map(|entry| (entry.route.clone(), backends(entry))).collect(),
        hits: requests.map(found).collect(),
        bodies: snapshot.bodies.iter().map(|(key, bodies)| (key.clone(), (**bodies).clone())).collect(),
        problems,
    }
}

impl Objects {
    fn take(&mut self, event: Event) {
        match event {
            Event::Route(route) => drop(self.routes.insert((route.kind, route.key.clone()), route)),
            Event::RouteGone(kind, key) => drop(self.routes.remove(&(kind, key))),
            Event::Service(service) => drop(self.services.insert(service.key.clone(), service)),
            Event::ServiceGone(key) => drop(self.services.remove(&key)),
            Event::Slice(slice) => drop(self.slices.insert(slice.key.clone(), slice)),
            Event::SliceGone(key) => drop(self.slices.remove(&key)),
            Event::Bodies(bodies) => drop(self.bodies.insert(bodies.key.clone(), bodies)),
            Event::BodiesGone(key) => drop(self.bodies.remove(&key)),
            Event::Namespace(..) | Event::NamespaceGone(_) => unreachable!("they mean nothing without the guard"),
        }
    }

    /// Whether a slice of the Service lists a pod that may get ready and is not.
    fn is_starting(&self, service: &ObjectKey, pod: IpAddr) -> bool {
        let slices = self.slices.values().filter(|slice| slice.service == *service);
        let mut starting =
            slices.flat_map(|slice| &slice.endpoints).filter(|listed| !listed.ready && !listed.terminating);
        starting.any(|listed| listed.addresses.first() == Some(&pod))
    }

    fn events(&self) -> Vec<Event> {
        let routes = self.routes.values().cloned().map(Event::Route);
        let services = self.services.values().cloned().map(Event::Service);
        let slices = self.slices.values().cloned().map(Event::Slice);
        routes.chain(services).chain(slices).chain(self.bodies.values().cloned().map(Event::Bodies)).collect()
    }

    fn relists(&self) -> Vec<Relist> {
        let routes = |kind| {
            let routes = self.routes.values().filter(|route| route.kind == kind).cloned();
            Relist::Routes(kind, routes.collect())
        };
        vec![
            routes(RouteKind::InterceptorRoute),
            routes(RouteKind::HttpScaledObject),
            Relist::Services(self.services.values().cloned().collect()),
            Relist::Slices(self.slices.values().cloned().collect()),
            Relist::Bodies(self.bodies.values().cloned().collect()),
        ]
    }
}

fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["p", "q", "r"])
}

fn kind() -> impl Strategy<Value = RouteKind> {
    select(vec![RouteKind::InterceptorRoute, RouteKind::HttpScaledObject])
}

fn any_route() -> impl Strategy<Value = Route> {
    let port = prop_oneof![Just(PortRef::Number(80)), Just(PortRef::Number(81)), Just(PortRef::Name("http".into()))];
    let rules = vec((vec(select(HOSTS.to_vec()), 0..3), option::of(select(vec!["/", "/x", "x/"]))), 0..3);
    let fallback = option::of((name(), port.clone()));
    let probing = select(vec![Probing::Unsaid, Probing::Refused, probe()]);
    (kind(), name(), 0..2_i64, rules, name(), port, fallback, probing).prop_map(|given| {
        let (kind, name, created, rules, service, port, fallback, probing) = given;
        let rules = rules.into_iter().map(|(hosts, path)| Rule {
            hosts: hosts.into_iter().map(str::to_owned).collect(),
            paths: path.into_iter().map(str::to_owned).collect(),
            headers: Vec::new(),
        });
        let target = Target { service: key(service), port };
        let fallback = fallback.map(|(service, port)| Target { service: key(service), port });
        let data_path = if created % 2 == 0 { DataPath::Proxy } else { DataPath::Direct };
        Route { kind, created, rules: rules.collect(), target, data_path, fallback, probing, ..route(name, "") }
    })
}

fn ports() -> impl Strategy<Value = Vec<(&'static str, u16)>> {
    vec((select(vec!["", "http"]), 80..82_u16), 0..3)
}

fn any_service() -> impl Strategy<Value = Service> {
    (name(), ports(), option::of(any::<bool>())).prop_map(|(name, ports, prefers_v6)| {
        let reach = crate::service::Reach { prefers_v6, ..Default::default() };
        Service { reach, ..service(name, &ports) }
    })
}

fn any_slice() -> impl Strategy<Value = Slice> {
    let listed = (select(PODS.to_vec()), any::<bool>(), any::<bool>(), option::of(select(vec!["a", "b"])));
    (name(), name(), ports(), vec(listed, 0..4)).prop_map(|(name, service, ports, listed)| {
        let addresses: Vec<_> = listed.iter().map(|(address, ..)| *address).collect();
        let mut slice = slice(name, service, &ports, &addresses);
        for (endpoint, (_, ready, terminating, pod)) in slice.endpoints.iter_mut().zip(listed) {
            (endpoint.ready, endpoint.terminating, endpoint.pod) = (ready, terminating, pod.map(Into::into));
        }
        slice
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => any_route().prop_map(Event::Route),
        1 => (kind(), name()).prop_map(|(kind, name)| Event::RouteGone(kind, key(name))),
        2 => any_service().prop_map(Event::Service),
        1 => name().prop_map(|name| Event::ServiceGone(key(name))),
        3 => any_slice().prop_map(Event::Slice),
        1 => name().prop_map(|name| Event::SliceGone(key(name))),
        1 => (name(), vec(name(), 0..3)).prop_map(|(name, keys)| {
            let data = keys.into_iter().map(|name| (name.into(), name.into())).collect();
            Event::Bodies(ResponseBodies { key: key(name), data })
        }),
        1 => name().prop_map(|name| Event::BodiesGone(key(name))),
    ]
}

proptest! {
    #[test]
    fn any_order_of_events_gives_the_same_result(events in vec(event(), 0..40), seed in any::<u64>()) {
        let (mut grown, mut objects) = (index(), Objects::default());
        for event in events {
            grown.apply(event.clone());
            objects.take(event);
        }
        let mut shuffled = objects.events();
        shuffled.sort_by_key(|event| {
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(&(seed, format!("{event:?}")), &mut hasher);
            std::hash::Hasher::finish(&hasher)
        });
        let mut made = index();
        for event in shuffled {
            made.apply(event);
        }
        prop_assert_eq!(view(&grown), view(&made));
    }

    #[test]
    fn a_relist_is_the_same_as_the_events_it_stands_for(
        before in vec(event(), 0..20),
        missed in vec(event(), 0..20),
    ) {
        let (mut told, mut relisted, mut objects) = (index(), index(), Objects::default());
        for event in before {
            relisted.apply(event.clone());
            told.apply(event.clone());
            objects.take(event);
        }
        for event in missed {
            told.apply(event.clone());
            objects.take(event);
        }
        for relist in objects.relists() {
            relisted.reset(relist);
        }
        prop_assert_eq!(view(&told), view(&relisted));
    }

    #[test]
    fn what_changes_step_by_step_is_the_same_as_all_of_it_made_anew(
        steps in vec((event(), option::of((name(), select(PODS.to_vec())))), 0..40),
    ) {
        let (mut grown, mut objects, mut answered) = (index(), Objects::default(), BTreeSet::new());
        for (event, answer) in steps {
            grown.apply(event.clone());
            objects.take(event);
            if let Some((service, pod)) = answer {
                grown.answered(&key(service), pod.parse().unwrap());
                answered.insert((key(service), pod.parse().unwrap()));
            }
            answered.retain(|(service, pod)| objects.is_starting(service, *pod));
            // Routes come last, so that each target is looked at once.
            let mut made = index();
            let (routes, others): (Vec<_>, Vec<_>) =
                objects.events().into_iter().partition(|event| matches!(event, Event::Route(_)));
            others.into_iter().chain(routes).for_each(|event| made.apply(event));
            for (service, pod) in &answered {
                made.answered(service, *pod);
            }
            prop_assert_eq!(view(&grown), view(&made));
        }
    }

    #[test]
    fn nothing_is_left_when_all_is_deleted(events in vec(event(), 0..40)) {
        let (mut index, mut objects) = (index(), Objects::default());
        for event in events {
            index.apply(event.clone());
            objects.take(event);
        }
        let Objects { routes, services, slices, bodies } = objects;
        let routes = routes.into_keys().map(|(kind, key)| Event::RouteGone(kind, key));
        let services = services.into_keys().map(Event::ServiceGone);
        let slices = slices.into_keys().map(Event::SliceGone);
        for event in routes.chain(services).chain(slices).chain(bodies.into_keys().map(Event::BodiesGone)) {
            index.apply(event);
        }
        let snapshot = index.snapshot();
        prop_assert!(snapshot.table.is_empty() && snapshot.routes.is_empty());
        prop_assert_eq!(snapshot.upstreams().count(), 0);
        prop_assert!(index.problems().is_empty());
        prop_assert!(index.claims.is_empty() && index.upstreams.is_empty());
        prop_assert!(index.bodies.is_empty() && snapshot.bodies.is_empty());
        prop_assert!(index.shadowed.is_empty() && index.refused.is_empty());
    }

    #[test]
    fn every_upstream_that_changed_is_told_and_ids_stay_dense(events in vec(event(), 0..40)) {
        let mut index = index();
        let mut most = 0;
        for event in events {
            let before = index.snapshot();
            index.take_changed();
            index.apply(event);
            let (after, changed) = (index.snapshot(), index.take_changed());
            for id in (0..64).map(UpstreamId) {
                let same = before.upstream(id) == after.upstream(id);
                prop_assert!(same || changed.contains(&id), "{:?} changed in silence", id);
            }
            most = most.max(after.upstreams().count());
            let highest = after.upstreams().map(|upstream| upstream.id.0).max();
            // Two more, since a route that moves takes its new upstreams before it lets go of the old ones.
            prop_assert!(highest.is_none_or(|id| usize::try_from(id).unwrap() <= most + 1), "ids are used again");
            let targets: Std<_, _> = after.upstreams().map(|upstream| (upstream.target.clone(), upstream.id)).collect();
            prop_assert_eq!(targets.len(), after.upstreams().count(), "one upstream for each target");
            for entry in after.routes.values() {
                prop_assert_eq!(targets.get(&entry.route.target), Some(&entry.upstream));
                let fallback = entry.route.fallback.as_ref().map(|fallback| targets[fallback]);
                prop_assert_eq!(entry.fallback, fallback);
                prop_assert!(after.route(entry.id).is_some_and(|same| Arc::ptr_eq(same, entry)));
            }
        }
    }
}
