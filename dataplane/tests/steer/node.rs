//! A tree of cgroups as a kubelet makes it, with pods that connect, and interceptors that listen on loopback.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use dataplane::steer::{Ports, Steer};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A process is in one cgroup at a time.
static IN_A_POD: Mutex<()> = Mutex::new(());

/// Where clients of the Service connect, and nobody listens.
pub(crate) const SERVICE: &str = "127.0.10.1:80";
pub(crate) const SERVICE6: &str = "[::1]:1";

pub(crate) struct Node(PathBuf);

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = home().join(format!("rouse-steer-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed)));
        fs::create_dir_all(root.join("kubepods")).unwrap();
        Self(root)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.0.clone()
    }

    /// The cgroup above all pods.
    pub(crate) fn kubepods(&self) -> PathBuf {
        self.0.join("kubepods")
    }

    /// A pod's cgroup.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        let folder = self.kubepods().join(format!("besteffort/pod{uid}"));
        fs::create_dir_all(folder.join("container")).unwrap();
        folder
    }

    /// Does something as a process in a pod's container would.
    pub(crate) fn within<T>(&self, uid: &str, act: impl FnOnce() -> T) -> T {
        at(&self.pod(uid).join("container"), act)
    }

    /// Does something as a process of the node would that is in no pod.
    pub(crate) fn outside<T>(&self, act: impl FnOnce() -> T) -> T {
        at(&self.0, act)
    }

    /// A pod's connection to an address.
    pub(crate) fn connect(&self, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.within("a", || TcpStream::connect(to))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Waits until a pod's connection is refused, as by whoever is at the address itself: links that were pinned go a moment after
/// their pins.
pub(crate) fn refused_at_last(node: &Node, to: &str) {
    let late = Instant::now() + Duration::from_secs(30);
    while node.connect(to).is_ok() {
        assert!(Instant::now() < late, "still steered after 30 s: {to}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Interceptors at these addresses, which have one port.
pub(crate) fn interceptors<const N: usize>(addresses: [&str; N]) -> (u16, [TcpListener; N]) {
    // Whether the port is free at all of them shows when they listen.
    loop {
        let first = TcpListener::bind((addresses[0], 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        drop(first);
        let listeners: Result<Vec<_>, _> = addresses.iter().map(|ip| TcpListener::bind((*ip, port))).collect();
        if let Ok(listeners) = listeners {
            return (port, listeners.try_into().unwrap());
        }
    }
}

/// Steering on the cgroup above pods, of both of the Service's addresses to a port of interceptors.
pub(crate) fn steer(node: &Node, port: u16, addresses: &[&str]) -> Steer {
    let mut steer = Steer::open(None).unwrap();
    lead(&mut steer, port, addresses);
    assert_eq!(steer.attach(&[node.kubepods()]), []);
    steer
}

/// Leads to these interceptors.
pub(crate) fn lead(steer: &mut Steer, port: u16, addresses: &[&str]) {
    steer.sync(&ports(&[(SERVICE, port), (SERVICE6, port)])).unwrap();
    let addresses = addresses.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
    assert_eq!(steer.interceptors(&addresses).unwrap().left_out, 0);
    steer.beat().unwrap();
}

/// Services at these addresses, and the ports of interceptors that stand for them.
pub(crate) fn ports(services: &[(&str, u16)]) -> Ports {
    let mut ports = Ports::default();
    for (index, (address, port)) in (0..).zip(services) {
        ports.services.insert(index, (*port).try_into().unwrap());
        ports.frontends.insert(address.parse().unwrap(), index);
    }
    ports
}

fn at<T>(cgroup: &Path, act: impl FnOnce() -> T) -> T {
    let home = home();
    let _alone = IN_A_POD.lock();
    enter(cgroup);
    let done = act();
    enter(home);
    done
}

/// Where this process is when it is in no pod: whoever asks first is before all that go into one.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(own)
}

fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    _ = fs::remove_dir(folder);
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
