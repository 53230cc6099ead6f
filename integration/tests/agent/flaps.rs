//! A workload that goes and comes back all the time, under load: no request is lost, whoever carries it.
//!
//! The test plays operator, kube-proxy and kubelet: interceptors are in the rules before the pod leaves them, and leave
//! them after a pod is back. In which order interceptors and agents hear of it is left to chance.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use integration::{
    World,
    agent::Agent,
    eventually,
    net::{Host, Net, Rule},
    process::{Process, program},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    bench::{FRONTEND, VIP},
    clients::PORT,
};

/// The port of interceptors that stands for the Service, and that of their state.
const ENTRANCE: u16 = 20_000;
const ADMIN: u16 = 9090;

/// Clients that ask one after the other, each time over a new connection.
const CLIENTS: usize = 4;

/// How often the pod goes and comes back; `ROUSE_FLAPS` says otherwise.
const FLAPS: usize = 20;

/// How long an answer may take: clients would not notice that a lost packet is repeated after a second.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn no_request_is_lost_while_a_pod_comes_and_goes_and_interceptors_stand_in() {
    flaps(false).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn no_request_is_lost_while_a_pod_comes_and_goes_and_an_agent_holds() {
    flaps(true).await;
}

async fn flaps(with_agent: bool) {
    let mut bench = Bench::new().await;
    let agent = if with_agent { Some(Agent::start(&bench.net, &bench.world).await) } else { None };
    if let Some(agent) = &agent {
        agent.until("web", "cold").await;
    }
    let load = Load::start(&bench.client);
    let flaps = std::env::var("ROUSE_FLAPS").map_or(FLAPS, |count| count.parse().unwrap());
    for flap in 0..flaps {
        load.nothing_failed(flap);
        bench.up(flap).await;
        load.goes_on().await;
        bench.down(flap, agent.as_ref()).await;
        eventually("somebody waits for the pod", async || {
            let held = bench.state().await["routes"][0]["held"].as_u64()?;
            let by_agent = match &agent {
                Some(agent) => agent.route("web").await["held"].as_u64()?,
                None => 0,
            };
            (held + by_agent > 0).then_some(())
        })
        .await;
    }
    bench.up(flaps).await;
    let (answered, failed) = load.end().await;
    assert_eq!(failed, Vec::<String>::new(), "of {answered} requests over {flaps} flaps");
    assert!(answered >= 2 * u64::try_from(flaps).unwrap(), "{answered} requests over {flaps} flaps");
    let text = bench.interceptor.get(2223, "/metrics").await;
    let through = text.lines().find_map(|line| line.strip_prefix("rouse_entrance_connections_total "));
    let through: u64 = through.unwrap().parse().unwrap();
    assert!(with_agent || through > 0, "interceptors stood in");
    #[expect(clippy::print_stdout, reason = "what was seen is worth telling")]
    {
        println!("{answered} requests over {flaps} flaps, {through} by way of the interceptor");
    }
}

/// A node with a client, an interceptor and a pod that is not there yet.
struct Bench {
    net: Net,
    world: World,
    client: Host,
    interceptor: Host,
    pod: Host,
    server: Option<Server>,
    _process: Process,
}

impl Bench {
    async fn new() -> Self {
        let mut net = Net::new();
        let (client, interceptor, pod) = (net.pod(), net.pod(), net.pod());
        // Or the client runs out of ports: it closes thousands of connections within the minute that each of them rests.
        client.output("sysctl", &["--quiet", "--write", "net.ipv4.tcp_tw_reuse=1"]);
        for server in [&interceptor, &pod] {
            // Linux itself resets a connection now and then, also between two namespaces with nothing of ours: where the request is
            // received on one processor while another makes a socket of the handshake's end, it finds neither. 6.19 mends a race of that
            // kind ("inet: Avoid ehash lookup race in inet_ehash_insert()"). What one processor receives comes one after the other.
            server.output("sh", &["-c", "echo 1 > /sys/class/net/eth0/queues/rx-0/rps_cpus"]);
        }
        let world = World::new();
        world.direct("web", &[VIP], json!({}));
        world.standing_in("web", ENTRANCE, json!([]), json!({}));
        let mut command = interceptor.command(program("interceptor-under-test").to_str().unwrap());
        command.arg("--source").arg(format!("dir:{}", world.path().display())).arg("--zap-encoder=json");
        command.envs([
            ("KEDA_HTTP_PROXY_PORT", "8080"),
            ("KEDA_HTTP_ADMIN_PORT", "9090"),
            ("KEDA_HTTP_SHUTDOWN_DELAY", "0s"),
            ("ROUSE_WORKERS", "2"),
            ("ROUSE_DATAPLANE", "none"),
        ]);
        command.env_remove("KUBECONFIG");
        let mut process = Process::start(command, None);
        process.says("interceptor starts").await;
        let bench = Self { net, world, client, interceptor, pod, server: None, _process: process };
        eventually("the interceptor is ready", async || (bench.state().await["ready"] == true).then_some(())).await;
        bench.rules(false, true);
        bench
    }

    async fn state(&self) -> Value {
        self.interceptor.json(ADMIN, "/state").await
    }

    /// What kube-proxy makes of the slices.
    fn rules(&self, pod: bool, interceptor: bool) {
        let pod = pod.then(|| SocketAddr::new(self.pod.addresses[0], PORT));
        let interceptor = interceptor.then(|| SocketAddr::new(self.interceptor.addresses[0], ENTRANCE));
        let pods = pod.into_iter().chain(interceptor).collect();
        self.net.rules(&[Rule { frontend: FRONTEND.parse().unwrap(), pods }], "");
    }

    /// Tells interceptors and agents; waits until the interceptor knows.
    async fn tell(&self, pod: bool) {
        let address = SocketAddr::new(self.pod.addresses[0], PORT);
        self.world.endpoints("web", if pod { std::slice::from_ref(&address) } else { &[] });
        eventually("the interceptor knows", async || {
            let state = self.state().await;
            (state["routes"][0]["upstream"]["endpoints"].as_array()?.is_empty() != pod).then_some(())
        })
        .await;
    }

    /// The pod is ready, and then alone.
    async fn up(&mut self, flap: usize) {
        self.server = Some(Server::start(&self.pod).await);
        if flap.is_multiple_of(2) {
            self.tell(true).await;
            self.rules(true, true);
        } else {
            self.rules(true, true);
            self.tell(true).await;
        }
        self.rules(true, false);
    }

    /// Interceptors are listed, and then the pod goes.
    async fn down(&mut self, flap: usize, agent: Option<&Agent>) {
        self.rules(true, true);
        if flap.is_multiple_of(3) {
            self.tell(false).await;
            self.rules(false, true);
        } else {
            self.rules(false, true);
            self.tell(false).await;
        }
        // A pod that ends goes on for as long as anybody may send to it: nobody could help whoever it has accepted.
        if let Some(agent) = agent {
            let pods = async || agent.route("web").await["pods"].as_array().map(Vec::len);
            eventually("the agent knows", async || (pods().await == Some(0)).then_some(())).await;
        }
        let server = self.server.take().expect("it is there");
        let ended = tokio::time::timeout(2 * PATIENCE, server.end()).await;
        // Its own view: clients tell only afterwards.
        let open = || self.pod.output("ss", &["--tcp", "--numeric", "--info"]);
        assert!(ended.is_ok(), "in flap {flap} somebody has connected and asks nothing:\n{}", open());
    }
}

/// What the pod runs: it answers one request after the other of each connection, and ends in order.
struct Server {
    ending: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl Server {
    async fn start(pod: &Host) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (listens, told) = oneshot::channel();
        let flag = Arc::clone(&ending);
        let ended = pod.start(move || {
            let listener = TcpListener::bind(("::", PORT)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listens.send(()).unwrap();
            let mut quiet = 0;
            let mut open = Vec::new();
            // What was on its way when the rules changed is still taken.
            while quiet < 20 {
                if let Ok((stream, _)) = listener.accept() {
                    quiet = 0;
                    let flag = Arc::clone(&flag);
                    open.push(thread::spawn(move || drop(answer(stream, &flag))));
                } else {
                    quiet += u32::from(flag.load(Relaxed));
                    thread::park_timeout(Duration::from_micros(200));
                }
                open.retain(|thread| !thread.is_finished());
            }
            drop(listener);
            for thread in open {
                thread.join().unwrap();
            }
        });
        told.await.unwrap();
        Self { ending, ended }
    }

    async fn end(self) {
        self.ending.store(true, Relaxed);
        self.ended.await.unwrap();
    }
}

fn answer(mut stream: TcpStream, ending: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(2)))?;
    let (mut head, mut answered) = (Vec::new(), false);
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => head.extend_from_slice(&piece[..count]),
            // Between two requests it may go; who has connected and not asked yet may still do so.
            Err(_) if answered && head.is_empty() && ending.load(Relaxed) => return Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        }
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            answered = true;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")?;
        }
    }
}

/// Clients that ask all the time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<String>>>,
    clients: Vec<oneshot::Receiver<()>>,
}

impl Load {
    fn start(client: &Host) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let failed = Arc::new(Mutex::new(Vec::new()));
        let clients = (0..CLIENTS).map(|_| {
            let (stop, answered, failed) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&failed));
            client.start(move || {
                while !stop.load(Relaxed) {
                    match ask() {
                        Ok(()) => _ = answered.fetch_add(1, Relaxed),
                        Err(error) => failed.lock().push(error.to_string()),
                    }
                }
            })
        });
        let clients = clients.collect();
        Self { stop, answered, failed, clients }
    }

    /// Says so at once, rather than after the last flap.
    fn nothing_failed(&self, flap: usize) {
        let failed = self.failed.lock().clone();
        assert_eq!(failed, Vec::<String>::new(), "of {} requests before flap {flap}", self.answered.load(Relaxed));
    }

    /// Waits for an answer that was not there before.
    async fn goes_on(&self) {
        let before = self.answered.load(Relaxed);
        eventually("clients are answered", async || {
            (self.answered.load(Relaxed) > before || !self.failed.lock().is_empty()).then_some(())
        })
        .await;
    }

    async fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        (self.answered.load(Relaxed), std::mem::take(&mut *self.failed.lock()))
    }
}

/// One request over a connection of its own.
fn ask() -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&FRONTEND.parse().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.shop.svc\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status)?;
    let mut line = String::new();
    let mut length = 0;
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or_default();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if status.starts_with("HTTP/1.1 200") && body == b"hello" {
        return Ok(());
    }
    Err(io::Error::other(format!("{status:?}")))
}
