//! What the kernel knows about the process, read from /proc at each scrape, under the names that Prometheus client
//! libraries use. A file that cannot be read leaves its metrics out.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Ticks a second in /proc: fixed by the kernel's ABI on every architecture we run on.
const USER_HZ: f64 = 100.0;

/// Reads /proc/self.
#[derive(Debug)]
pub(super) struct Process;

/// What of /proc/self/stat is shown.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    /// Since boot.
    start_seconds: f64,
}

// === impl Process ===

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stat = read("/proc/self/stat").as_deref().and_then(parse_stat);
        let boot = read("/proc/stat").as_deref().and_then(|text| field(text, "btime "));
        let status = read("/proc/self/status").unwrap_or_default();
        if let Some(Stat { cpu_seconds, start_seconds }) = stat {
            let help = "Total user and system CPU time spent in seconds";
            add(&mut encoder, "process_cpu_seconds", help, &ConstCounter::new(cpu_seconds))?;
            if let Some(boot) = boot {
                let help = "Start time of the process since unix epoch in seconds";
                gauge(&mut encoder, "process_start_time_seconds", help, boot + start_seconds)?;
            }
        }
        if let Some(kib) = field(&status, "VmRSS:") {
            gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory size in bytes", kib * 1024.0)?;
        }
        if let Some(kib) = field(&status, "VmSize:") {
            gauge(&mut encoder, "process_virtual_memory_bytes", "Virtual memory size in bytes", kib * 1024.0)?;
        }
        if let Some(open) = open_descriptors() {
            gauge(&mut encoder, "process_open_fds", "Number of open file descriptors", open)?;
        }
        if let Some(limit) = read("/proc/self/limits").as_deref().and_then(|text| field(text, "Max open files")) {
            gauge(&mut encoder, "process_max_fds", "Maximum number of open file descriptors", limit)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), std::fmt::Error> {
    add(encoder, name, help, &ConstGauge::new(value))
}

fn add(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    // The full stop is what the registry adds to every other help text.
    metric.encode(encoder.encode_descriptor(name, &format!("{help}."), None, metric.metric_type())?)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[expect(clippy::cast_precision_loss, reason = "a count of descriptors is far below 2^52")]
fn open_descriptors() -> Option<f64> {
    // One of them is the directory that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

/// The first number after a line's title.
fn field(text: &str, title: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(title))?.split_whitespace().next()?.parse().ok()
}

/// See `proc_pid_stat(5)`. The second field, the command's name, may hold anything, so fields are counted after its end.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let start: f64 = fields.nth(6)?.parse().ok()?;
    Some(Stat { cpu_seconds: (user + system) / USER_HZ, start_seconds: start / USER_HZ })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let text = "42 (a ) b) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 1234 1 1 1";
        assert_eq!(parse_stat(text), Some(Stat { cpu_seconds: 2.0, start_seconds: 12.34 }));
    }

    #[test]
    fn an_unlimited_or_missing_value_is_left_out() {
        assert_eq!(field("Max open files            unlimited            files", "Max open files"), None);
        assert_eq!(field("Max open files            1024                 4096", "Max open files"), Some(1024.0));
        assert_eq!(field("", "VmRSS:"), None);
    }
}
