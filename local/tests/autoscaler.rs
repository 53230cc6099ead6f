//! The autoscaler as a client of a scaler: a made-up one, over a connection in memory, on a paused clock.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use interceptor_core::ObjectKey;
use local::{
    cluster::Cluster,
    scaling::{
        autoscaler::Autoscaler,
        client::Dialer,
        hpa::{Behavior, TargetKind},
        keda::Limits,
        scaled::{ScaledWorkload, Trigger},
    },
    timeline::{Actor, Event, Timeline},
    workload::Workload,
};
use proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use runtime::task;
use tokio::{
    io::duplex,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Response, Status, transport::Endpoint};

const ADDRESS: &str = "scaler:9090";
const TARGET: f64 = 2.0;

/// What the made-up scaler says at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Saying {
    active: bool,
    value: f64,
    broken: bool,
}

#[derive(Clone, Debug)]
struct FakeScaler(watch::Receiver<Saying>);

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl FakeScaler {
    fn saying(&self) -> Result<Saying, Status> {
        let saying = *self.0.borrow();
        if saying.broken { Err(Status::unknown("made up")) } else { Ok(saying) }
    }
}

#[tonic::async_trait]
impl ExternalScaler for FakeScaler {
    type StreamIsActiveStream = Messages<IsActiveResponse>;
    type StreamMetricSpecStream = Messages<GetMetricSpecResponse>;

    async fn is_active(&self, _: Request<ScaledObjectRef>) -> Answer<IsActiveResponse> {
        Ok(Response::new(IsActiveResponse { result: self.saying()?.active }))
    }

    async fn stream_is_active(&self, _: Request<ScaledObjectRef>) -> Answer<Self::StreamIsActiveStream> {
        self.saying()?;
        let next = async |mut says: watch::Receiver<Saying>| {
            says.changed().await.ok()?;
            let saying = *says.borrow_and_update();
            let message = if saying.broken {
                Err(Status::unknown("made up"))
            } else {
                Ok(IsActiveResponse { result: saying.active })
            };
            Some((message, says))
        };
        Ok(Response::new(Box::pin(stream::unfold(self.0.clone(), next))))
    }

    async fn get_metric_spec(&self, request: Request<ScaledObjectRef>) -> Answer<GetMetricSpecResponse> {
        self.saying()?;
        assert_eq!(request.get_ref().scaler_metadata["interceptorRoute"], "hello", "all metadata is passed on");
        let spec = MetricSpec { metric_name: "concurrency".into(), target_size: 0, target_size_float: TARGET };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Answer<GetMetricsResponse> {
        let value = self.saying()?.value;
        assert_eq!(request.get_ref().metric_name, "concurrency");
        let value = MetricValue { metric_name: "concurrency".into(), metric_value: 0, metric_value_float: value };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(&self, _: Request<ScaledObjectRef>) -> Answer<Self::StreamMetricSpecStream> {
        Err(Status::unimplemented("not here"))
    }
}

struct Bench {
    cluster: Cluster,
    says: watch::Sender<Saying>,
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "hello")
}

fn scaled() -> ScaledWorkload {
    let mut behavior = Behavior::default();
    behavior.down.stabilization = Duration::from_secs(3);
    let metadata = BTreeMap::from([
        ("scalerAddress".to_owned(), ADDRESS.to_owned()),
        ("interceptorRoute".to_owned(), "hello".to_owned()),
    ]);
    ScaledWorkload {
        key: key(),
        workload: key(),
        polling: Duration::from_secs(2),
        limits: Limits {
            min: 0,
            max: 5,
            idle: None,
            cooldown: Duration::from_secs(20),
            initial_cooldown: Duration::ZERO,
        },
        behavior,
        triggers: vec![Trigger { push: true, address: ADDRESS.into(), metadata, kind: TargetKind::AverageValue }],
    }
}

impl Bench {
    fn start() -> Self {
        let (says, heard) = watch::channel(Saying::default());
        let service = ExternalScalerServer::new(FakeScaler(heard));
        let connector = tower::service_fn(move |_| {
            let (client, server) = duplex(1 << 16);
            let service = TowerToHyperService::new(service.clone());
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            task::spawn("fake scaler", serving.serve_connection(TokioIo::new(server), service));
            async { Ok::<_, std::io::Error>(TokioIo::new(client)) }
        });
        let dialer = Dialer::new(([127, 0, 0, 1], 1).into());
        dialer.lead(ADDRESS, Endpoint::from_static("http://scaler").connect_with_connector_lazy(connector));
        let cluster = Cluster::new(Timeline::default());
        let deployment =
            "{ spec: { replicas: 0, selector: {}, template: { spec: { containers: [{ name: c, command: [a] }] } } } }";
        let workload = Workload::parse(key(), &serde_yaml_ng::from_str(deployment).unwrap()).unwrap();
        cluster.edit(|state| {
            state.workloads.insert(key(), Arc::new(workload));
            state.replicas.insert(key(), 0);
            state.scaled.insert(key(), Arc::new(scaled()));
        });
        let autoscaler = Autoscaler {
            cluster: cluster.clone(),
            dialer,
            pods: watch::Sender::default().subscribe(),
            sync: Duration::from_secs(1),
            start: Instant::now(),
        };
        task::spawn("autoscaler", autoscaler.run());
        Self { cluster, says }
    }

    fn say(&self, active: bool, value: f64) {
        self.says.send_replace(Saying { active, value, broken: false });
    }

    fn replicas(&self) -> u32 {
        self.cluster.load().replicas[&key()]
    }

    /// How long it took until there were so many.
    async fn until(&self, replicas: u32) -> Duration {
        let started = Instant::now();
        let mut changes = self.cluster.changes();
        let waited =
            timeout(Duration::from_mins(10), changes.wait_for(|state| state.replicas[&key()] == replicas)).await;
        assert!(waited.is_ok(), "{replicas} replicas: {:?}", self.cluster.timeline().since(0));
        started.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pushed_signal_wakes_at_once_metrics_grow_and_silence_ends_at_zero() {
    let bench = Bench::start();
    sleep(Duration::from_secs(5)).await;
    bench.say(true, 1.0);
    assert_eq!(bench.until(1).await, Duration::ZERO, "the push is not a poll");
    bench.say(true, 7.0);
    assert!(bench.until(4).await <= Duration::from_secs(1), "one sync period");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.replicas(), 4, "demand that lasts changes nothing");
    bench.say(false, 0.0);
    let down = bench.until(1).await;
    assert!((2..=3).contains(&down.as_secs()), "the stabilisation window since the last decision: {down:?}");
    let zero = down + bench.until(0).await;
    assert!((18..=22).contains(&zero.as_secs()), "the cool-down since the last poll that saw activity: {zero:?}");
}

#[tokio::test(start_paused = true)]
async fn a_poll_wakes_as_well_when_the_stream_is_missed() {
    let bench = Bench::start();
    sleep(Duration::from_secs(5)).await;
    // Broken and repaired between two messages: the stream ends, and is opened again no sooner than in two seconds.
    bench.says.send_replace(Saying { broken: true, ..Saying::default() });
    sleep(Duration::from_millis(100)).await;
    bench.say(true, 1.0);
    assert!(bench.until(1).await <= Duration::from_secs(2), "the polling interval");
}

#[tokio::test(start_paused = true)]
async fn a_scaler_that_fails_takes_nothing_away_and_is_told() {
    let bench = Bench::start();
    bench.say(true, 7.0);
    bench.until(4).await;
    bench.says.send_replace(Saying { broken: true, ..Saying::default() });
    sleep(Duration::from_mins(10)).await;
    assert_eq!(bench.replicas(), 4);
    let problem = bench.cluster.load().problems["ScaledObject default/hello"].clone();
    assert!(problem.contains("GetMetricSpec failed: made up"), "{problem}");
    bench.say(false, 0.0);
    bench.until(0).await;
    assert!(bench.cluster.load().problems.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_stream_is_opened_again_within_a_minute_of_the_scalers_return() {
    let bench = Bench::start();
    sleep(Duration::from_secs(1)).await;
    bench.says.send_replace(Saying { broken: true, ..Saying::default() });
    sleep(Duration::from_mins(10)).await;
    bench.say(false, 0.0);
    sleep(Duration::from_mins(1)).await;
    bench.say(true, 1.0);
    assert_eq!(bench.until(1).await, Duration::ZERO);
    let signals = bench.cluster.timeline().since(0);
    assert!(signals.iter().any(|entry| matches!(entry.event, Event::Signal { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_edit_of_the_scaled_object_takes_effect() {
    let bench = Bench::start();
    bench.say(true, 9.0);
    bench.until(5).await;
    let mut edited = scaled();
    edited.limits.max = 2;
    bench.cluster.edit(|state| drop(state.scaled.insert(key(), Arc::new(edited))));
    assert!(bench.until(2).await <= Duration::from_secs(2));
    bench.cluster.edit(|state| state.scaled.clear());
    bench.say(false, 0.0);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(bench.replicas(), 2, "without a ScaledObject nobody scales");
    let last = bench.cluster.timeline().since(0).into_iter().rev().find_map(|entry| match entry.event {
        Event::Scaled { by, from, to, .. } => Some((by, from, to)),
        _ => None,
    });
    assert_eq!(last, Some((Actor::Hpa, 5, 2)));
}
