//! What it costs to count a Service's requests in the kernel, beside nothing at all and beside proxies: clients and pods of one
//! node, wrk, rules of kube-proxy's shape. Prints one line of JSON for each run of wrk; `cargo xtask bench direct` makes a page of them.
//!
//! Run it as root with `cargo xtask bench direct`.

#![expect(clippy::disallowed_types, reason = "a measurement reads the real clock")]

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use integration::{
    World,
    agent::Agent,
    cgroup::{MOUNT_CGROUPS, PodTree},
    eventually,
    net::{Host, Net, Rule},
    process::program,
    world::{INTERCEPTORS, NAMESPACE},
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const VIP: &str = "10.96.0.1";
const BYSTANDER: &str = "10.96.0.2";
const UID: &str = "4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c";
const PORT: u16 = 8080;
const HOST: &str = "web.bench.example";

/// What is measured.
const CASES: [Case; 3] = [
    Case { name: "work", micros: 100, close: false },
    Case { name: "hello", micros: 0, close: false },
    Case { name: "connections", micros: 0, close: true },
];

#[derive(Parser)]
struct Args {
    /// How often each contender runs each case.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load in one run.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// A server whose answers take some work; started by the bench alone.
    Serve { work: u64 },
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// CPU time of the service for one answer, about.
    micros: u64,
    /// Whether each request has a connection of its own.
    close: bool,
}

/// Who carries the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// Rules of kube-proxy's shape alone.
    Nothing,
    /// The same while an agent counts this Service.
    Agent,
    /// The same to another Service, while an agent counts the first.
    Bystander,
    /// That other Service without an agent: another rule, and another pod.
    Other,
    /// Our interceptor between.
    Interceptor,
    /// nginx between.
    Nginx,
}

const CONTENDERS: [Contender; 6] = [
    Contender::Nothing,
    Contender::Agent,
    Contender::Other,
    Contender::Bystander,
    Contender::Interceptor,
    Contender::Nginx,
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Args { rounds, seconds, role } = Args::parse();
    if let Some(Role::Serve { work }) = role {
        return serve(work);
    }
    let calibrated = calibrate();
    for case in CASES {
        let bench = Bench::new(case, calibrated * case.micros).await?;
        for round in 0..=rounds {
            for number in 0..CONTENDERS.len() {
                let contender = CONTENDERS[(round + number) % CONTENDERS.len()];
                let seen = bench.run(contender, seconds).await.with_context(|| format!("{contender:?}"))?;
                // The first warms caches.
                if round > 0 {
                    let mut line = json!({ "case": case.name, "contender": contender.name(), "round": round });
                    let (Value::Object(all), Value::Object(seen)) = (&mut line, seen) else { unreachable!("objects") };
                    all.extend(seen);
                    writeln!(io::stdout(), "{line}")?;
                }
            }
        }
    }
    Ok(())
}

struct Bench {
    net: Net,
    world: World,
    client: Host,
    interceptor: Host,
    nginx: Host,
    cgroups: PodTree,
    script: PathBuf,
    /// They end with it.
    processes: Vec<Child>,
}

impl Bench {
    async fn new(case: Case, work: u64) -> Result<Self> {
        let mut net = Net::new();
        let (client, pod, other) = (net.pod(), net.pod(), net.pod());
        let (interceptor, nginx) = (net.pod(), net.pod());
        let world = World::new();
        world.direct("web", &[VIP], json!({ "protocol": null, "rules": [{ "hosts": [HOST] }] }));
        world.interceptors(&[(interceptor.addresses[0], 9090).into()]);
        world.object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": PORT }],
            "endpoints": [{
                "addresses": [pod.addresses[0].to_string()], "conditions": { "ready": true }, "nodeName": "node-1",
                "targetRef": { "kind": "Pod", "name": "web-a", "uid": UID },
            }],
        }));
        let rule = |vip: &str, pod: &Host| {
            let frontend = SocketAddr::new(vip.parse().expect("an address"), 80);
            Rule { frontend, pods: vec![(pod.addresses[0], PORT).into()] }
        };
        net.rules(&[rule(VIP, &pod), rule(BYSTANDER, &other)], "");
        let script = world.path().join("request.lua");
        fs::write(&script, lua(case))?;
        let cgroups = PodTree::new();
        let mut bench = Self { net, world, client, interceptor, nginx, cgroups, script, processes: Vec::new() };
        let this = std::env::current_exe()?;
        for (host, uid) in [(&pod, UID), (&other, "0e6e9cb4-3a59-4c52-b9c5-6f3f1d8a0001")] {
            let script = format!("{}exec {} serve {work}", bench.cgroups.enter(uid), this.display());
            bench.processes.push(quiet(host.command("sh").args(["-c", &script]))?);
        }
        let mut proxy = bench.interceptor.command(program("interceptor-under-test").to_str().context("a path")?);
        proxy.args(["--source", &format!("dir:{}", bench.world.path().display()), "--workers=1", "--dataplane=none"]);
        proxy
            .env("KEDA_HTTP_PROXY_PORT", PORT.to_string())
            .env("KEDA_HTTP_ADMIN_PORT", "9090")
            .env_remove("KUBECONFIG");
        bench.processes.push(quiet(&mut proxy)?);
        let conf = bench.world.path().join("nginx.conf");
        fs::write(&conf, nginx_conf(&pod, bench.world.path().to_str().context("a path")?))?;
        let mut nginx = bench.nginx.command("nginx");
        nginx.arg("-c").arg(&conf).arg("-p").arg(bench.world.path());
        bench.processes.push(quiet(&mut nginx)?);
        for contender in CONTENDERS {
            let to = bench.address(contender);
            eventually(&format!("{contender:?} answers"), async || {
                bench.client.run(move || answers(to)).await.is_ok().then_some(())
            })
            .await;
        }
        Ok(bench)
    }

    /// Where clients connect.
    fn address(&self, contender: Contender) -> SocketAddr {
        let vip = |text: &str| text.parse::<IpAddr>().expect("an address");
        match contender {
            Contender::Nothing | Contender::Agent => (vip(VIP), 80).into(),
            Contender::Bystander | Contender::Other => (vip(BYSTANDER), 80).into(),
            Contender::Interceptor => (self.interceptor.addresses[0], PORT).into(),
            Contender::Nginx => (self.nginx.addresses[0], PORT).into(),
        }
    }

    /// One run of wrk: what it saw, and the CPU time of the whole machine.
    async fn run(&self, contender: Contender, seconds: u32) -> Result<Value> {
        let agent = match contender {
            Contender::Agent | Contender::Bystander => Some(self.agent().await),
            _ => None,
        };
        let before = busy()?;
        let output = self
            .client
            .command("wrk")
            .args(["-t", "1", "-c", "16", "-d", &format!("{seconds}s"), "-s"])
            .arg(&self.script)
            .arg(format!("http://{}/", self.address(contender)))
            .output()
            .await?;
        let cpu = busy()?.saturating_sub(before);
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with('{')).with_context(|| text.clone().into_owned())?;
        let mut seen: Value = serde_json::from_str(line)?;
        ensure!(seen["errors"] == 0, "requests failed: {line}");
        let requests = seen["requests"].as_u64().filter(|requests| *requests > 0).context("no request")?;
        // The kernel counts in hundredths of a second.
        seen["cpuNs"] = json!(cpu * 10_000_000 / requests);
        if let Some(mut agent) = agent {
            if contender == Contender::Agent {
                seen["counted"] = json!(counted(&agent, requests).await);
            }
            agent.kill().await;
            self.remove().await?;
        }
        Ok(seen)
    }

    /// An agent that counts the pod's requests and holds nothing, since the Service is warm.
    async fn agent(&self) -> Agent {
        let settings = [
            format!("ROUSE_CGROUP_ROOT={}", self.cgroups.within()),
            format!("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE={NAMESPACE}"),
            format!("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE={INTERCEPTORS}"),
        ];
        let mounted = format!("{MOUNT_CGROUPS}exec \"$@\"");
        let by = ["sh", "-c", &mounted, "sh", "env", &settings[0], &settings[1], &settings[2]];
        let agent = Agent::start_by(&self.net, &self.world, &by).await;
        agent.until("web", "warm").await;
        eventually("the pod is counted", async || (agent.state().await["count"]["pods"] == json!([UID])).then_some(()))
            .await;
        agent
    }

    /// Takes out what an agent has left.
    async fn remove(&self) -> Result<()> {
        let mut command = self.net.node().command(program("interceptor-under-test").to_str().context("a path")?);
        let output = command.args(["agent", "--remove"]).output().await?;
        ensure!(output.status.success(), "agent --remove: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Contender {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Agent => "agent",
            Self::Bystander => "bystander",
            Self::Other => "other",
            Self::Interceptor => "interceptor",
            Self::Nginx => "nginx",
        }
    }
}

/// How many requests the kernel has counted: of those that wrk has seen answered each, and of those that it broke off at the end.
async fn counted(agent: &Agent, requests: u64) -> u64 {
    let mut counted = 0;
    // The agent reads the kernel's counts from time to time; one that misses some never gets there.
    for _ in 0..40 {
        counted = agent.route("web").await["taken"]["requests"].as_u64().unwrap_or_default();
        if counted >= requests {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    counted
}

fn quiet(command: &mut Command) -> Result<Child> {
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn()?)
}

/// One request, so that what it needs is there.
fn answers(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other(line)) }
}

/// Requests of a case, and wrk's own figures as JSON.
fn lua(case: Case) -> String {
    let close = if case.close { "wrk.headers['Connection'] = 'close'\n" } else { "" };
    format!(
        "wrk.headers['Host'] = '{HOST}'\n{close}\
         done = function(summary, latency)\n\
           local e = summary.errors\n\
           print(string.format('{{\"requests\":%d,\"seconds\":%.4f,\"errors\":%d,\"p50Us\":%d,\"p99Us\":%d}}', summary.requests,\n\
             summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))\n\
         end\n"
    )
}

/// One process, which ends when it is killed.
fn nginx_conf(pod: &Host, folder: &str) -> String {
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 100000000;\n\
         upstream pod {{ server {}:{PORT}; keepalive 64; keepalive_requests 100000000; }}\n\
         server {{ listen {PORT}; location / {{ proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection ''; \
         proxy_set_header Host $host; }} }} }}\n",
        pod.addresses[0]
    )
}

/// CPU time in hundredths of a second that the machine has been busy for, in all its processes and interrupts.
fn busy() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    // user, nice, system, (idle, iowait,) irq, softirq
    Ok([0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum())
}

/// How many turns of [`spin`] take a microsecond.
fn calibrate() -> u64 {
    let turns = 20_000_000;
    let fastest = (0..5).map(|_| {
        let started = Instant::now();
        spin(turns);
        started.elapsed().as_micros().max(1)
    });
    turns / u64::try_from(fastest.min().unwrap_or(1)).unwrap_or(u64::MAX)
}

/// Work that cannot be left out.
fn spin(turns: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..turns {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    std::hint::black_box(state);
}

/// Answers each request after so much work, a thread for each connection.
fn serve(work: u64) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            // Whoever breaks a connection off has what it wanted.
            let _ = answer(&stream, work);
        });
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, work: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream);
    let (mut line, mut close) = (Vec::new(), false);
    loop {
        line.clear();
        if requests.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        close |= line.eq_ignore_ascii_case(b"connection: close\r\n");
        if line == b"\r\n" {
            spin(work);
            let connection = if close { "close" } else { "keep-alive" };
            stream.write_all(
                format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: {connection}\r\n\r\nhello\n").as_bytes(),
            )?;
            if close {
                return Ok(());
            }
        }
    }
}
