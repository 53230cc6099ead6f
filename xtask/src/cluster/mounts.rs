//! What a machine of the cluster sees of the file system. Runs in a mount namespace of its own, so that none of it is seen
//! outside and all of it goes with the machine.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cluster::machine::{HERE, Plan};

/// Kernel settings of the whole machine that kubelet would change: it gets scratch files in their place.
const TUNABLES: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
const NOTHING: Option<&str> = None;

/// Lays out the mounts of the machine that this process is the first of.
pub(crate) fn lay_out(plan: &Plan) -> Result<()> {
    // Names of other clusters' network namespaces would keep those alive.
    let _ = umount2("/run/netns", MntFlags::MNT_DETACH);
    let resolv = fs::canonicalize("/etc/resolv.conf").ok();
    // Held open: what is mounted next may hide the paths.
    let binds: Vec<(OwnedFd, PathBuf)> = plan.binds.iter().map(open).collect::<Result<_>>()?;
    if plan.node {
        sys()?;
        for scratch in ["/var/lib", "/var/log"] {
            special("tmpfs", scratch)?;
        }
    }
    special("tmpfs", "/run")?;
    for (from, to) in &binds {
        bind(&PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd())), to)?;
    }
    special("proc", "/proc")?;
    for (path, folder) in &plan.state {
        let from = Path::new(HERE).join("state").join(folder);
        fs::create_dir_all(&from).with_context(|| format!("cannot make {}", from.display()))?;
        bind(&from, Path::new(path))?;
    }
    if plan.node {
        tunables()?;
        resolver(resolv.as_deref())?;
        forward()?;
    }
    mount(NOTHING, "/", NOTHING, MsFlags::MS_SHARED | MsFlags::MS_REC, NOTHING).context("cannot share mounts with pods")
}

fn open((from, to): &(PathBuf, String)) -> Result<(OwnedFd, PathBuf)> {
    let file = fs::File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    Ok((file.into(), Path::new(HERE).join(to)))
}

/// A `/sys` that shows this network namespace, with the machine's cgroups and a folder for pinned eBPF objects.
fn sys() -> Result<()> {
    let cgroups = Path::new("/run/rouse-cgroup");
    special("tmpfs", "/run")?;
    bind_all(Path::new("/sys/fs/cgroup"), cgroups)?;
    special("sysfs", "/sys")?;
    bind_all(cgroups, Path::new("/sys/fs/cgroup"))?;
    // Only programs of nodes that use eBPF need it.
    let _ = special("bpf", "/sys/fs/bpf");
    Ok(())
}

fn tunables() -> Result<()> {
    for name in TUNABLES {
        let real = Path::new("/proc/sys").join(name);
        let Ok(value) = fs::read(&real) else { continue };
        let scratch = Path::new("/run/sysctl").join(name.replace('/', "."));
        fs::create_dir_all("/run/sysctl")?;
        fs::write(&scratch, value).with_context(|| format!("cannot write {}", scratch.display()))?;
        mount(Some(&scratch), &real, NOTHING, MsFlags::MS_BIND, NOTHING)
            .with_context(|| format!("cannot mount over {}", real.display()))?;
    }
    Ok(())
}

/// No name server but the cluster's, which kubelet hands to pods.
fn resolver(file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let empty = Path::new("/run/resolv.conf");
    fs::write(empty, "# none\n")?;
    if !file.exists() {
        // It lay below /run.
        fs::create_dir_all(file.parent().unwrap_or_else(|| Path::new("/")))?;
        fs::write(file, "")?;
    }
    mount(Some(empty), file, NOTHING, MsFlags::MS_BIND, NOTHING)
        .with_context(|| format!("cannot mount over {}", file.display()))
}

/// A node is a router between its pods and the switch.
fn forward() -> Result<()> {
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(switch), "1").context("cannot turn on forwarding")?;
    }
    Ok(())
}

fn special(kind: &str, to: &str) -> Result<()> {
    mount(Some(kind), to, Some(kind), MsFlags::empty(), NOTHING).with_context(|| format!("cannot mount {kind} on {to}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND, NOTHING)
        .with_context(|| format!("cannot mount {} on {}", from.display(), to.display()))
}

fn bind_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
        .with_context(|| format!("cannot mount {} on {}", from.display(), to.display()))
}
