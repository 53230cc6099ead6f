//! Single steps, and what holds after any steps in any order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn addr(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 80))
}

fn limit(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).unwrap()
}

/// A gate at which this many wait, under a limit.
fn gate(waiters: usize, most: u32) -> (Gate, Vec<Ticket>) {
    let mut gate = Gate::default();
    let tickets = (0..waiters).map(|_| gate.join(limit(most))).collect();
    (gate, tickets)
}

#[test]
fn requests_go_in_order_as_far_as_there_is_room_and_the_rest_as_room_comes() {
    let (mut gate, tickets) = gate(5, 2);
    assert!(gate.grants().is_empty(), "there is no pod");
    gate.list([addr(1)]);
    assert_eq!(gate.grants(), tickets[..2]);
    gate.list([addr(1), addr(2)]);
    assert_eq!(gate.grants(), tickets[2..4]);
    assert_eq!(gate.grant(tickets[3]), Some(addr(2)));
    assert_eq!(gate.accepted(tickets[0]), Some(addr(1)));
    assert!(gate.grants().is_empty(), "it is still at its pod");
    gate.end(addr(1));
    assert_eq!((gate.grants(), gate.grant(tickets[4])), (vec![tickets[4]], Some(addr(1))));
}

#[test]
fn requests_are_spread_over_the_pods_that_are_there() {
    let (mut gate, tickets) = gate(6, 10);
    gate.list([addr(1), addr(2), addr(3)]);
    gate.grants();
    let at = |pod| tickets.iter().filter(|ticket| gate.grant(**ticket) == Some(pod)).count();
    assert_eq!([at(addr(1)), at(addr(2)), at(addr(3))], [2, 2, 2]);
}

#[test]
fn without_a_limit_all_go_at_once() {
    let (mut gate, tickets) = gate(1000, u32::MAX);
    gate.list([addr(1)]);
    assert_eq!(gate.grants(), tickets);
}

#[test]
fn a_pod_that_refuses_is_tried_by_one_at_a_time_and_the_others_go_elsewhere_in_order() {
    let (mut gate, tickets) = gate(4, 2);
    gate.list([addr(1)]);
    gate.grants();
    gate.trying(tickets[0]);
    gate.refused(tickets[0]);
    assert_eq!(gate.grants(), tickets[..1], "the first has not lost its turn, and is alone");
    gate.list([addr(1), addr(2)]);
    assert_eq!(gate.grants(), tickets[1..3]);
    assert!(tickets[1..3].iter().all(|ticket| gate.grant(*ticket) == Some(addr(2))));
    assert_eq!(gate.accepted(tickets[0]), Some(addr(1)));
    assert_eq!(gate.grants(), tickets[3..], "it accepts again");
}

#[test]
fn who_was_to_go_to_a_pod_that_has_gone_goes_to_another_and_who_connects_may_finish() {
    let (mut gate, tickets) = gate(3, 3);
    gate.list([addr(1)]);
    gate.grants();
    gate.trying(tickets[1]);
    gate.list([addr(2)]);
    assert_eq!(gate.grants(), [tickets[0], tickets[2]]);
    assert_eq!((gate.grant(tickets[0]), gate.grant(tickets[1])), (Some(addr(2)), Some(addr(1))));
    assert_eq!(gate.accepted(tickets[1]), Some(addr(1)));
    gate.end(addr(1));
    assert!(!gate.pods.contains_key(&addr(1)));
}

#[test]
fn who_has_waited_long_enough_goes_beyond_the_limit() {
    let (mut gate, tickets) = gate(3, 1);
    gate.list([addr(1)]);
    assert_eq!(gate.grants(), tickets[..1]);
    gate.lift(tickets[2]);
    assert_eq!(gate.grants(), tickets[1..3], "and who came before it does too");
}

#[test]
fn nothing_is_left_when_all_have_gone() {
    let (mut gate, tickets) = gate(2, 1);
    gate.list([addr(1)]);
    gate.grants();
    assert_eq!(gate.accepted(tickets[0]), Some(addr(1)));
    gate.leave(tickets[1]);
    assert!(!gate.is_waited_at() && !gate.is_done());
    gate.end(addr(1));
    assert!(gate.is_done());
}

#[derive(Clone, Debug)]
enum Step {
    Join,
    /// Of those that wait or may go.
    Leave(usize),
    List(BTreeSet<u8>),
    /// Of those that may go.
    Try(usize),
    Accept(usize),
    Refuse(usize),
    /// Of those at a pod.
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Join),
        1 => any::<usize>().prop_map(Step::Leave),
        2 => prop::collection::btree_set(0..5_u8, 0..5).prop_map(Step::List),
        2 => any::<usize>().prop_map(Step::Try),
        4 => any::<usize>().prop_map(Step::Accept),
        1 => any::<usize>().prop_map(Step::Refuse),
        4 => any::<usize>().prop_map(Step::End),
    ]
}

/// What an onlooker knows.
#[derive(Debug, Default)]
struct Seen {
    waiting: BTreeSet<Ticket>,
    going: Vec<Ticket>,
    at: Vec<SocketAddr>,
}

impl Seen {
    fn take(&mut self, gate: &mut Gate, most: NonZeroU32, step: Step) {
        let nth = |all: &[Ticket], n: usize| all.get(n % all.len().max(1)).copied();
        let all: Vec<_> = self.waiting.iter().copied().chain(self.going.iter().copied()).collect();
        match step {
            Step::Join => _ = self.waiting.insert(gate.join(most)),
            Step::List(pods) => gate.list(pods.into_iter().map(addr)),
            Step::Leave(n) => {
                if let Some(ticket) = nth(&all, n) {
                    gate.leave(ticket);
                    self.waiting.remove(&ticket);
                    self.going.retain(|going| *going != ticket);
                }
            }
            Step::Try(n) => nth(&self.going, n).into_iter().for_each(|ticket| gate.trying(ticket)),
            Step::Accept(n) => {
                if let Some(ticket) = nth(&self.going, n) {
                    self.at.push(gate.accepted(ticket).unwrap());
                    self.going.retain(|going| *going != ticket);
                }
            }
            Step::Refuse(n) => nth(&self.going, n).into_iter().for_each(|ticket| gate.refused(ticket)),
            Step::End(n) => {
                if !self.at.is_empty() {
                    gate.end(self.at.swap_remove(n % self.at.len()));
                }
            }
        }
        // Some may have been called back.
        let (going, back): (Vec<_>, Vec<_>) = self.going.drain(..).partition(|ticket| gate.grant(*ticket).is_some());
        self.going = going;
        self.waiting.extend(back);
        let handed = gate.grants();
        assert!(handed.is_sorted());
        for ticket in handed {
            assert_eq!(self.waiting.pop_first(), Some(ticket), "first come, first served");
            self.going.push(ticket);
        }
    }

    fn check(&self, gate: &Gate, most: NonZeroU32) {
        for number in 0..5 {
            let there = self.at.iter().filter(|at| **at == addr(number)).count();
            let going = self.going.iter().filter(|ticket| gate.grant(**ticket) == Some(addr(number))).count();
            assert!(there + going <= most.get() as usize, "more than {most} at {number}");
            assert_eq!(gate.pods.get(&addr(number)).map_or(0, |pod| pod.in_flight as usize), there + going);
        }
        let has_room = |pod: &Pod| pod.has_room(most.get());
        assert!(self.waiting.is_empty() || !gate.pods.values().any(has_room), "somebody waits although there is room");
        assert_eq!(gate.is_waited_at(), !(self.waiting.is_empty() && self.going.is_empty()));
    }
}

proptest! {
    #[test]
    fn the_limit_is_kept_nobody_overtakes_and_no_room_is_left_unused(
        most in 1..4_u32,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let (mut gate, mut seen) = (Gate::default(), Seen::default());
        for step in steps {
            seen.take(&mut gate, limit(most), step);
            seen.check(&gate, limit(most));
        }
        // With one pod that serves, everybody is served.
        seen.take(&mut gate, limit(most), Step::List(BTreeSet::from([9])));
        for _ in 0..2 * (seen.waiting.len() + seen.going.len()) {
            seen.take(&mut gate, limit(most), Step::Accept(0));
            seen.take(&mut gate, limit(most), Step::End(0));
        }
        while !seen.at.is_empty() {
            seen.take(&mut gate, limit(most), Step::End(0));
        }
        prop_assert!(gate.is_done(), "{gate:?}");
    }
}
