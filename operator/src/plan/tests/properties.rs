//! What holds of every plan, whatever is there.

use proptest::prelude::*;

use super::*;

fn any_route() -> impl Strategy<Value = Value> {
    let scaling = prop_oneof![
        Just(json!({})),
        Just(json!({"scaling": {}})),
        Just(json!({"scaling": {"minReplicas": 2, "maxReplicas": 1}})),
        Just(json!({"scaling": {"cooldown": "soon"}})),
        Just(json!({"scaling": {"cooldown": "5m", "scaleTargetRef": {"name": "app", "kind": "StatefulSet"}}})),
        Just(json!({"target": {"port": "eighty"}})),
        Just(json!({"target": {"service": "gone"}})),
    ];
    let http_spec = prop_oneof![
        Just(json!({})),
        Just(json!({"scaledownPeriod": 3, "replicas": {"min": 0}})),
        Just(json!({"scalingMetric": {"concurrency": {}, "requestRate": {}}})),
        Just(json!({"timeouts": {"conditionWait": "soon"}})),
        Just(json!({"scaleTargetRef": {"service": 7}})),
    ];
    let annotation = prop_oneof![
        3 => Just(json!({})),
        1 => Just(json!({ORPHAN_ANNOTATION: "true"})),
        1 => Just(json!({SKIP_ANNOTATION: "true"})),
        1 => Just(json!({"autoscaling.keda.sh/paused": "true"})),
    ];
    let finalizers = prop_oneof![Just(json!([])), Just(json!([names::FINALIZER, "a/b"]))];
    let spec = prop_oneof![scaling.prop_map(|spec| (false, spec)), http_spec.prop_map(|spec| (true, spec))];
    (spec, annotation, finalizers).prop_map(|((is_http, spec), annotations, finalizers)| {
        let more = json!({"spec": spec, "metadata": {"annotations": annotations, "finalizers": finalizers}});
        if is_http { http(&more) } else { route(&more) }
    })
}

fn any_scaled() -> impl Strategy<Value = Vec<Value>> {
    let owner = |kind: &str, uid: &str| {
        json!({"metadata": {"ownerReferences": [{"apiVersion": "http.keda.sh/v1alpha1", "kind": kind, "name": "r", "uid": uid,
            "controller": true}]}})
    };
    let one = prop_oneof![
        Just(users("r", &json!({}))),
        Just(users("r", &json!({"httpScaledObject": "r"}))),
        Just(users("mine", &json!({"interceptorRoute": "r"}))),
        Just(users("other", &json!({"interceptorRoute": "x"}))),
        Just({
            let mut ours = users("r", &json!({"httpScaledObject": "r"}));
            merge(&mut ours, &owner("HTTPScaledObject", "u"));
            ours
        }),
        Just({
            let mut strange = users("r", &json!({}));
            merge(&mut strange, &owner("Rollout", "x"));
            strange
        }),
    ];
    prop::collection::vec(one, 0..3).prop_map(|mut all| {
        all.sort_by_key(|scaled| scaled["metadata"]["name"].to_string());
        all.dedup_by_key(|scaled| scaled["metadata"]["name"].to_string());
        all
    })
}

proptest! {
    #[test]
    fn whatever_is_there_a_few_plans_lead_to_one_that_is_empty(
        route in any_route(), scaled in any_scaled(), keda in any::<bool>(),
    ) {
        let mut server = Server::with(route, scaled);
        server.keda = keda;
        for _ in 0..3 {
            server.step();
        }
        let plan = server.plan();
        prop_assert!(plan.is_empty(), "{plan:?}");
    }

    #[test]
    fn nobody_elses_scaled_object_is_ever_touched(route in any_route(), scaled in any_scaled()) {
        let mut server = Server::with(route, scaled.clone());
        let who = subject(server.kind());
        let foreign = scaled.into_iter().filter(|value| {
            let read = Scaled::read(&dynamic(value)).unwrap();
            let let_go = read.owner.is_none() && read.key == who.key && read.names(&who) && who.kind == RouteKind::HttpScaledObject;
            !read.is_owned_by(&who, "u") && !let_go
        });
        let foreign: Vec<_> = foreign.collect();
        for _ in 0..3 {
            server.step();
        }
        for value in foreign {
            prop_assert!(server.scaled.contains(&value), "{value} was changed");
        }
    }
}
