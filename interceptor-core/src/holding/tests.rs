//! Connections that wait, with a clock that the test turns.

use std::collections::HashSet;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

const WEB: UpstreamId = UpstreamId(0);
const LIMITS: Limits = Limits { all: 100, of_service: 50, of_client: 10 };

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn flow(n: u8) -> Flow {
    flow_of(n, 40_000)
}

fn flow_of(client: u8, port: u16) -> Flow {
    Flow { client: ([10, 0, 0, client], port).into(), service: ([10, 96, 0, 1], 80).into() }
}

fn pod(n: u8) -> SocketAddr {
    ([10, 1, 0, n], 8080).into()
}

fn holding() -> Holding<u8> {
    Holding::new(LIMITS)
}

/// Whether it is new.
fn arrive(holding: &mut Holding<u8>, flow: Flow, now: Duration) -> bool {
    let is_new = holding.get_mut(&flow).is_none();
    if is_new {
        holding.arrive(flow, WEB, (now, None), || 7).unwrap();
    } else {
        holding.again(&flow, now);
    }
    is_new
}

fn due(holding: &mut Holding<u8>, now: Duration, pods: &[SocketAddr]) -> Vec<Act> {
    holding.due(now, 1000, |_| pods)
}

#[test]
fn a_connection_waits_for_a_pod_and_goes_to_it_at_once() {
    let mut holding = holding();
    assert!(arrive(&mut holding, flow(1), ms(0)));
    assert_eq!(due(&mut holding, ms(0), &[]), []);
    holding.wake(WEB, ms(300));
    assert_eq!(due(&mut holding, ms(300), &[pod(1)]), [Act::Try(flow(1), pod(1))]);
    assert_eq!(holding.taken(&flow(1)), Some(7));
    assert!(holding.is_empty());
    assert_eq!(holding.next(), None);
}

#[test]
fn connections_are_spread_over_the_pods_of_their_family() {
    let mut holding = holding();
    for n in 1..=4 {
        arrive(&mut holding, flow(n), ms(0));
    }
    let six = "[fd00::1]:8080".parse().unwrap();
    let acts = due(&mut holding, ms(0), &[pod(1), pod(2), six]);
    let pods: Vec<_> = acts.iter().map(|act| matches!(act, Act::Try(_, to) if *to == pod(1))).collect();
    assert_eq!(pods, [true, false, true, false]);
}

#[test]
fn while_pods_refuse_one_connection_alone_is_tried_and_the_others_follow_it() {
    let mut holding = holding();
    for n in 1..=3 {
        arrive(&mut holding, flow(n), ms(0));
    }
    assert_eq!(due(&mut holding, ms(0), &[pod(1)]).len(), 3);
    for n in 1..=3 {
        holding.refused(&flow(n), ms(1));
    }
    let mut tries = 0;
    for now in (10..=1000).map(|tenths| ms(tenths) / 10) {
        for act in due(&mut holding, now, &[pod(1)]) {
            assert_eq!(act, Act::Try(flow(1), pod(1)));
            tries += 1;
            holding.refused(&flow(1), now);
        }
    }
    assert!((180..=201).contains(&tries), "every 0.5 ms, and not {tries} times in 100 ms");
    assert_eq!(due(&mut holding, ms(100), &[pod(1)]), []);
    let next = holding.next().unwrap();
    assert_eq!(due(&mut holding, next, &[pod(1)]), [Act::Try(flow(1), pod(1))]);
    holding.taken(&flow(1));
    assert_eq!(due(&mut holding, next, &[pod(1)]), [2, 3].map(|n| Act::Try(flow(n), pod(1))));
}

#[test]
fn those_that_follow_one_that_was_taken_are_looked_at_together_and_what_is_on_its_way_is_left_there() {
    let mut holding = holding();
    let pods = [pod(1), pod(2)];
    for n in 1..=6 {
        arrive(&mut holding, flow(n), ms(0));
    }
    assert_eq!(due(&mut holding, ms(0), &pods).len(), 6);
    // Of two pods one refuses: whom it has refused waits for the first of them.
    for n in [1, 3] {
        holding.refused(&flow(n), ms(1));
    }
    assert_eq!(due(&mut holding, ms(1), &pods), []);
    let before = holding.timers.clone();
    for n in [2, 4] {
        holding.taken(&flow(n)).unwrap();
        holding.refused(&flow(1), ms(2));
    }
    let changed = holding.timers.difference(&before).map(|(_, flow)| *flow).collect::<Vec<_>>();
    assert_eq!(changed, [flow(1)], "nobody else is looked at for each answer");
    assert_eq!(holding.next(), Some(Duration::ZERO), "all of them are next");
    assert_eq!(due(&mut holding, ms(2), &pods), []);
    let on_its_way = |n| holding.timers.contains(&(FIRST_PATIENCE, flow(n)));
    assert!(on_its_way(5) && on_its_way(6));
}

#[test]
fn pods_of_many_services_that_refuse_are_tried_less_often_each() {
    let mut holding = Holding::<u8>::new(Limits { all: 200, of_service: 200, of_client: 200 });
    let flow = |n: u8| Flow { client: flow_of(1, 40_000 + u16::from(n)).client, service: ([10, 96, 0, n], 80).into() };
    for n in 0..100 {
        holding.arrive(flow(n), UpstreamId(n.into()), (ms(0), None), || 7).unwrap();
    }
    due(&mut holding, ms(0), &[pod(1)]);
    (0..100).for_each(|n| holding.refused(&flow(n), ms(1)));
    let mut tries = 0;
    for now in 1..=500 {
        for act in due(&mut holding, ms(now), &[pod(1)]) {
            let Act::Try(flow, _) = act else { panic!("{act:?}") };
            holding.refused(&flow, ms(now));
            tries += 1;
        }
    }
    assert!((900..1_100).contains(&tries), "{tries} in half a second");
    for n in 0..99 {
        holding.forget(&flow(n));
    }
    due(&mut holding, ms(600), &[pod(1)]);
    holding.refused(&flow(99), ms(600));
    assert_eq!(due(&mut holding, ms(600), &[pod(1)]), []);
    assert_eq!(holding.next(), Some(ms(600) + (ms(599) / 500)), "the others are gone");
}

/// One connection that a pod has refused for ten seconds, and when it is tried next.
fn refused_for_long() -> (Holding<u8>, Duration) {
    let mut holding = holding();
    arrive(&mut holding, flow(1), ms(0));
    due(&mut holding, ms(0), &[pod(1)]);
    holding.refused(&flow(1), ms(0));
    arrive(&mut holding, flow(1), ms(9_000));
    assert_eq!(due(&mut holding, ms(10_000), &[pod(1)]).len(), 1);
    holding.refused(&flow(1), ms(10_000));
    assert_eq!(due(&mut holding, ms(10_000), &[pod(1)]), []);
    let next = holding.next().unwrap();
    assert_eq!(next, ms(10_020));
    (holding, next)
}

#[test]
fn a_pod_that_begins_to_listen_is_tried_at_once() {
    let pods = [pod(1)];
    for addr in ["10.1.0.1:8080", "0.0.0.0:8080", "[::]:8080"] {
        let (mut holding, _) = refused_for_long();
        let addr = addr.parse().unwrap();
        holding.listens(addr, (ms(10_003), ms(10_004)), |_| &pods);
        assert_eq!(due(&mut holding, ms(10_004), &[pod(1)]), [Act::Try(flow(1), pod(1))], "{addr}");
    }
}

#[test]
fn others_that_begin_to_listen_change_nothing() {
    let pods = [pod(1)];
    for addr in ["10.1.0.2:8080", "0.0.0.0:9090", "10.1.0.1:9090"] {
        let (mut holding, next) = refused_for_long();
        holding.listens(addr.parse().unwrap(), (ms(10_003), ms(10_004)), |_| &pods);
        assert_eq!(holding.next(), Some(next), "{addr}");
    }
}

#[test]
fn a_refusal_from_before_a_pod_listened_is_not_waited_after() {
    let pods = [pod(1)];
    let (mut holding, next) = refused_for_long();
    assert_eq!(due(&mut holding, next, &[pod(1)]).len(), 1);
    let listens = next + Duration::from_micros(60);
    holding.listens(pod(1), (listens, listens), |_| &pods);
    let refused = next + Duration::from_micros(100);
    holding.refused(&flow(1), refused);
    assert_eq!(due(&mut holding, refused, &pods), []);
    assert_eq!(holding.next(), Some(next + FIRST_PAUSE));
}

#[test]
fn a_pod_that_begins_to_listen_over_and_over_is_tried_no_more_often_than_any() {
    let pods = [pod(1)];
    let (mut holding, _) = refused_for_long();
    let mut tries = 0;
    for now in (0..1000).map(|tens| ms(10_001) + Duration::from_micros(tens * 10)) {
        holding.listens(pod(1), (now, now), |_| &pods);
        for _ in due(&mut holding, now, &[pod(1)]) {
            tries += 1;
            holding.refused(&flow(1), now);
        }
    }
    assert!((19..=21).contains(&tries), "{tries} times in 10 ms");
}

#[test]
fn when_the_one_that_is_tried_leaves_another_takes_its_place() {
    let mut holding = holding();
    arrive(&mut holding, flow(1), ms(0));
    arrive(&mut holding, flow(2), ms(0));
    due(&mut holding, ms(0), &[pod(1)]);
    holding.refused(&flow(1), ms(1));
    holding.refused(&flow(2), ms(1));
    due(&mut holding, ms(1), &[pod(1)]);
    holding.forget(&flow(1));
    assert_eq!(due(&mut holding, ms(2), &[pod(1)]), [Act::Try(flow(2), pod(1))]);
}

#[test]
fn a_pod_that_does_not_answer_is_given_up_for_the_next() {
    let mut holding = holding();
    arrive(&mut holding, flow(1), ms(0));
    assert_eq!(due(&mut holding, ms(0), &[pod(1), pod(2)]), [Act::Try(flow(1), pod(1))]);
    assert_eq!(due(&mut holding, ms(249), &[pod(1), pod(2)]), []);
    assert_eq!(due(&mut holding, ms(250), &[pod(1), pod(2)]), [Act::Try(flow(1), pod(2))]);
    assert_eq!(due(&mut holding, ms(749), &[pod(1), pod(2)]), [], "twice as long the second time");
}

#[test]
fn a_pod_that_goes_while_it_is_tried_is_given_up_at_once() {
    let mut holding = holding();
    arrive(&mut holding, flow(1), ms(0));
    due(&mut holding, ms(0), &[pod(1)]);
    holding.wake(WEB, ms(1));
    assert_eq!(due(&mut holding, ms(1), &[pod(2)]), [Act::Try(flow(1), pod(2))]);
}

#[test]
fn a_connection_expires_at_its_deadline_and_is_left_when_its_client_is_silent() {
    let mut holding = holding();
    holding.arrive(flow(1), WEB, (ms(0), Some(ms(1500))), || 7).unwrap();
    arrive(&mut holding, flow(2), ms(0));
    due(&mut holding, ms(0), &[]);
    assert_eq!(holding.next(), Some(ms(1500)));
    assert_eq!(due(&mut holding, ms(1500), &[]), [Act::Expire(flow(1))]);
    holding.forget(&flow(1));
    // The client repeats after 1, 2 and 4 seconds.
    for (at, gap) in [(1000, 1), (3000, 2), (7000, 4)] {
        arrive(&mut holding, flow(2), ms(at));
        assert_eq!(due(&mut holding, ms(at), &[]), []);
        assert_eq!(holding.next(), Some(ms(at) + SHORTEST_SILENCE.max(Duration::from_secs(gap) * 3)));
    }
    assert_eq!(due(&mut holding, ms(19_000), &[]), [Act::Leave(flow(2))]);
}

#[test]
fn each_limit_is_told_by_its_name() {
    let limits = Limits { all: 3, of_service: 2, of_client: 1 };
    let mut holding: Holding<u8> = Holding::new(limits);
    let other = UpstreamId(1);
    let mut arrive = |flow, upstream| holding.arrive(flow, upstream, (ms(0), None), || 7);
    assert_eq!(arrive(flow(1), WEB), Ok(()));
    assert_eq!(arrive(flow_of(1, 40_001), WEB), Err(Limit::Client));
    assert_eq!(arrive(flow(2), WEB), Ok(()));
    assert_eq!(arrive(flow(3), WEB), Err(Limit::Service));
    assert_eq!(arrive(flow(3), other), Ok(()));
    assert_eq!(arrive(flow(4), other), Err(Limit::All));
    assert_eq!((holding.len(), holding.waiting(WEB)), (3, 2));
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(u8),
    Wake,
    Refuse(u8),
    Take(u8),
    Forget(u8),
    Pods(u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..6_u8;
    prop_oneof![
        client().prop_map(Step::Arrive),
        Just(Step::Wake),
        client().prop_map(Step::Refuse),
        client().prop_map(Step::Take),
        client().prop_map(Step::Forget),
        (0..3_u8).prop_map(Step::Pods),
        select(vec![1_u16, 5, 50, 250, 1000, 5000]).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn every_connection_is_looked_at_in_time_and_ends_once(steps in vec(step(), 0..80)) {
        let mut holding = Holding::new(LIMITS);
        let (mut now, mut pods) = (ms(0), Vec::new());
        let mut known: HashSet<Flow> = HashSet::new();
        for step in steps {
            match step {
                Step::Arrive(n) => {
                    let arrival = arrive(&mut holding, flow(n), now);
                    prop_assert_eq!(arrival, known.insert(flow(n)));
                }
                Step::Wake => holding.wake(WEB, now),
                Step::Refuse(n) => holding.refused(&flow(n), now),
                Step::Take(n) => prop_assert_eq!(holding.taken(&flow(n)).is_some(), known.remove(&flow(n))),
                Step::Forget(n) => prop_assert_eq!(holding.forget(&flow(n)).is_some(), known.remove(&flow(n))),
                Step::Pods(count) => {
                    pods = (0..count).map(pod).collect();
                    holding.wake(WEB, now);
                }
                Step::Pass(millis) => now += ms(millis.into()),
            }
            for act in due(&mut holding, now, &pods) {
                match act {
                    Act::Try(flow, to) => prop_assert!(known.contains(&flow) && pods.contains(&to)),
                    Act::Expire(flow) | Act::Leave(flow) => {
                        prop_assert!(holding.forget(&flow).is_some() && known.remove(&flow));
                    }
                }
            }
            due(&mut holding, now, &pods);
            prop_assert_eq!(holding.len(), known.len());
            prop_assert_eq!(holding.timers.len(), known.len());
            prop_assert!(holding.next().is_none_or(|next| next > now));
            prop_assert_eq!(holding.clients.values().sum::<usize>(), known.len());
            // With a pod, somebody is on the way or about to be, unless all has been tried.
            if !known.is_empty() && !pods.is_empty() {
                let next = holding.next().expect("somebody waits");
                prop_assert!(next <= now + LONGEST_PATIENCE.max(LONGEST_PAUSE));
            }
        }
        for flow in known {
            prop_assert!(holding.forget(&flow).is_some());
        }
        prop_assert!(holding.services.is_empty() && holding.clients.is_empty() && holding.timers.is_empty());
    }
}
