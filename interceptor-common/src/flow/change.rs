//! A connection whose address leads to another slot than when it was accepted: a Service that was made anew, or another one that lists the
//! same pod.

use super::{Flow, Moved, Phase, Trait};

impl Flow {
    /// Its address leads to this slot by this version of the list, or it counts for nobody any more if that is zero; so many of
    /// its HTTP/2 streams are open. Says what is taken off the slot that it had, and what the other gets: requests that have no
    /// answer go on there, and are no new ones.
    #[inline(always)]
    pub fn change_slot(&mut self, slot: u32, version: u32, streams: u32, now_ns: u64) -> (Moved, Moved) {
        // The program for the other direction may have been first.
        if self.slot == slot || self.slot == 0 {
            return (Moved::NOTHING, Moved::NOTHING);
        }
        let mut left = Moved::NOTHING;
        left.add(Moved::RELEASED);
        let mut come = Moved::TAGGED;
        if self.traits & Trait::OPEN != 0 {
            left.add(Moved::CLOSED);
            come.add(Moved::OPENED);
        }
        let outstanding = self.outstanding(streams);
        left.end(outstanding, now_ns);
        come.start(outstanding, now_ns);
        come.undone = outstanding;
        self.slot = slot;
        self.version = version;
        // What moves bytes is told of there at once.
        self.span = 0;
        if slot == 0 {
            self.phase = Phase::IDLE;
            self.foreign(version);
            come = Moved::NOTHING;
        }
        (left, come)
    }

    /// How many requests have no answer, with so many HTTP/2 streams open.
    #[inline(always)]
    pub(super) const fn outstanding(&self, streams: u32) -> u32 {
        match self.phase {
            Phase::WAITING | Phase::SWITCHED => 1,
            _ => streams,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Kind, Says, Segment};

    const NOW: u64 = 1 << 33;

    fn accepted() -> Flow {
        let mut flow = Flow { version: 1, ..Flow::default() };
        assert!(flow.accept(7, false, (1, 0), 1, NOW).has(Moved::OPENED));
        flow
    }

    fn get(flow: &mut Flow) {
        let moved = flow.received(&Segment { seq: 1, len: 18, says: Says::REQUEST }, NOW);
        assert_eq!(moved.starts(), 1);
    }

    #[test]
    fn a_request_without_answer_goes_on_at_the_other_slot_and_is_no_new_one() {
        let mut flow = accepted();
        get(&mut flow);
        assert!(flow.is_outdated(2));
        let (left, come) = flow.change_slot(9, 2, 0, NOW + 10);
        assert_eq!((left.starts(), left.ends(), left.undos(), left.has(Moved::FAILED)), (0, 1, 0, false));
        assert!(left.has(Moved::CLOSED) && left.has(Moved::RELEASED));
        assert_eq!((come.starts(), come.ends(), come.undos()), (1, 0, 1));
        assert!(come.has(Moved::OPENED) && come.has(Moved::TAGGED.flags));
        assert_eq!(left.busy_ns.wrapping_add(come.busy_ns), 0, "no time is lost");
        assert_eq!((flow.slot, flow.is_outdated(2)), (9, false));
        let end = flow.closed(0, NOW + 20);
        assert_eq!((end.ends(), end.has(Moved::CLOSED), end.has(Moved::FAILED)), (1, true, true));
        assert!(!flow.is_outdated(3), "one that has ended is nobody's");
    }

    #[test]
    fn open_streams_go_along() {
        let mut flow = Flow { kind: Kind::HTTP2, ..accepted() };
        let (left, come) = flow.change_slot(9, 2, 5, NOW);
        assert_eq!((left.ends(), come.starts(), come.undos()), (5, 5, 5));
    }

    #[test]
    fn a_client_that_the_other_route_leaves_out_counts_for_nobody_until_the_list_changes_again() {
        let mut flow = accepted();
        get(&mut flow);
        let (left, come) = flow.change_slot(0, 2, 0, NOW);
        assert_eq!((left.ends(), left.has(Moved::CLOSED), come), (1, true, Moved::NOTHING));
        assert_eq!((flow.slot, flow.kind, flow.is_outdated(2), flow.is_outdated(3)), (0, Kind::IGNORED, false, true));
    }

    #[test]
    fn what_is_there_already_or_has_ended_changes_nothing() {
        let mut flow = accepted();
        assert_eq!(flow.change_slot(7, 2, 0, NOW), (Moved::NOTHING, Moved::NOTHING));
        _ = flow.closed(0, NOW);
        assert_eq!(flow.change_slot(9, 2, 0, NOW), (Moved::NOTHING, Moved::NOTHING));
    }
}
