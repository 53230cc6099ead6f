//! Host, path and fields of a request, looked up in a table with every kind of rule.
#![no_main]

use std::sync::{Arc, LazyLock};

use api::InterceptorRoute;
use http::{HeaderMap, HeaderName, HeaderValue};
use interceptor_core::{
    RouteTable,
    index::{Event, Index},
    inflight::NoSink,
    route::Headers,
};
use libfuzzer_sys::{arbitrary, fuzz_target};
use serde_json::json;

/// What a request is routed by.
#[derive(Debug, arbitrary::Arbitrary)]
struct Asked {
    host: String,
    path: Vec<u8>,
    fields: Vec<(String, Vec<u8>)>,
}

struct Fields(HeaderMap);

impl Headers for Fields {
    fn map(&self) -> &HeaderMap {
        &self.0
    }
}

static TABLE: LazyLock<RouteTable> = LazyLock::new(|| {
    let mut index = Index::new(1, Arc::new(NoSink));
    let rules = [
        json!([{ "hosts": ["a.test", "*.b.test", "[::1]"], "paths": [{ "value": "/" }, { "value": "/x/y" }] }]),
        json!([{ "hosts": ["a.test"], "paths": [{ "value": "/x" }], "headers": [{ "name": "k", "value": "v" }] }]),
        json!([{ "hosts": ["a.test"], "paths": [{ "value": "/x" }], "headers": [{ "name": "k" }, { "name": "l", "value": "" }] }]),
        json!([{ "hosts": ["*"], "paths": [{ "value": "/%2f" }, { "value": "//z/" }] }]),
        json!([{ "paths": [{ "value": "/any" }] }]),
        json!([{ "hosts": ["only.test"] }]),
    ];
    for (number, rules) in rules.into_iter().enumerate() {
        let route = json!({
            "apiVersion": "http.keda.sh/v1beta1",
            "kind": "InterceptorRoute",
            "metadata": { "name": format!("r{number}"), "namespace": "n" },
            "spec": {
                "target": { "service": "s", "port": 80 },
                "scalingMetric": { "concurrency": { "targetValue": 1 } },
                "rules": rules,
            },
        });
        let route: InterceptorRoute = serde_json::from_value(route).expect("a route");
        index.apply(Event::Route(api::convert::interceptor_route(&route).expect("a route that holds")));
    }
    index.snapshot().table
});

fuzz_target!(|asked: Asked| {
    let Asked { host, path, fields } = asked;
    let mut map = HeaderMap::new();
    for (name, value) in &fields {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    let find = |host: &str, path: &[u8], fields| TABLE.lookup(host, path, fields);
    let fields = Fields(map);
    let found = find(&host, &path, &fields).map(|entry| entry.id);
    let shouted = find(&host.to_ascii_uppercase(), &path, &fields).map(|entry| entry.id);
    assert_eq!(found, shouted, "hosts are compared without regard to case");
    if let Some(entry) = find(&host, b"/", &Fields(HeaderMap::new()))
        && TABLE.takes_all(&host, entry)
    {
        assert_eq!(found, Some(entry.id), "who takes all takes this");
    }
});
