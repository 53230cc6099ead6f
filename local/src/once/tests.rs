//! The checks against an interceptor that is made up: they must not be content with what did not happen.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use interceptor_core::ObjectKey;
use runtime::task;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use super::*;
use crate::{
    cluster::{Address, Cluster, RouteName},
    platform::{Health, Ports},
    request::Requester,
    scaling::{
        hpa::{Behavior, TargetKind},
        keda::Limits,
        scaled::{ScaledWorkload, Trigger},
    },
    state::StateClient,
    timeline::Timeline,
};

/// Holds requests until it is let; tells in `/state` how many it holds.
#[derive(Clone)]
struct Fake {
    held: Arc<AtomicU64>,
    arrived: Arc<Semaphore>,
    answers: bool,
}

impl Fake {
    async fn serve(answers: bool) -> (Self, SocketAddr) {
        let fake = Self { held: Arc::default(), arrived: Arc::new(Semaphore::new(0)), answers };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = fake.clone();
        task::spawn("fake", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = serving.clone();
                let service = service_fn(move |request| fake.clone().answer(request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                task::spawn("fake connection", connection);
            }
        });
        (fake, address)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.uri().path() == "/state" {
            let held = self.held.load(SeqCst);
            let state = if held > 0 { "holding" } else { "cold" };
            let route = serde_json::json!({ "namespace": "default", "name": "hello", "kind": "InterceptorRoute",
                "state": state, "inFlight": held, "held": held });
            let body = serde_json::json!({ "ready": true, "routes": [route] }).to_string();
            return Ok(Response::new(Full::from(body)));
        }
        if !self.answers {
            self.held.fetch_add(1, SeqCst);
            self.arrived.add_permits(1);
            std::future::pending::<()>().await;
        }
        let response = Response::builder().header("x-keda-http-cold-start", "true").body(Full::from("made up\n"));
        Ok(response.unwrap())
    }
}

fn world(fake: SocketAddr) -> (World, watch::Sender<Health>) {
    let cluster = Cluster::new(Timeline::default());
    let key = ObjectKey::new("default", "hello");
    let trigger = Trigger {
        push: true,
        address: "s:1".into(),
        metadata: BTreeMap::from([("interceptorRoute".to_owned(), "hello".to_owned())]),
        kind: TargetKind::AverageValue,
    };
    let zero = Duration::ZERO;
    let scaled = ScaledWorkload {
        key: key.clone(),
        workload: key.clone(),
        polling: Duration::from_secs(1),
        limits: Limits { min: 0, max: 5, idle: None, cooldown: zero, initial_cooldown: zero },
        behavior: Behavior::default(),
        triggers: vec![trigger],
    };
    cluster.edit(|state| {
        let address = Address { host: None, path: "/".into(), headers: Vec::new() };
        state.routes.insert(RouteName { key: key.clone(), kind: "InterceptorRoute" }, address);
        state.scaled.insert(key, Arc::new(scaled));
    });
    let (health, receiver) = watch::channel(Health::Running { pid: 1, restarts: 0 });
    let port = fake.port();
    let world = World {
        cluster,
        pods: watch::Sender::default().subscribe(),
        state: StateClient::new(port),
        requester: Requester::new(fake),
        ports: Ports { proxy: port, admin: port, metrics: 0, scaler: 0, scaler_metrics: 0 },
        run: "a run without processes".into(),
        processes: vec![("scaler", receiver)],
        logs: "/nonexistent".into(),
        manifests: "/nonexistent".into(),
    };
    (world, health)
}

fn options() -> Options {
    Options { route: None, load: 2, load_path: "/".into(), settle: Duration::ZERO }
}

async fn check(world: World) -> (Report, Vec<String>) {
    let mut lines = Vec::new();
    let report = run(&world, &options(), &mut |line| lines.push(line.to_owned())).await;
    (report, lines)
}

#[tokio::test]
async fn it_fails_when_the_scaler_is_killed_while_the_request_is_held() {
    let (fake, address) = Fake::serve(false).await;
    let (world, scaler) = world(address);
    let checking = task::spawn("check", check(world));
    fake.arrived.acquire().await.unwrap().forget();
    scaler.send_replace(Health::Ended("was ended by SIGKILL".into()));
    let (report, lines) = checking.await.unwrap();
    assert!(!report.ok);
    let last = report.steps.last().unwrap();
    assert_eq!((last.name, last.ok, last.detail.as_str()), ("held and woken", false, "scaler was ended by SIGKILL"));
    assert!(lines.last().unwrap().contains("✘ held and woken"));
    assert!(report.to_string().contains("FAILED at \"held and woken\""));
}

#[tokio::test]
async fn an_answer_that_claims_a_cold_start_but_was_never_held_does_not_count() {
    let (_fake, address) = Fake::serve(true).await;
    let (world, _scaler) = world(address);
    let (report, _) = check(world).await;
    assert!(!report.ok);
    assert!(report.steps.last().unwrap().detail.contains("without having been held"), "{report:?}");
}
