//! What it takes to bring the kernel's maps in step with a hundred thousand endpoints, and with one change among them: the
//! whole way from objects as a watch hands them over to the kernel's map. Prints one line of JSON for each shape.
//!
//! Run it as root with `cargo xtask bench maps`.

#![expect(clippy::disallowed_types, reason = "a measurement reads the real clock")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use dataplane::{Dataplane as _, Hold, Hooks, Kernel, Limits};
use interceptor_core::{
    Index, ObjectKey, Route, Snapshot,
    frontends::{Heat, Room, claim},
    index::Event,
    inflight::NoSink,
    route::{DataPath, PortRef, RouteKind, Scaling, Target},
    service::{Service, ServicePort, Slice, SliceEndpoint, SlicePort},
};

/// How many endpoints there are in all.
const ENDPOINTS: usize = 100_000;
/// As many as Kubernetes puts into a slice.
const OF_SLICE: usize = 100;
/// How many Services they are spread over.
const SHAPES: [usize; 2] = [1000, 1];
/// How many changes are made one by one.
const CHANGES: usize = 51;

/// A cgroup of the bench's own, in which this process is.
struct Cell {
    home: PathBuf,
    own: PathBuf,
}

fn main() -> io::Result<()> {
    let Some(services) = env::args().nth(1) else {
        // Each in a process of its own, whose memory nothing else has used.
        for services in SHAPES {
            let ended = Command::new(env::current_exe()?).arg(services.to_string()).status()?;
            assert!(ended.success(), "{services} Services: {ended}");
        }
        return Ok(());
    };
    let _cell = Cell::enter()?;
    measure(services.parse().map_err(io::Error::other)?)
}

fn measure(services: usize) -> io::Result<()> {
    let limits = Limits { addresses: 131_072, slots: 4096 };
    let mut kernel = Kernel::open(None, limits).map_err(io::Error::other)?;
    let mut hold = Hold::open(None, Hooks::Auto).map_err(io::Error::other)?;
    settle();
    let before = resident();
    let events: Vec<_> = (0..services).flat_map(|number| objects(number, ENDPOINTS / services)).collect();
    let last = ENDPOINTS / services / OF_SLICE - 1;
    let objects = resident();
    let mut index = Index::new(2, Arc::new(NoSink));
    let (indexed, ()) = timed(|| events.into_iter().for_each(|event| index.apply(event)));
    let (published, snapshot) = timed(|| index.snapshot());
    let (synced, report) = timed(|| kernel.sync(&mut snapshot.upstreams()).map_err(io::Error::other));
    let report = report?;
    assert_eq!((report.added, report.left_out.len()), (ENDPOINTS, 0));
    let (led, _) = timed(|| hold.sync(&claimed(&snapshot, &BTreeMap::new())));
    drop(snapshot);
    settle();
    let grown = [objects.saturating_sub(before), resident().saturating_sub(objects)].map(mebibytes);
    let one = changes(|at| {
        // A pod has gone and another has come.
        index.apply(Event::Slice(slice(services - 1, last, ENDPOINTS + at)));
        let snapshot = index.snapshot();
        let report = kernel.sync(&mut snapshot.upstreams()).unwrap();
        assert_eq!((report.added, report.removed), if at == 0 { (OF_SLICE, OF_SLICE) } else { (1, 1) });
    });
    let snapshot = index.snapshot();
    let warm = snapshot.upstreams().next().unwrap().id;
    let cold = changes(|at| {
        let heat = if at % 2 == 0 { Heat::Cold } else { Heat::Warm };
        hold.sync(&claimed(&snapshot, &[(warm, heat)].into())).unwrap();
    });
    let (repaired, _) = timed(|| kernel.repair());
    writeln!(
        io::stdout(),
        "{{\"services\":{services},\"endpoints\":{ENDPOINTS},\"indexMs\":{:.1},\"snapshotMs\":{:.1},\"mapsMs\":{:.1},\"holdMs\":{:.1},\
         \"objectsMiB\":{:.1},\"residentMiB\":{:.1},\"endpointMs\":{:.2},\"endpointWorstMs\":{:.2},\"coldMs\":{:.2},\"coldWorstMs\":{:.2},\"repairMs\":{:.1}}}",
        millis(indexed),
        millis(published),
        millis(synced),
        millis(led),
        grown[0],
        grown[1],
        millis(one.0),
        millis(one.1),
        millis(cold.0),
        millis(cold.1),
        millis(repaired),
    )
}

/// What the hold's maps should say.
fn claimed(
    snapshot: &Snapshot,
    heat: &BTreeMap<interceptor_core::UpstreamId, Heat>,
) -> interceptor_core::frontends::Table {
    let upstreams = snapshot.upstreams().map(AsRef::as_ref);
    let heat = |id| heat.get(&id).copied().unwrap_or(Heat::Warm);
    claim(upstreams, &[], heat, Room { frontends: 65_536, services: 65_536 }).table
}

/// Median and worst of changes that are made one by one, but for the first.
fn changes(mut change: impl FnMut(usize)) -> (Duration, Duration) {
    let mut times: Vec<_> = (0..=CHANGES).map(|at| timed(|| change(at)).0).skip(1).collect();
    times.sort_unstable();
    (times[CHANGES / 2], times[CHANGES - 1])
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let result = work();
    (began.elapsed(), result)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What loaders have freed is given back a second and a half later.
fn settle() {
    let until = Instant::now() + Duration::from_secs(2);
    while let Some(rest) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(rest);
    }
}

/// Pages of this process's memory that are in use.
fn resident() -> u32 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse().unwrap()
}

fn mebibytes(pages: u32) -> f64 {
    f64::from(pages) / 256.0
}

/// A Service with its route and its slices.
fn objects(number: usize, endpoints: usize) -> Vec<Event> {
    let slices =
        (0..endpoints / OF_SLICE).map(|at| Event::Slice(slice(number, at, number * endpoints + at * OF_SLICE)));
    [Event::Service(service(number)), Event::Route(route(number))].into_iter().chain(slices).collect()
}

fn name(number: usize) -> ObjectKey {
    ObjectKey::new("bench", format!("service-{number}"))
}

fn service(number: usize) -> Service {
    let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, node_port: None };
    Service {
        key: name(number),
        ports: vec![port],
        addresses: vec![address(96 << 16, number)],
        reach: interceptor_core::service::Reach::default(),
    }
}

/// A slice of pods from a number on.
fn slice(number: usize, at: usize, first: usize) -> Slice {
    let endpoint = |pod: usize| SliceEndpoint {
        addresses: vec![address(128 << 16, first + pod)],
        ready: true,
        terminating: false,
        pod: Some(format!("service-{number}-{:05}", first + pod).into()),
        uid: Some(format!("00000000-0000-0000-{number:04}-{:012}", first + pod).into()),
        node: Some(format!("node-{}", pod % 50).into()),
    };
    Slice {
        key: ObjectKey::new("bench", format!("service-{number}-{at}")),
        service: name(number),
        ports: vec![SlicePort { name: "http".into(), port: 8080 }],
        endpoints: (0..OF_SLICE).map(endpoint).collect(),
    }
}

/// An address of 10.0.0.0/8.
fn address(above: u32, number: usize) -> IpAddr {
    std::net::Ipv4Addr::from((10 << 24 | above) + u32::try_from(number).unwrap()).into()
}

fn route(number: usize) -> Route {
    Route {
        data_path: DataPath::Direct,
        scaling: Scaling { concurrency: Some(100), ..Scaling::default() },
        ..Route::new(
            RouteKind::InterceptorRoute,
            name(number),
            Target { service: name(number), port: PortRef::Number(80) },
        )
    }
}

// === impl Cell ===

impl Cell {
    fn enter() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let mount = mount.and_then(|line| line.split(' ').nth(1)).expect("cgroup v2 is mounted");
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("this process has a cgroup");
        let home = Path::new(mount).join(own);
        let own = home.join(format!("rouse-maps-{}", process::id()));
        fs::create_dir(&own)?;
        let cell = Self { home, own };
        fs::write(cell.own.join("cgroup.procs"), process::id().to_string())?;
        Ok(cell)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        _ = fs::write(self.home.join("cgroup.procs"), process::id().to_string());
        _ = fs::remove_dir(&self.own);
    }
}
