//! Which port of interceptors stands for which port of which Service. Pure; owned by the world.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use interceptor_core::ObjectKey;
use tokio::time::Instant;

/// How many of the ports one namespace may have, as a part of them, and how many it may have in any case: others need some, too.
const PART: usize = 4;
const AT_LEAST: usize = 16;

/// One port of one Service, by its name.
pub(super) type ServicePort = (ObjectKey, Arc<str>);

/// All ports that are given away.
#[derive(Debug)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    given: HashMap<ServicePort, Given>,
    taken: BTreeMap<u16, ServicePort>,
    /// Those that statuses tell, and by which routes: interceptors listen there for their Services.
    claims: BTreeMap<u16, BTreeMap<ObjectKey, Claim>>,
    claimed: HashMap<ObjectKey, u16>,
    /// Where to look for a free one: one that was given back is given away again as late as can be, since interceptors
    /// and kube-proxies need not hear of it in the same order.
    next: u16,
}

/// A route whose status tells a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// When the route was made, in seconds since the epoch, if that is known.
    pub(crate) created: Option<i64>,
    /// Its target's Service, if that is known.
    pub(crate) service: Option<ObjectKey>,
}

/// Why there is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// All are given away.
    Full,
    /// The namespace has as many as it may.
    Limit,
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
        Self {
            next: *range.start(),
            range,
            given: HashMap::new(),
            taken: BTreeMap::new(),
            claims: BTreeMap::new(),
            claimed: HashMap::new(),
        }
    }

    /// The status of `route` tells this port, or none.
    pub(super) fn claim(&mut self, route: &ObjectKey, told: Option<(u16, Claim)>) {
        if let Some(before) = self.claimed.remove(route)
            && let Some(routes) = self.claims.get_mut(&before)
        {
            routes.remove(route);
            if routes.is_empty() {
                self.claims.remove(&before);
            }
        }
        if let Some((port, claim)) = told {
            self.claimed.insert(route.clone(), port);
            self.claims.entry(port).or_default().insert(route.clone(), claim);
        }
    }

    /// The Service that a port belongs to if several statuses tell it: that of the oldest route.
    fn owner(&self, port: u16) -> Option<&ObjectKey> {
        let claims = self.claims.get(&port)?.iter();
        let known = claims.filter_map(|(route, claim)| Some((claim.created, route, claim.service.as_ref()?)));
        known.min_by_key(|(created, route, _)| (created.unwrap_or(i64::MAX), *route)).map(|(.., service)| service)
    }

    /// Takes all ports back, not what statuses tell.
    pub(super) fn clear(&mut self) {
        self.given.clear();
        self.taken.clear();
    }

    /// The port of `service`: the one it has, the one that is `remembered` in a status, if nobody else has it or an older
    /// claim to it, or a free one, which no status tells. The limit of a namespace takes nothing away that a status tells.
    pub(super) fn of(
        &mut self,
        service: &ServicePort,
        remembered: Option<u16>,
        now: Instant,
    ) -> Result<Given, Refused> {
        if let Some(given) = self.given.get(service) {
            return Ok(*given);
        }
        let may_have = |port: &u16| {
            let is_ours = self.owner(*port).is_none_or(|owner| *owner == service.0);
            self.range.contains(port) && !self.taken.contains_key(port) && is_ours
        };
        let remembered = remembered.filter(may_have);
        let port = match remembered {
            Some(port) => port,
            None => self.new_for(service.0.namespace())?,
        };
        let given = Given { port, since: now };
        self.given.insert(service.clone(), given);
        self.taken.insert(port, service.clone());
        Ok(given)
    }

    fn new_for(&mut self, namespace: &str) -> Result<u16, Refused> {
        let limit = (self.range.len() / PART).max(AT_LEAST);
        let has = self.given.keys().filter(|(service, _)| service.namespace() == namespace).count();
        let before = self.next;
        let port = self.free().ok_or(Refused::Full)?;
        if has < limit {
            return Ok(port);
        }
        self.next = before;
        Err(Refused::Limit)
    }

    /// The port that `service` has.
    pub(super) fn number(&self, service: &ServicePort) -> Option<u16> {
        self.given.get(service).map(|given| given.port)
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
        let is_free = |port: &u16| !self.taken.contains_key(port) && !self.claims.contains_key(port);
        let found = later.chain(self.range.clone()).find(is_free)?;
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
        ports.of(&service(name), remembered, Instant::now()).ok().map(|given| given.port)
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
    fn what_a_status_tells_nobody_else_is_given_and_of_two_the_older_route_has_it() {
        let mut ports = Ports::new(100..=102);
        let claim = |service: Option<&str>, created| Claim {
            created: Some(created),
            service: service.map(|name| ObjectKey::new("n", name)),
        };
        ports.claim(&ObjectKey::new("n", "young"), Some((100, claim(Some("young"), 2))));
        ports.claim(&ObjectKey::new("n", "old"), Some((100, claim(Some("old"), 1))));
        ports.claim(&ObjectKey::new("n", "unreadable"), Some((101, claim(None, 0))));
        assert_eq!(given(&mut ports, "young", Some(100)), Some(102), "the older one has not asked yet");
        assert_eq!(given(&mut ports, "new", None), None, "all that is left is told in statuses");
        assert_eq!(given(&mut ports, "old", Some(100)), Some(100));
        ports.claim(&ObjectKey::new("n", "unreadable"), None);
        assert_eq!(given(&mut ports, "new", None), Some(101));
    }

    #[test]
    fn one_namespace_leaves_ports_to_others_and_keeps_what_its_statuses_tell() {
        let mut ports = Ports::new(1000..=1099);
        let of = |ports: &mut Ports, namespace: &str, name: usize, remembered| {
            let service = (ObjectKey::new(namespace, name.to_string()), "http".into());
            ports.of(&service, remembered, Instant::now())
        };
        assert!((0..25).all(|name| of(&mut ports, "n", name, None).is_ok()));
        assert_eq!(of(&mut ports, "n", 25, None), Err(Refused::Limit));
        assert_eq!(of(&mut ports, "n", 25, Some(1099)).map(|given| given.port), Ok(1099));
        assert_eq!(of(&mut ports, "m", 0, None).map(|given| given.port), Ok(1025));
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
