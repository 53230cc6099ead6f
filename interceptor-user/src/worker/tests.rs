//! A worker without its process: requests of the test's own making, a snapshot that the test writes, and time that it moves.

use std::{future::Future, net::SocketAddr, pin::Pin};

use futures_util::FutureExt as _;
use http::{HeaderMap, Method, Version};
use interceptor_core::{
    Index, ObjectKey,
    index::Event,
    inflight::NoSink,
    route::{Holding, RouteKind, Rule},
    service::{Reach, Service, ServicePort, Slice, SliceEndpoint, SlicePort},
};
use prometheus_client::registry::Registry;
use runtime::{
    env::Env,
    snapshot::{self, Writer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time,
};

use super::*;
use crate::{
    config::AccessLog,
    encryption,
    h1::{fields::Fields, framing::Framing},
    probe::{self, ProbeMetrics},
    proxy::{self, Ask, Reply, body::RequestBody},
    trust::Trust,
};

/// A route for all hosts below `test`, whose Service has no pod.
struct Bench {
    index: Index,
    writer: Writer,
    worker: Rc<Worker>,
    registry: Registry,
    /// Nobody asks pods, but who would is there.
    _prober: probe::Prober,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn config() -> ProxyConfig {
    ProxyConfig {
        readiness_timeout: Duration::ZERO,
        request_timeout: Duration::ZERO,
        response_header_timeout: Duration::ZERO,
        connect_timeout: Duration::from_secs(10),
        max_idle_per_endpoint: 1,
        max_idle_per_worker: 1,
        direct_pods: true,
        cold_start_header: true,
        trusted_proxies: Vec::new(),
        grpc_status: true,
        access_log: AccessLog::Off,
        max_held: 10,
        max_held_per_route: None,
        max_connections_per_worker: 10,
    }
}

impl Bench {
    fn new(per_pod: Option<u32>) -> Self {
        let mut index = Index::new(1, Arc::new(NoSink));
        index.apply(Event::Route(Route {
            rules: vec![Rule { hosts: vec!["*.test".to_owned()], ..Rule::default() }],
            holding: Holding { per_pod: per_pod.and_then(std::num::NonZeroU32::new), ..Holding::default() },
            ..Route::new(
                RouteKind::InterceptorRoute,
                key("web"),
                interceptor_core::route::Target { service: key("web"), port: PortRef::Number(80) },
            )
        }));
        let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, node_port: None };
        let service = Service { key: key("web"), ports: vec![port], addresses: Vec::new(), reach: Reach::default() };
        index.apply(Event::Service(service));
        let (writer, reader) = snapshot::channel(index.snapshot());
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry));
        let (prober, probing, _) = probe::channel(reader.clone(), ProbeMetrics::default());
        let tls = encryption::open(tls::Settings::from_env(&Env::default()).unwrap()).unwrap().upstreams;
        let shared = Arc::new(Shared::new(config(), tls, metrics, probing, None));
        let (_, drain) = drain::channel();
        Self { worker: Worker::new(0, shared, reader, drain), index, writer, registry, _prober: prober }
    }

    fn pod(&mut self, addr: SocketAddr) {
        self.index.apply(Event::Slice(Slice {
            key: key("web-1"),
            service: key("web"),
            ports: vec![SlicePort { name: "http".into(), port: addr.port() }],
            endpoints: vec![SliceEndpoint {
                addresses: vec![addr.ip()],
                ready: true,
                terminating: false,
                pod: None,
                uid: None,
                node: None,
            }],
        }));
        let changed = self.index.take_changed();
        self.writer.publish(self.index.snapshot(), &changed);
    }

    /// A GET of a client of its own.
    fn get(&self) -> Pin<Box<dyn Future<Output = Reply>>> {
        let connection = Rc::new(Connection::new(([127, 0, 0, 1], 1).into(), false, Trust::Unsaid));
        let ask = Ask {
            method: Method::GET,
            target: proxy::target::Target::parse(&"/".into()),
            version: Version::HTTP_11,
            fields: Fields::from_pairs([("host", &b"app.test"[..])]),
            body: RequestBody::empty(Framing::None),
            interim: None,
            extended: None,
        };
        Box::pin(proxy::handle(Rc::clone(&self.worker), connection, ask))
    }

    /// The value of a metric that has one series at most.
    fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find(|line| line.starts_with(name));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

/// The next connection to the pod, while `request` goes on.
async fn accept(pod: &TcpListener, request: &mut Pin<Box<dyn Future<Output = Reply>>>) -> TcpStream {
    tokio::select! {
        reply = request => panic!("nobody has answered: {}", reply.status),
        accepted = pod.accept() => accepted.unwrap().0,
    }
}

#[tokio::test]
async fn a_request_that_is_held_back_for_a_minute_goes_beyond_the_limit_and_is_counted() {
    const OVERRUNS: &str = "rouse_hold_overruns_total{";
    let mut bench = Bench::new(Some(1));
    let (mut first, mut second) = (bench.get(), bench.get());
    assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
    assert_eq!(bench.worker.shared.held.load(Relaxed), 2, "there is no pod");
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench.pod(pod.local_addr().unwrap());
    let mut at_first = accept(&pod, &mut first).await;
    let mut head = [0; 4];
    tokio::select! {
        _ = &mut first => panic!("nobody has answered"),
        read = at_first.read_exact(&mut head) => assert_eq!(read.map(|_| head).unwrap(), *b"GET "),
    }
    assert!((&mut second).now_or_never().is_none());

    time::pause();
    time::advance(Duration::from_secs(59)).await;
    assert!((&mut second).now_or_never().is_none());
    assert_eq!((bench.worker.shared.held.load(Relaxed), bench.metric(OVERRUNS)), (1, 0), "the one pod has its one");
    time::advance(Duration::from_secs(2)).await;
    // From here on sockets are waited for, which time must not overtake.
    time::resume();
    let mut at_second = accept(&pod, &mut second).await;
    assert_eq!(bench.metric(OVERRUNS), 1);
    at_second.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert_eq!(second.await.status, 204);
    assert!((&mut first).now_or_never().is_none(), "the first is where it was");
}

#[test]
fn more_hosts_than_are_kept_are_forgotten_found_again_and_counted() {
    const FORGOTTEN: &str = "rouse_hosts_forgotten_total";
    let bench = Bench::new(None);
    let find = |number: usize| {
        let found = bench.worker.route(format!("h{number}.test").as_bytes(), b"/", &HeaderMap::new());
        found.is_some_and(|route| route.entry.route.key == key("web"))
    };
    assert!((0..hosts::MOST).all(find));
    assert_eq!(bench.metric(FORGOTTEN), 0, "they fit");
    assert!((0..hosts::MOST).all(find));
    assert_eq!(bench.metric(FORGOTTEN), 0, "each is kept once");
    assert!(find(hosts::MOST));
    assert_eq!(bench.metric(FORGOTTEN), 1);
    assert!((0..hosts::MOST).all(find));
    assert_eq!(bench.metric(FORGOTTEN), 2, "with the one that is kept they do not fit");
    assert!(bench.worker.route("x".repeat(200).as_bytes(), b"/", &HeaderMap::new()).is_none());
    assert_eq!(bench.metric(FORGOTTEN), 2);
}
