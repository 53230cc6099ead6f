//! The index as its owner sees it: events in, snapshots and problems out.

use std::time::Duration;

use http::HeaderMap;

use super::*;
use crate::{
    direct::Life,
    inflight::NoSink,
    probe::{Action, Probe, Probing},
    route::{DataPath, PortRef, Rule, Target},
    service::{ServicePort, SliceEndpoint, SlicePort},
    upstream::{Protocol, Resolution},
};

mod guard;
mod properties;
mod reach;

fn index() -> Index {
    Index::new(1, Arc::new(NoSink))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn route(name: &str, host: &str) -> Route {
    Route {
        rules: vec![Rule { hosts: vec![host.to_owned()], ..Rule::default() }],
        ..Route::new(RouteKind::InterceptorRoute, key(name), Target { service: key("web"), port: PortRef::Number(80) })
    }
}

fn service(name: &str, ports: &[(&str, u16)]) -> Service {
    let ports = ports.iter().map(|(name, port)| ServicePort {
        name: (*name).into(),
        port: *port,
        app_protocol: None,
        node_port: None,
    });
    Service { key: key(name), ports: ports.collect(), addresses: Vec::new(), reach: crate::service::Reach::default() }
}

fn slice(name: &str, service: &str, ports: &[(&str, u16)], addresses: &[&str]) -> Slice {
    let endpoint = |address: &&str| SliceEndpoint {
        addresses: vec![address.parse().unwrap()],
        ready: true,
        terminating: false,
        pod: None,
        uid: None,
        node: None,
    };
    Slice {
        key: key(name),
        service: key(service),
        ports: ports.iter().map(|(name, port)| SlicePort { name: (*name).into(), port: *port }).collect(),
        endpoints: addresses.iter().map(endpoint).collect(),
    }
}

fn hit(snapshot: &Snapshot, host: &str) -> Option<String> {
    let entry = snapshot.table.lookup(host, "/", &HeaderMap::new())?;
    Some(format!("{} {}", entry.route.kind, entry.route.key.name()))
}

fn endpoints(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let upstream = snapshot.upstream_of(&snapshot.routes[&key(name)]).unwrap();
    upstream.endpoints.keys().map(ToString::to_string).collect()
}

#[test]
fn a_route_with_service_and_slice_becomes_endpoints_in_any_order() {
    let events = [
        Event::Route(route("r", "a.com")),
        Event::Service(service("web", &[("http", 80), ("admin", 81)])),
        Event::Slice(slice("web-1", "web", &[("admin", 9000), ("http", 8080)], &["10.0.0.2", "10.0.0.1"])),
        Event::Slice(slice("web-2", "web", &[("http", 8081)], &["10.0.0.3"])),
    ];
    for first in 0..events.len() {
        let mut index = index();
        for event in events.iter().cycle().skip(first).take(events.len()) {
            index.apply(event.clone());
        }
        let snapshot = index.snapshot();
        assert_eq!(hit(&snapshot, "a.com").as_deref(), Some("InterceptorRoute r"));
        assert_eq!(endpoints(&snapshot, "r"), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8081"]);
        assert!(index.problems().is_empty());
    }
}

#[test]
fn an_http_scaled_object_is_ignored_while_an_interceptor_route_has_its_name() {
    let scaled = Route { kind: RouteKind::HttpScaledObject, ..route("r", "old.com") };
    for scaled_first in [true, false] {
        let mut index = index();
        let mut events = [Event::Route(route("r", "new.com")), Event::Route(scaled.clone())];
        if scaled_first {
            events.reverse();
        }
        for event in events {
            index.apply(event);
        }
        let snapshot = index.snapshot();
        assert_eq!(hit(&snapshot, "new.com").as_deref(), Some("InterceptorRoute r"));
        assert_eq!(hit(&snapshot, "old.com"), None);
        assert_eq!(index.problems()[0].kind, ProblemKind::Shadowed);
        let id = snapshot.routes[&key("r")].id;

        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("r")));
        let snapshot = index.snapshot();
        assert_eq!(hit(&snapshot, "old.com").as_deref(), Some("HTTPScaledObject r"));
        assert_eq!(snapshot.routes[&key("r")].id, id, "the counters go on under the same name");

        index.apply(Event::RouteGone(RouteKind::HttpScaledObject, key("r")));
        assert_eq!(hit(&index.snapshot(), "old.com"), None);
        assert!(index.snapshot().table.is_empty());
    }
}

#[test]
fn a_missing_service_or_port_is_told_with_the_objects_name() {
    let mut index = index();
    index.apply(Event::Route(route("r", "a.com")));
    assert_eq!(index.problems()[0].message, "Service default/web does not exist");
    assert_eq!(index.problems()[0].object, key("r"));
    index.apply(Event::Service(service("web", &[("http", 8080), ("", 9090)])));
    assert_eq!(index.problems()[0].message, "Service default/web has no port 80: it has 8080 (http), 9090");
    assert_eq!(index.snapshot().upstreams().next().unwrap().resolution, Resolution::NoPort);
    index.apply(Event::Service(service("web", &[("http", 80)])));
    assert!(index.problems().is_empty());
    index.apply(Event::ServiceGone(key("web")));
    assert_eq!(index.problems()[0].kind, ProblemKind::NoService);
}

#[test]
fn the_older_route_and_then_the_later_name_wins_and_the_loser_is_told() {
    let mut index = index();
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Route(Route { created: 20, ..route("young", "A.com:80") }));
    index.apply(Event::Route(Route { created: 10, ..route("old", "a.com") }));
    assert_eq!(hit(&index.snapshot(), "a.com").as_deref(), Some("InterceptorRoute old"));
    let problems = index.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object, key("young"));
    assert_eq!(problems[0].message, "a.com/ goes to InterceptorRoute default/old: it is older");

    index.apply(Event::Route(Route { created: 10, ..route("young", "a.com") }));
    assert_eq!(hit(&index.snapshot(), "a.com").as_deref(), Some("InterceptorRoute young"));
    assert_eq!(index.problems()[0].object, key("old"));
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("young")));
    assert_eq!(hit(&index.snapshot(), "a.com").as_deref(), Some("InterceptorRoute old"));
    assert!(index.problems().is_empty());
}

#[test]
fn upstream_ids_are_shared_by_target_and_used_again_after_the_last_route() {
    let mut index = index();
    index.apply(Event::Route(route("a", "a.com")));
    index.apply(Event::Route(route("b", "b.com")));
    let old = index.snapshot();
    assert_eq!(old.upstreams().count(), 1);
    index.take_changed();
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("a")));
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("b")));
    assert_eq!(index.take_changed(), [UpstreamId(0)]);
    assert_eq!(index.snapshot().upstreams().count(), 0);

    let other = Target { service: key("other"), port: PortRef::Number(80) };
    index.apply(Event::Route(Route { target: other, ..route("c", "c.com") }));
    let new = index.snapshot();
    assert_eq!(new.routes[&key("c")].upstream, UpstreamId(0));
    assert!(new.upstream_of(&old.routes[&key("a")]).is_none(), "an old entry never finds another's target");
    assert!(old.upstream_of(&old.routes[&key("a")]).is_some(), "an old snapshot stays whole");
}

#[test]
fn only_what_changed_is_told() {
    let mut index = index();
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Route(route("r", "a.com")));
    assert_eq!(index.take_changed(), [UpstreamId(0)]);
    assert!(index.take_changed().is_empty());
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Route(route("r", "a.com")));
    index.apply(Event::Slice(slice("x", "elsewhere", &[("", 1)], &["10.0.0.1"])));
    assert!(index.take_changed().is_empty());
    index.apply(Event::Slice(slice("s", "web", &[("", 8080)], &["10.0.0.1"])));
    assert_eq!(index.take_changed(), [UpstreamId(0)]);
    index.apply(Event::SliceGone(key("s")));
    assert_eq!(index.take_changed(), [UpstreamId(0)]);
}

#[test]
fn a_number_without_a_service_object_finds_the_slices_port() {
    let mut index = index();
    index.apply(Event::Route(route("r", "a.com")));
    index.apply(Event::Slice(slice("s", "web", &[("http", 8080)], &["10.0.0.1"])));
    index.apply(Event::Slice(slice("t", "web", &[("a", 81), ("b", 80)], &["10.0.0.2"])));
    index.apply(Event::Slice(slice("u", "web", &[("a", 81), ("b", 82)], &["10.0.0.3"])));
    assert_eq!(endpoints(&index.snapshot(), "r"), ["10.0.0.1:8080", "10.0.0.2:80"]);
    assert_eq!(index.snapshot().upstreams().next().unwrap().resolution, Resolution::NoService);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_first() {
    let mut index = index();
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Route(route("r", "a.com")));
    index.apply(Event::Slice(slice("s", "web", &[("", 8080)], &["10.0.0.1"])));
    index.apply(Event::Slice(slice("s", "other", &[("", 8080)], &["10.0.0.1"])));
    assert!(endpoints(&index.snapshot(), "r").is_empty());
}

#[test]
fn the_service_port_tells_the_protocol() {
    let mut index = index();
    let mut web = service("web", &[("", 80)]);
    web.ports[0].app_protocol = Some("kubernetes.io/h2c".into());
    index.apply(Event::Route(route("r", "a.com")));
    index.apply(Event::Service(web));
    assert_eq!(index.snapshot().upstreams().next().unwrap().protocol, Protocol::H2c);
}

#[test]
fn a_relist_drops_what_it_does_not_name() {
    let mut index = index();
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Slice(slice("s", "web", &[("", 8080)], &["10.0.0.1"])));
    index.apply(Event::Route(route("a", "a.com")));
    index.apply(Event::Route(route("b", "b.com")));
    index.reset(Relist::Routes(RouteKind::InterceptorRoute, vec![route("b", "b2.com"), route("c", "c.com")]));
    let snapshot = index.snapshot();
    assert_eq!(snapshot.routes.keys().map(ObjectKey::name).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(hit(&snapshot, "b.com"), None);
    assert_eq!(hit(&snapshot, "b2.com").as_deref(), Some("InterceptorRoute b"));
    index.reset(Relist::Slices(Vec::new()));
    assert!(endpoints(&index.snapshot(), "b").is_empty());
    index.reset(Relist::Services(Vec::new()));
    assert_eq!(index.problems().len(), 2);
}

#[test]
fn a_route_that_is_too_big_is_counted_but_gets_no_request() {
    let mut index = index();
    let mut big = route("big", "a.com");
    big.rules[0].hosts = (0..100).map(|host| format!("h{host}.com")).collect();
    big.rules[0].paths = (0..100).map(|path| format!("/p{path}")).collect();
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Route(big));
    assert!(index.snapshot().table.is_empty());
    assert!(index.snapshot().routes.contains_key(&key("big")));
    assert_eq!(
        index.problems()[0].message,
        "takes no requests: rules have 10000 combinations of host and path: expected at most 4096"
    );
    index.apply(Event::Route(route("big", "a.com")));
    assert!(index.problems().is_empty());
}

fn probed(name: &str, probing: Probing) -> Route {
    Route { probing, ..route(name, &format!("{name}.test")) }
}

fn probe() -> Probing {
    Probing::By(Arc::new(Probe {
        action: Action::Tcp(8080),
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(10),
        initial_delay: Duration::ZERO,
        successes: 1,
        failures: 3,
    }))
}

/// A slice of one endpoint.
fn starting(ready: bool, terminating: bool) -> Event {
    let mut slice = slice("web-1", "web", &[("", 8080)], &["10.0.0.1"]);
    slice.endpoints[0] = SliceEndpoint { ready, terminating, ..slice.endpoints[0].clone() };
    Event::Slice(slice)
}

/// Endpoints, those of them that are ready by their own word, and those that are not yet.
fn readiness(index: &Index, name: &str) -> (usize, usize, usize) {
    let snapshot = index.snapshot();
    let upstream = snapshot.upstream_of(&snapshot.routes[&key(name)]).unwrap();
    (upstream.endpoints.len(), upstream.early.len(), upstream.pending.len())
}

fn with_starting_pod(routes: Vec<Route>) -> Index {
    let mut index = index();
    for route in routes {
        index.apply(Event::Route(route));
    }
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(starting(false, false));
    index.take_changed();
    index
}

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

#[test]
fn a_pod_that_has_answered_is_ready_until_its_slice_says_so() {
    let mut index = with_starting_pod(vec![probed("a", probe())]);
    assert_eq!(readiness(&index, "a"), (0, 0, 1));
    index.answered(&key("web"), POD);
    assert_eq!(readiness(&index, "a"), (1, 1, 0));
    assert_eq!(index.take_changed().len(), 1, "its waiters look again");
    index.apply(starting(true, false));
    assert_eq!(readiness(&index, "a"), (1, 0, 0));
    index.apply(starting(false, false));
    assert_eq!(
        readiness(&index, "a"),
        (0, 0, 1),
        "an answer of before does not count after the slice has confirmed it"
    );
}

#[test]
fn an_answer_goes_with_its_pod_and_when_it_is_taken_back() {
    let mut index = with_starting_pod(vec![probed("a", probe())]);
    index.answered(&key("web"), POD);
    index.apply(starting(false, true));
    assert_eq!(readiness(&index, "a"), (0, 0, 0), "a pod that ends is neither ready nor asked");
    index.apply(starting(false, false));
    index.answered(&key("web"), POD);
    index.answer_gone(&key("web"), POD);
    assert_eq!(readiness(&index, "a"), (0, 0, 1));
    index.answered(&key("web"), POD);
    index.apply(Event::SliceGone(key("web-1")));
    index.apply(starting(false, false));
    assert_eq!(readiness(&index, "a"), (0, 0, 1));
}

#[test]
fn only_who_is_listed_as_not_ready_can_answer() {
    let mut index = with_starting_pod(vec![probed("a", probe())]);
    index.answered(&key("web"), "10.0.0.9".parse().unwrap());
    index.answered(&key("elsewhere"), POD);
    index.apply(starting(true, false));
    index.answered(&key("web"), POD);
    index.apply(starting(false, false));
    assert_eq!(readiness(&index, "a"), (0, 0, 1));
}

#[test]
fn one_route_of_a_target_tells_the_probe_for_all_and_one_can_refuse_it() {
    let mut index = with_starting_pod(vec![probed("a", Probing::Unsaid), probed("b", probe())]);
    index.answered(&key("web"), POD);
    assert_eq!(readiness(&index, "a"), (1, 1, 0));
    index.apply(Event::Route(probed("a", Probing::Refused)));
    assert_eq!(readiness(&index, "b"), (0, 0, 0), "a refusal holds for the target");
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("a")));
    assert_eq!(readiness(&index, "b"), (1, 1, 0));
    index.apply(Event::Route(probed("b", Probing::Unsaid)));
    assert_eq!(readiness(&index, "b"), (0, 0, 0), "without a probe nobody is asked");
}

#[test]
fn a_target_that_clients_reach_directly_tells_its_addresses_and_every_pod() {
    let direct = Route { data_path: DataPath::Direct, ..route("direct", "a.com") };
    let mut index = index();
    index.apply(Event::Route(direct));
    let addresses = vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    let mut web = Service { addresses, ..service("web", &[("", 80)]) };
    web.ports[0].node_port = Some(30_080);
    index.apply(Event::Service(web));
    let mut pods = slice("web-1", "web", &[("", 8080)], &["10.0.0.3", "10.0.0.2", "10.0.0.1"]);
    pods.endpoints[0].ready = false;
    pods.endpoints[1] = SliceEndpoint { ready: true, terminating: true, ..pods.endpoints[1].clone() };
    pods.endpoints[2].uid = Some("u-1".into());
    index.apply(Event::Slice(pods));
    let snapshot = index.snapshot();
    let upstream = snapshot.upstream_of(&snapshot.routes[&key("direct")]).unwrap();
    let direct = upstream.direct.as_deref().unwrap();
    assert_eq!(direct.frontends, ["10.96.0.7:80".parse().unwrap(), "[fd00::7]:80".parse().unwrap()]);
    assert_eq!(direct.node_port, Some(30_080));
    let lives: Vec<_> = direct.pods.iter().map(|(addr, pod)| (addr.to_string(), pod.life)).collect();
    let expected = [("10.0.0.1", Life::Ready), ("10.0.0.2", Life::Ending), ("10.0.0.3", Life::Starting)];
    assert_eq!(lives, expected.map(|(ip, life)| (format!("{ip}:8080"), life)));
    assert_eq!(direct.pods.values().next().unwrap().uid.as_deref(), Some("u-1"));
}

#[test]
fn what_is_known_of_pods_for_the_direct_path_goes_with_the_last_route_that_asks_for_it() {
    let direct = |name: &str| Route { data_path: DataPath::Direct, ..route(name, &format!("{name}.com")) };
    let mut index = index();
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Route(route("proxied", "p.com")));
    let is_direct = |index: &Index| index.snapshot().upstreams().next().unwrap().direct.is_some();
    assert!(!is_direct(&index));
    index.apply(Event::Route(direct("one")));
    assert!(is_direct(&index));
    index.apply(Event::Route(direct("two")));
    index.apply(Event::Route(route("one", "one.com")));
    assert!(is_direct(&index));
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("two")));
    assert!(!is_direct(&index));
}
