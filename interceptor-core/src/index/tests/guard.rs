//! Hosts that belong to the namespace which named them first.

use super::*;

fn of(namespace: &str, name: &str, created: i64, hosts: &[&str]) -> Event {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let rules = vec![Rule { hosts, ..Rule::default() }];
    Event::Route(Route { key: ObjectKey::new(namespace, name), created, rules, ..route(name, "") })
}

fn guarded() -> Index {
    index().guarded(HostGuard::FirstCome)
}

fn taker(index: &Index, host: &str) -> Option<String> {
    let snapshot = index.snapshot();
    snapshot.table.lookup(host, "/", &HeaderMap::new()).map(|entry| entry.route.key.to_string())
}

fn barred(index: &Index) -> Vec<String> {
    let problems = index.problems();
    problems
        .into_iter()
        .filter(|problem| problem.kind == ProblemKind::Barred)
        .map(|problem| format!("{}: {}", problem.object, problem.message))
        .collect()
}

#[test]
fn a_host_stays_with_the_namespace_that_named_it_first_whatever_the_order_of_events() {
    let old = of("a", "old", 10, &["shop.test"]);
    let more = Event::Route(Route {
        key: ObjectKey::new("b", "young"),
        created: 20,
        rules: vec![Rule {
            hosts: vec!["Shop.test".to_owned(), "b.test".to_owned()],
            paths: vec!["/deeper".to_owned()],
            ..Rule::default()
        }],
        ..route("young", "")
    });
    for events in [[old.clone(), more.clone()], [more, old]] {
        let mut index = guarded();
        for event in events {
            index.apply(event);
        }
        let snapshot = index.snapshot();
        let deeper =
            |host| snapshot.table.lookup(host, "/deeper", &HeaderMap::new()).map(|entry| entry.route.key.to_string());
        assert_eq!(deeper("shop.test").as_deref(), Some("a/old"));
        assert_eq!(deeper("b.test").as_deref(), Some("b/young"), "it keeps what is its own");
        assert_eq!(
            barred(&index),
            ["b/young: shop.test/deeper belongs to namespace a: InterceptorRoute a/old was there first"]
        );
        index.apply(Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("a", "old")));
        assert_eq!(taker(&index, "shop.test"), None);
        assert!(index.snapshot().table.lookup("shop.test", "/deeper", &HeaderMap::new()).is_some(), "it is free now");
        assert!(barred(&index).is_empty());
    }
}

#[test]
fn a_wildcard_keeps_what_it_covers_and_takes_nothing_that_was_there_before() {
    let mut index = guarded();
    index.apply(of("a", "all", 10, &["*.shop.test"]));
    index.apply(of("b", "one", 20, &["cart.shop.test"]));
    index.apply(of("a", "own", 30, &["pay.shop.test"]));
    assert_eq!(taker(&index, "cart.shop.test").as_deref(), Some("a/all"));
    assert_eq!(taker(&index, "pay.shop.test").as_deref(), Some("a/own"), "within a namespace nothing is barred");
    index.apply(of("b", "one", 5, &["cart.shop.test"]));
    assert_eq!(taker(&index, "cart.shop.test").as_deref(), Some("b/one"));
    assert_eq!(taker(&index, "other.shop.test").as_deref(), Some("a/all"));
    index.apply(of("a", "all", 1, &["*.shop.test"]));
    assert_eq!(taker(&index, "cart.shop.test").as_deref(), Some("a/all"), "it is the older one now");
}

#[test]
fn the_catch_all_covers_no_host_and_belongs_to_one_namespace() {
    let mut index = guarded();
    index.apply(of("a", "all", 10, &[]));
    index.apply(of("b", "all", 20, &["*"]));
    index.apply(of("b", "one", 30, &["b.test"]));
    assert_eq!(taker(&index, "any.test").as_deref(), Some("a/all"));
    assert_eq!(taker(&index, "b.test").as_deref(), Some("b/one"));
    assert_eq!(barred(&index).len(), 1);
}

#[test]
fn without_the_guard_the_more_specific_route_wins_across_namespaces() {
    let mut index = index();
    index.apply(of("a", "all", 10, &["*.shop.test"]));
    index.apply(of("b", "one", 20, &["cart.shop.test"]));
    assert_eq!(taker(&index, "cart.shop.test").as_deref(), Some("b/one"));
}

fn lists(namespace: &str, hosts: Option<&str>) -> Event {
    Event::Namespace(namespace.into(), hosts.map(AllowedHosts::parse))
}

fn not_allowed(index: &Index) -> Vec<String> {
    let problems = index.problems().into_iter().filter(|problem| problem.kind == ProblemKind::HostNotAllowed);
    problems.map(|problem| format!("{}: {}", problem.object, problem.message)).collect()
}

#[test]
fn a_namespace_s_routes_get_the_hosts_that_its_annotation_lists_and_no_others() {
    let route = of("a", "app", 10, &["a.test", "b.test", "x.y.wild.test", "*.y.wild.test", "wild.test"]);
    let annotation = lists("a", Some("A.test:443, *.wild.test\n"));
    for events in [[route.clone(), annotation.clone()], [annotation, route]] {
        let mut index = index().guarded(HostGuard::AllowList);
        for event in events {
            index.apply(event);
        }
        for host in ["a.test", "x.y.wild.test", "z.y.wild.test"] {
            assert_eq!(taker(&index, host).as_deref(), Some("a/app"), "{host}");
        }
        for host in ["b.test", "wild.test", "other.test"] {
            assert_eq!(taker(&index, host), None, "{host}");
        }
        let does_not = "the annotation http.keda.sh/allowed-hosts of namespace a does not list it";
        assert_eq!(
            not_allowed(&index),
            ["b.test", "wild.test"].map(|host| format!("a/app: {host}/ may not be claimed: {does_not}"))
        );
        index.apply(lists("a", Some("b.test")));
        assert_eq!(taker(&index, "b.test").as_deref(), Some("a/app"), "a change is heeded");
        assert_eq!((taker(&index, "a.test"), not_allowed(&index).len()), (None, 4));
    }
}

#[test]
fn without_annotation_or_namespace_nothing_may_be_claimed_and_a_star_allows_all() {
    let mut index = index().guarded(HostGuard::AllowList);
    index.apply(of("a", "all", 10, &[]));
    assert_eq!(not_allowed(&index), ["a/all: */ may not be claimed: namespace a is not known"]);
    index.apply(lists("a", None));
    let message =
        "a/all: */ may not be claimed: namespace a has no annotation http.keda.sh/allowed-hosts that lists it";
    assert_eq!(not_allowed(&index), [message]);
    index.apply(lists("a", Some("*.test")));
    assert_eq!((taker(&index, "a.test"), not_allowed(&index).len()), (None, 1), "a wildcard is not all");
    index.apply(lists("a", Some("*")));
    assert_eq!((taker(&index, "a.test").as_deref(), not_allowed(&index).len()), (Some("a/all"), 0));
    index.apply(of("ab", "other", 10, &["b.test"]));
    assert_eq!(taker(&index, "b.test").as_deref(), Some("a/all"), "what one namespace may is nothing to another");
    index.reset(Relist::Namespaces(vec![("ab".into(), Some(AllowedHosts::parse("b.test")))]));
    assert_eq!(taker(&index, "b.test").as_deref(), Some("ab/other"));
    assert_eq!(taker(&index, "a.test"), None, "a namespace that is not listed is gone");
    index.apply(Event::RouteGone(RouteKind::InterceptorRoute, ObjectKey::new("a", "all")));
    assert!(not_allowed(&index).is_empty());
}

#[test]
fn entries_that_are_no_hosts_are_told_and_stop_no_other() {
    let mut index = index().guarded(HostGuard::AllowList);
    index.apply(of("a", "app", 10, &["a.test", "b.test"]));
    index.apply(lists("a", Some("https://b.test, a.test, *.*, b.test/path, x..y*")));
    assert_eq!(taker(&index, "a.test").as_deref(), Some("a/app"));
    assert_eq!(taker(&index, "b.test"), None);
    let [message] = &not_allowed(&index)[..] else { panic!("one host is barred") };
    let told = r#"these entries are no hosts: "https://b.test", "*.*", "b.test/path": expected names, *.suffix or *"#;
    assert!(message.ends_with(told), "{message}");
}

proptest::proptest! {
    #[test]
    fn the_guard_s_answer_does_not_depend_on_the_way_there(
        steps in proptest::collection::vec((0..6_u8, 0..3_u8, proptest::collection::vec(0..6_usize, 0..3), proptest::bool::weighted(0.2)), 0..40),
    ) {
        const HOSTS: [&str; 6] = ["*", "a.test", "*.test", "x.a.test", "*.a.test", "b.test"];
        let mut index = guarded();
        let mut last = BTreeMap::new();
        for (name, namespace, hosts, goes) in steps {
            let namespace = format!("n{namespace}");
            let name = format!("r{name}");
            let key = ObjectKey::new(namespace.as_str(), name.as_str());
            if goes {
                index.apply(Event::RouteGone(RouteKind::InterceptorRoute, key.clone()));
                last.remove(&key);
            } else {
                let hosts: Vec<_> = hosts.into_iter().map(|host| HOSTS[host]).collect();
                let event = of(&namespace, &name, i64::from(name.as_bytes()[1]), &hosts);
                index.apply(event.clone());
                last.insert(key, event);
            }
        }
        let mut fresh = guarded();
        for event in last.into_values() {
            fresh.apply(event);
        }
        for host in ["a.test", "x.a.test", "y.a.test", "b.test", "c.test", "other"] {
            proptest::prop_assert_eq!(taker(&index, host), taker(&fresh, host));
        }
        proptest::prop_assert_eq!(barred(&index), barred(&fresh));
    }
}
