//! A node of the test's own: a tree of cgroups as a kubelet makes it, and pods in it.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use aya::programs::{links::PinnedLink, loaded_links};
use dataplane::{
    Limits,
    count::{Count, CountConfig, Origins, Refused},
};
use interceptor_common::Served;
use interceptor_core::{
    Endpoints, ObjectKey, Upstream, UpstreamId,
    direct::{Direct, Life, Pod},
    route::{PortRef, Target},
    upstream::{Encryption, Protocol, Resolution},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Listeners are made in their pod's cgroup, and a process is in one at a time.
static IN_A_POD: Mutex<()> = Mutex::new(());

/// A tree of cgroups, and what counts in it.
pub(crate) struct Node {
    tree: Tree,
    config: CountConfig,
    pub(crate) count: Count,
    pods: Vec<(UpstreamId, SocketAddr, Pod)>,
}

/// Takes the tree away when everything in it has ended.
struct Tree(PathBuf);

/// A program that runs in a pod.
pub(crate) struct Program(Child);

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = own().join(format!("rouse-count-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed)));
        fs::create_dir_all(root.join("kubepods/besteffort")).unwrap();
        let tree = Tree(root.clone());
        let config = CountConfig {
            node: "here".to_owned(),
            cgroup_root: Some(root),
            bpffs: None,
            limits: Some(Limits { addresses: 1024, slots: 64 }),
        };
        Self { tree, count: open(config.clone()), config, pods: Vec::new() }
    }

    /// One whose counters are pinned.
    pub(crate) fn pinned(bpffs: &Path) -> Self {
        let mut node = Self::new();
        node.config.bpffs = Some(bpffs.to_owned());
        node.count = open(node.config.clone());
        node
    }

    /// What the kernel has is all that stays, as when the process ends in whatever way. One that counts nothing is in its place.
    pub(crate) fn end(&mut self) {
        self.count = open(CountConfig { bpffs: None, ..self.config.clone() });
    }

    /// The same; then another counts.
    pub(crate) fn replace(&mut self) {
        self.end();
        self.count = open(self.config.clone());
        self.sync();
        self.count.follow().unwrap();
    }

    /// The folder of a pod, made if it is not there.
    pub(crate) fn folder(&self, uid: &str) -> PathBuf {
        let folder = self.tree.0.join("kubepods/besteffort").join(format!("pod{uid}"));
        fs::create_dir_all(folder.join("container")).unwrap();
        folder
    }

    /// A listener that belongs to a pod, which upstream `id` lists. Counting for it begins before it is returned.
    pub(crate) fn listen(&mut self, id: u32, uid: &str, addr: &str) -> TcpListener {
        let listener = self.socket_of(uid, || TcpListener::bind(addr).unwrap());
        self.list(id, uid, listener.local_addr().unwrap());
        listener
    }

    /// Makes a socket as a process of the pod would.
    pub(crate) fn socket_of<T>(&self, uid: &str, open: impl FnOnce() -> T) -> T {
        // Other tests must not look where this process is while it is elsewhere.
        static HOME: OnceLock<PathBuf> = OnceLock::new();
        let _alone = IN_A_POD.lock();
        let home = HOME.get_or_init(own);
        enter(&self.folder(uid).join("container"));
        let made = open();
        enter(home);
        made
    }

    /// Lists a pod at an address, and counts for it.
    pub(crate) fn list(&mut self, id: u32, uid: &str, addr: SocketAddr) {
        self.folder(uid);
        let pod = Pod { life: Life::Ready, name: None, uid: Some(uid.into()), node: Some("here".into()) };
        self.pods.push((UpstreamId(id), addr, pod));
        self.sync();
        self.count.follow().unwrap();
    }

    /// Where the first pod of an upstream is reached.
    pub(crate) fn addr(&self, id: u32) -> SocketAddr {
        self.pods.iter().find(|(of, ..)| of.0 == id).expect("it was listed").1
    }

    /// Somebody else's programs of the same kind on the cgroups of the same pods, until they are dropped.
    pub(crate) fn foreign(&self) -> Count {
        let mut foreign = open(CountConfig { bpffs: None, ..self.config.clone() });
        let ids: std::collections::BTreeSet<_> = self.pods.iter().map(|(id, ..)| *id).collect();
        let upstreams: Vec<_> = ids.into_iter().map(|id| self.upstream(id)).collect();
        foreign.sync(&mut upstreams.iter()).unwrap();
        foreign.follow().unwrap();
        foreign
    }

    /// Lists it no more, when there is nobody whom that would concern.
    pub(crate) fn forget(&mut self, addr: SocketAddr) {
        self.pods.retain(|(_, at, _)| *at != addr);
    }

    /// Lists it no more.
    pub(crate) fn unlist(&mut self, addr: SocketAddr) {
        self.pods.retain(|(_, at, _)| *at != addr);
        self.sync();
    }

    /// An upstream lists a pod of another node.
    pub(crate) fn list_elsewhere(&mut self, id: u32, addr: SocketAddr) {
        let pod = Pod { life: Life::Ready, name: None, uid: Some("e1".into()), node: Some("there".into()) };
        self.pods.push((UpstreamId(id), addr, pod));
        self.sync();
    }

    /// Removes a pod's cgroup, in which there must be no process, and looks.
    pub(crate) fn remove(&mut self, uid: &str) {
        let folder = self.folder(uid);
        remove(&folder).unwrap();
        self.count.follow().unwrap();
    }

    /// One upstream lists it no more.
    pub(crate) fn unlist_of(&mut self, id: u32, addr: SocketAddr) {
        self.pods.retain(|(of, at, _)| (of.0, *at) != (id, addr));
        self.sync();
    }

    fn sync(&mut self) {
        let mut ids: Vec<_> = self.pods.iter().map(|(id, ..)| *id).collect();
        ids.dedup();
        let upstreams: Vec<_> = ids.into_iter().map(|id| self.upstream(id)).collect();
        let report = self.count.sync(&mut upstreams.iter()).unwrap();
        assert_eq!(report.left_out, []);
    }

    fn upstream(&self, id: UpstreamId) -> Arc<Upstream> {
        let pods = self.pods.iter().filter(|(of, ..)| *of == id).map(|(_, addr, pod)| (*addr, pod.clone())).collect();
        Arc::new(Upstream {
            id,
            target: Target { service: ObjectKey::new("test", format!("s{}", id.0)), port: PortRef::Number(80) },
            resolution: Resolution::Found,
            protocol: Protocol::Http1,
            encryption: Encryption::AsReceived,
            affinity: None,
            endpoints: Endpoints::new(),
            early: [].into(),
            pending: Endpoints::new(),
            probe: None,
            direct: Some(Arc::new(Direct { pods, ..Direct::default() })),
        })
    }

    /// Clients at these addresses are left out, or are this machine.
    pub(crate) fn origins(&mut self, origins: &Origins) {
        assert_eq!(self.count.set_origins(origins).unwrap(), Refused::default());
    }

    /// What was counted for an upstream.
    pub(crate) fn counted(&self, id: u32) -> Served {
        let (_, counters) = self.count.counters();
        counters.into_iter().find(|(of, _)| of.0 == id).map(|(_, served)| served).unwrap_or_default()
    }

    /// Requests that began and that are outstanding.
    pub(crate) fn requests(&self, id: u32) -> (u64, u64) {
        let served = self.counted(id);
        (served.requests(), served.outstanding())
    }

    /// Connections that were opened, closed, and failed.
    pub(crate) fn connections(&self, id: u32) -> (u64, u64, u64) {
        let served = self.counted(id);
        (served.opened, served.closed, served.failed)
    }

    /// Runs a program in a pod that is not listed yet, until it is dropped.
    pub(crate) fn run(&self, uid: &str, command: &str, args: &[&str]) -> Program {
        let procs = self.folder(uid).join("container/cgroup.procs");
        let script = format!("echo $$ > {}; exec {command} \"$@\"", procs.display());
        let child = Command::new("sh").args(["-c", &script, "sh"]).args(args).stdin(Stdio::null()).spawn().unwrap();
        Program(child)
    }

    /// Waits until everything has ended, and asserts that nothing is left over.
    pub(crate) fn settles(&self, id: u32) -> Served {
        eventually("every connection is closed", || {
            let served = self.counted(id);
            served.opened == served.closed && served.drained()
        });
        let served = self.counted(id);
        assert_eq!(served.outstanding(), 0, "{served:?}");
        assert!(served.busy_ns < 1 << 62, "time is not negative: {served:?}");
        served
    }
}

/// A bpffs of the test's own.
pub(crate) struct Bpffs(tempfile::TempDir);

impl Bpffs {
    pub(crate) fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        assert!(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder.path()).status().unwrap().success());
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Names of what is pinned, of links alone.
    pub(crate) fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("rouse/count-1")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut links: Vec<_> = names.filter(|name| name.contains('-')).collect();
        links.sort();
        links
    }

    /// Takes the programs off. Some kernels do it a moment after the last name of a link has gone.
    pub(crate) fn unlink(&self) {
        let mut ids = Vec::new();
        for link in self.links() {
            let link = PinnedLink::from_pin(self.path().join("rouse/count-1").join(link)).unwrap().unpin().unwrap();
            ids.push(link.info().unwrap().id());
        }
        eventually("the programs are off", || loaded_links().all(|link| !ids.contains(&link.unwrap().id())));
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Pins go with it, and with them what they held.
        _ = Command::new("umount").arg(self.0.path()).status();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Members of a tree go from the leaves up, and the last process may still be ending.
        let late = Instant::now() + Duration::from_secs(10);
        while remove(&self.0).is_err() && Instant::now() < late {
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Ends what still runs there, such as children of a program, and removes the folder.
fn remove(folder: &Path) -> io::Result<()> {
    for pid in fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        if let Ok(pid) = pid.parse() {
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Waits for what the kernel or another process does in its own time.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let late = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < late, "not within 30 s: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// A connection, both ends.
pub(crate) fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

fn open(config: CountConfig) -> Count {
    Count::open(config).unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

fn own() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    let root: PathBuf = line.split(' ').nth(4).unwrap().into();
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
    root.join(cgroups.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2 has a line"))
}

fn enter(cgroup: &Path) {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, process::id().to_string()).unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
}
