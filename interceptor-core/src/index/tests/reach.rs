//! Which endpoints of a Service are taken, and how those are reached that have a name alone.

use super::*;
use crate::service::Reach;

fn upstream(index: &Index) -> Arc<Upstream> {
    let snapshot = index.snapshot();
    let entry = &snapshot.routes[&key("a")];
    Arc::clone(snapshot.upstream_of(entry).unwrap())
}

fn addresses(upstream: &Upstream) -> Vec<String> {
    upstream.endpoints.keys().map(ToString::to_string).collect()
}

#[test]
fn a_pod_that_goes_is_taken_only_when_there_is_no_other() {
    let mut index = index();
    index.apply(Event::Route(route("a", "a.com")));
    index.apply(Event::Service(service("web", &[("", 80)])));
    let mut both = slice("web-1", "web", &[("", 8080)], &["10.0.0.1", "10.0.0.2"]);
    both.endpoints[0].terminating = true;
    index.apply(Event::Slice(both.clone()));
    assert_eq!(addresses(&upstream(&index)), ["10.0.0.2:8080"]);
    both.endpoints[1].ready = false;
    index.apply(Event::Slice(both));
    assert_eq!(addresses(&upstream(&index)), ["10.0.0.1:8080"], "it is published all the same");
}

#[test]
fn of_two_address_families_the_services_first_is_taken_and_the_other_when_there_is_no_such() {
    let mut index = index();
    index.apply(Event::Route(route("a", "a.com")));
    let reach = |v6| Reach { prefers_v6: Some(v6), ..Reach::default() };
    index.apply(Event::Service(Service { reach: reach(true), ..service("web", &[("", 80)]) }));
    index.apply(Event::Slice(slice("web-4", "web", &[("", 8080)], &["10.0.0.1"])));
    assert_eq!(addresses(&upstream(&index)), ["10.0.0.1:8080"]);
    index.apply(Event::Slice(slice("web-6", "web", &[("", 8080)], &["fd00::1"])));
    assert_eq!(addresses(&upstream(&index)), ["[fd00::1]:8080"]);
    index.apply(Event::Service(Service { reach: reach(false), ..service("web", &[("", 80)]) }));
    assert_eq!(addresses(&upstream(&index)), ["10.0.0.1:8080"]);
}

#[test]
fn of_a_direct_target_pods_are_reached_in_both_families_once_one_of_either_is_an_endpoint() {
    let mut index = index();
    let direct = Route { data_path: DataPath::Direct, ..route("a", "a.com") };
    index.apply(Event::Route(direct));
    let reach = Reach { prefers_v6: Some(false), ..Reach::default() };
    index.apply(Event::Service(Service { reach, ..service("web", &[("", 80)]) }));
    let reached = |index: &Index| {
        let upstream = upstream(index);
        let others = upstream.direct.as_ref().unwrap().of_the_other_family(&upstream.endpoints);
        upstream.endpoints.keys().chain(&others).map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut v6 = slice("web-6", "web", &[("", 8080)], &["fd00::1", "fd00::2"]);
    let mut v4 = slice("web-4", "web", &[("", 8080)], &["10.0.0.1", "10.0.0.2"]);
    for slice in [&mut v4, &mut v6] {
        for (endpoint, name) in slice.endpoints.iter_mut().zip(["one", "two"]) {
            (endpoint.pod, endpoint.ready) = (Some(name.into()), false);
        }
    }
    index.apply(Event::Slice(v6));
    index.apply(Event::Slice(v4.clone()));
    assert_eq!(reached(&index), [""; 0]);
    v4.endpoints[0].ready = true;
    index.apply(Event::Slice(v4));
    assert_eq!(reached(&index), ["10.0.0.1:8080", "[fd00::1]:8080"], "the same pod, whatever the other slice says");
}

#[test]
fn a_service_that_is_anothers_name_is_reached_by_it() {
    let mut index = index();
    index.apply(Event::Route(route("a", "a.com")));
    let reach = |name: &str| Reach { external_name: Some(name.into()), ..Reach::default() };
    let named = |name| Service { reach: reach(name), ..service("web", &[]) };
    index.apply(Event::Service(named("there.example")));
    assert_eq!(index.snapshot().names.get(&key("web")).map(AsRef::as_ref), Some("there.example"));
    assert_eq!(upstream(&index).resolution, Resolution::Found, "a port by its number needs no list");
    assert!(upstream(&index).endpoints.is_empty());
    index.take_changed();
    index.found(&key("web"), &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
    assert_eq!(addresses(&upstream(&index)), ["192.0.2.1:80", "[2001:db8::1]:80"]);
    assert_eq!(index.take_changed().len(), 1, "who waits is told");
    index.apply(Event::Service(named("elsewhere.example")));
    assert!(upstream(&index).endpoints.is_empty(), "what was found was another name's");
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key("a")));
    assert!(index.snapshot().names.is_empty(), "nobody wants it any more");
}

#[test]
fn requests_that_go_through_services_wait_for_a_pod_and_go_to_the_services_own_port() {
    let mut index = index().through_services(true);
    index.apply(Event::Route(route("a", "a.com")));
    index.apply(Event::Service(service("web", &[("", 80)])));
    assert_eq!(index.snapshot().names.get(&key("web")).map(AsRef::as_ref), Some("web.default"));
    index.found(&key("web"), &["10.96.0.1".parse().unwrap()]);
    assert!(upstream(&index).endpoints.is_empty());
    index.apply(Event::Slice(slice("web-1", "web", &[("", 8080)], &["10.0.0.1", "10.0.0.2"])));
    assert_eq!(addresses(&upstream(&index)), ["10.96.0.1:80"]);
}

#[test]
fn a_service_is_ready_whatever_the_port_of_its_pods_and_one_that_no_slice_has_is_tried_at_its_name() {
    for through_services in [false, true] {
        let mut index = index().through_services(through_services);
        index.apply(Event::Route(route("a", "a.com")));
        index.apply(Event::Service(service("web", &[("http", 80)])));
        index.apply(Event::Slice(slice("web-1", "web", &[], &["10.0.0.1"])));
        assert_eq!(index.snapshot().names.get(&key("web")).map(AsRef::as_ref), Some("web.default"));
        index.found(&key("web"), &["10.96.0.1".parse().unwrap()]);
        assert_eq!(addresses(&upstream(&index)), ["10.96.0.1:80"]);
        index.apply(Event::Slice(slice("web-1", "web", &[("http", 8080)], &["10.0.0.1"])));
        let expected = if through_services { "10.96.0.1:80" } else { "10.0.0.1:8080" };
        assert_eq!(addresses(&upstream(&index)), [expected]);
        assert_eq!(index.snapshot().names.is_empty(), !through_services);
        index.apply(Event::SliceGone(key("web-1")));
        assert!(addresses(&upstream(&index)).is_empty(), "cold");
    }
}

#[test]
fn a_number_that_the_service_does_not_list_is_tried_at_its_name_and_told() {
    let mut index = index();
    index.apply(Event::Route(route("a", "a.com")));
    index.apply(Event::Service(service("web", &[("http", 8080)])));
    index.apply(Event::Slice(slice("web-1", "web", &[("http", 8080)], &["10.0.0.1"])));
    index.found(&key("web"), &["10.0.0.1".parse().unwrap()]);
    assert_eq!(addresses(&upstream(&index)), ["10.0.0.1:80"]);
    assert_eq!(index.problems()[0].kind, ProblemKind::NoPort);
}

#[test]
fn through_services_a_target_needs_slices_and_no_service_object() {
    let mut index = index().through_services(true);
    index.apply(Event::Route(route("a", "a.com")));
    index.apply(Event::Slice(slice("web-1", "web", &[("http", 8080)], &["10.0.0.1"])));
    index.found(&key("web"), &["10.96.0.1".parse().unwrap()]);
    assert_eq!(addresses(&upstream(&index)), ["10.96.0.1:80"]);
}

#[test]
fn a_fallback_without_slices_is_reached_by_its_name() {
    let mut index = index();
    let mut with_fallback = route("a", "a.com");
    with_fallback.fallback = Some(Target { service: key("spare"), port: PortRef::Number(80) });
    index.apply(Event::Route(with_fallback));
    index.apply(Event::Service(service("web", &[("", 80)])));
    index.apply(Event::Service(service("spare", &[("", 80)])));
    assert_eq!(index.snapshot().names.get(&key("spare")).map(AsRef::as_ref), Some("spare.default"));
    index.found(&key("spare"), &["10.96.0.9".parse().unwrap()]);
    let fallback = |index: &Index| {
        let snapshot = index.snapshot();
        addresses(snapshot.backend_of(&snapshot.routes[&key("a")], Backend::Fallback).unwrap())
    };
    assert_eq!(fallback(&index), ["10.96.0.9:80"]);
    index.apply(Event::Slice(slice("spare-1", "spare", &[("", 8080)], &[])));
    assert!(fallback(&index).is_empty(), "it is cold, and waited for");
}
