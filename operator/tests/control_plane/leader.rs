//! Of several operators one acts: handed over in order, and taken over from one that crashed.

use std::time::Duration;

use operator::lease::{self, Terms};
use serde_json::Value;

use crate::support::{Namespace, ROUTE, SCHEMAS};

const LEASE: (&str, &str) = ("coordination.k8s.io/v1", "Lease");

const TERMS: Terms = Terms {
    duration: Duration::from_secs(3),
    renew_deadline: Duration::from_secs(2),
    retry_period: Duration::from_millis(200),
};

fn held_by(name: &str) -> impl Fn(&Value) -> bool + Send {
    let start = format!("{name}_");
    move |lease| lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with(&start))
}

fn route(name: &str) -> String {
    format!(
        "
apiVersion: http.keda.sh/v1beta1
kind: InterceptorRoute
metadata: {{name: {name}}}
spec: {{target: {{service: web, port: 80}}, scalingMetric: {{concurrency: {{targetValue: 1}}}}}}
"
    )
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn one_operator_acts_and_the_next_takes_over() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("leader").await;
    let first = namespace.operator("first", Some(TERMS)).await;
    namespace.until(LEASE, lease::NAME, "held by the first", held_by("first")).await;
    let second = namespace.operator("second", Some(TERMS)).await;
    namespace.apply(&route("one")).await;
    namespace.until_condition(ROUTE, "one", ("Accepted", "False", "NoRules")).await;

    first.end().await;
    namespace.until(LEASE, lease::NAME, "handed to the second", held_by("second")).await;
    namespace.apply(&route("two")).await;
    namespace.until_condition(ROUTE, "two", ("Accepted", "False", "NoRules")).await;

    let third = namespace.operator("third", Some(TERMS)).await;
    second.kill().await;
    let lease = namespace.until(LEASE, lease::NAME, "taken by the third", held_by("third")).await;
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
    namespace.apply(&route("three")).await;
    namespace.until_condition(ROUTE, "three", ("Accepted", "False", "NoRules")).await;
    third.end().await;
}
