//! How long a folder of 10,000 routes takes to be read, and how soon one more is in effect. Prints one line of JSON.
//!
//! Run it with `cargo run --profile quick-release --package runtime --example load`.

#![expect(clippy::disallowed_types, reason = "a measurement reads the real clock")]

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use interceptor_core::{Index, ObjectKey, inflight::NoSink};
use runtime::{
    task,
    watch::{self, Sources, WatchEvent, WatchMetrics},
};
use tokio::sync::mpsc;

const SIZES: [usize; 2] = [10, 10_000];
const PER_FILE: usize = 100;
const CHANGES: usize = 101;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    for size in SIZES {
        measure(size).await?;
    }
    Ok(())
}

async fn measure(size: usize) -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    for first in (0..size).step_by(PER_FILE) {
        let text: String = (first..size.min(first + PER_FILE)).map(route).collect();
        fs::write(folder.path().join(format!("routes-{first}.yaml")), text)?;
    }
    let before = used(Path::new("/proc/self/statm"))?;
    let started = Instant::now();
    let (tx, mut events) = mpsc::channel(16);
    let sources = Sources::dir(folder.path());
    let _watch = task::spawn("watch", watch::run(sources, WatchMetrics::default(), tx));
    let mut index = Index::new(2, Arc::new(NoSink));
    let mut synced = false;
    while !synced {
        let batch = events.recv().await.unwrap_or_default();
        apply(&mut index, &batch);
        synced = batch.contains(&WatchEvent::Synced);
    }
    let loaded = started.elapsed();
    let bytes = used(Path::new("/proc/self/statm"))?.saturating_sub(before) / size;

    let mut delays = Vec::new();
    let cpu = cpu()?;
    for number in size..size + CHANGES {
        let (hidden, file) = (folder.path().join(".new"), folder.path().join(format!("more-{number}.yaml")));
        fs::write(&hidden, route(number))?;
        let started = Instant::now();
        fs::rename(hidden, file)?;
        let key = ObjectKey::new("bench", format!("route-{number}"));
        while !index.snapshot().routes.contains_key(&key) {
            apply(&mut index, &events.recv().await.unwrap_or_default());
        }
        delays.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let cpu = self::cpu()?.saturating_sub(cpu) / u32::try_from(CHANGES).unwrap_or(1);
    delays.sort_unstable();
    writeln!(
        io::stdout(),
        "{{\"routes\":{size},\"loadedMs\":{},\"residentBytesPerRoute\":{bytes},\"oneMoreUs\":{},\"oneMoreCpuUs\":{}}}",
        loaded.as_millis(),
        delays[CHANGES / 2].as_micros(),
        cpu.as_micros(),
    )
}

fn apply(index: &mut Index, events: &[WatchEvent]) {
    for event in events {
        if let Ok(Some(event)) = watch::core_event(event) {
            index.apply(event);
        }
    }
}

fn route(number: usize) -> String {
    format!(
        "---
apiVersion: http.keda.sh/v1beta1
kind: InterceptorRoute
metadata:
  namespace: bench
  name: route-{number}
spec:
  target:
    service: origin
    port: 80
  rules:
  - hosts:
    - route-{number}.bench.example
  scalingMetric:
    concurrency:
      targetValue: 100
"
    )
}

/// Resident bytes, by pages of 4 KiB.
fn used(statm: &Path) -> io::Result<usize> {
    let text = fs::read_to_string(statm)?;
    Ok(text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4096)
}

/// CPU time of all threads of this process.
fn cpu() -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos))
}
