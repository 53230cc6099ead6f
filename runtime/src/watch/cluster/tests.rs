//! What watches bring, and what is told of it.

use serde_json::{Value, json};

use super::{
    Absence, Cluster, Instant, Item, Kind, Reason, WatchEvent, check, link,
    objects::{Objects, Step},
};

mod server;

const SERVICES: usize = 0;
const ROUTES: usize = 1;

fn objects(limit: usize) -> Objects {
    Objects::new([Kind::Service, Kind::InterceptorRoute].into_iter(), limit)
}

fn service(name: &str, version: u32, port: i32) -> Item {
    Item::new(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "n", "resourceVersion": version.to_string(), "managedFields": [{}]},
        "spec": {"ports": [{"port": port}]}
    }))
}

fn route(name: &str, spec: &Value) -> Item {
    Item::new(json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": "1"}, "spec": spec}))
}

fn told(objects: &mut Objects, steps: Vec<Step>) -> Vec<String> {
    objects.take(steps.into_iter()).into_iter().map(told_of).collect()
}

fn told_of(event: WatchEvent) -> String {
    match event {
        WatchEvent::Applied(object) => format!("{} {}", object.kind(), object.key().unwrap()),
        WatchEvent::Deleted(kind, key) => format!("no {kind} {key}"),
        WatchEvent::Invalid(invalid) => format!("bad {invalid}"),
        WatchEvent::Repaired(invalid) => format!("not bad {invalid}"),
        WatchEvent::Synced => "synced".to_owned(),
    }
}

fn list(index: usize, items: Vec<Item>) -> Vec<Step> {
    let items = items.into_iter().map(|item| Step::Item(index, item));
    std::iter::once(Step::Listing(index)).chain(items).chain([Step::Listed(index)]).collect()
}

#[test]
fn synced_is_told_once_when_every_kind_has_been_listed() {
    let mut objects = objects(10);
    assert_eq!(told(&mut objects, list(SERVICES, vec![service("a", 1, 80)])), ["Service n/a"]);
    assert_eq!(told(&mut objects, list(ROUTES, vec![])), ["synced"]);
    assert!(told(&mut objects, list(ROUTES, vec![])).is_empty());
}

#[test]
fn a_new_list_tells_what_has_changed_and_what_is_gone_and_nothing_else() {
    let mut objects = objects(10);
    let first = vec![service("a", 1, 80), service("b", 2, 80), service("c", 3, 80)];
    told(&mut objects, list(SERVICES, first));
    let again = list(SERVICES, vec![service("a", 1, 80), service("c", 9, 81)]);
    assert_eq!(told(&mut objects, again), ["Service n/c", "no Service n/b"]);
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let mut objects = objects(10);
    told(&mut objects, list(SERVICES, vec![service("a", 1, 80), service("b", 2, 80)]));
    let broken = vec![Step::Listing(SERVICES), Step::Item(SERVICES, service("a", 1, 80))];
    assert!(told(&mut objects, broken).is_empty());
    let whole = list(SERVICES, vec![service("b", 2, 80)]);
    assert_eq!(told(&mut objects, whole), ["no Service n/a"]);
}

#[test]
fn a_malformed_object_harms_itself_alone_and_keeps_its_last_good_version() {
    let mut objects = objects(10);
    let good = json!({"target": {"service": "s", "port": 80}, "scalingMetric": {"concurrency": {"targetValue": 1}}});
    let steps = list(ROUTES, vec![route("a", &json!({"target": 7})), route("b", &good)]);
    let told_first = told(&mut objects, steps);
    assert!(told_first[0].starts_with("bad InterceptorRoute n/a: invalid type"), "{told_first:?}");
    assert_eq!(told_first[1..], ["InterceptorRoute n/b"]);
    let broken = json!({"metadata": {"name": "b", "namespace": "n", "resourceVersion": "2"}, "spec": "nonsense"});
    let broken = Step::Item(ROUTES, Item::new(broken));
    let told_then = told(&mut objects, vec![broken]);
    assert!(told_then.len() == 1 && told_then[0].starts_with("bad InterceptorRoute n/b"), "{told_then:?}");
    let gone = vec![Step::Gone(ROUTES, route("a", &good)), Step::Gone(ROUTES, route("b", &good))];
    let gone = told(&mut objects, gone);
    assert!(gone[0].starts_with("not bad InterceptorRoute n/a"), "{gone:?}");
    assert_eq!(gone[1], "no InterceptorRoute n/b");
    assert!(gone[2].starts_with("not bad InterceptorRoute n/b"));
}

#[test]
fn a_malformed_object_that_is_repaired_or_gone_after_a_list_is_told_so() {
    let mut objects = objects(10);
    told(&mut objects, list(SERVICES, vec![service("a", 1, 0), service("b", 2, 0)]));
    let told = told(&mut objects, list(SERVICES, vec![service("a", 3, 80)]));
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].starts_with("not bad Service n/a"));
    assert_eq!(told[1], "Service n/a");
    assert!(told[2].starts_with("not bad Service n/b"));
}

#[test]
fn what_is_beyond_the_limit_is_left_out_and_told() {
    let mut objects = objects(1);
    let told = told(&mut objects, list(SERVICES, vec![service("a", 1, 80), service("b", 2, 80)]));
    assert_eq!(told, ["Service n/a", "bad Service n/b: more than 1 objects: ignored until it changes"]);
    assert_eq!(objects.take_refused(), 1);
}

#[test]
fn an_object_of_any_shape_can_be_listed() {
    for body in [json!(null), json!([]), json!({"metadata": 1}), json!({"metadata": {"name": 7}})] {
        assert!(Item::new(body).key().is_none());
    }
    let odd = Item::new(json!({"metadata": {"name": "a", "labels": 7, "resourceVersion": "1"}}));
    assert!(odd.read(Kind::Service).is_err());
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, broken, empty) =
        (folder.path().join("missing"), folder.path().join("broken"), folder.path().join("empty"));
    std::fs::write(&broken, "clusters: {").unwrap();
    std::fs::write(&empty, "{}").unwrap();
    for path in [missing, broken, empty] {
        let cluster = Cluster { kubeconfig: Some(path.clone()), watches: Vec::new() };
        let error = check(&cluster).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the kubeconfig of --kubeconfig {} cannot be used", path.display()));
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn a_kind_that_need_not_exist_is_waited_for_no_longer_than_a_server_may_take_to_know_it() {
    let begin = Instant::now();
    let mut absence = Absence::of(Kind::HttpScaledObject);
    assert!(!absence.is_certain(Reason::Missing, begin));
    assert!(!absence.is_certain(Reason::Unreachable, begin + link::GRACE), "the server was away meanwhile");
    assert!(!absence.is_certain(Reason::Missing, begin + link::GRACE));
    assert!(absence.is_certain(Reason::Missing, begin + 2 * link::GRACE));
    assert!(!absence.is_certain(Reason::Missing, begin + 3 * link::GRACE), "it is told once");
    assert!(!Absence::of(Kind::InterceptorRoute).is_certain(Reason::Missing, begin));
}
