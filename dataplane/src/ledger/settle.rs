//! Slots of pods that have gone: what their counters say is open has ended without anybody who could tell.

use std::{collections::HashSet, io};

use interceptor_common::Served;
use interceptor_core::{UpstreamId, mapops::Slot};

use super::{Ledger, Maps};

impl Ledger<Served> {
    /// Whether anything may still change on a slot: it is an upstream's, or connections have not ended on it.
    pub(crate) fn counts(&self, maps: &impl Maps<Counters = Served>, slot: Slot) -> bool {
        // One that cannot be read is not given up for it.
        let drained = || maps.stats(slot).is_ok_and(|counted| self.slots.is_drained(slot, &counted));
        self.upstream(slot).is_some() || self.slots.draining().any(|draining| draining == slot) && !drained()
    }

    /// Slots that are nobody's any more, and on which connections may still end.
    pub(crate) fn draining(&self) -> impl Iterator<Item = Slot> {
        self.slots.draining()
    }

    /// Slots of upstreams.
    pub(crate) fn used(&self) -> impl Iterator<Item = Slot> {
        self.slots.uses().map(|(_, used)| used.slot)
    }

    /// Takes what is open for ended on slots that no socket can bear: of upstreams without an address, and of those that drain. Says of how many.
    pub(crate) fn settle(
        &mut self,
        maps: &mut impl Maps<Counters = Served>,
        now_ns: u64,
        is_borne: impl Fn(Slot) -> bool,
    ) -> io::Result<usize> {
        let led_to: HashSet<_> = self.installed.values().chain(self.desired.values()).copied().collect();
        let is_dead = |slot: Slot| !led_to.contains(&slot) && !is_borne(slot);
        let mut settled = 0;
        let used: Vec<(UpstreamId, _)> = self.slots.uses().map(|(id, used)| (id, used.clone())).collect();
        for (upstream, used) in used.into_iter().filter(|(_, used)| is_dead(used.slot)) {
            let counted = maps.stats(used.slot)?;
            let base = counted.settled(&used.base, now_ns);
            if base != used.base {
                self.slots.rebase(upstream, base);
                // Noted anew: whoever comes next is not to find it open again.
                if let Some(tag) = self.noted.get(&used.slot) {
                    maps.note(used.slot, Some((*tag, &base)))?;
                }
                settled += 1;
            }
        }
        let dead: Vec<_> = self.slots.draining().filter(|slot| is_dead(*slot)).collect();
        // The last program that was taken off may not have ended.
        if dead.is_empty() || maps.wait_for_programs().is_err() {
            return Ok(settled);
        }
        for slot in dead {
            let counted = maps.stats(slot)?;
            self.slots.free(slot, counted);
            settled += 1;
        }
        Ok(settled)
    }
}
