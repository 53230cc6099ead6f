//! Objects from before a schema was strict.

use serde_json::{Value, json};

use crate::support::{Namespace, ROUTE, SCALED, SCHEMAS};

/// Our definitions, with schemas that let everything pass.
fn loose() -> [Value; 2] {
    api::crd::all().map(|(_, mut crd)| {
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = anything;
        crd
    })
}

fn route(name: &str, port: &Value) -> Value {
    json!({
        "apiVersion": ROUTE.0,
        "kind": ROUTE.1,
        "metadata": {"name": name},
        "spec": {
            "rules": [{"hosts": [format!("{name}.example")]}],
            "target": {"service": "web", "port": port},
            "scalingMetric": {"requestRate": {"targetValue": 1, "window": "a minute"}},
            "scaling": {},
        },
    })
}

fn sound(name: &str) -> Value {
    let mut route = route(name, &json!(80));
    route["spec"]["scalingMetric"]["requestRate"]["window"] = "1m".into();
    route
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn an_object_that_cannot_be_read_hurts_only_itself() {
    let _alone = SCHEMAS.write().await;
    let namespace = Namespace::new("malformed").await;
    let before = namespace.operator("before", None).await;
    namespace.apply_value(&sound("sound")).await.unwrap();
    namespace.until(SCALED, "sound", "is made", |_| true).await;

    namespace.install(loose()).await;
    for (name, port) in [("unreadable", json!("eighty")), ("bad-duration", json!(80))] {
        // The API server takes a while to serve another schema.
        let mut tries = 0;
        while let Err(error) = namespace.apply_value(&route(name, &port)).await {
            tries += 1;
            assert!(tries < 200, "{error}");
            tokio::task::yield_now().await;
        }
    }
    namespace.install(api::crd::all().map(|(_, crd)| crd)).await;

    let message = namespace.until_condition(ROUTE, "unreadable", ("Accepted", "False", "Invalid")).await;
    assert!(message.contains("spec.target.port cannot be read"), "{message}");
    let message = namespace.until_condition(ROUTE, "bad-duration", ("Ready", "False", "Invalid")).await;
    assert!(message.contains("window is \"a minute\""), "{message}");
    namespace.apply_value(&sound("later")).await.unwrap();
    namespace.until(SCALED, "later", "is made", |_| true).await;
    before.end().await;

    // One that starts lists all of them at once.
    namespace.delete(SCALED, "sound").await;
    namespace.delete(SCALED, "later").await;
    let after = namespace.operator("after", None).await;
    namespace.until(SCALED, "sound", "is made again", |_| true).await;
    namespace.until(SCALED, "later", "is made again", |_| true).await;
    after.end().await;
}
