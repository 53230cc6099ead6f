//! What a route costs among 10 and among 10,000: time and allocations of a look-up, time of one more route, bytes.
//! Prints one line of JSON for each number of routes.
//!
//! Run it with `cargo run --release --package interceptor-core --example routes`.

#![expect(clippy::disallowed_types, reason = "a measurement reads the real clock")]

use std::{
    alloc::System,
    hint::black_box,
    io::{self, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use interceptor_core::{
    Index, ObjectKey, Route, RouteTable,
    index::Event,
    inflight::NoSink,
    route::{HeaderMatch, PortRef, RouteKind, Rule, Scaling, Target},
    service::{Service, ServicePort, Slice, SliceEndpoint, SlicePort},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How many routes there are.
const SIZES: [usize; 2] = [10, 10_000];

/// How many look-ups are timed at once, and how often: the median of the times counts.
const BATCH: usize = 10_000;
const BATCHES: usize = 51;

/// How many routes are added and taken away one by one.
const CHANGES: usize = 501;

/// The header by which routes of one host differ.
const TENANT: HeaderName = HeaderName::from_static("x-tenant");

fn main() -> io::Result<()> {
    for size in SIZES {
        measure(size)?;
    }
    Ok(())
}

fn measure(size: usize) -> io::Result<()> {
    let region = Region::new(ALLOCATOR);
    let mut index = Index::new(2, Arc::new(NoSink));
    index.apply(Event::Service(service()));
    index.apply(Event::Slice(slice()));
    for number in 0..size {
        index.apply(Event::Route(route(number, &host(number), "")));
    }
    index.apply(Event::Route(route(size, "*.wild.example", "/api")));
    let bytes = region.change();
    let bytes = (bytes.bytes_allocated - bytes.bytes_deallocated) / size;
    let table = index.snapshot().table;

    let hosts: Vec<_> = (0..size).map(|number| format!("{}:8080", host(number))).collect();
    let wild: Vec<_> = (0..size).map(|number| format!("a{number}.b.wild.example")).collect();
    let (exact, allocations) = lookups(&table, &hosts, "/api/v1/items/42", true);
    let (wildcard, more) = lookups(&table, &wild, "/api/v1/items/42", true);
    let (missing, none) = lookups(&table, &wild, "/elsewhere", false);
    let (added, removed) = changes(&mut index, size + 1);
    let (paths, by_header) = (paths(size), by_header(size));
    writeln!(
        io::stdout(),
        "{{\"routes\":{size},\"lookupNs\":{{\"exactHost\":{exact},\"wildcardHost\":{wildcard},\"pathPrefix\":{paths},\"headerValue\":{by_header},\"missing\":{missing}}},\
         \"allocationsPerLookup\":{},\"oneMoreUs\":{added:.1},\"oneLessUs\":{removed:.1},\"bytesPerRoute\":{bytes}}}",
        allocations + more + none,
    )
}

/// Nanoseconds of one look-up, and allocations of all of them.
fn lookups(table: &RouteTable, hosts: &[String], path: &str, found: bool) -> (u128, usize) {
    let headers = HeaderMap::new();
    let region = Region::new(ALLOCATOR);
    let times: [Duration; BATCHES] = std::array::from_fn(|_| {
        let started = Instant::now();
        for host in hosts.iter().cycle().take(BATCH) {
            let entry = table.lookup(black_box(host), black_box(path), &headers);
            assert_eq!(black_box(entry).is_some(), found, "{host}{path}");
        }
        started.elapsed()
    });
    let allocations = region.change().allocations;
    (median(times).as_nanos() / BATCH as u128, allocations)
}

/// Nanoseconds of one look-up when all routes share a host and differ by path.
fn paths(size: usize) -> u128 {
    let mut index = Index::new(2, Arc::new(NoSink));
    for number in 0..size {
        index.apply(Event::Route(route(number, "a.example", &format!("/team/service-{number}"))));
    }
    let table = index.snapshot().table;
    let headers = HeaderMap::new();
    let paths: Vec<_> = (0..size).map(|number| format!("/team/service-{number}/v1/items")).collect();
    let times: [Duration; BATCHES] = std::array::from_fn(|_| {
        let started = Instant::now();
        for path in paths.iter().cycle().take(BATCH) {
            assert!(black_box(table.lookup(black_box("a.example"), black_box(path), &headers)).is_some(), "{path}");
        }
        started.elapsed()
    });
    median(times).as_nanos() / BATCH as u128
}

/// Nanoseconds of one look-up when all routes share a host and differ by one header.
fn by_header(size: usize) -> u128 {
    let mut index = Index::new(2, Arc::new(NoSink));
    for number in 0..size {
        let mut route = route(number, "a.example", "");
        let value = Some(format!("tenant-{number}").into_bytes());
        route.rules[0].headers = vec![HeaderMatch { name: TENANT, value }];
        index.apply(Event::Route(route));
    }
    let table = index.snapshot().table;
    let tenants = (0..size).map(|number| HeaderValue::from_str(&format!("tenant-{number}")));
    let tenants = tenants.map(|value| value.expect("letters and digits are a header value"));
    let headers: Vec<_> = tenants.map(|value| HeaderMap::from_iter([(TENANT, value)])).collect();
    let times: [Duration; BATCHES] = std::array::from_fn(|_| {
        let started = Instant::now();
        for headers in headers.iter().cycle().take(BATCH) {
            assert!(black_box(table.lookup(black_box("a.example"), black_box("/v1/items"), headers)).is_some());
        }
        started.elapsed()
    });
    median(times).as_nanos() / BATCH as u128
}

/// Microseconds until a snapshot has one more route, and one less, while an older snapshot is still in use.
fn changes(index: &mut Index, first: usize) -> (f64, f64) {
    let mut added = [Duration::ZERO; CHANGES];
    let mut removed = [Duration::ZERO; CHANGES];
    for (number, (added, removed)) in (first..).zip(added.iter_mut().zip(&mut removed)) {
        let in_use = index.snapshot();
        let more = Event::Route(route(number, &host(number), ""));
        let less = Event::RouteGone(RouteKind::InterceptorRoute, key(number));
        let started = Instant::now();
        index.apply(more);
        let published = index.snapshot();
        *added = started.elapsed();
        drop(in_use);
        let started = Instant::now();
        index.apply(less);
        let last = index.snapshot();
        *removed = started.elapsed();
        drop((published, last));
    }
    let micros = |times| median(times).as_secs_f64() * 1e6;
    (micros(added), micros(removed))
}

fn median<const N: usize>(mut times: [Duration; N]) -> Duration {
    times.sort_unstable();
    times[N / 2]
}

fn key(number: usize) -> ObjectKey {
    ObjectKey::new("bench", format!("route-{number}"))
}

fn host(number: usize) -> String {
    format!("route-{number}.bench.example")
}

fn route(number: usize, host: &str, path: &str) -> Route {
    let paths = if path.is_empty() { Vec::new() } else { vec![path.to_owned()] };
    Route {
        rules: vec![Rule { hosts: vec![host.to_owned()], paths, headers: Vec::new() }],
        scaling: Scaling { concurrency: Some(100), ..Scaling::default() },
        ..Route::new(
            RouteKind::InterceptorRoute,
            key(number),
            Target { service: ObjectKey::new("bench", "origin"), port: PortRef::Number(80) },
        )
    }
}

fn service() -> Service {
    let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, node_port: None };
    Service {
        key: ObjectKey::new("bench", "origin"),
        ports: vec![port],
        addresses: Vec::new(),
        reach: interceptor_core::service::Reach::default(),
    }
}

fn slice() -> Slice {
    let endpoint = SliceEndpoint {
        addresses: vec![[127, 0, 0, 1].into()],
        ready: true,
        terminating: false,
        pod: None,
        uid: None,
        node: None,
    };
    Slice {
        key: ObjectKey::new("bench", "origin-1"),
        service: ObjectKey::new("bench", "origin"),
        ports: vec![SlicePort { name: "http".into(), port: 8080 }],
        endpoints: vec![endpoint],
    }
}
