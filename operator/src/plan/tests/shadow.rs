//! Shadow slices against a model of an API server, KEDA and time.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::object::{OwnSlice, ShadowSlice, Slice};

/// What there is: a direct route, its ScaledObject and Service, pods, interceptors, and slices of ours.
struct Bench {
    world: World,
    route: Value,
    live: Vec<Value>,
    ready: bool,
    now: Instant,
    version: u64,
}

fn slice(namespace: &str, service: &str, addresses: &[&str]) -> DynamicObject {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address], "nodeName": "node1"})).collect();
    let labels = json!({"kubernetes.io/service-name": service});
    dynamic(&json!({"metadata": {"namespace": namespace, "name": format!("{service}-1"), "labels": labels},
        "addressType": "IPv4", "endpoints": endpoints}))
}

impl Bench {
    fn new(cooldown: u64) -> Self {
        let route = route(&json!({"spec": {"dataPath": "Direct"}, "status": {}}));
        let mut bench = Self {
            world: World::default().shadowed(20_000..=20_000).with_agents(Some("agents".to_owned())),
            route,
            live: Vec::new(),
            ready: false,
            now: Instant::now(),
            version: 1,
        };
        let mut scaled = users("r", &json!({"interceptorRoute": "r"}));
        scaled["spec"]["cooldownPeriod"] = cooldown.into();
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "web"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
        }))
        .unwrap();
        let agents = OwnSlice::read(&slice("keda", "agents", &["10.1.0.1"])).unwrap();
        let interceptors = OwnSlice::read(&slice("keda", "interceptors", &["10.0.0.8", "10.0.0.9"])).unwrap();
        bench.world.apply([
            Event::Put(Item::Scaled(Box::new(Scaled::read(&dynamic(&scaled)).unwrap()))),
            Event::Put(Item::Service(api::convert::service(&service).unwrap())),
            Event::Put(Item::Interceptors(interceptors)),
            Event::Put(Item::Interceptors(agents)),
        ]);
        bench.told();
        bench
    }

    /// The watch tells of the route as it is now.
    fn told(&mut self) {
        self.version += 1;
        self.route["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Object::read(RouteKind::InterceptorRoute, &dynamic(&self.route)).unwrap();
        self.world.apply([Event::Put(Item::Route(Box::new(object)))]);
    }

    fn pods(&mut self, ready: bool) {
        self.ready = ready;
        let addresses: &[&str] = if ready { &["10.0.0.1"] } else { &[] };
        self.world.apply([Event::Put(Item::Slice(Slice::read(&slice("n", "web", addresses)).unwrap()))]);
    }

    /// The Service has these cluster IPs.
    fn families(&mut self, addresses: &[&str]) {
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "web"},
            "spec": {"clusterIPs": addresses, "ports": [{"name": "http", "port": 80}]},
        }))
        .unwrap();
        self.world.apply([Event::Put(Item::Service(api::convert::service(&service).unwrap()))]);
    }

    /// Interceptors have these addresses.
    fn interceptors(&mut self, addresses: &[&str]) {
        let slice = OwnSlice::read(&slice("keda", "interceptors", addresses)).unwrap();
        self.world.apply([Event::Put(Item::Interceptors(slice))]);
    }

    /// The node's agent is there, or not.
    fn agent(&mut self, there: bool) {
        let addresses: &[&str] = if there { &["10.1.0.1"] } else { &[] };
        self.world
            .apply([Event::Put(Item::Interceptors(OwnSlice::read(&slice("keda", "agents", addresses)).unwrap()))]);
    }

    /// The node's agent is listed and not ready, as one that ends soon after it has begun, time and again.
    fn agent_is_not_ready(&mut self) {
        let mut agents = slice("keda", "agents", &["10.1.0.1"]);
        agents.data["endpoints"][0]["conditions"] = json!({"ready": false});
        self.world.apply([Event::Put(Item::Interceptors(OwnSlice::read(&agents).unwrap()))]);
    }

    fn message(&self) -> &str {
        let conditions = self.route["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "DataPath").unwrap()["message"].as_str().unwrap()
    }

    fn demand(&mut self, active: Option<bool>) {
        self.world.apply([Event::Demand(ObjectKey::new("n", "r"), active)]);
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.world.advance(self.now);
    }

    /// Plans and carries out until nothing is left to do. What was done, in order.
    fn settle(&mut self) -> Vec<&'static str> {
        let mut done = Vec::new();
        for _ in 0..10 {
            let observed = self.world.observe(&subject(RouteKind::InterceptorRoute)).unwrap();
            let plan = plan(&observed, &settings(), NOW);
            if plan.is_empty() {
                return done;
            }
            for action in &plan.actions {
                match action {
                    Action::Publish { name, body } => {
                        done.push("publish");
                        self.live.retain(|live| live["metadata"]["name"] != **name);
                        self.live.push(body.clone());
                        let slice = ShadowSlice::read(&dynamic(body)).expect("it is one of ours");
                        self.world.apply([Event::Put(Item::Shadow(Box::new(slice)))]);
                    }
                    Action::Withdraw { name, .. } => {
                        done.push("withdraw");
                        assert_ne!(
                            self.route["status"]["shadow"]["published"], true,
                            "a scaler believes they are there"
                        );
                        self.live.retain(|live| live["metadata"]["name"] != **name);
                        let key = ObjectKey::new("n", name.as_str());
                        self.world.apply([Event::Gone(Kind::Slices, key)]);
                    }
                    other => panic!("{other:?}"),
                }
            }
            if let Some(write) = plan.status {
                if self.route["status"]["shadow"] != write.status["shadow"] {
                    done.push(if write.status["shadow"]["published"] == true { "listed" } else { "unlisted" });
                }
                self.route["status"] = write.status;
                self.told();
            }
        }
        panic!("no end of it: {done:?}");
    }

    fn reason(&self) -> &str {
        let conditions = self.route["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "DataPath").unwrap()["reason"].as_str().unwrap()
    }
}

/// One that has published since no pod is ready.
fn asleep(cooldown: u64) -> Bench {
    let mut bench = Bench::new(cooldown);
    bench.demand(Some(false));
    assert_eq!(bench.settle(), ["unlisted"], "interceptors are told of the port first");
    assert_eq!(
        bench.route["status"]["shadow"],
        json!({"port": 20_000, "published": false}),
        "and nobody is kept awake"
    );
    bench.later(2);
    assert_eq!(bench.settle(), ["publish", "listed"]);
    bench
}

#[test]
fn a_workload_that_sleeps_has_interceptors_for_endpoints() {
    let bench = asleep(3);
    let [live] = bench.live.as_slice() else { panic!("one slice, not {:?}", bench.live) };
    assert_eq!(live["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(live["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"], "shadow.http.keda.sh");
    assert_eq!(live["metadata"]["ownerReferences"][0]["uid"], "u");
    assert_eq!(live["ports"], json!([{"name": "http", "port": 20_000, "protocol": "TCP"}]));
    let addresses: Vec<_> = live["endpoints"].as_array().unwrap().iter().map(|it| &it["addresses"][0]).collect();
    assert_eq!(addresses, ["10.0.0.8", "10.0.0.9"]);
    assert_eq!(bench.reason(), "Interceptors");
    assert_eq!(bench.route["status"]["shadow"], json!({"port": 20_000, "published": true, "afterSeconds": 0}));
}

#[test]
fn slices_go_after_a_pod_was_ready_and_demand_there_for_a_while_and_come_back_with_its_end() {
    let mut bench = asleep(3);
    bench.demand(Some(true));
    bench.pods(true);
    assert!(bench.settle().is_empty());
    bench.later(4);
    assert!(bench.settle().is_empty(), "KEDA may not have heard of the demand when it last acted");
    bench.later(1);
    assert_eq!(bench.settle(), ["unlisted", "withdraw"]);
    assert_eq!(bench.reason(), "Direct");
    bench.demand(Some(false));
    assert_eq!(bench.settle(), ["publish", "listed"], "at once: with this cool-down KEDA may act at once");
    bench.pods(false);
    assert!(bench.settle().is_empty());
}

#[test]
fn a_node_that_lost_its_agent_is_told_of_when_none_has_come_for_a_while() {
    let mut bench = Bench::new(300);
    bench.pods(true);
    bench.demand(Some(true));
    bench.settle();
    bench.later(1);
    bench.agent(false);
    bench.settle();
    bench.later(59);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], Value::Null, "another may come");
    let again = bench.world.observe(&subject(RouteKind::InterceptorRoute)).unwrap().again;
    assert_eq!(again, Some(bench.now + Duration::from_secs(1)));
    bench.later(1);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], true);
    assert!(bench.message().contains("node node1 has no agent"), "{}", bench.message());
    bench.agent(true);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], Value::Null);
    bench.agent(false);
    bench.later(60);
    bench.settle();
    bench.pods(false);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], Value::Null, "without pods there is nothing to count");
}

#[test]
fn an_agent_that_is_not_ready_for_a_while_is_none() {
    let mut bench = Bench::new(300);
    bench.pods(true);
    bench.demand(Some(true));
    bench.settle();
    bench.agent_is_not_ready();
    bench.later(59);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], Value::Null, "it may be ready in a moment");
    bench.later(1);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], true);
    bench.agent(true);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], Value::Null);
}

#[test]
fn nodes_without_an_agent_are_told_of_also_where_no_interceptor_can_stand_in() {
    let mut bench = Bench::new(300);
    let headless: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": "web"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
    }))
    .unwrap();
    bench.world.apply([Event::Put(Item::Service(api::convert::service(&headless).unwrap()))]);
    bench.pods(true);
    bench.settle();
    assert_eq!(bench.route["status"]["uncounted"], Value::Null);
    bench.agent(false);
    bench.later(60);
    bench.settle();
    assert_eq!(bench.reason(), "DirectOnly");
    assert!(bench.route["status"]["shadow"].is_null());
    assert_eq!(bench.route["status"]["uncounted"], true);
    assert!(bench.message().contains("node node1 has no agent"), "{}", bench.message());
}

#[test]
fn with_a_long_cool_down_slices_come_some_time_before_its_end_and_a_pause_of_clients_brings_none() {
    let mut bench = asleep(300);
    assert_eq!(bench.route["status"]["shadow"]["afterSeconds"], 255, "300 less KEDA's interval and what we are ahead");
    bench.demand(Some(true));
    bench.pods(true);
    bench.settle();
    bench.later(5);
    assert_eq!(bench.settle(), ["unlisted", "withdraw"]);
    for _ in 0..3 {
        bench.demand(Some(false));
        bench.later(254);
        assert!(bench.settle().is_empty());
        bench.demand(Some(true));
    }
    bench.demand(Some(false));
    bench.later(255);
    assert_eq!(bench.settle(), ["publish", "listed"]);
    bench.demand(Some(true));
    bench.settle();
    bench.demand(Some(false));
    bench.later(5);
    assert_eq!(bench.settle(), ["unlisted", "withdraw"], "the cool-down began anew");
}

#[test]
fn pods_that_vanish_without_a_word_of_demand_are_replaced_at_once() {
    let mut bench = asleep(300);
    bench.demand(Some(true));
    bench.pods(true);
    bench.settle();
    bench.later(5);
    bench.settle();
    bench.pods(false);
    assert_eq!(bench.settle(), ["publish", "listed"]);
}

#[test]
fn a_route_that_is_not_direct_any_more_has_no_slices() {
    let mut bench = asleep(3);
    bench.route["spec"]["dataPath"] = "Proxy".into();
    bench.told();
    let done = bench.settle();
    assert!(done.contains(&"withdraw"), "{done:?}");
    assert!(bench.live.is_empty() && bench.route["status"]["shadow"].is_null());
    assert_eq!(bench.reason(), "Proxy");
}

#[test]
fn a_service_with_both_families_is_not_said_to_have_interceptors_before_they_have_both_and_the_status_says_why() {
    let mut bench = asleep(3);
    bench.families(&["10.96.0.1", "fd00::1"]);
    assert_eq!(bench.settle(), ["unlisted"], "clients at the other address are refused");
    assert_eq!(bench.live.len(), 1, "those at this one are not");
    assert_eq!(bench.reason(), "DirectOnly");
    assert!(bench.message().contains("no interceptor that is ready has an IPv6 address"), "{}", bench.message());
    assert_eq!(bench.route["status"]["shadow"], json!({"port": 20_000, "published": false}), "nobody is woken by it");
    bench.pods(true);
    bench.settle();
    assert_eq!(bench.route["status"]["shadow"]["afterSeconds"], 0, "KEDA is kept from taking the last one away");
    assert!(bench.message().contains("kept from zero"), "{}", bench.message());
    bench.interceptors(&["fd00::8", "10.0.0.8"]);
    assert_eq!(bench.settle(), ["publish", "publish", "listed"]);
    assert_eq!(bench.reason(), "Interceptors");
    bench.interceptors(&["fd00::8"]);
    assert_eq!(bench.settle(), ["unlisted", "withdraw"], "in this order");
    assert!(bench.message().contains("IPv4"), "{}", bench.message());
}

#[test]
fn without_interceptors_the_status_says_so() {
    let mut bench = Bench::new(3);
    bench.pods(true);
    bench.interceptors(&[]);
    bench.settle();
    assert!(bench.message().contains("replicas are kept from zero"), "{}", bench.message());
}

#[test]
fn without_a_free_port_the_status_says_so() {
    let mut bench = asleep(3);
    let mut other = bench.route.clone();
    other["metadata"]["name"] = "s".into();
    other["metadata"]["uid"] = "v".into();
    other["status"] = json!({});
    other["spec"]["target"]["service"] = "wide".into();
    let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": "wide"},
        "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]},
    }))
    .unwrap();
    let object = Object::read(RouteKind::InterceptorRoute, &dynamic(&other)).unwrap();
    let subject = object.subject.clone();
    bench.world.apply([
        Event::Put(Item::Service(api::convert::service(&service).unwrap())),
        Event::Put(Item::Route(Box::new(object))),
    ]);
    let write = plan(&bench.world.observe(&subject).unwrap(), &settings(), NOW).status.unwrap();
    let conditions = write.status["conditions"].as_array().unwrap();
    let path = conditions.iter().find(|condition| condition["type"] == "DataPath").unwrap();
    assert_eq!(path["reason"], "DirectOnly");
    assert!(path["message"].as_str().unwrap().contains("all ports of interceptors are given away"), "{path}");
    assert!(write.status["shadow"].is_null());
}

#[test]
fn an_edit_that_cannot_be_read_changes_nothing_of_what_interceptors_were_told() {
    let mut bench = asleep(3);
    let (told, live) = (bench.route["status"]["shadow"].clone(), bench.live.clone());
    bench.route["spec"]["demand"] = json!({"ignore": {"cidrs": ["10.1.0.300/16"]}});
    bench.told();
    let done = bench.settle();
    assert!(done.iter().all(|done| *done == "listed"), "{done:?}");
    assert_eq!((&bench.route["status"]["shadow"], &bench.live), (&told, &live));
    let accepted = bench.route["status"]["conditions"][1].clone();
    assert_eq!((&accepted["type"], &accepted["reason"]), (&json!("Accepted"), &json!("Invalid")));
    assert!(accepted["message"].as_str().unwrap().contains("10.1.0.300/16"), "{accepted}");
    assert_eq!(bench.world.ports(), 1, "nobody else gets the port");
    bench.pods(true);
    bench.demand(Some(true));
    bench.later(60);
    assert!(bench.settle().is_empty());
    bench.route["spec"].as_object_mut().unwrap().remove("demand");
    bench.told();
    bench.settle();
    bench.later(5);
    bench.settle();
    assert_eq!((bench.reason(), bench.route["status"]["shadow"]["port"].as_u64()), ("Direct", Some(20_000)));
}

#[test]
fn a_new_operator_that_cannot_read_a_route_leaves_what_the_one_before_it_told() {
    let mut bench = asleep(3);
    bench.route["spec"]["demand"] = json!({"ignore": {"cidrs": ["10.1.0.300/16"]}});
    bench.route["status"]["uncounted"] = true.into();
    let (route, live) = (bench.route.clone(), bench.live.clone());
    let mut bench = Bench::new(3);
    (bench.route, bench.live) = (route.clone(), live.clone());
    for slice in &live {
        let slice = ShadowSlice::read(&dynamic(slice)).unwrap();
        bench.world.apply([Event::Put(Item::Shadow(Box::new(slice)))]);
    }
    bench.told();
    bench.world.reserve_ports();
    bench.settle();
    assert_eq!((&bench.route["status"]["shadow"], &bench.live), (&route["status"]["shadow"], &live));
    assert_eq!(bench.route["status"]["uncounted"], true);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pods(bool),
    Demand(Option<bool>),
    Later(u64),
}

proptest! {
    #[test]
    fn whatever_happens_a_service_without_pods_has_interceptors(
        cooldown in prop_oneof![Just(0_u64), Just(50), Just(300)],
        steps in prop::collection::vec(prop_oneof![
            any::<bool>().prop_map(Step::Pods),
            prop_oneof![Just(Some(true)), Just(Some(false)), Just(None)].prop_map(Step::Demand),
            (0..100_u64).prop_map(Step::Later),
        ], 0..40),
    ) {
        let mut bench = asleep(cooldown);
        for step in steps {
            match step {
                Step::Pods(ready) => bench.pods(ready),
                Step::Demand(active) => bench.demand(active),
                Step::Later(seconds) => bench.later(seconds),
            }
            bench.settle();
            prop_assert!(bench.ready || !bench.live.is_empty(), "nobody after {:?}", step);
            prop_assert_eq!(bench.route["status"]["shadow"]["published"] == true, !bench.live.is_empty());
        }
    }
}
