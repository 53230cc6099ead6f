//! Entrances: listens at the ports that stand for Services, as the routes' statuses tell them, and hands clients to the
//! workers in turn. Few clients come this way and many ports may be open, so each has one listener and not one a worker.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use runtime::{
    drain::{Phase, Watch},
    listen::everywhere,
    ready::{Latch, Ready},
    snapshot::Reader,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::server::Entered;

/// Most ports that are listened at: each takes a descriptor.
pub(crate) const MAX_ENTRANCES: usize = 4096;

/// Clients that wait for one worker; the kernel keeps those beyond.
const QUEUE: usize = 64;

/// Connections that the kernel keeps for one entrance.
const BACKLOG: u32 = 4096;

/// How often a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How often it is looked whether all objects have been read, until they have.
const LOOK: Duration = Duration::from_millis(20);

/// Pause after an accept error: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is listened at, for `/state` and metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report(Arc<Mutex<BTreeMap<NonZeroU16, Option<String>>>>);

/// Where workers get their clients from.
pub(crate) type Receiver = mpsc::Receiver<Entered>;

/// The task.
#[derive(Debug)]
pub(crate) struct Entrances {
    reader: Reader,
    ready: Ready,
    latch: Option<Latch>,
    workers: Arc<[mpsc::Sender<Entered>]>,
    turn: Arc<AtomicUsize>,
    open: BTreeMap<NonZeroU16, Open>,
    report: Report,
    metrics: EntranceMetrics,
}

#[derive(Clone, Debug)]
struct EntranceMetrics {
    open: Gauge,
    failed: Gauge,
    accepted: Counter,
}

/// A listener; closed when dropped.
#[derive(Debug)]
struct Open(JoinHandle<()>);

// === impl Report ===

impl Report {
    /// Each port, and why it can't be listened at, if so.
    pub(crate) fn load(&self) -> BTreeMap<NonZeroU16, Option<String>> {
        self.0.lock().clone()
    }
}

// === impl Entrances ===

impl Entrances {
    /// The task, and a receiver for each of `workers`. The process is not ready before all that is known at the start is
    /// listened at: whoever reads EndpointSlices sends clients to interceptors that are.
    pub(crate) fn new(workers: usize, reader: Reader, ready: &Ready, registry: &mut Registry) -> (Self, Vec<Receiver>) {
        let metrics =
            EntranceMetrics { open: Gauge::default(), failed: Gauge::default(), accepted: Counter::default() };
        let ours = registry.sub_registry_with_prefix("rouse");
        ours.register("entrances", "Ports listened at that stand for a Service", metrics.open.clone());
        ours.register("entrances_failed", "Such ports that can't be listened at", metrics.failed.clone());
        ours.register("entrance_connections", "Clients that came by such a port", metrics.accepted.clone());
        let (senders, receivers) = (0..workers).map(|_| mpsc::channel(QUEUE)).unzip::<_, _, Vec<_>, Vec<_>>();
        let task = Self {
            reader,
            ready: ready.clone(),
            latch: Some(ready.latch("entrances")),
            workers: senders.into(),
            turn: Arc::default(),
            open: BTreeMap::new(),
            report: Report::default(),
            metrics,
        };
        (task, receivers)
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process closes its listeners, then no more.
    pub(crate) async fn run(mut self, mut drain: Watch) -> Result<(), Infallible> {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.sync();
            let starting = self.latch.is_some();
            tokio::select! {
                () = drain.reached(Phase::Closing) => break,
                () = self.reader.published() => {}
                _ = retry.tick() => {}
                () = sleep(LOOK), if starting => {}
            }
        }
        // With them go the workers' senders, which ends the workers' loops; and the end waits for this watch.
        drop(self);
        drop(drain);
        std::future::pending().await
    }

    fn sync(&mut self) {
        // Before the snapshot is: what has been read by then is in it.
        let is_read = !self.ready.pending().contains(&"objects");
        let snapshot = self.reader.load();
        let wanted = &snapshot.entrances;
        self.open.retain(|port, open| wanted.contains_key(port) && !open.0.is_finished());
        let mut failed = BTreeMap::new();
        for (index, (port, entrance)) in wanted.iter().enumerate() {
            if self.open.contains_key(port) {
                continue;
            }
            if index >= MAX_ENTRANCES {
                failed.insert(*port, format!("there are more than {MAX_ENTRANCES}"));
                continue;
            }
            match listen(*port) {
                Ok(listener) => {
                    tracing::debug!(%port, service = %entrance.service(), "listens for a Service");
                    self.open.insert(*port, self.start(listener, *port));
                }
                Err(error) => {
                    failed.insert(*port, error.to_string());
                }
            }
        }
        self.note(failed);
        if is_read && let Some(latch) = self.latch.take() {
            latch.release();
        }
    }

    fn note(&self, failed: BTreeMap<NonZeroU16, String>) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.open.set(count(self.open.len()));
        self.metrics.failed.set(count(failed.len()));
        let mut known = self.report.0.lock();
        for (port, error) in failed.iter().filter(|(port, _)| !matches!(known.get(*port), Some(Some(_)))) {
            tracing::warn!(%port, error, "cannot listen for a Service");
        }
        *known = self.open.keys().map(|port| (*port, None)).collect();
        known.extend(failed.into_iter().map(|(port, error)| (port, Some(error))));
    }

    fn start(&self, listener: TcpListener, port: NonZeroU16) -> Open {
        let (workers, turn) = (Arc::clone(&self.workers), Arc::clone(&self.turn));
        let accepted = self.metrics.accepted.clone();
        Open(runtime::task::spawn("entrance", accept_loop(listener, port, (workers, turn), accepted)))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Accepts for as long as there are workers.
async fn accept_loop(
    listener: TcpListener,
    port: NonZeroU16,
    (workers, turn): (Arc<[mpsc::Sender<Entered>]>, Arc<AtomicUsize>),
    accepted: Counter,
) {
    loop {
        match listener.accept().await.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => {
                accepted.inc();
                let Some(place) = place(&workers, &turn).await else { return };
                place.send(Entered { stream, peer, port });
            }
            Err(error) => {
                tracing::debug!(%error, %port, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A place with the next worker in turn that has one.
async fn place(workers: &[mpsc::Sender<Entered>], turn: &AtomicUsize) -> Option<mpsc::OwnedPermit<Entered>> {
    let first = turn.fetch_add(1, Relaxed) % workers.len();
    for worker in workers[first..].iter().chain(&workers[..first]) {
        if let Ok(place) = worker.clone().try_reserve_owned() {
            return Some(place);
        }
    }
    workers[first].clone().reserve_owned().await.ok()
}

fn listen(port: NonZeroU16) -> io::Result<TcpListener> {
    let addr = everywhere(port.get());
    let socket = if addr.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    // Inherited by what it accepts.
    socket.set_nodelay(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}
