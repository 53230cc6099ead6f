//! The hold of this node: one task that reads what the programs saw, keeps their maps in step with the snapshots, wakes
//! workloads, and sends held connections to their pods.
//!
//! ```text
//! snapshot ─► Services ─► maps (addresses, heat)          devices ─► attach
//! ring buffer ─► Holding ─ Guard, HeldGuard (counts: wake) ─ Subscription (probe)
//!                   └─ due ─► Try: conntrack, replay · Expire: refuse · Leave: forget (`acts`)
//! ```

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    future, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use dataplane::{
    Alarm, Changes, Devices, Hold, Origin, ROOM, Sighting, Syn, What, addresses, devices, monotonic, uplinks,
};
use interceptor_core::{
    RouteEntry, UpstreamId,
    holding::{Flow, Holding, Limits},
    inflight::{Guard, HeldGuard, RouteCounters, Share},
};
use runtime::snapshot::{Reader, Subscription};
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{MissedTickBehavior, interval},
};

mod acts;
mod metrics;
mod node;
mod report;
mod services;

use self::{
    metrics::End,
    services::{Change, Services},
};
pub(crate) use self::{
    metrics::HoldMetrics,
    report::{Known, Report, Way},
    services::{is_left_to_interceptors, leads_to, left_out, left_to_interceptors},
};
use super::{
    config::Holds,
    count::Seen,
    unread::{self, UNREAD},
};
use crate::control::namespaces::Addresses;

/// Connections that wait at once. Each costs some hundred bytes.
const LIMITS: Limits = Limits { all: 16_384, of_service: 8_192, of_client: 512 };

/// The programs let everything pass 30 s after the last sign of life.
const BEAT: Duration = Duration::from_secs(5);

/// How often the maps are read back and mended.
const REPAIR: Duration = Duration::from_secs(30);

/// Records that are read before other things are looked at.
const BATCH: usize = 256;

/// Changes of devices come in swarms, and are looked at together; a pod takes longer to send its first packet.
const GATHER: Duration = Duration::from_millis(2);

/// The task.
#[derive(Debug)]
pub(crate) struct Task {
    /// The node's.
    name: String,
    hold: Result<Hold, String>,
    /// Whether who has waited for as long as it may is told so.
    refuses: bool,
    reader: Reader,
    metrics: HoldMetrics,
    report: Report,
    holding: Holding<Kept>,
    /// What was held at addresses that lead elsewhere now, to be looked at as if it had just come; no more than wait.
    anew: VecDeque<(Syn, Origin, Duration)>,
    /// While connections of a Service wait, its pods are probed.
    probed: HashMap<UpstreamId, Subscription>,
    services: Services,
    devices: Devices,
    /// Those from which something was held that are not ready for answers yet.
    expecting: BTreeSet<u32>,
    /// Whether devices that lead outward are looked at, too, once that is known. Until then those that have the programs keep them.
    outside: Option<bool>,
    node: Vec<(IpAddr, String)>,
    listens: mpsc::Receiver<Listens>,
    namespaces: watch::Receiver<Addresses>,
    /// What is held goes to pods that are counted already, or their first request might not be.
    counted: watch::Receiver<Seen>,
}

/// A pod of this node has begun to listen, there and then.
pub(crate) type Listens = (SocketAddr, Duration);

/// What is kept for a connection that waits. The guards count it for its routes, which wakes their workloads.
#[derive(Debug)]
struct Kept {
    syn: Syn,
    origin: Origin,
    /// When the packet was copied, and when the first one was.
    at: Duration,
    since: Duration,
    way: Way,
    /// Whether it was sent on to a pod, by an entry of ours.
    is_tried: bool,
    counted: Vec<Counted>,
}

/// A connection that counts for a route while it waits.
#[derive(Debug)]
struct Counted {
    _in_flight: Guard<Arc<Share>>,
    _held: Option<HeldGuard<Arc<Share>>>,
}

// === impl Task ===

impl Task {
    /// Takes the programs that have been loaded, or why not. Nothing is attached before it runs.
    pub(crate) fn new(
        name: String,
        (mut hold, holds): (Result<Hold, String>, Holds),
        reader: Reader,
        (listens, namespaces, counted): (mpsc::Receiver<Listens>, watch::Receiver<Addresses>, watch::Receiver<Seen>),
        metrics: HoldMetrics,
    ) -> Self {
        let report = Report::default();
        let node = match &mut hold {
            Ok(hold) => node::begin(hold, holds.node_clients),
            Err(why) => Err(why.clone()),
        };
        {
            let mut known = report.0.lock();
            (known.off, known.node_off) = (hold.as_ref().err().cloned(), node.err());
        }
        Self {
            name,
            hold,
            refuses: holds.refuses,
            reader,
            metrics,
            report,
            holding: Holding::new(LIMITS),
            anew: VecDeque::new(),
            probed: HashMap::new(),
            services: Services::default(),
            devices: Devices::new(),
            expecting: BTreeSet::new(),
            outside: None,
            node: Vec::new(),
            listens,
            namespaces,
            counted,
        }
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let Ok(hold) = &self.hold else { return future::pending().await };
        let arrivals = hold.arrivals()?;
        let mut network = Changes::follow()?;
        let mut alarm = Alarm::new()?;
        // Until all objects are read the programs go on as an agent before has left them, for as long as its last sign of life lasts,
        // and what they hold waits to be read: a Service that is missing now may only not have been read.
        self.report.0.lock().off = Some(UNREAD.to_owned());
        unread::wait(&mut self.counted.clone(), "held", Option::is_some).await;
        self.look_at_devices();
        self.go_on();
        let mut again = self.sync();
        {
            let mut known = self.report.0.lock();
            known.off = None;
            self.metrics.active(true, known.node_off.is_none());
        }
        let mut beats = interval(BEAT);
        let mut repairs = interval(REPAIR);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        repairs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut more = false;
        loop {
            alarm.set(earliest(self.holding.next(), again))?;
            tokio::select! {
                biased;
                // However much there is to read and to do: without it the programs let everything pass.
                _ = beats.tick() => self.beat(),
                arrived = arrivals.arrived(), if !more => arrived?,
                // Others on this thread have their turn before there is more.
                () = yield_now(), if more => {}
                Some(listens) = self.listens.recv() => self.listens(listens),
                rang = alarm.rang() => rang?,
                Ok(()) = self.counted.changed() => again = self.sync(),
                changed = network.changed() => {
                    changed?;
                    tokio::time::sleep(GATHER).await;
                    self.look_at_devices();
                    again = self.sync();
                }
                // The workload's wake goes first.
                () = yield_now(), if !self.expecting.is_empty() => self.expect_answers(),
                _ = repairs.tick() => self.repair(),
            }
            if again.is_some_and(|at| at <= monotonic()) {
                again = self.sync();
            }
            let unread = self.read() == BATCH;
            more = self.act() || unread;
        }
    }

    /// Begins where an agent before has ended: what was warm then need not be held until it has settled.
    fn go_on(&mut self) {
        let Ok(hold) = &self.hold else { return };
        match hold.warm() {
            Ok(warm) => self.services = Services::after(warm),
            Err(error) => tracing::warn!(%error, "what an agent has left in the hold's maps cannot be read"),
        }
    }

    /// Reads what the programs saw; how much that was.
    fn read(&mut self) -> usize {
        for read in 0..BATCH {
            let Some(Sighting { at, origin, what }) = self.hold.as_mut().ok().and_then(Hold::seen) else { return read };
            match what {
                What::Syn(syn) => self.arrive(syn, origin, at),
                What::Refused(flow) => self.holding.refused(&flow, monotonic()),
                What::Taken(flow) => self.taken(&flow, at),
            }
        }
        BATCH
    }

    fn arrive(&mut self, syn: Syn, origin: Origin, at: Duration) {
        let flow = syn.flow();
        // An address may have gone since the packet was seen: then it is the node's own rules' again.
        let Some(upstream) = self.services.at(flow.service).first().copied() else {
            return self.release(&syn, origin, at);
        };
        if let Some(kept) = self.holding.get_mut(&flow) {
            // The newest copy is the one whose sequence number the client stands by.
            (kept.syn, kept.origin, kept.at) = (syn, origin, at);
            self.holding.again(&flow, at);
            return;
        }
        let (routes, timeout) = self.services.routes_at(flow.service);
        // Who is no demand wakes nobody, and meets the node's own rules as if nobody held. So does whom the address is not for: what is
        // sent on by an entry of ours would get past the rules that refuse it.
        if self.is_ignored(&routes, flow.client.ip()) || !self.services.takes(&flow, &self.node) {
            self.metrics.ignored();
            return self.release(&syn, origin, at);
        }
        let keep = || Kept {
            syn,
            origin,
            at,
            since: at,
            way: Way::default(),
            is_tried: false,
            counted: routes.iter().map(|entry| Counted::new(&entry.counters)).collect(),
        };
        match self.holding.arrive(flow, upstream, (at, timeout), keep) {
            Ok(()) => {
                if let Origin::Device(device) = origin {
                    self.expecting.insert(device);
                }
                self.probed.entry(upstream).or_insert_with(|| self.reader.subscribe(upstream));
                self.metrics.waiting(self.holding.len());
                tracing::debug!(client = %flow.client, service = %flow.service, "connection is held");
            }
            Err(limit) => self.metrics.rejected(limit),
        }
    }

    fn is_ignored(&self, routes: &[&Arc<RouteEntry>], client: IpAddr) -> bool {
        let client = client.to_canonical();
        let namespaces = self.namespaces.borrow();
        let is_of = |name: &str| namespaces.get(name).is_some_and(|addresses| addresses.contains(&client));
        routes.iter().any(|entry| entry.route.ignored.contains(client, is_of))
    }

    /// Makes one device ready for answers to what was held there: it takes milliseconds, which are better spent now than when a pod
    /// listens.
    fn expect_answers(&mut self) {
        if let (Some(device), Ok(hold)) = (self.expecting.pop_first(), &mut self.hold)
            && let Err(error) = hold.expect_answers(device)
        {
            // It is tried again when a packet is sent on.
            tracing::debug!(%error, "answers to what is held are not seen yet");
        }
    }

    /// Lets a packet that was taken from the wire go on.
    fn release(&mut self, syn: &Syn, origin: Origin, at: Duration) {
        if let Ok(hold) = &mut self.hold {
            let sent = hold.release((syn, origin), monotonic().saturating_sub(at));
            self.note(&syn.flow(), sent);
        }
    }

    /// A pod has begun to listen: connections that it has refused so far are tried again at once.
    fn listens(&mut self, (addr, at): Listens) {
        let services = &self.services;
        self.holding.listens(addr, (at, monotonic()), |id| services.pods(id));
    }

    /// Brings the maps in step with the last snapshot; when to do so again though nothing is published.
    fn sync(&mut self) -> Option<Duration> {
        let snapshot = self.counted.borrow_and_update().clone()?;
        let node: Vec<_> = self.node.iter().map(|(ip, _)| *ip).collect();
        let now = monotonic();
        let Change { pods, settled, again, moved, recounted } = self.services.update(&snapshot, &node, ROOM, now);
        // Before the maps say so: what passes then is not ours to touch.
        self.begin_anew(&moved);
        self.count_anew(&recounted);
        let outside = Some(self.services.has_outside());
        if outside != self.outside {
            self.outside = outside;
            self.look_at_devices();
        }
        let Ok(hold) = &mut self.hold else { return None };
        let claims = self.services.claims();
        if let Err(error) = hold.sync(&claims.table) {
            tracing::warn!(%error, "the hold's maps are not in step with the Services");
        }
        self.metrics.services(claims.table.services.len(), claims.left_out.len());
        let left_out = left_out(&snapshot, claims);
        {
            let mut known = self.report.0.lock();
            known.services = claims.table.services.iter().map(|(id, heat)| (UpstreamId(*id), *heat)).collect();
            for (service, why) in left_out.iter().filter(|left| !known.left_out.contains(left)) {
                tracing::warn!(%service, why, "connections to this Service are not held");
            }
            known.left_out = left_out;
        }
        for upstream in pods.into_iter().chain(settled) {
            self.holding.wake(upstream, now);
        }
        again
    }

    /// Holds no longer for who was behind these addresses what waits there. It begins as new where they lead now; where they lead
    /// nowhere, the client's next packet meets the node's own rules, which may have to learn first what is there.
    fn begin_anew(&mut self, moved: &BTreeSet<SocketAddr>) {
        if moved.is_empty() {
            return;
        }
        let flows: Vec<_> = self.holding.iter_mut().map(|(flow, _)| *flow).collect();
        for flow in flows.into_iter().filter(|flow| moved.contains(&flow.service)) {
            if let Some(kept) = self.drop_from_hold(&flow, End::Moved)
                && self.anew.len() < LIMITS.all
                && !self.services.at(flow.service).is_empty()
            {
                self.anew.push_back((kept.syn, kept.origin, kept.at));
            }
        }
    }

    /// Counts what waits for these for their routes as they are now, of which one may be new.
    fn count_anew(&mut self, recounted: &BTreeSet<UpstreamId>) {
        if recounted.is_empty() {
            return;
        }
        let services = &self.services;
        let is_meant = |flow: &Flow| services.at(flow.service).iter().any(|id| recounted.contains(id));
        for (flow, kept) in self.holding.iter_mut().filter(|(flow, _)| is_meant(flow)) {
            kept.counted =
                services.routes_at(flow.service).0.iter().map(|entry| Counted::new(&entry.counters)).collect();
        }
    }

    fn look_at_devices(&mut self) {
        let (found, node) = match (devices(), addresses()) {
            (Ok(devices), Ok(node)) => (devices, node),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "the node's devices cannot be read");
                return;
            }
        };
        self.node = node;
        self.devices = found;
        let (Ok(hold), Some(is_outside)) = (&mut self.hold, self.outside) else { return };
        let pods = self.devices.iter().filter(|(_, device)| device.is_veth).map(|(index, device)| (*index, device));
        let outside = uplinks(&self.devices, &self.node).filter(|_| is_outside);
        let attachment = hold.devices(&pods.chain(outside).map(|(index, device)| (index, device.clone())).collect());
        self.metrics.attached(&attachment);
        let mut known = self.report.0.lock();
        for (device, why) in attachment.failed.iter().filter(|failed| !known.failed.contains(failed)) {
            tracing::warn!(device, why, "connections from this device are not held");
        }
        known.devices = attachment.names;
        known.failed = attachment.failed;
    }

    fn beat(&mut self) {
        let Ok(hold) = &mut self.hold else { return };
        if let Err(error) = hold.beat() {
            tracing::warn!(%error, "the hold's programs are given no sign of life");
        }
        if let Ok(stats) = hold.stats() {
            self.metrics.kernel(stats.swallowed, stats.untold);
        }
    }

    fn repair(&mut self) {
        if !self.report.0.lock().failed.is_empty() {
            self.look_at_devices();
        }
        let Ok(hold) = &mut self.hold else { return };
        let device = |kept: &Kept| if let Origin::Device(device) = kept.origin { Some(device) } else { None };
        hold.rest(&self.holding.kept().filter_map(device).collect());
        match hold.repair() {
            Ok(0) => {}
            Ok(entries) => {
                self.metrics.drifted(entries);
                tracing::warn!(entries, "the hold's maps had drifted and were mended");
            }
            Err(error) => tracing::warn!(%error, "the hold's maps could not be checked"),
        }
    }
}

// === impl Counted ===

impl Counted {
    fn new(counters: &RouteCounters) -> Self {
        // All that is held is counted on one thread.
        let share = Arc::new(counters.share(0));
        Self { _in_flight: Guard::enter(Arc::clone(&share)), _held: HeldGuard::enter(share, None) }
    }
}

fn earliest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}
