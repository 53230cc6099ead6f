//! The processes of `bench proxy`: the origin and each proxy, started on ports of their own with configurations of
//! their own, never the machine's services. One processor for proxies, another for the rest.

mod haproxy;
mod interceptor;
mod nginx;

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench::case::Case,
    process::{self, Running},
};

/// How long a proxy may take to accept and route; 10,000 routes are read from files meanwhile.
const START: Duration = Duration::from_mins(1);

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Debian's nginx.
    Nginx,
    /// Debian's HAProxy.
    Haproxy,
    /// Ours.
    Interceptor,
}

/// A proxy that takes part, by the name it has in the table.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// Name in the table.
    pub(crate) name: String,
    /// Which proxy.
    pub(crate) kind: Kind,
    /// The program.
    pub(crate) program: PathBuf,
}

/// A server that runs, ready for load.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Name in the table, or `origin`.
    pub(crate) name: String,
    /// Where it serves HTTP/1.1.
    pub(crate) http1: SocketAddr,
    /// Where it serves cleartext HTTP/2.
    pub(crate) http2: SocketAddr,
    process: Running,
}

impl Peer {
    /// The process whose CPU time counts.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// The processors of proxies and of the rest. One alone if the machine has no more: then only CPU time tells.
fn processor(proxy: bool) -> &'static str {
    let several = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    if proxy && several { "1" } else { "0" }
}

/// A command that is held to the processor of proxies, or to that of load and origin.
pub(crate) fn pinned(program: &Path, proxy: bool) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", processor(proxy)]).arg(program);
    command
}

/// Starts the origin.
pub(crate) fn origin(nginx: &Path, folder: &Path) -> Result<Peer> {
    let folder = folder.join("origin");
    let (http1, http2) = (free_port()?, free_port()?);
    let config = nginx::origin(&folder, http1, http2)?;
    let mut process = start(nginx::command(nginx, &folder, &config, false), &folder)?;
    await_answer(&mut process, &folder, http1, "origin.bench.example")?;
    Ok(Peer { name: "origin".to_owned(), http1, http2, process })
}

/// Starts one contender for a case.
pub(crate) fn proxy(contender: &Contender, case: &Case, origin: &Peer, folder: &Path) -> Result<Peer> {
    let Contender { name, kind, program } = contender;
    let folder = folder.join(case.name).join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let http1 = free_port()?;
    let http2 = if *kind == Kind::Interceptor { http1 } else { free_port()? };
    let command = match kind {
        Kind::Nginx => {
            let config = nginx::proxy(&folder, case, http1, http2, origin)?;
            nginx::command(program, &folder, &config, true)
        }
        Kind::Haproxy => haproxy::command(program, &folder, case, http1, http2, origin)?,
        Kind::Interceptor => interceptor::command(program, &folder, case, http1, origin)?,
    };
    let mut process = start(command, &folder)?;
    await_answer(&mut process, &folder, http1, &crate::bench::manifests::host(case.routes - 1))
        .with_context(|| format!("{name} does not serve"))?;
    Ok(Peer { name: name.clone(), http1, http2, process })
}

/// Starts an interceptor on a folder of manifests that is already there, and waits until it serves this host.
pub(crate) fn alone(program: &Path, folder: &Path, sources: &Path, host: &str) -> Result<Peer> {
    let address = free_port()?;
    let mut process = start(interceptor::serving(pinned(program, true), sources, address)?, folder)?;
    await_answer(&mut process, folder, address, host).context("the interceptor does not serve")?;
    Ok(Peer { name: "interceptor".to_owned(), http1: address, http2: address, process })
}

fn start(mut command: Command, folder: &Path) -> Result<Running> {
    let log = folder.join("log");
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file).stdin(std::process::Stdio::null());
    Running::start(&mut command)
}

/// Waits until a request to this host is answered with 200; an error quotes the end of the process's log.
fn await_answer(process: &mut Running, folder: &Path, address: SocketAddr, host: &str) -> Result<()> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline && !process.has_ended() {
        if status_of(address, host) == Some(200) {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    bail!("no 200 from {address} for {host}; its log ends: {}", lines[lines.len().saturating_sub(5)..].join(" | "))
}

/// Status of one small request, if there was an answer.
pub(crate) fn status_of(address: SocketAddr, host: &str) -> Option<u16> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    write!(stream, "GET /small HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
}

/// A port that nobody listens on at this moment.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

/// Writes a configuration file and returns its path.
fn configuration(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The contenders that this machine has: nginx and HAProxy as Debian packages.
pub(crate) fn debian(kind: Kind) -> Result<Contender> {
    let name = if kind == Kind::Nginx { "nginx" } else { "haproxy" };
    let program = process::which(name).with_context(|| format!("{name} is not installed"))?;
    Ok(Contender { name: name.to_owned(), kind, program })
}
