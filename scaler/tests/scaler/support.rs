//! A scaler that runs, its client, and interceptors that say what a test wants.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use api::names::{DEMAND_VIEW, VIEW_KEY};
use interceptor_core::{
    ObjectKey, Route,
    demand::Census,
    index::Event,
    route::{DataPath, PortRef, Rate, RouteKind, Scaling, Target},
    service::{Slice, SliceEndpoint},
    window::Unit,
};
use parking_lot::Mutex;
use proto::{
    counts::{
        CountsUpdate, RouteCounts, RouteRef, WatchRequest,
        counts_server::{Counts, CountsServer},
    },
    externalscaler::{
        GetMetricsRequest, IsActiveResponse, MetricValue, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
    },
};
use runtime::{
    signal::{self, Shutdown, Trigger},
    task,
    watch::Sources,
};
use scaler::{
    app::{self, Bound, RunError},
    board::{Board, Standing},
    discover::{Admin, Admins, Change},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server, server::TcpIncoming},
};

/// Longer than anything here takes; a test that waits for so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Scaler {
    pub(crate) client: ExternalScalerClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) board: Board,
    pub(crate) metrics: SocketAddr,
    pub(crate) trigger: Trigger,
    pub(crate) ended: JoinHandle<Result<(), RunError>>,
    changes: mpsc::Sender<Vec<Change>>,
}

/// An interceptor that streams its counts.
#[derive(Clone)]
pub(crate) struct Interceptor(Arc<Mutex<State>>);

struct State {
    incarnation: String,
    began: Instant,
    older: Duration,
    counts: HashMap<String, (u64, u64)>,
    /// Whether it does not count all that it should.
    uncounted: bool,
    watchers: Vec<mpsc::Sender<Result<CountsUpdate, Status>>>,
    server: Option<AbortHandle>,
}

// === impl Scaler ===

impl Scaler {
    /// A scaler that has read nothing yet, and looks for interceptors at `port`.
    pub(crate) async fn start(port: u16) -> Self {
        let bound = app::build(config(Sources::Dirs(Vec::new()), port)).await.unwrap();
        Self::run(bound, Bound::run_with).await
    }

    /// A scaler that reads a folder of manifests.
    pub(crate) async fn of_folder(folder: &Path, port: u16) -> Self {
        let bound = app::build(config(Sources::dir(folder), port)).await.unwrap();
        Self::run(bound, |bound, _, shutdown| bound.run(shutdown)).await
    }

    async fn run<F>(bound: Bound, run: impl FnOnce(Bound, mpsc::Receiver<Vec<Change>>, Shutdown) -> F) -> Self
    where
        F: Future<Output = Result<(), RunError>> + Send + 'static,
    {
        let (grpc, metrics, board) = (bound.grpc_addr(), bound.metrics_addr().unwrap(), bound.board());
        let (changes, watched) = mpsc::channel(16);
        let (trigger, shutdown) = signal::manual();
        let ended = task::spawn("scaler", run(bound, watched, shutdown));
        let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
        Self { client: ExternalScalerClient::new(channel.clone()), channel, board, metrics, trigger, ended, changes }
    }

    /// A scaler that knows `routes` and one interceptor, which has reported.
    pub(crate) async fn with(routes: Vec<Route>, counts: &[(&str, u64, u64)]) -> (Self, Interceptor) {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let interceptor = Interceptor::serve(listener, "one", counts).aged();
        let scaler = Self::start(address.port()).await;
        scaler.apply(routes.into_iter().map(Event::Route).collect()).await;
        scaler.list(&[address.ip()]).await;
        scaler.synced().await;
        scaler.standing(|standing| standing.synced && standing.census.reported == 1).await;
        (scaler, interceptor)
    }

    pub(crate) async fn apply(&self, events: Vec<Event>) {
        self.changes.send(events.into_iter().map(Change::Event).collect()).await.unwrap();
    }

    pub(crate) async fn synced(&self) {
        self.changes.send(vec![Change::Synced]).await.unwrap();
    }

    /// Makes these the interceptors.
    pub(crate) async fn list(&self, addresses: &[IpAddr]) {
        self.list_as("admin", addresses, &[]).await;
    }

    /// Makes these the interceptors, the latter of which are about to end.
    pub(crate) async fn list_leaving(&self, ready: &[IpAddr], leaving: &[IpAddr]) {
        self.list_as("admin", ready, leaving).await;
    }

    /// Makes these the node agents.
    pub(crate) async fn list_agents(&self, addresses: &[IpAddr]) {
        self.list_as("agents", addresses, &[]).await;
    }

    async fn list_as(&self, service: &str, ready: &[IpAddr], leaving: &[IpAddr]) {
        let endpoint = |address: &IpAddr, terminating: bool| SliceEndpoint {
            addresses: vec![*address],
            ready: !terminating,
            terminating,
            pod: None,
            uid: None,
            node: None,
        };
        let slice = Slice {
            key: ObjectKey::new("keda", format!("{service}-1")),
            service: ObjectKey::new("keda", service),
            ports: Vec::new(),
            endpoints: ready
                .iter()
                .map(|address| endpoint(address, false))
                .chain(leaving.iter().map(|address| endpoint(address, true)))
                .collect(),
        };
        self.apply(vec![Event::Slice(slice)]).await;
    }

    /// Waits until the standing is as wanted.
    pub(crate) async fn standing(&self, wanted: impl Fn(Standing) -> bool) {
        let mut changes = self.board.subscribe_standing();
        let reached = async {
            while !wanted(self.board.standing()) {
                changes.changed().await;
            }
        };
        assert!(timeout(PATIENCE, reached).await.is_ok(), "stuck at {:?}", self.board.standing());
    }

    pub(crate) async fn census(&self, listed: usize, reported: usize, silent: usize) {
        self.standing(|standing| standing.census == Census { listed, reported, silent }).await;
    }

    /// Waits until so much is in flight over all routes.
    pub(crate) async fn in_flight(&self, wanted: u64) {
        let subject = scaler::subject::Subject::parse(own("1")).unwrap();
        let mut changes = self.board.subscribe_counts(&subject);
        let reached = async {
            while self.board.sample(&subject).map(|(_, sample)| sample.in_flight) != Ok(wanted) {
                changes.changed().await;
            }
        };
        assert!(timeout(PATIENCE, reached).await.is_ok(), "stuck at {:?}", self.board.sample(&subject));
    }

    pub(crate) async fn metrics(&mut self, of: ScaledObjectRef, name: &str) -> Result<Vec<MetricValue>, Status> {
        let request = GetMetricsRequest { scaled_object_ref: Some(of), metric_name: name.to_owned() };
        self.client.get_metrics(request).await.map(|response| response.into_inner().metric_values)
    }

    pub(crate) async fn is_active(&mut self, of: ScaledObjectRef) -> Result<bool, Status> {
        self.client.is_active(of).await.map(|response| response.into_inner().result)
    }

    pub(crate) async fn stream(&mut self, of: ScaledObjectRef) -> Streaming<IsActiveResponse> {
        self.client.stream_is_active(of).await.unwrap().into_inner()
    }

    /// Ends the scaler as SIGTERM would.
    pub(crate) async fn stop(self) -> Result<(), RunError> {
        self.trigger.fire();
        timeout(PATIENCE, self.ended).await.expect("the scaler ends").unwrap()
    }
}

/// Starts a scaler, and ends it before anybody has called.
pub(crate) async fn unattended() -> Result<(), RunError> {
    let bound = app::build(config(Sources::Dirs(Vec::new()), 9)).await.unwrap();
    let mut metrics = TcpStream::connect(bound.metrics_addr().unwrap()).await.unwrap();
    let (_changes, watched) = mpsc::channel(1);
    let (trigger, shutdown) = signal::manual();
    let ended = task::spawn("scaler", bound.run_with(watched, shutdown));
    // An answer says that everything runs.
    metrics.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    metrics.read_to_end(&mut Vec::new()).await.unwrap();
    trigger.fire();
    timeout(PATIENCE, ended).await.expect("the scaler ends").unwrap()
}

fn config(sources: Sources, port: u16) -> app::Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let agents = Some(Admin { service: ObjectKey::new("keda", "agents"), port });
    app::Config {
        sources,
        grpc_addr: any,
        metrics_addr: Some(any),
        admin: Admins { interceptors: Admin { service: ObjectKey::new("keda", "admin"), port }, agents },
        tick: Duration::from_millis(50),
        offer_stream: Duration::from_millis(200),
        interval: Duration::from_millis(50),
        unit: Unit::Second,
        name: "test".to_owned(),
        telemetry: telemetry::Config::default(),
    }
}

/// The next message; `None` at the end.
pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    timeout(PATIENCE, stream.message()).await.expect("a message or the end comes").unwrap()
}

/// The next value.
pub(crate) async fn active(stream: &mut Streaming<IsActiveResponse>) -> bool {
    next(stream).await.expect("the stream is open").result
}

/// So many sockets at the same port of different addresses.
pub(crate) async fn listeners(count: u8) -> (Vec<TcpListener>, Vec<IpAddr>, u16) {
    'again: loop {
        let first = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut listeners = vec![first];
        for host in 2..=count {
            match TcpListener::bind(SocketAddr::from(([127, 0, 0, host], port))).await {
                Ok(listener) => listeners.push(listener),
                Err(_) => continue 'again,
            }
        }
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().ip()).collect();
        return (listeners, addresses, port);
    }
}

pub(crate) fn route(name: &str, concurrency: Option<u32>, rate: Option<u32>) -> Route {
    let window = Duration::from_mins(1);
    Route {
        scaling: Scaling {
            concurrency,
            rate: rate.map(|target| Rate { target, window, granularity: Duration::from_secs(1) }),
            connections: None,
            accept_queue: None,
        },
        ..Route::new(
            RouteKind::InterceptorRoute,
            ObjectKey::new("ns", name),
            Target { service: ObjectKey::new("ns", "web"), port: PortRef::Number(80) },
        )
    }
}

/// One whose clients reach the pods without a proxy.
pub(crate) fn direct(name: &str) -> Route {
    Route { data_path: DataPath::Direct, ..route(name, Some(1), None) }
}

pub(crate) fn http_scaled_object(name: &str, concurrency: Option<u32>, rate: Option<u32>) -> Route {
    Route { kind: RouteKind::HttpScaledObject, ..route(name, concurrency, rate) }
}

fn reference(field: &str, value: &str) -> ScaledObjectRef {
    ScaledObjectRef {
        name: "so".to_owned(),
        namespace: "ns".to_owned(),
        scaler_metadata: [(field.to_owned(), value.to_owned())].into(),
    }
}

pub(crate) fn ir(name: &str) -> ScaledObjectRef {
    reference("interceptorRoute", name)
}

/// The same, for the operator.
pub(crate) fn demand_of(name: &str) -> ScaledObjectRef {
    let mut reference = ir(name);
    reference.scaler_metadata.insert(VIEW_KEY.to_owned(), DEMAND_VIEW.to_owned());
    reference
}

pub(crate) fn httpso(name: &str) -> ScaledObjectRef {
    reference("httpScaledObject", name)
}

pub(crate) fn own(target: &str) -> ScaledObjectRef {
    reference("interceptorTargetPendingRequests", target)
}

pub(crate) fn no_reference() -> ScaledObjectRef {
    reference("scalerAddress", "scaler:9090")
}

// === impl Interceptor ===

impl Interceptor {
    /// Serves `rouse.counts.v1.Counts` with these counts: route, in flight, total.
    pub(crate) fn serve(listener: TcpListener, incarnation: &str, counts: &[(&str, u64, u64)]) -> Self {
        let counts = counts.iter().map(|&(name, flight, total)| (name.to_owned(), (flight, total))).collect();
        let incarnation = incarnation.to_owned();
        let (began, older) = (Instant::now(), Duration::ZERO);
        let state = State { incarnation, began, older, counts, uncounted: false, watchers: Vec::new(), server: None };
        let this = Self(Arc::new(Mutex::new(state)));
        let server = Server::builder()
            .add_service(CountsServer::new(this.clone()))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        this.0.lock().server = Some(task::spawn("interceptor", server).abort_handle());
        this
    }

    /// Sends changed counts to all who watch.
    pub(crate) async fn push(&self, counts: &[(&str, u64, u64)]) {
        let (update, watchers) = {
            let mut state = self.0.lock();
            for &(name, flight, total) in counts {
                state.counts.insert(name.to_owned(), (flight, total));
            }
            let names: Vec<_> = counts.iter().map(|&(name, ..)| name.to_owned()).collect();
            (state.update(false, &names), state.watchers.clone())
        };
        for watcher in watchers {
            let _ = watcher.send(Ok(update.clone())).await;
        }
    }

    /// Claims to have been counting for an hour longer than it has.
    pub(crate) fn aged(self) -> Self {
        self.0.lock().older = Duration::from_hours(1);
        self
    }

    /// Counts all from the next counts on, or not.
    pub(crate) fn counts_all(&self, all: bool) {
        self.0.lock().uncounted = !all;
    }

    /// Ends as a process does: takes no connection any more, and breaks all streams.
    pub(crate) fn end(&self) {
        self.0.lock().server.take().expect("it runs").abort();
        self.hang_up();
    }

    /// Breaks all streams.
    pub(crate) fn hang_up(&self) {
        self.0.lock().watchers.clear();
    }
}

#[tonic::async_trait]
impl Counts for Interceptor {
    type WatchStream = ReceiverStream<Result<CountsUpdate, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let mut state = self.0.lock();
        let names: Vec<_> = state.counts.keys().cloned().collect();
        let update = state.update(true, &names);
        sender.try_send(Ok(update)).expect("the channel is empty");
        state.watchers.push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

// === impl State ===

impl State {
    fn update(&self, complete: bool, names: &[String]) -> CountsUpdate {
        let route = |name: &String| {
            let (concurrency, request_count) = self.counts[name];
            let route = Some(RouteRef { namespace: "ns".to_owned(), name: name.clone() });
            let uncounted = self.uncounted;
            RouteCounts { route, concurrency, request_count, uncounted, ..RouteCounts::default() }
        };
        CountsUpdate {
            incarnation: self.incarnation.clone(),
            complete,
            routes: names.iter().map(route).collect(),
            removed: Vec::new(),
            uptime_ms: u64::try_from((self.began.elapsed() + self.older).as_millis()).unwrap() + 1,
        }
    }
}
