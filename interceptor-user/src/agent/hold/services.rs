//! Which direct Services are cold, and which pods their held connections may go to. Pure; owned by the hold's task.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use interceptor_core::{
    ObjectKey, RouteEntry, Snapshot, UpstreamId,
    frontends::{Claims, Full, Heat, Room, claim},
    route::DataPath,
};

/// A Service stays cold for so long after its first pod got ready: until then the node's rules may not lead there, and would
/// refuse. kube-proxy writes its rules once a second unless told otherwise.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

/// What is known of the direct Services.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// Since when each has had a ready pod.
    ready: BTreeMap<UpstreamId, Duration>,
    pods: BTreeMap<UpstreamId, Vec<SocketAddr>>,
    claims: Claims,
}

/// What a change of the snapshot, or the time, means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Upstreams whose pods have changed.
    pub(super) pods: Vec<UpstreamId>,
    /// Upstreams that have just settled.
    pub(super) settled: Vec<UpstreamId>,
    /// When to look again though nothing was published.
    pub(super) again: Option<Duration>,
}

// === impl Services ===

impl Services {
    /// Takes a snapshot in.
    pub(super) fn update(&mut self, snapshot: &Snapshot, node: &[IpAddr], room: Room, now: Duration) -> Change {
        let mut change = Change::default();
        let (mut ready, mut pods) = (BTreeMap::new(), BTreeMap::new());
        for upstream in snapshot.upstreams().filter(|upstream| upstream.direct.is_some()) {
            let id = upstream.id;
            let addresses: Vec<_> = upstream.endpoints.iter().map(|endpoint| endpoint.addr).collect();
            if !addresses.is_empty() {
                let since = self.ready.get(&id).copied();
                if since.is_none_or(|since| !is_settled(since, now)) {
                    let settles = since.unwrap_or(now) + SETTLE;
                    change.again = Some(change.again.map_or(settles, |again| again.min(settles)));
                }
                ready.insert(id, since.unwrap_or(now));
            }
            if self.pods.get(&id) != Some(&addresses) {
                change.pods.push(id);
            }
            pods.insert(id, addresses);
        }
        (self.ready, self.pods) = (ready, pods);
        let heat = |id| self.heat(id, now);
        let claims = claim(snapshot.upstreams().map(AsRef::as_ref), node, heat, room);
        let warm = |table: &Claims, id: &u32| table.table.services.get(id) == Some(&Heat::Warm);
        let settled = claims.table.services.keys().filter(|id| warm(&claims, id) && !warm(&self.claims, id));
        change.settled = settled.map(|id| UpstreamId(*id)).collect();
        self.claims = claims;
        change
    }

    /// What the kernel's maps should hold.
    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The upstreams that clients reach at an address; the first is the one that connections are held for.
    pub(super) fn at(&self, address: SocketAddr) -> &[UpstreamId] {
        self.claims.upstreams.get(&address).map(Vec::as_slice).unwrap_or_default()
    }

    /// The ready pods of an upstream.
    pub(super) fn pods(&self, id: UpstreamId) -> &[SocketAddr] {
        self.pods.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// Those of them that the node's own rules are sure to know, too.
    pub(super) fn settled_pods(&self, id: UpstreamId, now: Duration) -> &[SocketAddr] {
        if self.heat(id, now) == Heat::Warm { self.pods(id) } else { &[] }
    }

    fn heat(&self, id: UpstreamId, now: Duration) -> Heat {
        match self.ready.get(&id) {
            Some(since) if is_settled(*since, now) => Heat::Warm,
            _ => Heat::Cold,
        }
    }
}

fn is_settled(since: Duration, now: Duration) -> bool {
    now >= since + SETTLE
}

/// The routes that clients at an address are counted for, and how long a connection of theirs may wait: the longest that
/// any of them allows; for ever, if one does not say.
pub(super) fn routes_of<'a>(
    snapshot: &'a Snapshot,
    upstreams: &[UpstreamId],
) -> (Vec<&'a Arc<RouteEntry>>, Option<Duration>) {
    let routes: Vec<_> = snapshot
        .routes
        .values()
        .filter(|entry| entry.route.data_path == DataPath::Direct && upstreams.contains(&entry.upstream))
        .collect();
    let waits = routes.iter().map(|entry| entry.route.timeouts.readiness.filter(|wait| !wait.is_zero()));
    let longest = waits.reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten();
    (routes, longest)
}

/// Names of the Services that the maps have no room for, and why.
pub(super) fn left_out(snapshot: &Snapshot, claims: &Claims) -> Vec<(ObjectKey, String)> {
    let why = |full: &Full| match full {
        Full::Frontends => "the map of Services' addresses is full".to_owned(),
        Full::Services => "the map of Services is full".to_owned(),
    };
    let named = claims.left_out.iter();
    named.filter_map(|(id, full)| Some((snapshot.upstream(*id)?.target.service.clone(), why(full)))).collect()
}
