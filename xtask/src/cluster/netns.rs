//! Network namespaces: a switch in the control plane's, a cable from it to every node's, and no way out of any of them.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cluster::place::{Machine, Place},
    process,
};

/// Addresses of Services, of both families; those that ask for none in particular have one of the first.
pub(crate) const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// Addresses of pods.
pub(crate) const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
/// Address of the cluster's name server.
pub(crate) const DNS: &str = "10.96.0.10";

/// Addresses of one node's pods.
pub(crate) fn pods_of(node: u8) -> [String; 2] {
    [format!("10.244.{node}.0/24"), format!("fd00:244:0:{node}::/64")]
}

/// Makes the namespaces of a control plane and its nodes, and joins them. Nothing is made in the machine's own.
pub(crate) fn make(place: &Place, nodes: u8) -> Result<()> {
    let control_plane = Machine::ControlPlane;
    let mut all = String::new();
    // Writing to a String cannot fail.
    for machine in std::iter::once(control_plane).chain((1..=nodes).map(Machine::Node)) {
        let _ = writeln!(all, "netns add {}", place.machine(machine));
    }
    batch(None, &all)?;
    let mut here = String::from("link set lo up\nlink add sw type bridge\n");
    joined(&mut here, "sw", control_plane);
    for node in 1..=nodes {
        let machine = Machine::Node(node);
        let _ = writeln!(here, "link add p{node} type veth peer name lan0 netns {}", place.machine(machine));
        let _ = writeln!(here, "link set p{node} master sw up");
        lead(&mut here, &pods_of(node), machine);
    }
    if nodes > 0 {
        // The control plane has no kube-proxy; whoever runs beside it reaches Services through the first node's.
        lead(&mut here, &SERVICES, Machine::Node(1));
    }
    batch(Some(&place.machine(control_plane)), &here)?;
    for node in 1..=nodes {
        let machine = Machine::Node(node);
        let mut there = String::from("link set lo up\n");
        joined(&mut there, "lan0", machine);
        for (services, address) in SERVICES.iter().zip(machine.addresses()) {
            let _ = writeln!(there, "route add {services} dev lan0 src {address}");
        }
        for other in (1..=nodes).filter(|other| *other != node) {
            lead(&mut there, &pods_of(other), Machine::Node(other));
        }
        batch(Some(&place.machine(machine)), &there)?;
    }
    Ok(())
}

/// Lines that give a machine's addresses to its device on the switch.
fn joined(lines: &mut String, device: &str, machine: Machine) {
    let [v4, v6] = machine.addresses();
    // Nobody else has them: to wait until that is certain takes seconds.
    let _ = writeln!(lines, "addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up");
}

/// Lines that lead to networks behind a machine.
fn lead(lines: &mut String, networks: &[impl std::fmt::Display; 2], machine: Machine) {
    for (network, address) in networks.iter().zip(machine.addresses()) {
        let _ = writeln!(lines, "route add {network} via {address}");
    }
}

/// Several commands of `ip`, one a line, in a namespace or in the machine's own.
fn batch(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    if let Some(netns) = netns {
        ip.args(["-netns", netns]);
    }
    let mut child = ip.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|error| anyhow::anyhow!("cannot start ip: {error}"))?;
    child.stdin.take().context("standard input is piped")?.write_all(lines.as_bytes()).context("cannot write to ip")?;
    let mut words = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().context("standard error is piped")?, &mut words)?;
    if !child.wait()?.success() {
        bail!("`ip` failed in network namespace {}: {}", netns.unwrap_or("of the machine"), words.trim());
    }
    Ok(())
}

/// Removes one that has no process left.
pub(crate) fn delete(netns: &Path) -> Result<()> {
    let name = netns.file_name().context("a network namespace has a name")?;
    process::output(Command::new("ip").args(["netns", "delete"]).arg(name)).map(drop)
}

/// A command in a machine's network namespace, and in the machine's own of everything else.
pub(crate) fn enter(place: &Place, machine: Machine) -> Command {
    let mut netns = std::ffi::OsString::from("--net=");
    netns.push(place.netns(machine));
    let mut command = Command::new("nsenter");
    command.arg(netns).arg("--");
    command
}

/// A running process, as far as finding it concerns us.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its id, as this machine counts.
    pub(crate) pid: i32,
    /// The name of its program, cut to 15 bytes by the kernel.
    pub(crate) name: String,
    /// Its ids from the outermost to the innermost namespace.
    ids: Vec<i32>,
}

impl Process {
    /// Whether it is the first of a machine: all others of the machine end with it.
    pub(crate) fn is_first(&self) -> bool {
        self.ids.len() > 1 && self.ids.last() == Some(&1)
    }
}

impl Place {
    /// The first process of a machine: all others of it end with that one.
    pub(crate) fn first_process(&self, machine: Machine) -> Result<i32> {
        let all = processes(&self.netns(machine));
        let first = all.iter().find(|process| process.is_first());
        first.map(|process| process.pid).with_context(|| format!("{machine} is not running"))
    }

    /// Process ids, as this machine counts, of a machine's programs of this name.
    pub(crate) fn pids(&self, machine: Machine, name: &str) -> Vec<i32> {
        let all = processes(&self.netns(machine));
        all.into_iter().filter(|process| process.name == name).map(|process| process.pid).collect()
    }
}

/// The processes that live in a network namespace.
pub(crate) fn processes(netns: &Path) -> Vec<Process> {
    let Ok(wanted) = fs::metadata(netns) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let lives_there = |pid: &i32| {
        let theirs = fs::metadata(format!("/proc/{pid}/ns/net"));
        theirs.is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (wanted.dev(), wanted.ino()))
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(lives_there).filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let ids = field("NSpid:")?.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    Some(Process { pid, name: field("Name:")?.to_owned(), ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_in_its_own_network_namespace() {
        let here = processes(Path::new("/proc/self/ns/net"));
        let this = i32::try_from(std::process::id()).unwrap();
        assert!(here.iter().any(|process| process.pid == this));
        assert!(processes(Path::new("/nonexistent")).is_empty());
    }
}
