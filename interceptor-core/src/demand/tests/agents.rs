//! Node agents: what they have counted outlives them for a while, and what they don't count is told.

use super::*;

/// One agent that has been listed and has reported three in flight.
fn agent() -> Demand {
    let mut d = demand(&[]);
    assert!(d.list_agent(addr(1), secs(101)));
    d.apply(addr(1), secs(101), stream("one", Some(secs(3600)), &[("a", 3, 100)]));
    d
}

#[test]
fn an_agent_that_is_away_for_a_moment_leaves_its_counts_and_goes_on_with_its_totals() {
    let mut d = agent();
    assert_eq!(d.unlist(addr(1), secs(110)), []);
    level(&d, "a", 3, 0);
    assert_eq!(d.census(), Census::default(), "it is listed no more");
    assert_eq!(d.apply(addr(1), secs(111), stream("one", None, &[("a", 0, 100)])), [], "nor listened to");
    assert_eq!(d.lapses_at(), Some(secs(110) + AGENT_AWAY));
    assert_eq!(d.lapse(secs(109) + AGENT_AWAY), []);
    assert!(d.list_agent(addr(1), secs(170)));
    assert_eq!(d.lapses_at(), None);
    level(&d, "a", 3, 0);
    d.apply(addr(1), secs(171), stream("one", Some(secs(3670)), &[("a", 2, 160)]));
    level(&d, "a", 2, 60);
    assert_eq!(d.in_flight(), 0, "none of it went through an interceptor");
}

#[test]
fn what_came_while_an_agent_was_away_is_spread_over_that_time() {
    let mut d = agent();
    d.want(&key("a"), Some(Shape::new(secs(10), secs(1))), secs(101));
    d.unlist(addr(1), secs(110));
    d.list_agent(addr(1), secs(160));
    d.apply(addr(1), secs(160), stream("one", Some(secs(3660)), &[("a", 0, 600)]));
    let rate = d.rate(&key("a"), secs(160));
    assert!((9.0..15.0).contains(&rate), "500 within 50 s are not {rate} a second");
}

#[test]
fn an_agent_that_counts_anew_after_its_absence_is_believed() {
    let mut d = agent();
    d.unlist(addr(1), secs(110));
    d.list_agent(addr(1), secs(120));
    d.apply(addr(1), secs(120), stream("two", Some(secs(5)), &[("a", 1, 4)]));
    level(&d, "a", 1, 4);
}

#[test]
fn what_pods_have_taken_before_a_route_came_is_no_demand_of_it() {
    let mut d = agent();
    assert_eq!(d.apply(addr(1), secs(102), changes("one", &[("b", 0, 1_000_000)])), []);
    level(&d, "b", 0, 0);
    d.apply(addr(1), secs(103), changes("one", &[("b", 0, 1_000_002)]));
    level(&d, "b", 0, 2);
    let removed = Report { removed: vec![key("b")], ..changes("one", &[]) };
    d.apply(addr(1), secs(104), removed);
    d.want(&key("b"), None, secs(104));
    d.apply(addr(1), secs(105), changes("one", &[("b", 1, 1_000_009)]));
    level(&d, "b", 1, 0);
}

#[test]
fn an_agent_that_stays_away_is_gone() {
    let mut d = agent();
    d.unlist(addr(1), secs(110));
    assert_eq!(d.unlist(addr(1), secs(120)), [], "that it is away is no news");
    assert_eq!(d.lapse(secs(110) + AGENT_AWAY), [key("a")]);
    level(&d, "a", 0, 0);
    assert!(d.routes.is_empty() && d.sources.is_empty() && d.leaving.is_empty());
    assert_eq!((d.lapses_at(), d.agents, d.in_flight), (None, 0, 0));
}

#[test]
fn an_agent_that_does_not_count_is_told_of_until_it_does() {
    let mut d = agent();
    let says = |uncounted| Report {
        routes: vec![(key("a"), Observed { uncounted, ..Observed::default() })],
        ..changes("one", &[])
    };
    assert_eq!(d.apply(addr(1), secs(102), says(true)), [key("a")]);
    assert_eq!(d.level(&key("a")).uncounted, 1);
    d.unlist(addr(1), secs(103));
    assert_eq!(d.level(&key("a")).uncounted, 1, "also while it is away");
    d.list_agent(addr(1), secs(104));
    let removed = Report { removed: vec![key("a")], ..changes("one", &[]) };
    assert_eq!(d.apply(addr(1), secs(105), says(true)), [], "which is no news");
    assert_eq!(d.apply(addr(1), secs(105), says(false)), [key("a")]);
    assert_eq!(d.level(&key("a")).uncounted, 0);
    d.apply(addr(1), secs(106), says(true));
    assert_eq!(d.apply(addr(1), secs(107), removed), [key("a")]);
    assert_eq!(d.level(&key("a")).uncounted, 0);
}
