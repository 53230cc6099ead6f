//! Who is asked, when, and what becomes of an answer.

use interceptor_core::{
    Index, Route, UpstreamId,
    index::Event,
    inflight::NoSink,
    probe::{Action, Probing},
    route::{PortRef, RouteKind, Target},
    service::{Service, ServicePort, Slice, SliceEndpoint, SlicePort},
};
use runtime::snapshot::{self, Subscription, Writer};

use super::*;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));

/// A Service with one pod that is starting, a prober, and what a test may do to both.
struct Bench {
    index: Index,
    writer: Writer,
    reader: Reader,
    prober: Prober,
    handle: Handle,
    said: mpsc::Receiver<Verdict>,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn route(name: &str, port: PortRef, probing: Probing) -> Route {
    Route { probing, ..Route::new(RouteKind::InterceptorRoute, key(name), Target { service: key("web"), port }) }
}

fn probe() -> Probe {
    Probe {
        // Nobody listens there: what answers is up to the test.
        action: Action::Tcp(1),
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(10),
        initial_delay: Duration::ZERO,
        successes: 1,
        failures: 3,
    }
}

fn slice(ready: bool, terminating: bool) -> Event {
    Event::Slice(Slice {
        key: key("web-1"),
        service: key("web"),
        ports: vec![SlicePort { name: "http".into(), port: 8080 }],
        endpoints: vec![SliceEndpoint { addresses: vec![POD], ready, terminating, pod: None, uid: None, node: None }],
    })
}

fn early() -> Pod {
    (key("web"), POD)
}

impl Bench {
    fn new() -> Self {
        let mut index = Index::new(1, Arc::new(NoSink));
        let probing = Probing::By(Arc::new(probe()));
        index.apply(Event::Route(route("by-number", PortRef::Number(80), probing.clone())));
        index.apply(Event::Route(route("by-name", PortRef::Name("http".into()), probing)));
        let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, node_port: None };
        index.apply(Event::Service(Service {
            key: key("web"),
            ports: vec![port],
            addresses: Vec::new(),
            reach: interceptor_core::service::Reach::default(),
        }));
        index.apply(slice(false, false));
        let (writer, reader) = snapshot::channel(index.snapshot());
        let (prober, handle, said) = channel(reader.clone(), ProbeMetrics::default());
        Self { index, writer, reader, prober, handle, said }
    }

    fn apply(&mut self, event: Event) {
        self.index.apply(event);
        self.publish();
    }

    fn publish(&mut self) {
        let changed = self.index.take_changed();
        self.writer.publish(self.index.snapshot(), &changed);
    }

    /// Carries out what the prober said, as discovery does.
    fn heed(&mut self) -> Verdict {
        let verdict = self.said.try_recv().unwrap();
        match verdict.clone() {
            Verdict::Answered(service, pod) => self.index.answered(&service, pod),
            Verdict::Gone(service, pod) => self.index.answer_gone(&service, pod),
        }
        self.publish();
        verdict
    }

    fn upstream(&self, route: &str) -> UpstreamId {
        self.reader.load().routes[&key(route)].upstream
    }

    fn hold(&self, route: &str) -> Subscription {
        self.reader.subscribe(self.upstream(route))
    }

    fn ready(&self, route: &str) -> usize {
        self.reader.load().upstream(self.upstream(route)).unwrap().endpoints.len()
    }

    fn rounds(&mut self) -> usize {
        self.prober.refresh(Instant::now());
        self.prober.rounds.len()
    }

    /// The pod answers, and discovery publishes it.
    async fn answer(&mut self) {
        assert_eq!(self.rounds(), 1);
        self.prober.answered(early()).await;
        assert_eq!(self.heed(), Verdict::Answered(key("web"), POD));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_for_what_nobody_waits_for() {
    let mut bench = Bench::new();
    assert_eq!(bench.rounds(), 0);
    let first = bench.hold("by-number");
    assert_eq!(bench.rounds(), 1);
    let second = bench.hold("by-name");
    assert_eq!(bench.rounds(), 1, "routes of one Service share its pods");
    drop((first, second));
    assert_eq!(bench.rounds(), 0);
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_ready_or_on_their_way_out_are_not_asked() {
    let mut bench = Bench::new();
    let _held = bench.hold("by-number");
    bench.apply(slice(false, true));
    assert_eq!(bench.rounds(), 0);
    bench.apply(slice(true, false));
    assert_eq!(bench.rounds(), 0);
    bench.apply(slice(false, false));
    assert_eq!(bench.rounds(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_makes_the_pod_ready_for_all_routes_of_its_service() {
    let mut bench = Bench::new();
    let _held = bench.hold("by-number");
    bench.answer().await;
    assert_eq!((bench.ready("by-number"), bench.ready("by-name")), (1, 1));
    assert_eq!(bench.rounds(), 0);
    assert!(bench.handle.answered(&key("web")).is_some());
    bench.apply(slice(true, false));
    bench.rounds();
    assert!(bench.prober.pods.is_empty(), "the slice has taken over");
    assert_eq!(bench.ready("by-number"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_refuses_a_connection_is_ready_no_longer_and_left_alone_for_a_while() {
    let mut bench = Bench::new();
    let _held = bench.hold("by-number");
    for pause in [FIRST_PAUSE, FIRST_PAUSE * 2] {
        bench.answer().await;
        bench.handle.refused((POD, 8080).into());
        let refused = bench.prober.refusals.recv().await.unwrap();
        bench.prober.refused(refused).await;
        assert_eq!(bench.heed(), Verdict::Gone(key("web"), POD));
        assert_eq!((bench.ready("by-number"), bench.rounds()), (0, 0));
        let until = bench.prober.refresh(Instant::now()).unwrap();
        assert_eq!(until, Instant::now() + pause);
        tokio::time::advance(pause).await;
        assert_eq!(bench.rounds(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_costs_nothing_while_no_pod_is_ready_by_its_own_word() {
    let mut bench = Bench::new();
    bench.handle.refused((POD, 8080).into());
    assert!(bench.prober.refusals.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_kubelet_never_confirms_is_ready_no_longer() {
    let mut bench = Bench::new();
    let _held = bench.hold("by-number");
    bench.answer().await;
    let until = bench.prober.refresh(Instant::now()).unwrap();
    assert_eq!(until, Instant::now() + probe().patience());
    tokio::time::advance(probe().patience()).await;
    bench.prober.expire(Instant::now()).await;
    assert_eq!(bench.heed(), Verdict::Gone(key("web"), POD));
    assert_eq!((bench.ready("by-number"), bench.rounds()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_its_round_has_ended_counts_for_nothing() {
    let mut bench = Bench::new();
    let held = bench.hold("by-number");
    assert_eq!(bench.rounds(), 1);
    drop(held);
    assert_eq!(bench.rounds(), 0);
    bench.prober.answered(early()).await;
    assert!(bench.said.try_recv().is_err());
}

#[tokio::test]
async fn a_pod_that_begins_to_listen_is_found_and_told() {
    let mut bench = Bench::new();
    let listener = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let action = Action::Tcp(listener.local_addr().unwrap().port());
    let probing = Probing::By(Arc::new(Probe { action, ..probe() }));
    bench.apply(Event::Route(route("by-number", PortRef::Number(80), probing.clone())));
    bench.apply(Event::Route(route("by-name", PortRef::Name("http".into()), probing)));
    let _held = bench.hold("by-number");
    let Bench { prober, mut said, .. } = bench;
    let running = task::spawn("prober", prober.run());
    assert_eq!(said.recv().await, Some(Verdict::Answered(key("web"), POD)));
    running.abort();
}
