//! The world's part in shadow slices: passes on what they depend on, and tells which routes have to be looked at because of it.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use interceptor_core::{ObjectKey, route::RouteKind};
use tokio::time::Instant;

use super::{Kind, World, is_older};
use crate::{
    object::{Object, OwnSlice, ShadowSlice, Slice, Subject},
    observe::Observed,
    shadow::{Reached, Shadows},
};

/// How long before KEDA may act interceptors are listed: what is late by less does no harm.
const AHEAD: Duration = Duration::from_secs(15);

impl World {
    /// The same with shadow slices, for which interceptors have these ports.
    #[must_use]
    pub fn shadowed(mut self, ports: RangeInclusive<u16>) -> Self {
        self.shadows = Some(Shadows::new(ports));
        self
    }

    /// The same, where agents are found by this Service, in the interceptors' namespace.
    #[must_use]
    pub fn with_agents(mut self, service: Option<String>) -> Self {
        if let Some(shadows) = &mut self.shadows {
            shadows.set_agents(service);
        }
        self
    }

    /// It is later now.
    pub fn advance(&mut self, now: Instant) {
        self.now = now;
    }

    /// The routes whose demand has to be known.
    pub fn demanded(&self) -> BTreeSet<ObjectKey> {
        self.shadows.as_ref().filter(|_| self.has_slices()).map(Shadows::routes).unwrap_or_default()
    }

    /// What was told of demand may not be true any more.
    pub fn forget_demand(&mut self) {
        if let Some(shadows) = &mut self.shadows {
            shadows.forget_demand(self.now);
        }
    }

    /// Keeps for each Service the port that a status tells: to be called before the first plan, and whenever another operator
    /// may have given ports away since the last one.
    pub fn reserve_ports(&mut self) {
        let Some(shadows) = &mut self.shadows else { return };
        let told = self.objects.values().filter_map(|object| {
            let Subject { kind: RouteKind::InterceptorRoute, key } = &object.subject else { return None };
            let (port, route) = (object.told_port()?, object.route.as_ref().ok()?);
            let (service, named) = self.index.service_port(&route.target)?;
            let has_addresses = !service.addresses.is_empty();
            has_addresses.then(|| (route.created, (key.clone(), Arc::clone(&named.name), port)))
        });
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        shadows.reserve(told.into_iter().map(|(_, told)| told).collect(), self.now);
    }

    /// How many ports of interceptors are given away.
    pub fn ports(&self) -> usize {
        self.shadows.as_ref().map_or(0, Shadows::ports)
    }

    /// Without the right to read slices nothing is published: an operator that does not see pods would list interceptors
    /// beside them for ever.
    fn has_slices(&self) -> bool {
        !self.absent.contains(&Kind::Slices) && !self.absent.contains(&Kind::Interceptors)
    }

    pub(super) fn see_shadows(&mut self, observed: &mut Observed) {
        let Subject { kind: RouteKind::InterceptorRoute, key } = &observed.object.subject else { return };
        if !self.has_slices() {
            return;
        }
        // Of one that can't be read nothing is decided.
        let (Some(shadows), Ok(route)) = (&mut self.shadows, &observed.object.route) else { return };
        let service = self.index.service_port(&route.target);
        let reached = service.map(|(service, port)| Reached {
            port: Arc::clone(&port.name),
            ipv4: service.addresses.iter().any(IpAddr::is_ipv4),
            ipv6: service.addresses.iter().any(IpAddr::is_ipv6),
        });
        let after = observed.sleeps_after(AHEAD);
        let remembered = observed.object.told_port();
        let route = (key, observed.object.meta.uid.as_str());
        let (seen, again) = shadows.see(route, reached.as_ref(), (after, remembered), self.now);
        (observed.shadow, observed.after, observed.again) = (seen, after, again);
    }

    /// One that can't be read any more stays what it was.
    pub(super) fn shadow_route(&mut self, object: &Object) {
        if let Some(shadows) = self.shadows.as_mut().filter(|_| object.subject.kind == RouteKind::InterceptorRoute) {
            shadows.claim(&object.subject.key, object.told_port().map(|port| (port, object.claim())));
        }
        if let (Some(shadows), Ok(route)) = (&mut self.shadows, &object.route)
            && object.subject.kind == RouteKind::InterceptorRoute
            && self.objects.get(&object.subject).is_none_or(|old| old.route != object.route)
        {
            shadows.put_route(&object.subject.key, Some(route), self.now);
        }
    }

    pub(super) fn shadow_route_gone(&mut self, subject: &Subject) {
        if let Some(shadows) = self.shadows.as_mut().filter(|_| subject.kind == RouteKind::InterceptorRoute) {
            shadows.take_route(&subject.key);
            shadows.claim(&subject.key, None);
        }
    }

    pub(super) fn shadow_demand(&mut self, key: &ObjectKey, active: Option<bool>) {
        if self.shadows.as_mut().is_some_and(|shadows| shadows.put_demand(key, active, self.now)) {
            self.touch([key.clone()]);
        }
    }

    pub(super) fn shadow_service(&mut self, service: &ObjectKey) {
        let routes = self.shadows.as_ref().map(|shadows| shadows.of_service(service));
        self.touch(routes.unwrap_or_default());
    }

    pub(super) fn shadow_all(&mut self) {
        let routes = self.shadows.as_ref().map(Shadows::routes);
        self.touch(routes.unwrap_or_default());
    }

    pub(super) fn shadow_slice(&mut self, slice: Slice) {
        let changed = self.shadows.as_mut().map(|shadows| shadows.put_slice(slice)).unwrap_or_default();
        for service in &changed {
            self.shadow_service(service);
        }
    }

    pub(super) fn shadow_slice_gone(&mut self, key: &ObjectKey) {
        let Some(shadows) = &mut self.shadows else { return };
        let route = shadows.take_live(key);
        let changed = shadows.take_slice(key);
        self.touch(route);
        for service in &changed {
            self.shadow_service(service);
        }
    }

    pub(super) fn shadow_interceptors(&mut self, slice: OwnSlice) {
        if self.shadows.as_mut().is_some_and(|shadows| shadows.put_own(slice, self.now)) {
            self.shadow_all();
        }
    }

    pub(super) fn shadow_interceptors_gone(&mut self, key: &ObjectKey) {
        if self.shadows.as_mut().is_some_and(|shadows| shadows.take_own(key, self.now)) {
            self.shadow_all();
        }
    }

    pub(super) fn shadow_live(&mut self, slice: ShadowSlice, listed: bool) {
        let Some(shadows) = &mut self.shadows else { return };
        let outdated = |old: &ShadowSlice| !listed && is_older(&slice.meta.version, &old.meta.version);
        if shadows.live(&slice.key).is_some_and(|old| outdated(old) || *old == slice) {
            return;
        }
        let route = shadows.put_live(slice);
        self.touch([route]);
    }

    fn touch(&mut self, routes: impl IntoIterator<Item = ObjectKey>) {
        let subjects = routes.into_iter().map(|key| Subject { kind: RouteKind::InterceptorRoute, key });
        let known: Vec<_> = subjects.filter(|subject| self.objects.contains_key(subject)).collect();
        self.dirty.extend(known);
    }
}
