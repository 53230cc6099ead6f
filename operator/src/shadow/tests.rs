//! When interceptors are needed, by what was told and by time alone.

use super::*;

const PORT: RangeInclusive<u16> = 20_000..=20_001;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_scaler_that_starts_or_falls_silent_is_believed_the_worst_after_a_while() {
    let now = Instant::now();
    let after = Some(secs(60));
    assert_eq!(Demand::Unknown(now).needs(after, now + secs(9)), (false, Some(now + SILENCE)));
    assert_eq!(Demand::Unknown(now).needs(after, now + SILENCE), (true, None));
    assert_eq!(Demand::Quiet(None).needs(after, now), (true, None), "KEDA may be about to act");
    assert_eq!(Demand::Active.needs(after, now + secs(900)), (false, None));
    assert_eq!(Demand::Quiet(Some(now)).needs(after, now + secs(59)), (false, Some(now + secs(60))));
    assert_eq!(Demand::Quiet(Some(now)).needs(after, now + secs(60)), (true, None));
    assert_eq!(Demand::Quiet(Some(now)).needs(None, now + secs(60)), (false, None), "KEDA leaves a replica");
}

#[test]
fn a_pod_that_goes_for_a_moment_makes_the_wait_begin_again() {
    use interceptor_core::route::RouteKind;
    use serde_json::json;
    let object: kube::api::DynamicObject = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": "r"},
        "spec": {"target": {"service": "web", "port": 80}, "dataPath": "Direct",
            "scalingMetric": {"concurrency": {"targetValue": 1}}},
    }))
    .unwrap();
    let route = crate::object::Object::read(RouteKind::InterceptorRoute, &object).unwrap();
    let (now, key) = (Instant::now(), route.subject.key.clone());
    let mut shadows = Shadows::new(PORT);
    shadows.put_route(&key, route.route.as_ref().ok(), now);
    shadows.put_demand(&key, Some(true), now);
    let slice = |ready| {
        let (key, service) = (ObjectKey::new("n", "web-1"), ObjectKey::new("n", "web"));
        Slice { key, service, ready, nodes: BTreeSet::new() }
    };
    let see = |shadows: &mut Shadows, now| {
        let service = Reached { port: "http".into(), ipv4: true, ipv6: false };
        let (seen, again) = shadows.see((&key, "u"), Some(&service), (Some(Duration::ZERO), Some(20_000)), now);
        (seen.unwrap().warm, again)
    };
    shadows.put_slice(slice(true));
    assert_eq!(see(&mut shadows, now + secs(2)), (false, Some(now + secs(2) + LISTENING)));
    assert_eq!(see(&mut shadows, now + secs(7)), (true, None));
    // Both within one batch: nobody looked in between.
    shadows.put_slice(slice(false));
    shadows.put_slice(slice(true));
    assert_eq!(see(&mut shadows, now + secs(8)), (false, Some(now + secs(8) + WARM)));
    shadows.put_demand(&key, Some(false), now + secs(9));
    assert!(!see(&mut shadows, now + secs(30)).0, "interceptors are needed");
}
