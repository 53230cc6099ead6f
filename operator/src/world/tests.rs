//! The world without an API server.

use kube::api::DynamicObject;
use serde_json::{Value, json};

use api::ReadinessProbe;

use super::*;

fn subject(name: &str) -> Subject {
    Subject { kind: RouteKind::InterceptorRoute, key: key(name) }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("n", name)
}

fn dynamic(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn route(name: &str, version: u64, spec: &Value) -> Item {
    let mut all = json!({"rules": [{"hosts": [format!("{name}.example")]}], "target": {"service": "web", "port": 80},
        "scalingMetric": {"concurrency": {"targetValue": 1}}});
    for (field, value) in spec.as_object().unwrap() {
        all[field] = value.clone();
    }
    let metadata = json!({"namespace": "n", "name": name, "resourceVersion": version.to_string()});
    let object = dynamic(json!({"metadata": metadata, "spec": all}));
    Item::Route(Box::new(Object::read(RouteKind::InterceptorRoute, &object).unwrap()))
}

fn scaled(name: &str, version: u64, names: &str, active: &str) -> Item {
    let object = dynamic(json!({
        "metadata": {"namespace": "n", "name": name, "resourceVersion": version.to_string()},
        "spec": {"scaleTargetRef": {"name": "app"},
            "triggers": [{"type": "external-push", "metadata": {"interceptorRoute": names}}]},
        "status": {"lastActiveTime": version, "conditions": [{"type": "Active", "status": active}]},
    }));
    Item::Scaled(Box::new(Scaled::read(&object).unwrap()))
}

fn web() -> Item {
    let port =
        interceptor_core::service::ServicePort { name: "".into(), port: 80, app_protocol: None, node_port: None };
    Item::Service(interceptor_core::service::Service {
        key: key("web"),
        ports: vec![port],
        addresses: Vec::new(),
        reach: interceptor_core::service::Reach::default(),
    })
}

/// A world with the routes a and b, all of which has been looked at.
fn settled() -> World {
    let mut world = World::default();
    let nothing = json!({});
    world.apply([web(), route("a", 1, &nothing), route("b", 1, &nothing)].map(Event::Put));
    assert_eq!(dirty(&mut world), ["a", "b"]);
    world
}

fn dirty(world: &mut World) -> Vec<String> {
    world.take_dirty().into_iter().map(|subject| subject.key.name().to_owned()).collect()
}

#[test]
fn it_is_complete_when_every_kind_was_listed_or_is_not_to_be_had() {
    let mut world = World::default();
    for kind in Kind::ALWAYS {
        assert!(!world.is_synced());
        world.apply([if kind == Kind::ScaledObjects { Event::Absent(kind) } else { Event::All(kind, Vec::new()) }]);
    }
    assert!(world.is_synced());
}

#[test]
fn a_change_of_one_route_concerns_those_whose_place_it_takes() {
    let mut world = settled();
    world.apply([Event::Put(route("b", 2, &json!({"rules": [{"hosts": ["a.example"]}]})))]);
    assert_eq!(dirty(&mut world), ["a", "b"], "b is as old and has the later name");
    assert_eq!(world.observe(&subject("a")).unwrap().problems.len(), 1);
    world.apply([Event::Gone(Kind::Routes, key("b"))]);
    assert_eq!(dirty(&mut world), ["a"]);
    assert!(world.observe(&subject("a")).unwrap().problems.is_empty());
    assert_eq!(world.observe(&subject("b")), None);
}

#[test]
fn a_host_of_another_namespace_is_a_problem_of_the_route_that_wants_it() {
    let of = |namespace: &str, name: &str, created: &str| {
        let metadata = json!({"namespace": namespace, "name": name, "creationTimestamp": created});
        let spec = json!({"rules": [{"hosts": ["a.example"]}], "target": {"service": "web", "port": 80},
            "scalingMetric": {"concurrency": {"targetValue": 1}}});
        let object = dynamic(json!({"metadata": metadata, "spec": spec}));
        Event::Put(Item::Route(Box::new(Object::read(RouteKind::InterceptorRoute, &object).unwrap())))
    };
    let mut world = World::guarded(HostGuard::FirstCome);
    world.apply([of("other", "old", "2026-01-01T00:00:00Z"), of("n", "a", "2026-01-02T00:00:00Z")]);
    let observed = world.observe(&subject("a")).unwrap();
    let barred: Vec<_> = observed.problems.iter().filter(|it| it.kind == index::ProblemKind::Barred).collect();
    assert_eq!(barred.len(), 1, "{:?}", observed.problems);
    assert!(barred[0].message.contains("InterceptorRoute other/old"), "{}", barred[0].message);
}

#[test]
fn a_host_that_the_namespace_does_not_list_is_a_problem_until_it_does() {
    let route = json!({"metadata": {"namespace": "n", "name": "a"}, "spec": {"rules": [{"hosts": ["a.example"]}],
        "target": {"service": "web", "port": 80}, "scalingMetric": {"concurrency": {"targetValue": 1}}}});
    let object = Object::read(RouteKind::InterceptorRoute, &dynamic(route)).unwrap();
    let mut world = World::guarded(HostGuard::AllowList);
    for kind in Kind::ALWAYS {
        world.apply([Event::All(kind, Vec::new())]);
    }
    assert!(!world.is_synced(), "namespaces are not known");
    world.apply([Event::Put(Item::Route(Box::new(object)))]);
    world.apply([Event::All(Kind::Namespaces, vec![Item::Namespace(ObjectKey::new("", "n"), None)])]);
    assert!(world.is_synced());
    let not_allowed = |world: &mut World| {
        let problems = world.observe(&subject("a")).unwrap().problems;
        problems.iter().filter(|it| it.kind == index::ProblemKind::HostNotAllowed).count()
    };
    assert_eq!(not_allowed(&mut world), 1);
    dirty(&mut world);
    let hosts = Some(index::AllowedHosts::parse("a.example"));
    world.apply([Event::Put(Item::Namespace(ObjectKey::new("", "n"), hosts))]);
    assert_eq!((not_allowed(&mut world), dirty(&mut world)), (0, vec!["a".to_owned()]));
}

#[test]
fn a_service_that_goes_concerns_its_routes() {
    let mut world = settled();
    world.apply([Event::Gone(Kind::Services, key("web"))]);
    assert_eq!(dirty(&mut world), ["a", "b"]);
    world.apply([Event::Put(web())]);
    assert_eq!(dirty(&mut world), ["a", "b"]);
}

#[test]
fn of_a_scaled_object_only_what_matters_concerns_a_route() {
    let mut world = settled();
    world.apply([Event::Put(scaled("mine", 2, "a", "False"))]);
    assert_eq!(dirty(&mut world), ["a"]);
    world.apply([Event::Put(scaled("mine", 3, "a", "False"))]);
    assert!(dirty(&mut world).is_empty(), "KEDA writes the time of the last demand all the time");
    world.apply([Event::Put(scaled("mine", 4, "a", "True"))]);
    assert_eq!(dirty(&mut world), ["a"]);
    world.apply([Event::Put(scaled("mine", 5, "b", "True"))]);
    assert_eq!(dirty(&mut world), ["a", "b"], "one lost it, the other has it");
    assert!(world.observe(&subject("a")).unwrap().naming.is_empty());
    world.apply([Event::Gone(Kind::ScaledObjects, key("mine"))]);
    assert_eq!(dirty(&mut world), ["b"]);
    assert!(world.observe(&subject("b")).unwrap().naming.is_empty());
}

#[test]
fn an_older_version_is_news_in_a_list_alone() {
    let mut world = settled();
    world.apply([Event::Put(route("a", 7, &json!({"target": {"service": "other", "port": 80}})))]);
    assert_eq!(dirty(&mut world), ["a"]);
    world.apply([Event::Put(route("a", 1, &json!({})))]);
    assert!(dirty(&mut world).is_empty());
    world.apply([Event::All(Kind::Routes, vec![route("a", 1, &json!({}))])]);
    assert_eq!(dirty(&mut world), ["a"], "the API server was restored to an earlier state");
    assert_eq!(world.subjects(), [subject("a")], "and what is not listed is gone");
}

#[test]
fn keda_that_comes_or_goes_concerns_every_route() {
    let mut world = settled();
    world.apply([Event::Absent(Kind::ScaledObjects)]);
    assert_eq!(dirty(&mut world), ["a", "b"]);
    assert!(!world.observe(&subject("a")).unwrap().keda);
    world.apply([Event::Absent(Kind::ScaledObjects)]);
    assert!(dirty(&mut world).is_empty());
    world.apply([Event::All(Kind::ScaledObjects, Vec::new())]);
    assert_eq!(dirty(&mut world), ["a", "b"]);
}

#[test]
fn pods_are_read_once_for_each_state_of_their_template() {
    let mut world = settled();
    world.apply([Event::Put(scaled("mine", 2, "a", "False"))]);
    let app = Workload::new("n", None, None, "app");
    world.apply([Event::Put(Item::Workload(app.clone(), 1))]);
    assert_eq!(world.unread(&subject("b")), None, "nothing scales it");
    assert_eq!(world.unread(&subject("a")), Some(app.clone()));
    let probe = Probed::Read(Some(ReadinessProbe::default()), Vec::new());
    world.learn(app.clone(), probe.clone());
    assert_eq!(world.unread(&subject("a")), None);
    assert_eq!(world.observe(&subject("a")).unwrap().probe, probe);
    dirty(&mut world);
    world.apply([Event::Put(Item::Workload(app.clone(), 1))]);
    assert!(dirty(&mut world).is_empty(), "its status changes all the time");
    world.apply([Event::Put(Item::Workload(app.clone(), 2))]);
    assert_eq!(dirty(&mut world), ["a"]);
    assert_eq!(world.unread(&subject("a")), Some(app.clone()));
    world.learn(app.clone(), Probed::Unreadable);
    world.forget_unwatched();
    assert_eq!(world.unread(&subject("a")), Some(app), "what could not be read is read again");
}

#[test]
fn an_answer_to_a_write_brings_nothing_back_that_has_gone() {
    let mut world = settled();
    world.refresh(vec![scaled("mine", 2, "a", "False")]);
    assert!(dirty(&mut world).is_empty());
    world.apply([Event::Put(scaled("mine", 2, "a", "False"))]);
    world.refresh(vec![scaled("mine", 3, "a", "True")]);
    assert_eq!(dirty(&mut world), ["a"]);
    world.apply([Event::Gone(Kind::ScaledObjects, key("mine"))]);
    dirty(&mut world);
    world.refresh(vec![scaled("mine", 4, "a", "True")]);
    assert!(world.observe(&subject("a")).unwrap().naming.is_empty());
}

/// A direct route to a Service of its own, whose status tells this port.
fn direct(name: &str, created: &str, port: Option<u16>) -> [Event; 2] {
    let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": name}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }))
    .unwrap();
    let route = json!({"metadata": {"namespace": "n", "name": name, "creationTimestamp": created},
        "spec": {"target": {"service": name, "port": 80}, "dataPath": "Direct",
            "scalingMetric": {"concurrency": {"targetValue": 1}}},
        "status": {"shadow": port.map(|port| json!({"port": port, "published": false}))}});
    let route = Object::read(RouteKind::InterceptorRoute, &dynamic(route)).unwrap();
    [Event::Put(Item::Route(Box::new(route))), Event::Put(Item::Service(api::convert::service(&service).unwrap()))]
}

fn port(world: &mut World, name: &str) -> Option<u16> {
    match world.observe(&subject(name)).unwrap().shadow.unwrap().port {
        crate::shadow::Port::Open { number, .. } => Some(number),
        _ => None,
    }
}

#[test]
fn a_new_route_does_not_get_the_port_that_the_status_of_another_tells() {
    let mut world = World::default().shadowed(20_000..=20_002);
    let told = direct("b", "2026-01-01T00:00:00Z", Some(20_000));
    let same = direct("c", "2025-01-01T00:00:00Z", Some(20_001));
    let younger = direct("aa", "2026-01-01T00:00:00Z", Some(20_001));
    world.apply(direct("a", "2026-01-01T00:00:00Z", None).into_iter().chain(told).chain(same).chain(younger));
    assert_eq!(
        ["a", "aa", "b", "c"].map(|name| port(&mut world, name)),
        [Some(20_002), None, Some(20_000), Some(20_001)]
    );
}

#[test]
fn ports_that_another_leader_gave_meanwhile_are_kept() {
    let mut world = World::default().shadowed(20_000..=20_002);
    let created = "2026-01-01T00:00:00Z";
    world.apply(direct("a", created, None).into_iter().chain(direct("b", created, None)));
    assert_eq!(["a", "b"].map(|name| port(&mut world, name)), [Some(20_000), Some(20_001)]);
    world.apply(direct("b", created, Some(20_000)).into_iter().chain(direct("c", created, Some(20_001))));
    world.reserve_ports();
    assert_eq!(world.ports(), 2);
    assert_eq!(["a", "b", "c"].map(|name| port(&mut world, name)), [Some(20_002), Some(20_000), Some(20_001)]);
}

#[test]
fn a_route_that_is_led_to_another_service_leaves_the_port_to_the_one_before() {
    let mut world = World::default().shadowed(20_000..=20_002);
    let created = "2026-01-01T00:00:00Z";
    world.apply(direct("a", created, None).into_iter().chain(direct("b", created, None)));
    assert_eq!(["a", "b"].map(|name| port(&mut world, name)), [Some(20_000), Some(20_001)]);
    let lead = |service: &str, port: u16| {
        let [Event::Put(Item::Route(mut route)), _] = direct("a", created, Some(port)) else { unreachable!() };
        route.route.as_mut().unwrap().target.service = key(service);
        Event::Put(Item::Route(route))
    };
    world.apply([lead("b", 20_000)]);
    assert_eq!(world.ports(), 1, "it is given back at once");
    assert_eq!(port(&mut world, "a"), Some(20_001), "the other Service has one already");
    world.apply([lead("c", 20_001)]);
    let [_, service] = direct("c", created, None);
    world.apply([service, Event::Gone(Kind::Routes, key("b"))]);
    assert_eq!((port(&mut world, "a"), world.ports()), (Some(20_002), 1), "clients of b are led to 20001 for a while");
}

#[test]
fn of_several_scaled_objects_the_one_that_sleeps_first_decides() {
    let mut world = World::default().shadowed(20_000..=20_002);
    world.apply(direct("a", "2026-01-01T00:00:00Z", None));
    for (name, cooldown) in [("one", 300), ("two", 60), ("wake", 90)] {
        let Item::Scaled(mut scaled) = scaled(name, 1, "a", "False") else { unreachable!() };
        scaled.body["spec"]["cooldownPeriod"] = cooldown.into();
        world.apply([Event::Put(Item::Scaled(scaled))]);
    }
    let after = world.observe(&subject("a")).unwrap().after;
    assert_eq!(after, Some(std::time::Duration::from_secs(15)), "60 less KEDA's interval and what we are ahead");
}
