//! The rules of counting, one by one, and against a naive sum.

use proptest::prelude::*;

use super::*;

mod agents;

/// When sources leave, where it does not matter when.
const LATER: Duration = Duration::from_secs(1000);

fn addr(number: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], number))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn counts(name: &str, in_flight: u64, total: u64) -> (ObjectKey, Observed) {
    (key(name), Observed { in_flight, total, ..Observed::default() })
}

/// What `GET /queue` gives.
fn queue(routes: &[(&str, u64, u64)]) -> Report {
    let routes = routes.iter().map(|&(name, in_flight, total)| counts(name, in_flight, total)).collect();
    Report { complete: true, routes, ..Report::default() }
}

/// The first message of a stream.
fn stream(incarnation: &str, uptime: Option<Duration>, routes: &[(&str, u64, u64)]) -> Report {
    Report { incarnation: Some(incarnation.into()), uptime, ..queue(routes) }
}

/// A later message of a stream.
fn changes(incarnation: &str, routes: &[(&str, u64, u64)]) -> Report {
    Report { complete: false, ..stream(incarnation, None, routes) }
}

fn demand(sources: &[u16]) -> Demand {
    let mut demand = Demand::new(Unit::Second, secs(100));
    for source in sources {
        assert!(demand.list(addr(*source)));
    }
    demand
}

#[track_caller]
fn level(demand: &Demand, name: &str, in_flight: u64, arrived: u64) {
    assert_eq!(demand.level(&key(name)), Level { in_flight, arrived, ..Level::default() });
}

#[test]
fn what_agents_count_is_the_routes_and_not_the_interceptors() {
    let mut d = demand(&[1]);
    assert!(d.list_agent(addr(2), secs(101)));
    d.apply(addr(1), secs(101), queue(&[("a", 2, 100)]));
    d.apply(addr(2), secs(101), queue(&[("a", 3, 7), ("b", 1, 1)]));
    level(&d, "a", 5, 0);
    assert_eq!(d.in_flight(), 2);
    d.apply(addr(2), secs(102), queue(&[("a", 4, 8)]));
    assert_eq!(d.in_flight(), 2);
    d.apply(addr(1), secs(102), queue(&[]));
    assert_eq!(d.in_flight(), 0);
    d.unlist(addr(2), LATER);
    level(&d, "a", 4, 1);
    assert_eq!(d.lapse(LATER + AGENT_AWAY), [key("a")]);
    level(&d, "a", 0, 0);
    assert_eq!(d.in_flight(), 0);
}

#[test]
fn a_pod_that_comes_and_goes_counts_as_in_the_original() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), queue(&[("a", 2, 100)]));
    level(&d, "a", 2, 0);
    d.list(addr(2));
    d.apply(addr(2), secs(102), queue(&[("a", 3, 1000)]));
    level(&d, "a", 5, 0);
    d.apply(addr(1), secs(103), queue(&[("a", 2, 130)]));
    d.apply(addr(2), secs(103), queue(&[("a", 3, 1060)]));
    level(&d, "a", 5, 90);
    assert_eq!(d.unlist(addr(2), LATER), [key("a")]);
    d.apply(addr(1), secs(104), queue(&[("a", 2, 150)]));
    level(&d, "a", 2, 110);
}

#[test]
fn a_total_that_fell_began_anew() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), queue(&[("a", 0, 500)]));
    d.apply(addr(1), secs(102), queue(&[("a", 0, 10)]));
    level(&d, "a", 0, 10);
}

#[test]
fn a_message_that_was_overtaken_by_a_newer_one_adds_nothing() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), stream("one", None, &[("a", 0, 1000)]));
    d.apply(addr(1), secs(101), changes("one", &[("a", 1, 999)]));
    d.apply(addr(1), secs(101), changes("one", &[("a", 0, 1000)]));
    level(&d, "a", 0, 1);
}

#[test]
fn another_incarnation_at_the_same_address_began_anew_even_if_its_totals_are_higher() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), stream("one", None, &[("a", 7, 500)]));
    d.apply(addr(1), secs(102), stream("two", None, &[("a", 1, 600)]));
    level(&d, "a", 1, 600);
}

#[test]
fn a_source_that_is_polled_for_a_while_goes_on_where_its_stream_was() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), stream("one", None, &[("a", 0, 500)]));
    d.apply(addr(1), secs(102), queue(&[("a", 0, 501)]));
    d.apply(addr(1), secs(103), stream("one", None, &[("a", 0, 503)]));
    level(&d, "a", 0, 3);
    d.apply(addr(1), secs(104), queue(&[("a", 0, 504)]));
    d.apply(addr(1), secs(105), stream("two", None, &[("a", 0, 600)]));
    level(&d, "a", 0, 604);
}

#[test]
fn a_silent_source_keeps_its_last_count_while_it_is_listed_and_is_dropped_when_not() {
    let mut d = demand(&[1, 2]);
    d.apply(addr(1), secs(101), queue(&[("a", 2, 5)]));
    d.apply(addr(2), secs(101), queue(&[("a", 3, 5)]));
    d.silent(addr(1), secs(102));
    d.silent(addr(2), secs(102));
    level(&d, "a", 5, 0);
    assert_eq!(d.census(), Census { listed: 2, reported: 2, silent: 2 });
    d.unlist(addr(1), LATER);
    level(&d, "a", 3, 0);
    d.unlist(addr(2), LATER);
    level(&d, "a", 0, 0);
    assert_eq!(d.in_flight(), 0);
}

#[test]
fn a_report_of_a_source_that_is_not_listed_is_ignored() {
    let mut d = demand(&[]);
    assert_eq!(d.apply(addr(1), secs(101), queue(&[("a", 2, 5)])), []);
    level(&d, "a", 0, 0);
}

#[test]
fn a_route_that_a_known_source_lists_for_the_first_time_counts_in_full() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), stream("one", None, &[("a", 0, 100)]));
    assert_eq!(d.apply(addr(1), secs(102), changes("one", &[("b", 0, 3)])), [key("b")]);
    level(&d, "b", 0, 3);
    level(&d, "a", 0, 0);
    d.apply(addr(1), secs(103), stream("one", None, &[("a", 0, 100), ("b", 0, 4), ("c", 0, 2)]));
    level(&d, "b", 0, 4);
    level(&d, "c", 0, 2);
}

#[test]
fn a_source_that_began_after_us_counts_in_full_and_one_from_before_does_not() {
    let mut d = demand(&[1, 2, 3]);
    d.apply(addr(1), secs(110), stream("young", Some(secs(5)), &[("a", 0, 3)]));
    level(&d, "a", 0, 3);
    d.apply(addr(2), secs(110), stream("old", Some(secs(11)), &[("a", 0, 1000)]));
    level(&d, "a", 0, 3);
    d.apply(addr(3), secs(110), stream("mute", None, &[("a", 0, 1000)]));
    level(&d, "a", 0, 3);
}

#[test]
fn a_source_that_left_and_came_back_is_not_counted_twice() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(110), stream("one", Some(secs(5)), &[("a", 0, 3)]));
    d.unlist(addr(1), LATER);
    d.list(addr(1));
    d.apply(addr(1), secs(120), stream("one", Some(secs(15)), &[("a", 0, 9)]));
    level(&d, "a", 0, 0);
    d.apply(addr(1), secs(121), changes("one", &[("a", 0, 10)]));
    level(&d, "a", 0, 1);
}

#[test]
fn a_stream_that_broke_goes_on_where_it_was() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), stream("one", None, &[("a", 1, 100)]));
    d.silent(addr(1), secs(102));
    assert_eq!(d.apply(addr(1), secs(110), stream("one", None, &[("a", 0, 120)])), [key("a")]);
    level(&d, "a", 0, 20);
    assert_eq!(d.census(), Census { listed: 1, reported: 1, silent: 0 });
}

#[test]
fn what_came_while_a_source_was_silent_is_spread_over_the_silence() {
    let mut d = demand(&[1]);
    d.want(&key("a"), Some(Shape::new(secs(10), secs(1))), secs(100));
    d.apply(addr(1), secs(100), stream("one", None, &[("a", 0, 0)]));
    d.silent(addr(1), secs(101));
    d.apply(addr(1), secs(200), stream("one", None, &[("a", 0, 1000)]));
    assert_eq!(d.rate(&key("a"), secs(200)).to_string(), "10");
}

#[test]
fn a_route_left_out_or_removed_is_gone() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), stream("one", None, &[("a", 1, 1), ("b", 2, 1), ("c", 3, 1)]));
    assert_eq!(d.apply(addr(1), secs(102), stream("one", None, &[("a", 1, 1), ("c", 3, 1)])), [key("b")]);
    let gone = Report { removed: vec![key("a"), key("a"), key("nobody")], ..changes("one", &[]) };
    assert_eq!(d.apply(addr(1), secs(103), gone), [key("a")]);
    assert_eq!(d.in_flight(), 3);
    assert_eq!(d.routes.len(), 1);
}

#[test]
fn a_route_listed_twice_in_one_report_is_counted_once() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(101), queue(&[("a", 5, 1), ("a", 2, 1)]));
    level(&d, "a", 2, 0);
    d.apply(addr(1), secs(102), queue(&[]));
    assert_eq!(d.in_flight(), 0);
    assert!(d.routes.is_empty());
}

#[test]
fn counts_beyond_reason_do_not_overflow() {
    let mut d = demand(&[1, 2]);
    for (at, total) in [(101, u64::MAX), (102, 0), (103, u64::MAX), (104, 1), (105, u64::MAX)] {
        d.apply(addr(1), secs(at), queue(&[("a", u64::MAX, total), ("b", u64::MAX, total)]));
        d.apply(addr(2), secs(at), queue(&[("a", u64::MAX, total)]));
    }
    assert_eq!(d.level(&key("a")).in_flight, 2 * report::MAX_COUNT);
    assert!(d.rate(&key("a"), secs(105)) > 0.0);
}

#[test]
fn sources_and_routes_are_bounded() {
    let mut d = demand(&[]);
    for source in 0..=u16::try_from(MAX_INTERCEPTORS).unwrap() {
        assert_eq!(d.list(addr(source)), usize::from(source) < MAX_INTERCEPTORS);
    }
    let routes = (0..=MAX_ROUTES).map(|route| counts(&route.to_string(), 1, 1)).collect();
    d.apply(addr(1), secs(101), Report { complete: true, routes, ..Report::default() });
    assert_eq!((d.in_flight(), d.refused()), (MAX_ROUTES as u64, 1));
}

#[test]
fn a_rate_is_kept_for_a_route_whose_object_is_seen_later() {
    let mut d = demand(&[1]);
    d.apply(addr(1), secs(100), stream("one", None, &[("a", 0, 0), ("b", 0, 0)]));
    d.apply(addr(1), secs(100), changes("one", &[("a", 0, 30), ("b", 0, 30)]));
    d.want(&key("a"), Some(Shape::new(secs(10), secs(1))), secs(101));
    assert_eq!(d.rate(&key("a"), secs(101)).to_string(), "15");
    d.want(&key("b"), None, secs(101));
    assert_eq!(d.rate(&key("b"), secs(101)).to_string(), "0");
    assert_eq!(d.quiet_at(&key("a"), secs(101)), Some(secs(110)));
}

#[test]
fn a_wanted_route_keeps_its_rate_when_the_last_source_leaves() {
    let mut d = demand(&[1]);
    d.want(&key("a"), Some(Shape::new(secs(10), secs(1))), secs(100));
    d.apply(addr(1), secs(100), stream("one", None, &[("a", 0, 0)]));
    d.apply(addr(1), secs(109), changes("one", &[("a", 1, 30)]));
    d.unlist(addr(1), LATER);
    assert_eq!(d.rate(&key("a"), secs(109)).to_string(), "3");
    level(&d, "a", 0, 30);
    d.unwant(&key("a"));
    assert!(d.routes.is_empty());
}

#[test]
fn kernel_counters_grow_with_every_source_and_open_connections_leave_with_theirs() {
    let observed = |opened, closed, srtt_us| {
        let kernel = Some(Kernel { opened, closed, failed: 1, srtt: Duration::from_micros(srtt_us) });
        (key("a"), Observed { kernel, ..Observed::default() })
    };
    let report = |routes| Report { complete: true, routes, ..Report::default() };
    let mut d = demand(&[1, 2]);
    assert_eq!(d.kernel(&key("a")), None);
    d.apply(addr(1), secs(101), report(vec![observed(100, 90, 200)]));
    d.apply(addr(2), secs(101), report(vec![observed(5, 5, 400)]));
    d.apply(addr(1), secs(102), report(vec![observed(110, 95, 200)]));
    let sum = d.kernel(&key("a")).unwrap();
    assert_eq!((sum.opened, sum.closed, sum.failed, sum.open), (10, 5, 0, 15));
    assert_eq!(sum.srtt(), Some(Duration::from_micros(300)));
    d.unlist(addr(1), LATER);
    let sum = d.kernel(&key("a")).unwrap();
    assert_eq!((sum.opened, sum.open, sum.srtt()), (10, 0, Some(Duration::from_micros(400))));
}

/// A source's run and what it has in flight by route.
type Said = (u8, HashMap<u8, u64>);

#[derive(Clone, Debug)]
enum Step {
    List(u16),
    Unlist(u16),
    Silent(u16),
    Report { source: u16, complete: bool, run: u8, routes: Vec<(u8, u64, u64)>, removed: Vec<u8> },
    Want(u8, bool),
    Unwant(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let source = 0..4_u16;
    let report = (0..4_u16, any::<bool>(), 0..3_u8, prop::collection::vec((0..5_u8, 0..9_u64, 0..99_u64), 0..5));
    prop_oneof![
        2 => source.clone().prop_map(Step::List),
        1 => source.clone().prop_map(Step::Unlist),
        1 => source.prop_map(Step::Silent),
        8 => (report, prop::collection::vec(0..5_u8, 0..3)).prop_map(|((source, complete, run, routes), removed)| {
            Step::Report { source, complete, run, routes, removed }
        }),
        1 => (0..5_u8, any::<bool>()).prop_map(|(route, rate)| Step::Want(route, rate)),
        1 => (0..5_u8).prop_map(Step::Unwant),
    ]
}

#[test]
fn connections_of_all_sources_are_added_and_go_with_their_source() {
    let mut demand = Demand::new(Unit::Second, secs(0));
    let observed = |connections| vec![(key("a"), Observed { connections, ..Observed::default() })];
    for (source, connections) in [(1, 2), (2, 3)] {
        demand.list_agent(addr(source), secs(0));
        let report = Report { complete: true, routes: observed(connections), ..Report::default() };
        assert_eq!(demand.apply(addr(source), secs(1), report), [key("a")]);
    }
    assert_eq!(demand.level(&key("a")), Level { connections: 5, ..Level::default() });
    let report = Report { routes: observed(1), ..Report::default() };
    assert_eq!(demand.apply(addr(1), secs(2), report), [key("a")], "it is told of though nothing is in flight");
    assert_eq!(demand.unlist(addr(2), LATER), [], "they live on without it");
    assert_eq!(demand.lapse(LATER + AGENT_AWAY), [key("a")]);
    assert_eq!(demand.level(&key("a")).connections, 1);
}

#[test]
fn an_accept_queue_that_a_source_cannot_read_is_known_of_until_it_can() {
    let mut demand = Demand::new(Unit::Second, secs(0));
    let observed = |accept_queue, accept_queue_unknown| Report {
        routes: vec![(key("a"), Observed { accept_queue, accept_queue_unknown, ..Observed::default() })],
        ..Report::default()
    };
    for (source, depth, unknown) in [(1, 2, false), (2, 3, true), (3, 4, true)] {
        demand.list_agent(addr(source), secs(0));
        let report = Report { complete: true, ..observed(depth, unknown) };
        assert_eq!(demand.apply(addr(source), secs(1), report), [key("a")]);
    }
    let level = |demand: &Demand| (demand.level(&key("a")).accept_queue, demand.level(&key("a")).accept_queue_unknown);
    assert_eq!(level(&demand), (9, 2));
    assert_eq!(demand.apply(addr(2), secs(2), observed(3, false)), [key("a")], "that it is known by now is news");
    assert_eq!(demand.unlist(addr(3), LATER), []);
    assert_eq!(demand.lapse(LATER + AGENT_AWAY), [key("a")]);
    assert_eq!(level(&demand), (5, 0));
    assert_eq!(demand.apply(addr(1), secs(3), observed(0, false)), [key("a")]);
    assert_eq!(level(&demand), (3, 0));
}

proptest! {
    /// Whatever comes in whatever order: a route's level is the sum of what listed sources said last, and every route
    /// whose level in flight differs from before is told.
    #[test]
    fn the_level_is_the_sum_of_what_listed_sources_said_last(steps in prop::collection::vec(step(), 0..80)) {
        let mut d = demand(&[]);
        let mut naive: HashMap<u16, Option<Said>> = HashMap::new();
        for (at, step) in steps.into_iter().enumerate() {
            let now = secs(100 + at as u64);
            let before: Vec<_> = (0..5_u8).map(|route| d.level(&key(&route.to_string())).in_flight).collect();
            let mut told = Vec::new();
            match step {
                Step::List(source) => {
                    d.list(addr(source));
                    naive.entry(source).or_default();
                }
                Step::Unlist(source) => {
                    told = d.unlist(addr(source), LATER);
                    naive.remove(&source);
                }
                Step::Silent(source) => d.silent(addr(source), now),
                Step::Want(route, rate) => d.want(&key(&route.to_string()), rate.then(Shape::default), now),
                Step::Unwant(route) => d.unwant(&key(&route.to_string())),
                Step::Report { source, complete, run, routes, removed } => {
                    let report = Report {
                        incarnation: Some(run.to_string().into()),
                        uptime: None,
                        complete,
                        routes: routes.iter().map(|&(r, flight, total)| counts(&r.to_string(), flight, total)).collect(),
                        removed: removed.iter().map(|route| key(&route.to_string())).collect(),
                    };
                    told = d.apply(addr(source), now, report);
                    if let Some(state) = naive.get_mut(&source) {
                        let (last_run, counts) = state.get_or_insert_with(|| (run, HashMap::new()));
                        if complete || *last_run != run {
                            counts.clear();
                        }
                        *last_run = run;
                        counts.extend(routes.iter().map(|&(route, in_flight, _)| (route, in_flight)));
                        counts.retain(|route, _| !removed.contains(route));
                    }
                }
            }
            let mut sum = 0;
            for route in 0..5_u8 {
                let name = key(&route.to_string());
                let expected: u64 = naive.values().flatten().filter_map(|(_, counts)| counts.get(&route)).sum();
                prop_assert_eq!(d.level(&name).in_flight, expected);
                prop_assert!(expected == before[usize::from(route)] || told.contains(&name));
                prop_assert!(d.rate(&name, now) >= 0.0);
                sum += expected;
            }
            prop_assert_eq!(d.in_flight(), sum);
        }
    }
}
