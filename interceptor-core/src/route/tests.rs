//! The table against the vectors of the original, and against the rules of routing written down plainly.

use std::{cmp::Reverse, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::inflight::{NoSink, RouteCounters};

/// Path, headers and the name of the route that wins.
type Case<'a> = (&'a str, &'a [(&'static str, &'a str)], Option<&'a str>);

fn entry(id: u64, name: &str, created: i64, rules: Vec<Rule>) -> Arc<RouteEntry> {
    let route = Route {
        created,
        rules,
        ..Route::new(
            RouteKind::InterceptorRoute,
            ObjectKey::new("default", name),
            Target { service: ObjectKey::new("default", "web"), port: PortRef::Number(80) },
        )
    };
    let sink: Arc<dyn crate::inflight::EdgeSink> = Arc::new(NoSink);
    let counters = RouteCounters::new(RouteId(id), 1, &sink);
    Arc::new(RouteEntry { id: RouteId(id), route, upstream: UpstreamId(0), fallback: None, counters })
}

fn rule(hosts: &[&str], paths: &[&str], headers: &[(&'static str, Option<&str>)]) -> Rule {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let header = |(name, value): &(&'static str, Option<&str>)| HeaderMatch {
        name: HeaderName::from_static(name),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    Rule { hosts: owned(hosts), paths: owned(paths), headers: headers.iter().map(header).collect() }
}

fn table(entries: &[Arc<RouteEntry>]) -> RouteTable {
    let mut table = RouteTable::default();
    for entry in entries {
        table.insert(entry);
    }
    table
}

/// A table of routes with one rule each, in order of their names.
fn named(rules: Vec<(&str, Rule)>) -> RouteTable {
    let entries = rules.into_iter().zip(0..).map(|((name, rule), id)| entry(id, name, 0, vec![rule]));
    table(&entries.collect::<Vec<_>>())
}

fn find(table: &RouteTable, host: &str, path: &str, headers: &[(&'static str, &str)]) -> Option<String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    table.lookup(host, path, &map).map(|entry| entry.route.key.name().to_owned())
}

// === hosts and paths ===

#[test]
fn hosts_times_paths_are_routes() {
    let table = named(vec![("r", rule(&["a.com", "b.com"], &["/x", "/y"], &[]))]);
    for (host, path) in [("a.com", "/x"), ("a.com", "/y"), ("b.com", "/x"), ("b.com", "/y/z")] {
        assert_eq!(find(&table, host, path, &[]).as_deref(), Some("r"), "{host}{path}");
    }
    assert_eq!(find(&table, "c.com", "/x", &[]), None);
    assert_eq!(find(&table, "a.com", "/", &[]), None);
}

#[test]
fn a_rule_without_hosts_takes_all_of_them() {
    let table = named(vec![("r", rule(&[], &["/api"], &[]))]);
    assert_eq!(find(&table, "anything.example:80", "/api", &[]).as_deref(), Some("r"));
    assert_eq!(find(&table, "", "/api", &[]).as_deref(), Some("r"), "HTTP/1.0 without a host");
    assert_eq!(find(&table, &"x".repeat(10_000), "/api", &[]).as_deref(), Some("r"));
    assert_eq!(find(&table, "anything.example", "/other", &[]), None);
}

#[test]
fn a_port_in_rule_or_request_does_not_matter() {
    let table = named(vec![("r", rule(&["example.com:8080"], &[], &[]))]);
    for host in ["example.com", "example.com:1234", "Example.COM.:8080"] {
        assert_eq!(find(&table, host, "/", &[]).as_deref(), Some("r"), "{host}");
    }
}

#[test]
fn the_exact_host_goes_before_wildcards_and_those_from_the_most_specific() {
    let hosts = ["a.b.example.com", "*.b.example.com", "*.example.com", "*.com", "*"];
    for first in 0..hosts.len() {
        let rules = hosts[first..].iter().map(|host| (*host, rule(&[host], &[], &[]))).collect();
        assert_eq!(find(&named(rules), "a.b.example.com", "/", &[]).as_deref(), Some(hosts[first]));
    }
    let table = named(vec![("r", rule(&["*.example.com"], &[], &[]))]);
    assert_eq!(find(&table, "example.com", "/", &[]), None, "a wildcard asks for a label");
    assert_eq!(find(&table, "x.y.example.com", "/", &[]).as_deref(), Some("r"), "or for several");
    assert_eq!(find(&table, "badexample.com", "/", &[]), None);
}

#[test]
fn a_path_that_the_exact_host_misses_falls_to_wildcards() {
    let table = named(vec![
        ("exact", rule(&["a.example.com"], &["/x"], &[])),
        ("wild", rule(&["*.example.com"], &["/y"], &[])),
        ("any", rule(&["*"], &[], &[])),
    ]);
    assert_eq!(find(&table, "a.example.com", "/x", &[]).as_deref(), Some("exact"));
    assert_eq!(find(&table, "a.example.com", "/y", &[]).as_deref(), Some("wild"));
    assert_eq!(find(&table, "a.example.com", "/z", &[]).as_deref(), Some("any"));
}

#[test]
fn prefixes_are_whole_segments_of_the_decoded_path() {
    let table = named(vec![("r", rule(&[], &["/api"], &[])), ("h", rule(&[], &["/health/"], &[]))]);
    for path in ["/api", "/api/", "/api/v1", "/%61pi/v1", "/api%2Fv1", "//api//"] {
        assert_eq!(find(&table, "a", path, &[]).as_deref(), Some("r"), "{path}");
    }
    for path in ["/apix", "/", "", "/x/api", "/healthz", "/API"] {
        assert_eq!(find(&table, "a", path, &[]), None, "{path}");
    }
}

#[test]
fn a_host_may_have_any_number_of_prefixes() {
    let paths = |number: usize| [format!("/p{number}"), format!("/all/p{number}/x")];
    let entries: Vec<_> = (0..50_usize)
        .map(|number| {
            let [first, second] = paths(number);
            let id = u64::try_from(number).unwrap();
            entry(id, &format!("r{number}"), 0, vec![rule(&["h"], &[&first, &second], &[])])
        })
        .collect();
    let mut table = table(&entries);
    let check = |table: &RouteTable, there: &dyn Fn(usize) -> bool| {
        for number in 0..50 {
            for path in paths(number) {
                let expected = there(number).then(|| format!("r{number}"));
                assert_eq!(find(table, "h", &format!("{path}/more"), &[]), expected, "{path}");
            }
        }
    };
    check(&table, &|_| true);
    for entry in entries.iter().step_by(2) {
        table.remove(entry);
    }
    check(&table, &|number| number % 2 == 1);
    for entry in entries.iter().skip(1).step_by(2) {
        table.remove(entry);
    }
    assert!(table.is_empty());
}

#[test]
fn ipv6_literals_match_with_and_without_brackets_and_port() {
    let table = named(vec![("r", rule(&["[::1]"], &[], &[]))]);
    for host in ["[::1]:8080", "[::1]", "::1", "[0:0::1]:1"] {
        assert_eq!(find(&table, host, "/", &[]).as_deref(), Some("r"), "{host}");
    }
}

// === headers ===

#[test]
fn headers_are_tried_as_the_original_tries_them() {
    let api = |headers: &[(&'static str, Option<&str>)]| rule(&["example.com"], &["/api/"], headers);
    let table = named(vec![
        ("foo", api(&[("x-custom-header", Some("foo"))])),
        ("bar", api(&[("x-custom-header", Some("bar"))])),
        ("baz", api(&[])),
        ("key-only", api(&[("x-custom-header", None)])),
        ("many", api(&[("x-custom-header", Some("foo")), ("x-another-header", Some("baz"))])),
        ("many-key", api(&[("x-custom-header", None), ("x-another-header", Some("baz"))])),
        ("other", rule(&["example.com"], &["/other/"], &[("x-custom-header", Some("foo"))])),
    ]);
    let custom = |value| ("x-custom-header", value);
    let another = ("x-another-header", "baz");
    let cases: [Case<'_>; 9] = [
        ("/api/", &[custom("foo")], Some("foo")),
        ("/api/", &[custom("bar")], Some("bar")),
        ("/api/", &[custom("any-value")], Some("key-only")),
        ("/api/", &[], Some("baz")),
        ("/api/", &[("x-other-header", "foo")], Some("baz")),
        ("/api/", &[custom("foo"), another], Some("many")),
        ("/api/", &[custom("x"), another], Some("many-key")),
        ("/other/resource", &[custom("foo")], Some("other")),
        ("/other/resource", &[custom("x")], None),
    ];
    for (path, headers, winner) in cases {
        assert_eq!(find(&table, "example.com", path, headers).as_deref(), winner, "{path} {headers:?}");
    }
}

#[test]
fn one_value_must_be_equal_and_an_empty_one_is_a_value() {
    let table = named(vec![
        ("value", rule(&["v"], &[], &[("x-a", Some("1"))])),
        ("empty", rule(&["e"], &[], &[("x-a", Some(""))])),
        ("present", rule(&["p"], &[], &[("x-a", None)])),
    ]);
    assert_eq!(find(&table, "v", "/", &[("x-a", "2"), ("x-a", "1")]).as_deref(), Some("value"));
    assert_eq!(find(&table, "v", "/", &[("x-a", "1,2")]), None, "a joined value is one value");
    assert_eq!(find(&table, "e", "/", &[("x-a", "")]).as_deref(), Some("empty"));
    assert_eq!(find(&table, "e", "/", &[("x-a", "1")]), None);
    assert_eq!(find(&table, "p", "/", &[("x-a", "")]).as_deref(), Some("present"));
    assert_eq!(find(&table, "p", "/", &[]), None);
}

#[test]
fn a_shorter_prefix_takes_what_the_headers_of_a_longer_one_refuse() {
    let table =
        named(vec![("short", rule(&["h"], &["/api"], &[])), ("long", rule(&["h"], &["/api/v1"], &[("x-a", None)]))]);
    assert_eq!(find(&table, "h", "/api/v1/foo", &[("x-a", "")]).as_deref(), Some("long"));
    assert_eq!(find(&table, "h", "/api/v1/foo", &[]).as_deref(), Some("short"));
}

#[test]
fn on_the_same_key_the_older_route_and_then_the_later_name_wins() {
    let at = |id, name, created| entry(id, name, created, vec![rule(&["h"], &[], &[])]);
    assert_eq!(find(&table(&[at(0, "z", 2), at(1, "a", 1)]), "h", "/", &[]).as_deref(), Some("a"));
    assert_eq!(find(&table(&[at(0, "a", 1), at(1, "z", 1)]), "h", "/", &[]).as_deref(), Some("z"));
}

// === against the rules written plainly ===

/// The look-up of reference §2.2 with its defect mended: every route is tried, in order.
fn naive(entries: &[Arc<RouteEntry>], host: &str, path: &str, headers: &HeaderMap) -> Option<RouteId> {
    let plain = |host: &str| {
        let host = host.split(':').next().unwrap_or_default();
        host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
    };
    let parts = |path: &str| -> Vec<String> {
        let trimmed = path.trim_matches('/');
        if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').map(str::to_owned).collect() }
    };
    let (host, path) = (plain(host), parts(&path.replace("%61", "a").replace("%2F", "/")));
    let labels: Vec<_> = host.split('.').collect();
    let wildcards = (1..labels.len()).map(|from| format!("*.{}", labels[from..].join(".")));
    let candidates: Vec<_> = std::iter::once(host.clone()).chain(wildcards).chain(["*".to_owned()]).collect();
    let mut found = Vec::new();
    for entry in entries {
        for rule in &entry.route.rules {
            let hosts = if rule.hosts.is_empty() { vec!["*".to_owned()] } else { rule.hosts.clone() };
            let paths = if rule.paths.is_empty() { vec![String::new()] } else { rule.paths.clone() };
            for (pattern, prefix) in
                hosts.iter().flat_map(|host| paths.iter().map(move |path| (plain(host), parts(path))))
            {
                let Some(order) = candidates.iter().position(|candidate| *candidate == pattern) else { continue };
                if path.starts_with(&prefix) && rule.headers.iter().all(|header| header.matches(headers)) {
                    let valued = rule.headers.iter().filter(|header| header.value.is_some()).count();
                    let headers = (Reverse(rule.headers.len()), Reverse(valued));
                    let tie = (entry.route.created, Reverse(entry.route.key.clone()));
                    found.push((order, Reverse(prefix.len()), headers, tie, entry.id));
                }
            }
        }
    }
    found.into_iter().min().map(|(.., id)| id)
}

fn host() -> impl Strategy<Value = String> {
    let labels = vec(select(vec!["a", "b", "C"]), 1..4).prop_map(|labels| labels.join("."));
    (labels, select(vec!["", ".", ":80", ".:80"])).prop_map(|(labels, end)| labels + end)
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![host(), host().prop_map(|host| format!("*.{host}")), Just("*".to_owned())]
}

fn path() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "%61", "a%2Fb", ""]), 0..4).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let value = option::of(select(vec![b"1".to_vec(), b"2".to_vec(), Vec::new()]));
    (select(vec!["x-a", "x-b"]), value)
        .prop_map(|(name, value)| HeaderMatch { name: HeaderName::from_static(name), value })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    // Prefixes are not decoded.
    let prefix = vec(select(vec!["a", "b", ""]), 0..3).prop_map(|parts| format!("/{}", parts.join("/")));
    (vec(pattern(), 0..3), vec(prefix, 0..3), vec(header_match(), 0..3)).prop_map(|(hosts, paths, headers)| Rule {
        hosts,
        paths,
        headers,
    })
}

fn entries() -> impl Strategy<Value = Vec<Arc<RouteEntry>>> {
    vec((vec(any_rule(), 0..3), 0..2_i64), 0..8).prop_map(|routes| {
        let routes = routes.into_iter().zip(0..);
        routes.map(|((rules, created), id)| entry(id, &format!("r{id}"), created, rules)).collect()
    })
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    vec((select(vec!["x-a", "x-b"]), select(vec!["1", "2", ""])), 0..3).prop_map(|headers| {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        headers.into_iter().map(pair).fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
    })
}

proptest! {
    #[test]
    fn the_table_finds_what_trying_every_route_finds(
        entries in entries(),
        requests in vec((host(), path(), headers()), 1..20),
    ) {
        let table = table(&entries);
        for (host, path, headers) in requests {
            let found = table.lookup(&host, &path, &headers).map(|entry| entry.id);
            prop_assert_eq!(found, naive(&entries, &host, &path, &headers), "{}{} {:?}", host, path, headers);
        }
    }

    #[test]
    fn what_is_removed_leaves_nothing_and_a_copy_stays_as_it_was(
        entries in entries(),
        gone in vec(any::<bool>(), 8),
        requests in vec((host(), path(), headers()), 1..10),
    ) {
        let mut table = table(&entries);
        let copy = table.clone();
        let (gone, left): (Vec<_>, Vec<_>) = entries.iter().cloned().zip(gone).partition(|(_, gone)| *gone);
        for (entry, _) in &gone {
            table.remove(entry);
        }
        let left: Vec<_> = left.into_iter().map(|(entry, _)| entry).collect();
        for (host, path, headers) in requests {
            let find = |table: &RouteTable| table.lookup(&host, &path, &headers).map(|entry| entry.id);
            prop_assert_eq!(find(&table), naive(&left, &host, &path, &headers));
            prop_assert_eq!(find(&copy), naive(&entries, &host, &path, &headers));
        }
        for entry in &left {
            table.remove(entry);
        }
        prop_assert!(table.is_empty());
    }

    #[test]
    fn no_request_makes_it_panic(authority in ".*", path in ".*", entries in entries()) {
        let _found = table(&entries).lookup(&authority, &path, &HeaderMap::new());
    }

    #[test]
    fn no_rule_makes_it_panic(hosts in vec(".*", 0..3), paths in vec(".*", 0..3)) {
        let route = entry(0, "r", 0, vec![Rule { hosts, paths, headers: Vec::new() }]);
        let mut table = table(std::slice::from_ref(&route));
        table.remove(&route);
        prop_assert!(table.is_empty());
    }
}
