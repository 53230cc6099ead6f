//! `cargo xtask setup`: puts on this machine what the other commands need, once; says in one line what it cannot.
//! `test`, `demo` and `bench` call it with the part they need.

mod arm64;
mod bpf_linker;
mod debian;
mod elsewhere;
mod kernel;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::kernel::Kernel;

use crate::{
    build_ebpf,
    setup::debian::{Package, Probe},
};

/// A source of Rust's `core` for the BPF target and LLVM for its linker. The version of LLVM is that of `rustc-web`.
const BPF: [Package; 4] = [
    Package::new("rustc-web", Probe::File("/usr/bin/rustc"), "the Rust compiler that knows the eBPF target"),
    Package::new("cargo-web", Probe::File("/usr/bin/cargo"), "its cargo"),
    Package::new("rust-web-src", Probe::File("/usr/lib/rustlib/src/rust/library/core"), "the source of Rust's core"),
    Package::new("llvm-22-dev", Probe::File("/usr/lib/llvm-22/bin/llvm-config"), "LLVM, to build the BPF linker with"),
];

/// Foreign peers and tools that tests and demo use.
const TEST: [Package; 13] = [
    Package::new("curl", Probe::Command("curl"), "an HTTP client for the tests and the demo"),
    Package::new("nghttp2-client", Probe::Command("nghttp"), "an HTTP/2 client for the tests"),
    Package::new("iproute2", Probe::Command("ip"), "network namespaces for the tests"),
    Package::new("nftables", Probe::Command("nft"), "packet filters for the tests"),
    Package::new("redis-server", Probe::Command("redis-server"), "a server and a client for the tests"),
    Package::new("postgresql", Probe::Command("pg_ctlcluster"), "a server and a client for the tests"),
    Package::new("procps", Probe::Command("sysctl"), "settings of network namespaces for the tests"),
    Package::new("util-linux", Probe::Command("setpriv"), "fewer capabilities and other namespaces for the tests"),
    Package::new("openssl", Probe::Command("openssl"), "a TLS server for the tests"),
    Package::new("python3-grpcio", Probe::File("/usr/lib/python3/dist-packages/grpc"), "a gRPC client for the tests"),
    Package::new("python3-h2", Probe::File("/usr/lib/python3/dist-packages/h2"), "another HTTP/2 client for the tests"),
    Package::new(
        "python3-websockets",
        Probe::File("/usr/lib/python3/dist-packages/websockets"),
        "a WebSocket server for the tests",
    ),
    Package::new("procps", Probe::Command("kill"), "signals for the tests and the benches"),
];

/// What libFuzzer is compiled with.
const FUZZ: [Package; 1] = [Package::new("g++", Probe::Command("g++"), "the C++ compiler, for the fuzz targets")];

/// What `bench proxy` compares with and puts load with.
const BENCH: [Package; 5] = [
    Package::new("nginx-light", Probe::Command("nginx"), "a proxy to compare with, and the origin server"),
    Package::new("haproxy", Probe::Command("haproxy"), "a proxy to compare with"),
    Package::new("wrk", Probe::Command("wrk"), "HTTP/1.1 load"),
    Package::new("nghttp2-client", Probe::Command("h2load"), "HTTP/2 load"),
    Package::new("util-linux", Probe::Command("taskset"), "a processor each for proxy and load"),
];

/// What `cluster` and `e2e` need beside Go.
const CLUSTER: [Package; 11] = [
    Package::new("gcc", Probe::Command("gcc"), "the C compiler, for runc and the pause container"),
    Package::new("libc6-dev", Probe::File("/usr/include/stdlib.h"), "the C library, for runc and the pause container"),
    Package::new("libseccomp-dev", Probe::File("/usr/include/seccomp.h"), "system call filters, for runc"),
    Package::new("iproute2", Probe::Command("ip"), "network namespaces of the cluster"),
    Package::new("iptables", Probe::Command("iptables"), "packet filters, for kubelet"),
    Package::new("nftables", Probe::Command("nft"), "packet filters, for kube-proxy"),
    Package::new("openssl", Probe::Command("openssl"), "certificates of the cluster"),
    Package::new("util-linux", Probe::Command("unshare"), "namespaces of the cluster's machines"),
    Package::new("curl", Probe::Command("curl"), "an HTTP client for the scenarios"),
    Package::new("wrk", Probe::Command("wrk"), "HTTP load for the scenarios"),
    Package::new("skopeo", Probe::Command("skopeo"), "a foreign reader of our images"),
];

/// What a virtual machine with another kernel needs.
const KERNELS: [Package; 2] = [
    Package::new("qemu-system-x86", Probe::Command("qemu-system-x86_64"), "virtual machines with other kernels"),
    Package::new("busybox-static", Probe::Command("busybox"), "the first programs of these machines"),
];
/// Shares files with a virtual machine: part of Debian 12's QEMU, a package of its own from 13 on.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

const NO_BPF: &str = "no eBPF object can be built, so the data plane stays at level none";

/// Arguments of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Also install what `cargo xtask bench` needs: nginx, HAProxy, wrk.
    #[arg(long)]
    bench: bool,
}

/// What is still missing after set-up, a line each with how to get it; `None` where nothing is.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    /// Without it there is no eBPF object: data plane level `none`.
    pub(crate) bpf: Option<String>,
    /// Without it some tests cannot run.
    pub(crate) tools: Option<String>,
}

impl Missing {
    /// Those that are missing.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let Self { bpf, tools } = self;
        [bpf, tools].into_iter().flatten().map(String::as_str).collect()
    }
}

/// `cargo xtask setup`.
pub(crate) fn run(root: &Path, args: &SetupArgs) -> Result<()> {
    let SetupArgs { bench } = args;
    let missing = for_test(root);
    if *bench {
        for_bench()?;
    }
    if !missing.lines().is_empty() {
        bail!("this machine still lacks something: see above");
    }
    println!("setup: this machine has everything");
    Ok(())
}

/// Installs what building, testing and the demo need. Says what it could not; nobody stops for it.
pub(crate) fn for_test(root: &Path) -> Missing {
    Missing { bpf: reported(bpf(root), NO_BPF), tools: reported(debian::install(&TEST), "some tests cannot run") }
}

/// Says on one line what did not work out and what follows; the reason alone goes on.
fn reported(result: Result<()>, consequence: &str) -> Option<String> {
    let why = format!("{:#}", result.err()?);
    eprintln!("setup: {consequence}: {why}");
    Some(why)
}

/// Everything programs need for the eBPF object to be built into them. What cannot be had is said, and they do without.
pub(crate) fn with_ebpf(root: &Path, command: &str) {
    if reported(bpf(root), NO_BPF).is_some() {
        return;
    }
    if let Err(error) = build_ebpf::build(root) {
        eprintln!("{command}: the data plane stays at level none: {error:#}");
    }
}

/// Installs what the benches need, without starting the services of the packages.
pub(crate) fn for_bench() -> Result<()> {
    debian::install(&BENCH)
}

/// Installs what the fuzz targets need.
pub(crate) fn for_fuzz() -> Result<()> {
    debian::install(&FUZZ)
}

/// Installs what a cluster needs beside Go.
pub(crate) fn for_cluster() -> Result<()> {
    debian::install(&CLUSTER)
}

/// Installs what building for arm64 takes on another machine; the compiler's sysroot.
pub(crate) fn for_arm64(root: &Path) -> Result<PathBuf> {
    arm64::sysroot(root)
}

/// Installs what runs virtual machines; the program that shares files with them.
pub(crate) fn for_kernels() -> Result<&'static Path> {
    debian::install(&KERNELS)?;
    let virtiofsd = || VIRTIOFSD.map(Path::new).into_iter().find(|path| path.is_file());
    if let Some(path) = virtiofsd() {
        return Ok(path);
    }
    debian::install(&[Package::new("virtiofsd", Probe::File(VIRTIOFSD[1]), "files for virtual machines")])?;
    virtiofsd().context("virtiofsd is installed, but not where Debian puts it")
}

/// A kernel of a Debian release, fetched once.
pub(crate) fn kernel(root: &Path, release: &str) -> Result<Kernel> {
    kernel::fetch(root, release)
}

/// A toolchain for the BPF target: rustup's if it is complete, Debian's otherwise.
fn bpf(root: &Path) -> Result<()> {
    if bpf_linker::rustup_suffices() {
        return Ok(());
    }
    debian::install(&BPF)?;
    bpf_linker::install(root)
}
