//! Puts the parts together: starts them in an order in which each finds what it needs, and ends them in reverse.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use runtime::{
    signal::Shutdown,
    task,
    watch::{self, Sources, WatchMetrics},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinHandle},
    time::{Instant, sleep, timeout},
};

use crate::{
    args::RunArgs,
    cgroup::Cgroup,
    cluster::Cluster,
    kubelet::{Kubelet, address::Block, pod::Host},
    manifests::Manifests,
    platform::{InterceptorOptions, Places, Ports, Supervised, admin_objects},
    process::base_env,
    replicas::RUN_VARIABLE,
    request::Requester,
    run_dir::{self, RunDir},
    scaling::{
        autoscaler::Autoscaler,
        client::{self, Dialer},
    },
    slices::{SliceFiles, replace},
    state::StateClient,
    timeline::{Event, Timeline},
    world::World,
};

/// Interceptor and scaler get so long to start.
const START: Duration = Duration::from_secs(15);
/// Pods get so long to end, whatever their own grace.
const END: Duration = Duration::from_secs(5);
/// Batches of manifests that may wait; the watch waits when it is full.
const MAX_BATCHES: usize = 16;

/// A run in progress. [`Run::end`] ends it in order; dropping it kills what is left.
#[derive(Debug)]
pub struct Run {
    /// What can be seen of it.
    pub world: World,
    interceptor: Supervised,
    scaler: Supervised,
    kubelet: Stoppable,
    background: Vec<AbortHandle>,
    dir: RunDir,
    // Removed last: the interceptor is in it.
    _cgroup: Option<Cgroup>,
}

#[derive(Debug)]
struct Stoppable {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// What the process is, as far as its parts need to know.
#[derive(Clone, Debug)]
pub struct Own {
    /// Our own binary.
    pub exe: PathBuf,
    /// Our process id.
    pub pid: u32,
    /// Our environment.
    pub env: BTreeMap<String, String>,
}

// === impl Own ===

impl Own {
    /// Reads it.
    pub fn read() -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("cannot find our own binary")?;
        Ok(Self { exe, pid: std::process::id(), env: base_env(std::env::vars_os()) })
    }

    /// The folder of our binary, where the others lie.
    fn folder(&self) -> &Path {
        self.exe.parent().unwrap_or(Path::new("/"))
    }

    fn binary(&self, name: &str, given: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
        let path = given.cloned().unwrap_or_else(|| self.folder().join(name));
        if !path.is_file() {
            bail!("no binary at {}: build it with `cargo build` or name another with --{name}", path.display());
        }
        Ok(path)
    }

    /// What every child gets; our own folder comes first in `PATH`, so that manifests can name our binaries.
    fn child_env(&self, run: &str) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        let path = env.get("PATH").map_or("/usr/bin:/bin", String::as_str);
        env.insert("PATH".to_owned(), format!("{}:{path}", self.folder().display()));
        env.insert(RUN_VARIABLE.to_owned(), run.to_owned());
        env
    }
}

// === impl Run ===

impl Run {
    /// Starts everything and waits until requests would be served.
    pub async fn start(args: &RunArgs, own: &Own, shutdown: &mut Shutdown) -> anyhow::Result<Self> {
        let mut run = Self::launch(args, own)?;
        let up = tokio::select! {
            up = timeout(START, run.up()) => up.unwrap_or_else(|_late| bail!("not up within {} s", START.as_secs())),
            () = shutdown.requested() => Err(anyhow::anyhow!("interrupted")),
        };
        if let Err(error) = up {
            let error = anyhow::anyhow!("{error:#}{}", run.last_words());
            run.end().await;
            return Err(error);
        }
        let autoscaler = Autoscaler {
            cluster: run.world.cluster.clone(),
            dialer: Dialer::new(Ports::local(run.world.ports.scaler)),
            pods: run.world.pods.clone(),
            sync: args.hpa_sync_period,
            start: Instant::now(),
        };
        run.background.push(task::spawn("autoscalers", autoscaler.run()).abort_handle());
        Ok(run)
    }

    fn launch(args: &RunArgs, own: &Own) -> anyhow::Result<Self> {
        let manifests = args.manifests.canonicalize();
        let manifests = manifests.with_context(|| format!("no folder of manifests at {}", args.manifests.display()))?;
        let dir = RunDir::create(args.keep).context("cannot make a folder for this run")?;
        let ports = ports(args)?;
        let run = format!("{}-{}", own.pid, ports.proxy);
        let cluster = Cluster::new(Timeline::default());
        let cgroup = cgroup(args, own, &cluster);
        let (slices, logs, env) = (dir.slices(), dir.logs(), own.child_env(&run));
        replace(&dir.staging(), &slices.join("interceptor-admin.json"), &admin_objects(ports.admin))
            .context("cannot write the interceptor's EndpointSlice")?;
        let places = Places { manifests: &manifests, slices: &slices, logs: &logs, launcher: &own.exe, env: &env };
        let (interceptor, scaler) = processes(args, own, &places, ports, cgroup.as_ref(), cluster.timeline())?;
        let host = Host { launcher: own.exe.clone(), logs: logs.clone(), env };
        let files = SliceFiles::new(slices, dir.staging());
        let kubelet = Kubelet::new(cluster.clone(), host, Block::claim(own.pid)?, files);
        let world = World {
            cluster,
            pods: kubelet.status(),
            state: StateClient::new(ports.admin),
            requester: Requester::new(Ports::local(ports.proxy)),
            ports,
            run,
            processes: vec![("interceptor", interceptor.health()), ("scaler", scaler.health())],
            logs,
            manifests,
        };
        let (kubelet, background) = (Stoppable::start(kubelet), background(&world));
        Ok(Self { world, interceptor, scaler, kubelet, background, dir, _cgroup: cgroup })
    }

    /// Until interceptor and scaler say that they are ready, as a kubelet would ask them.
    async fn up(&self) -> anyhow::Result<()> {
        loop {
            if let Some(broken) = self.world.broken() {
                bail!(broken);
            }
            let ready = self.world.state.fetch().await.is_ok_and(|state| state.ready);
            if ready && client::is_ready(Ports::local(self.world.ports.scaler)).await {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last lines of the processes' logs.
    pub fn last_words(&self) -> String {
        let tail = |name: &str| {
            let lines = run_dir::tail(&self.dir.logs().join(format!("{name}.log")), 8);
            if lines.is_empty() { String::new() } else { format!("\n--- the end of {name}'s log\n{lines}") }
        };
        [tail("interceptor"), tail("scaler")].concat()
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Ends everything: deciding first, then pods, then what serves requests.
    ///
    /// Not cancel safe: dropping the future kills what is left.
    pub async fn end(self) {
        let Self { world: _, interceptor, scaler, kubelet, background, dir, _cgroup: cgroup } = self;
        background.iter().for_each(AbortHandle::abort);
        kubelet.end().await;
        tokio::join!(interceptor.stop(), scaler.stop());
        drop((cgroup, dir));
    }
}

// === impl Stoppable ===

impl Stoppable {
    fn start(kubelet: Kubelet) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: task::spawn("kubelet", kubelet.run(stopped, END)) }
    }

    async fn end(self) {
        // The receiver is gone only when the kubelet has ended.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

fn processes(
    args: &RunArgs,
    own: &Own,
    places: &Places<'_>,
    ports: Ports,
    cgroup: Option<&Cgroup>,
    timeline: &Timeline,
) -> anyhow::Result<(Supervised, Supervised)> {
    let interceptor = own.binary("interceptor", args.interceptor.as_ref())?;
    let scaler = own.binary("scaler", args.scaler.as_ref())?;
    let options = InterceptorOptions {
        dataplane: args.dataplane.clone(),
        workers: args.workers,
        cgroup: cgroup.map(|cgroup| cgroup.path().to_owned()),
    };
    // With --once a process that ends is a failure, not something to get over.
    let start = |name, launch| {
        let started = Supervised::start(name, launch, !args.once, timeline.clone());
        started.with_context(|| format!("cannot start the {name}"))
    };
    let interceptor = start("interceptor", places.interceptor(&interceptor, ports, &options))?;
    Ok((interceptor, start("scaler", places.scaler(&scaler, ports))?))
}

fn ports(args: &RunArgs) -> anyhow::Result<Ports> {
    let wanted = Ports {
        proxy: args.proxy_port,
        admin: args.admin_port,
        metrics: 0,
        scaler: args.scaler_port,
        scaler_metrics: 0,
    };
    Ports::choose(wanted).context("cannot find free ports")
}

/// A cgroup for the interceptor, unless nothing is to be counted. The interceptor itself says what it misses.
fn cgroup(args: &RunArgs, own: &Own, cluster: &Cluster) -> Option<Cgroup> {
    if args.dataplane.as_deref() == Some("none") {
        return None;
    }
    match Cgroup::create(own.pid) {
        Ok(cgroup) => Some(cgroup),
        Err(error) => {
            let message = format!("{:#}", anyhow::Error::new(error));
            cluster.timeline().add(Event::Problem { object: "cgroup".to_owned(), message });
            None
        }
    }
}

/// What reads manifests and keeps logs short.
fn background(world: &World) -> Vec<AbortHandle> {
    let (batches, received) = mpsc::channel(MAX_BATCHES);
    let (cluster, folder) = (world.cluster.clone(), world.manifests.clone());
    let read = async move {
        if let Err(error) = watch::run(Sources::dir(folder), WatchMetrics::default(), batches).await {
            cluster.problem("manifests", Some(format!("{:#}", anyhow::Error::new(error))));
        }
    };
    let manifests = Manifests::new(world.cluster.clone());
    vec![
        task::spawn("watch", read).abort_handle(),
        task::spawn("manifests", manifests.run(received)).abort_handle(),
        task::spawn("rotate", run_dir::rotate(world.logs.clone())).abort_handle(),
    ]
}
