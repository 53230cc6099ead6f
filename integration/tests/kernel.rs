//! The kernel's counts in `/state` and on `/metrics`: exactly the connections that pods saw. At level none there are none.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use integration::{Interceptor, Pod, World, eventually, interceptor::level};
use runtime::task;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const CLIENTS: usize = 40;
const REQUESTS: usize = 25;

/// How a pod ends a connection after its first request.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It answers and closes.
    Close,
    /// It answers half and resets.
    Reset,
}

/// A pod that takes one request a connection.
struct Shy {
    addr: SocketAddr,
    accepted: Arc<AtomicU64>,
}

impl Shy {
    async fn start(end: End) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&accepted);
        task::spawn("shy pod", async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                task::spawn("shy pod's connection", answer(stream, end));
            }
        });
        Self { addr, accepted }
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }
}

async fn answer(mut stream: TcpStream, end: End) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_closed) => return,
        }
    }
    // Whoever is at the other end may have gone, which ends the connection too.
    _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nwe").await;
    match end {
        End::Close => _ = stream.write_all(b"ll").await,
        End::Reset => stream.set_zero_linger().unwrap(),
    }
}

/// Many clients with many requests each; who gets no whole response does not mind.
async fn storm(proxy: SocketAddr, host: &'static str) {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            task::spawn("client", async move {
                for _ in 0..REQUESTS {
                    let mut stream = TcpStream::connect(proxy).await.unwrap();
                    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                    stream.write_all(request.as_bytes()).await.unwrap();
                    _ = stream.read_to_end(&mut Vec::new()).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

/// Opened and closed, as `/state` has them; `None` when nothing counts.
async fn counted(interceptor: &Interceptor, route: &str) -> Option<(u64, u64, u64)> {
    let state = interceptor.route_state(route).await?;
    let number = |name: &str| state["kernel"][name].as_u64();
    Some((number("opened")?, number("closed")?, number("failed")?))
}

#[tokio::test]
async fn the_kernel_counts_the_connections_that_pods_saw_and_no_others() {
    let world = World::new();
    let (closing, resetting) = (Shy::start(End::Close).await, Shy::start(End::Reset).await);
    let keeping = Pod::start().await.answering("well");
    for (app, host, addr) in [
        ("closing", "closing.test", closing.addr),
        ("resetting", "resetting.test", resetting.addr),
        ("keeping", "keeping.test", keeping.addr),
    ] {
        world.app(app, host);
        world.endpoints(app, &[addr]);
    }
    let interceptor = Interceptor::start(&world).await;
    for app in ["closing", "resetting", "keeping"] {
        interceptor.endpoints(app, 1).await;
    }
    if level() == "none" {
        assert_eq!(interceptor.get("closing.test", "/").await.status(), 200);
        let state = interceptor.route_state("closing").await.unwrap();
        assert_eq!(state["kernel"], Value::Null, "nothing counts at level none");
        return;
    }
    // The endpoints are in the kernel when it has something to say about them.
    for app in ["closing", "resetting", "keeping"] {
        eventually("the kernel knows the pod", async || counted(&interceptor, app).await).await;
    }
    let proxy = interceptor.proxy;
    for host in ["closing.test", "resetting.test", "keeping.test"] {
        storm(proxy, host).await;
    }
    for (app, pod) in [("closing", &closing), ("resetting", &resetting)] {
        let saw = pod.accepted();
        assert!(saw >= (CLIENTS * REQUESTS) as u64, "{app}: {saw} connections");
        eventually(&format!("{app}: {saw} opened, all of them closed"), async || {
            (counted(&interceptor, app).await? == (saw, saw, 0)).then_some(())
        })
        .await;
    }
    eventually("those that are kept are open", async || {
        let (opened, closed, failed) = counted(&interceptor, "keeping").await?;
        (opened == keeping.connections() as u64 && closed < opened && failed == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_refuses_is_counted_as_failed_and_the_metrics_say_so_by_route() {
    let world = World::new();
    world.route_with("app", json!([{ "hosts": ["app.test"] }]), json!({ "timeouts": { "request": "300ms" } }));
    world.service("app");
    world.endpoints("app", &[Pod::absent().await]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 1).await;
    if level() != "none" {
        eventually("the kernel knows the pod", async || counted(&interceptor, "app").await).await;
    }
    assert!(interceptor.get("app.test", "/").await.status() >= 500);
    if level() == "none" {
        assert!(!interceptor.metrics().await.contains("rouse_kernel_connections_failed_total{"));
        return;
    }
    eventually("refusals are failures", async || {
        let (opened, closed, failed) = counted(&interceptor, "app").await?;
        ((opened, closed) == (0, 0) && failed > 0).then_some(())
    })
    .await;
    let metrics = interceptor.metrics().await;
    let name = "rouse_kernel_connections_failed_total{route_name=\"app\",route_namespace=\"shop\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{metrics}"));
    assert!(line.parse::<u64>().unwrap() > 0);
}
