//! `cargo xtask bench routes`: what a route costs: look-up, memory, CPU and delay of one more, among 10 and 10,000.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    bench::{
        cpu, files, machine, manifests,
        peer::{self, Peer},
        probe::{self, Client},
        proxy,
        summary::Spread,
    },
    process,
};

/// How many routes there are before one more comes.
const SIZES: [usize; 2] = [10, 10_000];
/// How long one more route may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between routes whose CPU is measured, so that each is a change of its own.
const PACE: Duration = Duration::from_millis(20);

/// Columns of the table of look-ups, and where the program beside it says them.
const LOOKUP: [(&str, &str); 8] = [
    ("routes", "/routes"),
    ("exact host, ns", "/lookupNs/exactHost"),
    ("wildcard, ns", "/lookupNs/wildcardHost"),
    ("path prefix, ns", "/lookupNs/pathPrefix"),
    ("no route, ns", "/lookupNs/missing"),
    ("allocations", "/allocationsPerLookup"),
    ("one more route in the table, µs", "/oneMoreUs"),
    ("bytes per route", "/bytesPerRoute"),
];

/// Arguments of `bench routes`.
#[derive(Debug, clap::Args)]
pub(crate) struct RoutesArgs {
    /// How many routes are added one by one for each number.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Measure this program instead of building one.
    #[arg(long, value_name = "PATH")]
    interceptor: Option<PathBuf>,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// What was measured with one number of routes.
#[derive(Debug)]
struct Measured {
    routes: usize,
    /// Resident memory at rest, before the first request.
    resident: u64,
    /// From the rename of a manifest to the first answer from its route, in milliseconds.
    delay: Spread,
    /// CPU time of the interceptor for one more route, in milliseconds.
    cpu: f64,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &RoutesArgs) -> Result<()> {
    let RoutesArgs { changes, interceptor, out } = args;
    let program = match interceptor {
        Some(program) => program.clone(),
        None => proxy::build(root, "release")?,
    };
    let out = root.join(out);
    let origin = probe::origin()?;
    let mut measured = Vec::new();
    for routes in SIZES {
        println!("\n── {routes} routes");
        measured.push(measure(&program, &out.join("scratch"), origin, routes, (*changes).max(1))?);
    }
    println!("\n── look-up");
    let lookup = lookup(root)?;
    let page = page(&measured, &lookup);
    let json = format!("{:#}\n", json(&measured, &lookup));
    files::write(&out, [("routes.md", page.clone()), ("routes.json", json)])?;
    println!("\n{page}\nwritten to {}", out.display());
    Ok(())
}

fn measure(program: &Path, scratch: &Path, origin: SocketAddr, routes: usize, changes: usize) -> Result<Measured> {
    let folder = scratch.join(format!("routes-{routes}"));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let sources = folder.join("manifests");
    manifests::write(&sources, origin, false, routes)?;
    let peer = peer::alone(program, &folder, &sources, &manifests::host(routes - 1))?;
    let resident = cpu::resident(peer.pid())?;
    println!("  {:.1} MiB resident", mebibytes(resident));
    let delay = delay(&peer, &sources, routes, changes)?;
    println!("  {:.2} ms until in effect ({:.2}–{:.2})", delay.median, delay.min, delay.max);
    let cpu = cpu_of_one(&peer, &sources, routes + changes, changes)?;
    println!("  {cpu:.3} ms CPU");
    Ok(Measured { routes, resident, delay, cpu })
}

/// Adds routes one by one, each awaited by asking for it all the time.
fn delay(peer: &Peer, sources: &Path, first: usize, changes: usize) -> Result<Spread> {
    let mut client = Client::connect(peer.http1)?;
    let mut delays = Vec::new();
    for number in first..first + changes {
        let host = manifests::host(number);
        let started = Instant::now();
        manifests::put(sources, &format!("more-{number}.yaml"), &manifests::route(number))?;
        let routed = client.until_routed(&host, PATIENCE)?;
        delays.push((routed - started).as_secs_f64() * 1e3);
    }
    Spread::of(delays).context("no route was added")
}

/// Adds routes at a steady pace while nobody asks, and compares with as long a time at rest.
fn cpu_of_one(peer: &Peer, sources: &Path, first: usize, changes: usize) -> Result<f64> {
    let (rest, before) = (Instant::now(), cpu::used_precisely(peer.pid())?);
    pause(PACE * u32::try_from(changes)?);
    let idle = cpu::used_precisely(peer.pid())?.saturating_sub(before).as_secs_f64() / rest.elapsed().as_secs_f64();
    let (busy, before) = (Instant::now(), cpu::used_precisely(peer.pid())?);
    for number in first..first + changes {
        let next = Instant::now() + PACE;
        manifests::put(sources, &format!("more-{number}.yaml"), &manifests::route(number))?;
        pause(next.saturating_duration_since(Instant::now()));
    }
    let used =
        cpu::used_precisely(peer.pid())?.saturating_sub(before).as_secs_f64() - idle * busy.elapsed().as_secs_f64();
    // All of them have to be there, or their cost was not counted.
    let mut client = Client::connect(peer.http1)?;
    for number in first..first + changes {
        client.until_routed(&manifests::host(number), PATIENCE)?;
    }
    Ok(used * 1e3 / f64::from(u32::try_from(changes)?))
}

fn pause(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// Look-up and memory of the table alone, from a program that measures those without sockets: a line of JSON for each
/// number of routes.
fn lookup(root: &Path) -> Result<Vec<Value>> {
    let mut command = process::cargo(root);
    command.args(["run", "--quiet", "--release", "--package", "interceptor-core", "--example", "routes"]);
    let text = process::output(&mut command)?;
    print!("{text}");
    let parse = |line| serde_json::from_str(line).with_context(|| format!("expected a line of JSON, not {line}"));
    text.lines().map(parse).collect()
}

fn page(measured: &[Measured], lookup: &[Value]) -> String {
    let mut page = format!("# Routes bench\n\nMachine: {}.\n\n", machine::describe());
    page.push_str("| routes | resident memory at rest | one more route: until in effect | one more route: CPU |\n");
    page.push_str("|---|---|---|---|\n");
    for Measured { routes, resident, delay: Spread { median, min, max }, cpu } in measured {
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| {routes} | {:.1} MiB | {median:.2} ms ({min:.2}–{max:.2}) | {cpu:.3} ms |",
            mebibytes(*resident)
        );
    }
    page.push_str(
        "\nFrom the rename of its manifest into the watched folder to the first answer; CPU of the whole process.\n",
    );
    page.push_str("The table alone:\n\n");
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    page.push_str(&row(LOOKUP.iter().map(|(title, _)| (*title).to_owned()).collect()));
    page.push_str(&row(vec!["---".to_owned(); LOOKUP.len()]));
    for one in lookup {
        let cell = |place: &str| one.pointer(place).map_or_else(|| "?".to_owned(), Value::to_string);
        page.push_str(&row(LOOKUP.iter().map(|(_, place)| cell(place)).collect()));
    }
    page
}

fn json(measured: &[Measured], lookup: &[Value]) -> Value {
    let sizes = measured.iter().map(|one| {
        let Measured { routes, resident, delay, cpu } = one;
        json!({
            "routes": routes,
            "residentBytes": resident,
            "delayMs": { "median": delay.median, "min": delay.min, "max": delay.max },
            "cpuMs": cpu,
        })
    });
    json!({ "machine": machine::describe(), "sizes": sizes.collect::<Value>(), "lookup": lookup })
}

#[expect(clippy::cast_precision_loss, reason = "memory of one process")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
