//! Objects as users write them, good and bad.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use interceptor_core::{
    ObjectKey,
    kubelet::UnnamedProbe,
    route::{DataPath, HeaderMatch, Overflow, PortRef, Rate, RouteKind, Rule, Scaling, Target, Timeouts, Traffic},
};
use serde::de::DeserializeOwned;

use super::*;
use crate::{HTTPScaledObject, InterceptorRoute};

fn object<T: DeserializeOwned>(text: &str) -> T {
    serde_yaml_ng::from_str(text).unwrap()
}

fn spec(extra: &str) -> InterceptorRoute {
    object(&format!(
        "{{metadata: {{name: r}}, spec: {{target: {{service: web, port: 80}}, scalingMetric: {{concurrency: {{targetValue: 1}}}}, {extra}}}}}"
    ))
}

fn message(extra: &str) -> String {
    interceptor_route(&spec(extra)).unwrap_err().to_string()
}

#[test]
fn an_interceptor_route_is_read_whole() {
    let route = interceptor_route(&object(
        "
        apiVersion: http.keda.sh/v1beta1
        kind: InterceptorRoute
        metadata: {namespace: shop, name: cart, creationTimestamp: '1970-01-01T00:01:40Z'}
        spec:
          target: {service: web, portName: http}
          rules:
          - hosts: [a.com, '*.b.com']
            paths: [{value: /api}]
            headers: [{name: X-Version, value: v2}, {name: x-any}]
          scalingMetric:
            concurrency: {targetValue: 10}
            requestRate: {targetValue: 5, window: 30s}
          timeouts: {readiness: 1m30s, request: 0s, responseHeader: 300ms}
        ",
    ))
    .unwrap();
    let header = |name: &'static str, value: Option<&str>| HeaderMatch {
        name: http::HeaderName::from_static(name),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    assert_eq!(
        route,
        interceptor_core::Route {
            created: 100,
            rules: vec![Rule {
                hosts: vec!["a.com".to_owned(), "*.b.com".to_owned()],
                paths: vec!["/api".to_owned()],
                headers: vec![header("x-version", Some("v2")), header("x-any", None)],
            }],
            holding: interceptor_core::route::Holding {
                per_pod: NonZeroU32::new(10),
                ..interceptor_core::route::Holding::default()
            },
            scaling: Scaling {
                concurrency: Some(10),
                rate: Some(Rate { target: 5, window: Duration::from_secs(30), granularity: Duration::from_secs(1) }),
                ..Scaling::default()
            },
            timeouts: Timeouts {
                readiness: Some(Duration::from_secs(90)),
                request: Some(Duration::ZERO),
                response_header: Some(Duration::from_millis(300)),
            },
            ..interceptor_core::Route::new(
                RouteKind::InterceptorRoute,
                ObjectKey::new("shop", "cart"),
                Target { service: ObjectKey::new("shop", "web"), port: PortRef::Name("http".into()) }
            )
        }
    );
}

#[test]
fn an_error_names_field_value_and_what_was_expected() {
    let cases = [
        ("target: {service: web, port: 70000}", "spec.target.port is 70000: expected a port from 1 to 65535"),
        ("target: {service: web, port: 0}", "spec.target.port is 0: expected a port from 1 to 65535"),
        ("target: {service: web}", "spec.target is without port and portName: expected exactly one of them"),
        (
            "target: {service: web, port: 1, portName: a}",
            "spec.target is with both port and portName: expected exactly one of them",
        ),
        ("target: {service: '', port: 1}", "spec.target.service is empty: expected the name of a Service"),
        (
            "scalingMetric: {}",
            "spec.scalingMetric is empty: expected at least one of concurrency, requestRate, connections and acceptQueue",
        ),
        (
            "scalingMetric: {concurrency: {targetValue: 0}}",
            "spec.scalingMetric.concurrency.targetValue is 0: expected a number from 1",
        ),
        (
            "scalingMetric: {requestRate: {targetValue: 1, window: 1 minute}}",
            "spec.scalingMetric.requestRate.window is \"1 minute\": expected a duration such as 300ms, 1m30s or 0s",
        ),
        (
            "timeouts: {request: soon}",
            "spec.timeouts.request is \"soon\": expected a duration such as 300ms, 1m30s or 0s",
        ),
        ("timeouts: {readiness: -1s}", "spec.timeouts.readiness is \"-1s\": expected a duration of 0s or more"),
        (
            "rules: [{}, {headers: [{name: a}, {name: 'b c'}]}]",
            "spec.rules[1].headers[1].name is \"b c\": expected a header name",
        ),
    ];
    for (extra, expected) in cases {
        let key = extra.split(':').next().unwrap();
        let mut value: serde_json::Value = serde_json::to_value(spec("")).unwrap();
        let patch: serde_json::Value = object(&format!("{{{extra}}}"));
        value["spec"][key] = patch[key].clone();
        let error = interceptor_route(&serde_json::from_value(value).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn what_a_direct_route_ignores_and_counts_is_read_and_a_mistake_is_told() {
    let direct = |extra: &str| interceptor_route(&object(&direct_text(extra)));
    let route = direct("demand: {ignore: {cidrs: [10.1.0.0/16, 'fd00::1'], namespaces: [monitoring]}}").unwrap();
    let networks: Vec<_> = route.ignored.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.1.0.0/16", "fd00::1/128"]);
    assert_eq!(route.ignored.namespaces, ["monitoring".into()]);
    assert!(direct("demand: {}").unwrap().ignored.is_empty());
    let route = direct("scalingMetric: {connections: {targetValue: 40}}").unwrap();
    assert_eq!(route.scaling, Scaling { connections: Some(40), ..Scaling::default() });
    let route = direct("scalingMetric: {acceptQueue: {targetValue: 20}}").unwrap();
    assert_eq!(route.scaling, Scaling { accept_queue: Some(20), ..Scaling::default() });
    let error = |extra: &str| direct(extra).unwrap_err().to_string();
    assert_eq!(
        error("demand: {ignore: {cidrs: [10.0.0.0/8, 10.0.0.0/33]}}"),
        "spec.demand.ignore.cidrs[1] is \"10.0.0.0/33\": expected an address or a network such as 10.0.0.0/8"
    );
    let many = vec!["10.0.0.1"; 65].join(", ");
    assert_eq!(
        error(&format!("demand: {{ignore: {{cidrs: [{many}]}}}}")),
        "spec.demand.ignore.cidrs is a list of 65: expected at most 64"
    );
    let proxied = |extra: &str| {
        let text = direct_text(extra).replace("dataPath: Direct, ", "");
        interceptor_route(&object(&text)).unwrap_err().to_string()
    };
    assert_eq!(proxied("demand: {}"), "spec.demand is without dataPath Direct: expected dataPath Direct");
    assert_eq!(
        proxied("scalingMetric: {connections: {targetValue: 1}}"),
        "spec.scalingMetric.connections is without dataPath Direct: expected dataPath Direct"
    );
    assert_eq!(
        proxied("scalingMetric: {acceptQueue: {targetValue: 1}}"),
        "spec.scalingMetric.acceptQueue is without dataPath Direct: expected dataPath Direct"
    );
}

#[test]
fn unnamed_probes_are_read_from_the_status_and_what_no_kubelet_sends_is_left_out() {
    let probes = |probes: &str| {
        let text = direct_text("");
        let text = format!("{}, status: {{unnamedProbes: [{probes}]}}}}", text.strip_suffix('}').unwrap());
        interceptor_route(&object(&text)).unwrap().unnamed_probes
    };
    let found = probes("{port: 80, path: /ok, userAgent: a}, {port: 0, path: /}, {port: 1, path: /, host: \"a\\nb\"}");
    assert_eq!(found, [UnnamedProbe::new(80, "/ok", None, Some("a")).unwrap()]);
    let many: Vec<_> = (1..=100).map(|port| format!("{{port: {port}, path: /, userAgent: a}}")).collect();
    assert_eq!(probes(&many.join(",")).len(), 16);
}

/// A route with `dataPath: Direct` and more.
fn direct_text(extra: &str) -> String {
    let metric = if extra.contains("scalingMetric") { "" } else { "scalingMetric: {concurrency: {targetValue: 1}}, " };
    format!(
        "{{apiVersion: http.keda.sh/v1beta1, kind: InterceptorRoute, metadata: {{name: web, namespace: shop}}, \
         spec: {{dataPath: Direct, target: {{service: web, port: 80}}, {metric}{extra}}}}}"
    )
}

#[test]
fn foreign_text_in_a_message_is_short_and_on_one_line() {
    let message = message(&format!("timeouts: {{request: \"a\\nb{}\"}}", "x".repeat(10_000)));
    assert!(message.len() < 200 && !message.contains('\n'), "{message}");
}

#[test]
fn a_route_that_is_too_big_for_the_table_is_refused() {
    let hosts: Vec<_> = (0..5000).map(|host| format!("h{host}.com")).collect();
    assert_eq!(
        message(&format!("rules: [{{hosts: [{}]}}]", hosts.join(","))),
        "spec is rules have 5000 combinations of host and path: expected at most 4096"
    );
}

#[test]
fn an_http_scaled_object_is_read_as_the_original_reads_it() {
    let text = |extra: &str| {
        format!(
            "{{metadata: {{namespace: n, name: r}}, spec: {{scaleTargetRef: {{service: web, port: 80}}, {extra}}}}}"
        )
    };
    let route = |extra: &str| http_scaled_object(&object::<HTTPScaledObject>(&text(extra)));
    let plain = route("hosts: [a.com], pathPrefixes: [/x]").unwrap();
    assert_eq!(plain.kind, RouteKind::HttpScaledObject);
    assert_eq!(plain.rules[0].hosts, ["a.com"]);
    assert_eq!(plain.rules[0].paths, ["/x"]);
    assert_eq!(plain.scaling, Scaling { concurrency: Some(100), ..Scaling::default() });
    assert_eq!(plain.timeouts, Timeouts::default());

    assert_eq!(route("targetPendingRequests: 7").unwrap().scaling.concurrency, Some(7));
    let both = route("targetPendingRequests: 7, scalingMetric: {concurrency: {targetValue: 3}}").unwrap();
    assert_eq!(both.scaling.concurrency, Some(3));
    let rate = route("scalingMetric: {concurrency: {}, requestRate: {}}").unwrap().scaling;
    assert_eq!(rate.concurrency, None);
    assert_eq!(rate.rate.map(|rate| (rate.target, rate.window.as_secs())), Some((100, 60)));

    let zero = route("scalingMetric: {requestRate: {window: 0s, granularity: '0'}}").unwrap().scaling.rate.unwrap();
    assert_eq!((zero.window.as_secs(), zero.granularity.as_secs()), (60, 1), "zero is the default");

    let timeouts = route("timeouts: {conditionWait: 5s, responseHeader: 0s}").unwrap().timeouts;
    assert_eq!(timeouts.readiness, Some(Duration::from_secs(5)));
    assert_eq!(timeouts.response_header, None, "zero takes the environment's");
    let failover = "timeouts: {conditionWait: 5s}, coldStartTimeoutFailoverRef: {service: b, port: 1}";
    assert_eq!(route(failover).unwrap().timeouts.readiness, Some(Duration::from_secs(30)));

    let error = route("targetPendingRequests: -1").unwrap_err().to_string();
    assert_eq!(error, "spec.targetPendingRequests is -1: expected a number from 1");
}

#[test]
fn a_route_says_how_its_requests_are_held() {
    let holding = |extra: &str| interceptor_route(&spec(extra)).unwrap().holding;
    let plain = holding("");
    assert_eq!((plain.most, plain.overflow, plain.per_pod), (None, Overflow::Reject, NonZeroU32::new(1)));
    let whole = holding(
        "coldStart: {maxPendingRequests: 7, overflow: Placeholder, maxRequestsPerPod: 3, placeholder: {response: {}}}",
    );
    assert_eq!((whole.most, whole.per_pod), (NonZeroU64::new(7), NonZeroU32::new(3)));
    assert!(whole.goes_before_placeholder());
    assert_eq!(holding("coldStart: {maxRequestsPerPod: 0}").per_pod, None, "zero is no limit");
    assert!(!holding("coldStart: {overflow: Placeholder, placeholder: {response: {}}}").goes_before_placeholder());
    for (extra, expected) in [
        ("coldStart: {maxPendingRequests: 0}", "spec.coldStart.maxPendingRequests is 0: expected a number from 1"),
        ("coldStart: {maxRequestsPerPod: -1}", "spec.coldStart.maxRequestsPerPod is -1: expected a number from 0"),
        (
            "coldStart: {overflow: Placeholder}",
            "spec.coldStart.overflow is Placeholder: expected a placeholder beside it",
        ),
    ] {
        assert_eq!(message(extra), expected);
    }
}

#[test]
fn an_annotation_says_how_many_held_requests_of_an_http_scaled_object_a_pod_gets() {
    let route = |value: &str| {
        let annotations = format!("{{http.keda.sh/max-requests-per-pod: '{value}'}}");
        http_scaled_object(&object::<HTTPScaledObject>(&format!(
            "{{metadata: {{name: r, annotations: {annotations}}}, spec: {{scaleTargetRef: {{service: web, port: 80}}}}}}"
        )))
    };
    assert_eq!(route("5").unwrap().holding.per_pod, NonZeroU32::new(5));
    assert_eq!(route("0").unwrap().holding.per_pod, None);
    let error = route("few").unwrap_err().to_string();
    assert_eq!(
        error,
        "metadata.annotations[\"http.keda.sh/max-requests-per-pod\"] is \"few\": expected a number from 0"
    );
}

#[test]
fn a_session_has_a_cookie_of_its_own_unless_told_otherwise() {
    let session = |extra: &str| interceptor_route(&spec(&format!("sessionPersistence: {extra}"))).unwrap().session;
    assert_eq!(interceptor_route(&spec("")).unwrap().session, None);
    // The first 32 bits of SHA-256 of "default/r", by sha256sum.
    assert_eq!(session("{type: Cookie}").unwrap().cookie.as_ref(), "keda-session-017eacf3");
    let told = session("{type: Cookie, absoluteTimeout: 30m, cookie: {name: mine}}").unwrap();
    assert_eq!((told.cookie.as_ref(), told.lifetime), ("mine", Some(Duration::from_mins(30))));
    for (extra, expected) in [
        (
            "{type: Cookie, absoluteTimeout: 500ms}",
            "spec.sessionPersistence.absoluteTimeout is \"500ms\": expected a duration of 1s or more",
        ),
        (
            "{type: Cookie, cookie: {name: 'a b'}}",
            "spec.sessionPersistence.cookie.name is \"a b\": expected a cookie's name",
        ),
    ] {
        assert_eq!(message(&format!("sessionPersistence: {extra}")), expected);
    }
}

#[test]
fn a_service_keeps_its_tcp_ports() {
    let service = service(&object(
        "
        metadata: {name: web}
        spec:
          ports:
          - {name: dns, port: 53, protocol: UDP}
          - {name: http, port: 80, targetPort: web, appProtocol: kubernetes.io/h2c}
        ",
    ))
    .unwrap();
    assert_eq!(service.key, ObjectKey::new("default", "web"));
    assert_eq!(service.ports.len(), 1);
    assert_eq!(service.ports[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
    let bad = object("{metadata: {name: web}, spec: {ports: [{port: 70000}]}}");
    assert_eq!(
        super::service(&bad).unwrap_err().to_string(),
        "spec.ports[0].port is 70000: expected a port from 1 to 65535"
    );
}

#[test]
fn a_slice_tells_its_service_ports_and_ready_addresses() {
    let text = |label: &str, kind: &str, address: &str| {
        format!(
            "
            metadata: {{namespace: n, name: web-1, labels: {{{label}}}}}
            addressType: {kind}
            ports: [{{name: http, port: 8080}}, {{name: all}}, {{port: 9, protocol: UDP}}]
            endpoints:
            - {{addresses: ['{address}'], targetRef: {{kind: Pod, name: web-a}}}}
            - {{addresses: ['10.0.0.2'], conditions: {{ready: false}}}}
            "
        )
    };
    let label = "kubernetes.io/service-name: web";
    let read = slice(&object(&text(label, "IPv4", "10.0.0.1"))).unwrap().unwrap();
    assert_eq!(read.service, ObjectKey::new("n", "web"));
    assert_eq!(read.ports.len(), 1);
    assert_eq!(read.endpoints.iter().map(|endpoint| endpoint.ready).collect::<Vec<_>>(), [true, false]);
    assert_eq!(read.endpoints[0].pod.as_deref(), Some("web-a"));
    let mapped = slice(&object(&text(label, "IPv6", "::ffff:10.0.0.1"))).unwrap().unwrap();
    assert_eq!(mapped.endpoints[0].addresses, read.endpoints[0].addresses, "it is the same address");

    assert_eq!(slice(&object(&text("", "IPv4", "10.0.0.1"))), Ok(None));
    assert!(slice(&object(&text(label, "FQDN", "a.example"))).unwrap().unwrap().endpoints.is_empty());
    assert_eq!(
        slice(&object(&text(label, "IPv4", "10.0.0.256"))).unwrap_err().to_string(),
        "endpoints[0].addresses[0] is \"10.0.0.256\": expected an IP address"
    );
}

#[test]
fn an_object_without_a_name_is_refused() {
    assert_eq!(service(&object("{}")).unwrap_err().to_string(), "metadata.name is empty: expected a name");
}

#[test]
fn a_service_tells_every_address_that_clients_reach_it_at() {
    let service = service(&object(
        "
        metadata: {name: web}
        spec:
          clusterIP: 10.96.0.7
          clusterIPs: [10.96.0.7, 'fd00::7']
          externalIPs: [192.0.2.1]
          ports: [{port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 0}]
        status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {hostname: lb.example}]}}
        ",
    ))
    .unwrap();
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.7", "192.0.2.1", "198.51.100.1", "fd00::7"]);
    assert_eq!(service.ports.iter().map(|port| port.node_port).collect::<Vec<_>>(), [Some(30_080), None]);
    let headless =
        object("{metadata: {name: web}, spec: {clusterIP: None, clusterIPs: [None], externalIPs: [192.0.2.1]}}");
    assert!(super::service(&headless).unwrap().addresses.is_empty());
}

#[test]
fn of_addresses_for_clients_outside_those_are_told_at_which_a_nodes_rules_lead_to_pods() {
    let service = service(&object(
        "
        metadata: {name: web}
        spec:
          clusterIP: 10.96.0.7
          externalIPs: [192.0.2.1, '2001:db8::1']
          loadBalancerSourceRanges: [' 198.51.100.0/24', '2001:db8::/64']
        status:
          loadBalancer:
            ingress:
            - {ip: 203.0.113.1, ipMode: VIP}
            - {ip: 203.0.113.2, ipMode: Proxy}
            - {ip: 203.0.113.3}
            - {ip: 192.0.2.1}
            - {ip: '2001:db8::2'}
        ",
    ))
    .unwrap();
    let texts = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let external = ["192.0.2.1", "203.0.113.1", "203.0.113.3"];
    assert_eq!(
        texts(&service.reach.external),
        external,
        "neither a proxy's nor those of a family without a cluster IP"
    );
    assert_eq!(texts(&service.addresses), [&["10.96.0.7"], &external[..]].concat());
    assert_eq!(texts(&service.reach.sources.addresses), external[1..], "one that is listed is everybody's");
    let networks: Vec<_> = service.reach.sources.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["198.51.100.0/24", "2001:db8::/64"]);
}

#[test]
fn a_route_says_how_its_clients_reach_the_target_and_what_they_speak() {
    let route = |more: &str| {
        interceptor_route(&object(&format!(
            "{{metadata: {{name: r}}, spec: {{target: {{service: web, port: 80}}, scalingMetric: {{concurrency: {{targetValue: 1}}}}{more}}}}}"
        )))
    };
    let read =
        |more: &str| route(more).map(|route| (route.data_path, route.traffic)).map_err(|error| error.to_string());
    assert_eq!(read(""), Ok((DataPath::Proxy, Traffic::Http)));
    assert_eq!(read(", dataPath: Proxy, protocol: HTTP"), Ok((DataPath::Proxy, Traffic::Http)));
    assert_eq!(read(", dataPath: Direct, rules: [{hosts: [a.com]}]"), Ok((DataPath::Direct, Traffic::Http)));
    assert_eq!(read(", dataPath: Direct, protocol: TCP"), Ok((DataPath::Direct, Traffic::Tcp)));
    assert_eq!(
        read(", protocol: TCP").unwrap_err(),
        "spec.protocol is TCP without dataPath Direct: expected HTTP, or TCP with dataPath Direct"
    );
    assert_eq!(
        read(", dataPath: Direct, protocol: TCP, rules: [{hosts: [a.com]}]").unwrap_err(),
        "spec.protocol is TCP beside rules or staticRoutes: expected HTTP, or TCP without either"
    );
}
