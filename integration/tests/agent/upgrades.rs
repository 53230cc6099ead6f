//! One agent after the other, killed in the middle of everything: requests that pods take are counted once each, and what is
//! held stays held.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use integration::{
    eventually,
    net::{Host, Rule},
    soon,
};
use serde_json::json;
use tokio::sync::oneshot;

use crate::{
    clients::{connect, listen},
    count::{self, Bench},
    pins::Bpffs,
};

const DB: &str = "10.96.0.2:80";
/// How many agents there are, one after the other.
const AGENTS: usize = 6;
const KEPT: usize = 4;
const SHORT: usize = 2;

/// Clients that ask one request after the other until they are told to stop.
struct Load {
    clients: Vec<oneshot::Receiver<io::Result<()>>>,
    answered: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl Load {
    fn start(from: &Host, to: SocketAddr) -> Self {
        let (answered, stopped) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let one = |number: usize| {
            let (answered, stopped) = (Arc::clone(&answered), Arc::clone(&stopped));
            from.start(move || {
                let mut stream = open(to)?;
                while !stopped.load(Relaxed) {
                    if number >= KEPT {
                        stream = open(to)?;
                    }
                    ask(&stream)?;
                    answered.fetch_add(1, Relaxed);
                }
                Ok(())
            })
        };
        let clients = (0..KEPT + SHORT).map(one).collect();
        Self { clients, answered, stopped }
    }

    /// Waits until more have been answered: the load goes on.
    async fn goes_on(&self) {
        let before = self.answered.load(Relaxed);
        eventually("requests are answered", async || (self.answered.load(Relaxed) > before + 50).then_some(())).await;
    }

    /// How many were answered; every one that was asked.
    async fn stop(self) -> u64 {
        self.stopped.store(true, Relaxed);
        for client in self.clients {
            soon("a client ends", client).await.unwrap().expect("no request is lost");
        }
        self.answered.load(Relaxed)
    }
}

fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn ask(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if answer.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line == "\r\n" {
            return answer.read_exact(&mut vec![0; length]);
        }
    }
}

/// What is pinned, each with the number of its inode: another link would have another one.
pub(crate) fn pinned(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let deep = entries.flat_map(|entry| {
        let path = entry.path();
        if path.is_dir() { pinned(&path) } else { [(path, entry.ino())].into() }
    });
    deep.collect()
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn nothing_is_lost_or_counted_twice_while_agents_are_killed_and_replaced_under_load() {
    let (mut bench, bpffs) = (Bench::new(), Bpffs::mount());
    let db = bench.net.pod();
    // Who is not held is refused.
    bench.net.rules(&[Rule { frontend: DB.parse().unwrap(), pods: Vec::new() }], "");
    bench.world.direct("db", &["10.96.0.2"], json!({ "scalingMetric": { "concurrency": { "targetValue": 1 } } }));
    let path = format!("ROUSE_BPFFS={}", bpffs.path().display());
    bench.list(true);
    bench.cgroup();
    let mut agent = bench.agent_with(&path).await;
    agent.until("db", "cold").await;
    eventually("the pod is counted", async || (agent.metric("rouse_count_pods").await == 1).then_some(())).await;
    bench.start("exec python3 -m http.server 8080 --protocol HTTP/1.1");
    let pod = SocketAddr::from((bench.pod.addresses[0], 8080));
    eventually("the pod listens", async || bench.client.run(move || TcpStream::connect(pod)).await.ok()).await;
    let before = pinned(bpffs.path());
    let is_link = |path: &PathBuf| path.to_string_lossy().contains(count::UID);
    assert_eq!(before.keys().filter(|path| is_link(path)).count(), 3, "{before:?}");
    let load = Load::start(&bench.client, pod);
    let _db = listen(&db, "db").await;
    for _ in 1..AGENTS {
        load.goes_on().await;
        let mut held = vec![connect(&bench.client, DB)];
        agent.kill().await;
        held.push(connect(&bench.client, DB));
        load.goes_on().await;
        agent = bench.agent_with(&path).await;
        // What one before has held this one knows at the latest once the client has repeated its packet. The rules never know the pod.
        agent.until_held("db", 2).await;
        bench.world.endpoints("db", &[(db.addresses[0], 8080).into()]);
        for held in held {
            let answer = soon("the connection opens", held).await.unwrap().unwrap();
            assert!(answer.line.starts_with("db to "), "{}", answer.line);
        }
        bench.world.endpoints("db", &[]);
        let pods = async || agent.route("db").await["pods"].as_array().map(Vec::len);
        eventually("the pod has gone", async || (pods().await == Some(0)).then_some(())).await;
        agent.until("db", "cold").await;
    }
    load.goes_on().await;
    let mut after = pinned(bpffs.path());
    // Answers to what is held are looked at by another link.
    after.retain(|path, _| before.contains_key(path));
    assert_eq!(after, before, "programs were replaced in their places");
    let answered = load.stop().await;
    count::requests(&agent, answered).await;
    let taken = async || agent.route("web").await["taken"].clone();
    eventually("none is in flight", async || (taken().await["inFlight"] == 0).then_some(())).await;
    let taken = taken().await;
    assert_eq!((&taken["opened"], &taken["failed"]), (&taken["closed"], &json!(0)), "{taken}");
}
