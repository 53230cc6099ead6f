//! Which port of interceptors stands for which port of which Service. Pure; owned by the world.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use interceptor_core::ObjectKey;
use tokio::time::Instant;

/// One port of one Service, by its name.
pub(super) type ServicePort = (ObjectKey, Arc<str>);

/// All ports that are given away.
#[derive(Debug)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    given: HashMap<ServicePort, Given>,
    taken: BTreeMap<u16, ServicePort>,
    /// Where to look for a free one: one that was given back is given away again as late as can be, since interceptors
    /// and kube-proxies need not hear of it in the same order.
    next: u16,
}

/// A port that is given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) port: u16,
    /// Since when.
    pub(super) since: Instant,
}

// === impl Ports ===

impl Ports {
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        Self { next: *range.start(), range, given: HashMap::new(), taken: BTreeMap::new() }
    }

    /// The port of `service`: the one it has, the one that is `remembered` in a status, if nobody else has it, or a free one.
    /// `None` when there is none.
    pub(super) fn of(&mut self, service: &ServicePort, remembered: Option<u16>, now: Instant) -> Option<Given> {
        if let Some(given) = self.given.get(service) {
            return Some(*given);
        }
        let remembered = remembered.filter(|port| self.range.contains(port) && !self.taken.contains_key(port));
        let port = remembered.or_else(|| self.free())?;
        let given = Given { port, since: now };
        self.given.insert(service.clone(), given);
        self.taken.insert(port, service.clone());
        Some(given)
    }

    /// Keeps only the ports of Services that are still `wanted`.
    pub(super) fn keep(&mut self, wanted: impl Fn(&ServicePort) -> bool) {
        self.given.retain(|service, _| wanted(service));
        self.taken.retain(|_, service| wanted(service));
    }

    /// How many are given away.
    pub(super) fn len(&self) -> usize {
        self.given.len()
    }

    fn free(&mut self) -> Option<u16> {
        let later = self.next..=*self.range.end();
        let found = later.chain(self.range.clone()).find(|port| !self.taken.contains_key(port))?;
        self.next = if found == *self.range.end() { *self.range.start() } else { found + 1 };
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServicePort {
        (ObjectKey::new("n", name), "http".into())
    }

    fn given(ports: &mut Ports, name: &str, remembered: Option<u16>) -> Option<u16> {
        ports.of(&service(name), remembered, Instant::now()).map(|given| given.port)
    }

    #[test]
    fn each_service_has_a_port_of_its_own_and_keeps_it() {
        let mut ports = Ports::new(100..=102);
        assert_eq!(given(&mut ports, "a", None), Some(100));
        assert_eq!(given(&mut ports, "b", Some(100)), Some(101), "what somebody else has is not given twice");
        assert_eq!(given(&mut ports, "c", Some(7)), Some(102), "what is out of range is not given");
        assert_eq!(given(&mut ports, "a", Some(102)), Some(100));
        assert_eq!(given(&mut ports, "d", None), None, "all are given away");
        ports.keep(|(key, _)| key.name() != "b");
        assert_eq!((given(&mut ports, "d", None), ports.len()), (Some(101), 3));
    }

    #[test]
    fn what_a_status_remembers_is_given_again_after_a_restart() {
        let mut ports = Ports::new(100..=110);
        assert_eq!(given(&mut ports, "b", Some(105)), Some(105));
        assert_eq!(given(&mut ports, "a", None), Some(100));
    }

    #[test]
    fn what_was_given_back_is_given_away_last() {
        let mut ports = Ports::new(100..=102);
        given(&mut ports, "a", None);
        ports.keep(|_| false);
        let then: Vec<_> = ["b", "c", "d"].map(|name| given(&mut ports, name, None)).into();
        assert_eq!(then, [Some(101), Some(102), Some(100)]);
    }
}
