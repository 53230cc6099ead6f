//! Which upstream has which of the kernel's slots. Pure; owned by the ledger.
//!
//! A slot's counters are never reset, and a socket keeps its slot until it has ended, or its address leads to another. So that no old
//! socket counts for a new upstream, a slot whose upstream has gone drains: another target gets it only after no address leads to it,
//! every program that may still have looked one up has ended, and every connection on it has ended, or gone to another. What it had
//! counted by then is the base of its next use. The same target gets it back while it drains.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    ops::Range,
};

use foldhash::fast::RandomState;
use interceptor_common::Counters;
use interceptor_core::{UpstreamId, mapops::Slot, route::Target};

/// The slot of the self-test.
pub(crate) const SELF_TEST: Slot = Slot(0);

#[derive(Debug)]
pub(crate) struct Slots<C> {
    fresh: Range<u32>,
    free: VecDeque<(Slot, C)>,
    uses: HashMap<UpstreamId, Use<C>, RandomState>,
    draining: Vec<Draining<C>>,
    /// What a process before has given out and nobody has asked for yet, by the target's tag.
    inherited: HashMap<u64, (Slot, C), RandomState>,
}

/// A slot that is nobody's any more, on which connections may still end.
#[derive(Clone, Copy, Debug)]
struct Draining<C> {
    slot: Slot,
    /// The tag of whose it was; zero if that is not known.
    target: u64,
    /// What the slot had counted before.
    base: C,
}

/// Tells a target from all others across processes: FNV-1a of its name, never zero.
pub(crate) fn tag(target: &Target) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let name = format!("{}:{}", target.service, target.port);
    let hash = name.bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    hash.max(1)
}

/// A slot that a process before has used: whose it is, by the target's tag, and what it had counted before that; and what it has
/// counted by now.
pub(crate) type Known<C> = (Slot, Option<(u64, C)>, C);

/// One upstream's use of a slot.
#[derive(Clone, Debug)]
pub(crate) struct Use<C> {
    /// Whose it is: an id alone may have come to mean another target.
    pub(crate) target: Target,
    pub(crate) slot: Slot,
    /// What the slot had counted before.
    pub(crate) base: C,
}

impl<C: Counters> Slots<C> {
    /// `total` slots, the self-test's included.
    pub(crate) fn new(total: u32) -> Self {
        Self {
            fresh: SELF_TEST.0 + 1..total,
            free: VecDeque::new(),
            uses: HashMap::default(),
            draining: Vec::new(),
            inherited: HashMap::default(),
        }
    }

    /// The same, of slots that a process before has given out: whose each is and what it had counted before, and what it has
    /// counted by now. Those that are nobody's and have counted drain.
    pub(crate) fn inherit(total: u32, known: impl IntoIterator<Item = Known<C>>) -> Self {
        let mut slots = Self::new(total);
        let mut next = SELF_TEST.0 + 1;
        for (slot, used, counted) in known {
            if slot == SELF_TEST || slot.0 >= total {
                continue;
            }
            match used {
                Some((target, base)) => _ = slots.inherited.insert(target, (slot, base)),
                None if counted != C::default() => {
                    slots.draining.push(Draining { slot, target: 0, base: C::default() });
                }
                None => continue,
            }
            // Those in between have never counted.
            slots.free.extend((next..slot.0).map(|slot| (Slot(slot), C::default())));
            next = slot.0 + 1;
        }
        slots.fresh = next..total;
        slots
    }

    /// An upstream goes on with the slot that its target had, if it had one, in a process before or in this one: connections that are open
    /// count for the same Service.
    pub(crate) fn resume(&mut self, upstream: UpstreamId, target: &Target) {
        if self.inherited.is_empty() && self.draining.is_empty() || self.uses.contains_key(&upstream) {
            return;
        }
        let tag = tag(target);
        let drains = |draining: &Draining<C>| draining.target == tag;
        let resumed = self.inherited.remove(&tag).or_else(|| {
            let Draining { slot, target: _, base } = self.draining.swap_remove(self.draining.iter().position(drains)?);
            Some((slot, base))
        });
        if let Some((slot, base)) = resumed {
            self.uses.insert(upstream, Use { target: target.clone(), slot, base });
        }
    }

    /// Slots whose targets have not come back drain.
    pub(crate) fn disinherit(&mut self) {
        self.draining.extend(self.inherited.drain().map(|(target, (slot, base))| Draining { slot, target, base }));
    }

    /// How many can be given out.
    pub(crate) fn available(&self) -> usize {
        self.fresh.len() + self.free.len()
    }

    pub(crate) fn of(&self, upstream: UpstreamId) -> Option<Slot> {
        self.uses.get(&upstream).map(|used| used.slot)
    }

    pub(crate) fn uses(&self) -> impl Iterator<Item = (UpstreamId, &Use<C>)> {
        self.uses.iter().map(|(id, used)| (*id, used))
    }

    /// The upstream's slot, a new one if it has none; `None` when there is none left. Used ones come last, the one that
    /// has been free for longest first.
    pub(crate) fn give(&mut self, upstream: UpstreamId, target: &Target) -> Option<Slot> {
        if let Some(used) = self.uses.get(&upstream) {
            return Some(used.slot);
        }
        let (slot, base) = match self.fresh.next() {
            Some(slot) => (Slot(slot), C::default()),
            None => self.free.pop_front()?,
        };
        self.uses.insert(upstream, Use { target: target.clone(), slot, base });
        Some(slot)
    }

    /// Ends the uses of upstreams that `target_of` does not know, or not by this target any more.
    pub(crate) fn retire_all_but<'a>(&mut self, target_of: impl Fn(UpstreamId) -> Option<&'a Target>) {
        let Self { uses, draining, .. } = self;
        uses.retain(|id, used| {
            let keep = target_of(*id) == Some(&used.target);
            if !keep {
                draining.push(Draining { slot: used.slot, target: tag(&used.target), base: used.base });
            }
            keep
        });
    }

    /// Ends all uses. Nobody gets the slot again that its target had.
    pub(crate) fn retire_for_good(&mut self) {
        self.retire_all_but(|_| None);
        self.draining.iter_mut().for_each(|draining| draining.target = 0);
    }

    /// Draining slots to which no address leads any more.
    pub(crate) fn candidates(&self, led_to: &HashSet<Slot>) -> Vec<Slot> {
        self.draining.iter().map(|draining| draining.slot).filter(|slot| !led_to.contains(slot)).collect()
    }

    /// Frees those of `candidates` whose connections have all ended, and says how many. To be called after every program
    /// has ended that may have looked their addresses up.
    pub(crate) fn reap(
        &mut self,
        candidates: &[Slot],
        mut read: impl FnMut(Slot) -> io::Result<C>,
    ) -> io::Result<usize> {
        let mut freed = 0;
        for slot in candidates {
            let stats = read(*slot)?;
            if self.is_drained(*slot, &stats) {
                self.free(*slot, stats);
                freed += 1;
            }
        }
        Ok(freed)
    }

    /// Slots that are nobody's any more, and on which connections may still end.
    pub(crate) fn draining(&self) -> impl Iterator<Item = Slot> {
        self.draining.iter().map(|draining| draining.slot)
    }

    /// Whether a slot of the target drains that has this tag.
    #[cfg(test)]
    pub(crate) fn drains(&self, target: u64) -> bool {
        self.draining.iter().any(|draining| draining.target == target)
    }

    /// Whether all connections have ended on a slot that drains and has counted this.
    pub(crate) fn is_drained(&self, slot: Slot, counted: &C) -> bool {
        let draining = self.draining.iter().find(|draining| draining.slot == slot);
        draining.is_some_and(|draining| counted.since(&draining.base).drained())
    }

    /// A slot that drains and has counted this can be given out.
    pub(crate) fn free(&mut self, slot: Slot, counted: C) {
        self.draining.retain(|draining| draining.slot != slot);
        self.free.push_back((slot, counted));
    }

    /// What a slot in use had counted before is said to have been this.
    pub(crate) fn rebase(&mut self, upstream: UpstreamId, base: C) {
        if let Some(used) = self.uses.get_mut(&upstream) {
            used.base = base;
        }
    }
}

#[cfg(test)]
mod tests {
    use interceptor_common::Stats;
    use interceptor_core::{ObjectKey, route::PortRef};

    use super::*;

    fn target(name: &str) -> Target {
        Target { service: ObjectKey::new("ns", name), port: PortRef::Number(80) }
    }

    const OPEN: Stats = Stats { attempted: 1, opened: 1, closed: 0, failed: 0, srtt_us: 0, last_ns: 5 };
    const ENDED: Stats = Stats { attempted: 1, opened: 1, closed: 1, failed: 0, srtt_us: 0, last_ns: 9 };

    #[test]
    fn an_upstream_keeps_its_slot_and_the_self_tests_is_never_given_out() {
        let mut slots = Slots::<Stats>::new(3);
        let first = slots.give(UpstreamId(7), &target("a")).unwrap();
        assert_ne!(first, SELF_TEST);
        assert_eq!(slots.give(UpstreamId(7), &target("a")), Some(first));
        assert!(slots.give(UpstreamId(8), &target("b")).is_some());
        assert_eq!(slots.give(UpstreamId(9), &target("c")), None);
    }

    #[test]
    fn a_retired_slot_is_given_out_again_only_after_its_last_connection_with_its_count_as_base() {
        let mut slots = Slots::<Stats>::new(2);
        let slot = slots.give(UpstreamId(1), &target("a")).unwrap();
        slots.retire_all_but(|_| None);
        assert_eq!(slots.give(UpstreamId(1), &target("b")), None, "still draining");
        assert_eq!(slots.candidates(&HashSet::from([slot])), [], "an address still leads to it");
        let candidates = slots.candidates(&HashSet::new());
        assert_eq!(slots.reap(&candidates, |_| Ok(OPEN)).unwrap(), 0);
        assert_eq!(slots.reap(&candidates, |_| Ok(ENDED)).unwrap(), 1);
        assert_eq!(slots.give(UpstreamId(1), &target("b")), Some(slot));
        let (_, used) = slots.uses().next().unwrap();
        assert_eq!(used.base, ENDED);
    }

    #[test]
    fn an_id_that_means_another_target_is_another_use() {
        let mut slots = Slots::<Stats>::new(9);
        let (a, b) = (target("a"), target("b"));
        let old = slots.give(UpstreamId(1), &a).unwrap();
        slots.retire_all_but(|_| Some(&a));
        assert_eq!(slots.of(UpstreamId(1)), Some(old));
        slots.retire_all_but(|_| Some(&b));
        assert_eq!(slots.of(UpstreamId(1)), None);
        assert_ne!(slots.give(UpstreamId(1), &b), Some(old));
    }

    #[test]
    fn slots_that_were_never_used_are_preferred() {
        let mut slots = Slots::<Stats>::new(3);
        let first = slots.give(UpstreamId(1), &target("a")).unwrap();
        slots.retire_all_but(|_| None);
        slots.reap(&[first], |_| Ok(ENDED)).unwrap();
        assert_eq!(slots.available(), 2);
        assert_ne!(slots.give(UpstreamId(2), &target("b")), Some(first));
        assert_eq!(slots.give(UpstreamId(3), &target("c")), Some(first));
    }

    #[test]
    fn slots_go_on_with_their_targets_after_the_process_that_gave_them_out() {
        let target_a = target("a");
        let known = [
            (Slot(2), Some((tag(&target_a), ENDED)), OPEN),
            (Slot(4), None, OPEN),
            (Slot(5), Some((tag(&target("gone")), Stats::default())), ENDED),
        ];
        let mut slots = Slots::inherit(8, known);
        slots.resume(UpstreamId(3), &target_a);
        slots.resume(UpstreamId(4), &target("new"));
        let (id, used) = slots.uses().next().unwrap();
        assert_eq!((id, used.slot, used.base), (UpstreamId(3), Slot(2), ENDED));
        assert_eq!(slots.uses().count(), 1);
        slots.disinherit();
        let mut draining = slots.candidates(&HashSet::new());
        draining.sort_unstable();
        assert_eq!(draining, [Slot(4), Slot(5)]);
        // 6 and 7 are fresh, 1 and 3 have never counted.
        assert_eq!(slots.available(), 4);
        let given: HashSet<_> = (10..14).filter_map(|id| slots.give(UpstreamId(id), &target_a)).collect();
        assert_eq!(given, HashSet::from([1, 3, 6, 7].map(Slot)));
        assert_eq!(slots.give(UpstreamId(14), &target_a), None);
    }

    #[test]
    fn a_target_that_comes_back_has_its_slot_again_while_that_drains() {
        let mut slots = Slots::<Stats>::new(9);
        let old = slots.give(UpstreamId(1), &target("a")).unwrap();
        slots.rebase(UpstreamId(1), ENDED);
        slots.retire_all_but(|_| None);
        slots.resume(UpstreamId(2), &target("b"));
        assert_eq!(slots.of(UpstreamId(2)), None);
        slots.resume(UpstreamId(3), &target("a"));
        let (id, used) = slots.uses().next().unwrap();
        assert_eq!((id, used.slot, used.base), (UpstreamId(3), old, ENDED));
        assert_eq!(slots.draining().count(), 0);
        slots.retire_for_good();
        slots.resume(UpstreamId(3), &target("a"));
        assert_eq!(slots.of(UpstreamId(3)), None, "what it says can't be trusted");
    }

    #[test]
    fn of_a_slot_that_drains_only_what_is_open_of_its_last_use_counts() {
        let mut slots = Slots::<Stats>::new(9);
        let slot = slots.give(UpstreamId(1), &target("a")).unwrap();
        slots.rebase(UpstreamId(1), OPEN);
        slots.retire_all_but(|_| None);
        assert!(slots.is_drained(slot, &OPEN), "what is open is of a use before");
        assert!(!slots.is_drained(slot, &Stats { attempted: 2, ..OPEN }));
    }

    #[test]
    fn a_targets_tag_is_the_same_in_every_process_and_differs_by_name_and_port() {
        assert_eq!(tag(&target("a")), 0x3e71_3bcf_9940_0ba4);
        assert_ne!(tag(&target("a")), tag(&target("b")));
        let other = Target { port: PortRef::Number(81), ..target("a") };
        assert_ne!(tag(&other), tag(&target("a")));
    }
}
