//! What look-ups and changes allocate: a cost that can be counted, where time can't be asserted.
//!
//! One test alone, since the counter is the process's.

use std::{alloc::System, sync::Arc};

use http::HeaderMap;
use interceptor_core::{
    Index, ObjectKey, Route,
    index::Event,
    inflight::NoSink,
    route::{PortRef, RouteKind, Rule, Target},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn route(number: usize) -> Event {
    Event::Route(Route {
        rules: vec![Rule {
            hosts: vec![format!("{number}.example.com")],
            paths: vec!["/api".to_owned()],
            headers: Vec::new(),
        }],
        ..Route::new(
            RouteKind::InterceptorRoute,
            ObjectKey::new("default", format!("route-{number}")),
            Target { service: ObjectKey::new("default", "web"), port: PortRef::Number(80) },
        )
    })
}

/// Allocations and bytes of one more route, while a snapshot without it is in use.
fn one_more(index: &mut Index, number: usize) -> (usize, usize) {
    let in_use = index.snapshot();
    let event = route(number);
    let region = Region::new(ALLOCATOR);
    index.apply(event);
    let snapshot = index.snapshot();
    let change = region.change();
    assert_eq!(snapshot.routes.len(), in_use.routes.len() + 1);
    (change.allocations, change.bytes_allocated)
}

#[test]
fn a_lookup_allocates_nothing_and_a_change_no_more_among_ten_thousand_routes_than_its_depth() {
    let mut index = Index::new(2, Arc::new(NoSink));
    (0..10).for_each(|number| index.apply(route(number)));
    let (few, few_bytes) = one_more(&mut index, 10);
    (11..10_000).for_each(|number| index.apply(route(number)));
    // The median of some: now and then one fills a node.
    let mut costs: Vec<_> = (10_000..10_021).map(|number| one_more(&mut index, number)).collect();
    costs.sort_unstable();
    let (many, many_bytes) = costs[10];
    assert!(many <= few + 32, "{many} allocations among 10,000 routes, {few} among 10");
    assert!(many_bytes <= few_bytes + 32 * 1024, "{many_bytes} bytes among 10,000 routes, {few_bytes} among 10");

    let table = index.snapshot().table;
    let headers = HeaderMap::new();
    let region = Region::new(ALLOCATOR);
    assert!(table.lookup("77.example.com", "/api/v1", &headers).is_some());
    assert!(table.lookup("77.Example.COM.:8080", "/api/v1", &headers).is_some());
    assert!(table.lookup("[::1]:8080", "/api/v1", &headers).is_none());
    assert!(table.lookup("unknown.example.com", "/", &headers).is_none());
    assert_eq!(region.change().allocations, 0);
}
