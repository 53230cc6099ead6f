//! The machine a result belongs to, for the head of the page.

use std::fs;

/// Processor, number of CPUs, kernel.
pub(crate) fn describe() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "CPU part")).unwrap_or("unknown processor");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mhz = field(&cpuinfo, "cpu MHz").map(|mhz| format!(" at {mhz} MHz")).unwrap_or_default();
    format!("{model}{mhz}, {cpus} CPUs, Linux {}, {}", kernel.trim(), std::env::consts::ARCH)
}

/// What else the machine was doing, if enough to blur a measurement.
pub(crate) fn disturbance() -> Option<String> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = load.split_whitespace().next()?.parse().ok()?;
    (load > 0.5).then(|| format!("The machine was not idle when the bench began: load average {load:.1}."))
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim()))
}
