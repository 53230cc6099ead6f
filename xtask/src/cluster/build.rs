//! `cargo xtask cluster build`: builds the cluster's programs from the Go modules in `xtask/cluster/mods`, once. They are kept in
//! the user's cache folder, a folder for each module and its flags, so that all clones of the repository share them.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    cluster::{keda, place::hex},
    process, setup,
};

/// The modules' `go.mod` and `go.sum`, below the repository's root.
const MODULES: &str = "xtask/cluster/mods";
/// Raised when what is built from the same modules changes.
const RECIPE: &str = "1";
const COREDNS: &str = "github.com/coredns/coredns";
const STRIPPED: &str = "-s -w";

/// A Go module of ours: nothing but the versions of what is built from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    /// etcd.
    Etcd,
    /// Kubernetes.
    Kube,
    /// KEDA.
    Keda,
    /// containerd, runc, network plugins.
    Cri,
    /// `CoreDNS`.
    Coredns,
    /// Helm, and gRPC's client and server for tests between implementations.
    Tools,
}

/// A program, the package it is built from, and how.
#[derive(Clone, Copy, Debug)]
struct Program {
    name: &'static str,
    module: Module,
    package: &'static str,
}

const fn program(module: Module, name: &'static str, package: &'static str) -> Program {
    Program { name, module, package }
}

/// In the order they are built: a control plane can start when the first two modules are there.
const PROGRAMS: [Program; 21] = [
    program(Module::Etcd, "etcd", "go.etcd.io/etcd/server/v3"),
    program(Module::Kube, "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    program(Module::Kube, "kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    program(Module::Kube, "kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    program(Module::Kube, "kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    program(Module::Kube, "kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    program(Module::Kube, "kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    program(Module::Tools, "helm", "helm.sh/helm/v4/cmd/helm"),
    program(Module::Tools, "grpc-client", "google.golang.org/grpc/interop/client"),
    program(Module::Tools, "grpc-server", "google.golang.org/grpc/interop/server"),
    program(Module::Cri, "containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    program(Module::Cri, "containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    program(Module::Cri, "ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
    program(Module::Cri, "runc", "github.com/opencontainers/runc"),
    program(Module::Cri, "bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
    program(Module::Cri, "host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
    program(Module::Cri, "loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
    program(Module::Coredns, "coredns", COREDNS),
    program(Module::Keda, "keda", "github.com/kedacore/keda/v2/cmd/operator"),
    program(Module::Keda, "keda-adapter", "github.com/kedacore/keda/v2/cmd/adapter"),
    program(Module::Keda, "keda-webhooks", "github.com/kedacore/keda/v2/cmd/webhooks"),
];

/// Where the programs are, a folder a module.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    root: PathBuf,
    cache: PathBuf,
    /// Go's caches, where they are not the user's.
    caches: Option<PathBuf>,
}

// === impl Module ===

impl Module {
    /// All of them, in the order they are built.
    pub(crate) const ALL: [Self; 6] = [Self::Etcd, Self::Kube, Self::Tools, Self::Cri, Self::Coredns, Self::Keda];

    /// Its folder's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kube => "kube",
            Self::Keda => "keda",
            Self::Cri => "cri",
            Self::Coredns => "coredns",
            Self::Tools => "tools",
        }
    }
}

// === impl Program ===

impl Program {
    /// Flags of the linker; Kubernetes takes its version from them.
    fn ldflags(&self, version: &str) -> String {
        if self.name == "runc" {
            return format!("{STRIPPED} -extldflags -static");
        }
        if self.module != Module::Kube {
            return STRIPPED.to_owned();
        }
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut flags = STRIPPED.to_owned();
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            for (name, value) in [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)] {
                // Writing to a String cannot fail.
                let _ = write!(flags, " -X {package}.{name}={value}");
            }
        }
        flags
    }

    /// Build tags, and whether C is involved: kubelet wants the default seccomp profile on every sandbox.
    fn tags(&self) -> (&'static str, &'static str) {
        if self.name == "runc" { ("seccomp netgo osusergo", "1") } else { ("", "0") }
    }
}

// === impl Programs ===

impl Programs {
    /// Those of the repository at `root`, whether they are built or not.
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
            (_, Some(home)) => PathBuf::from(home).join(".cache"),
            _ => bail!("neither HOME nor XDG_CACHE_HOME is set, expected a folder to keep the cluster's programs in"),
        };
        Ok(Self { root: root.to_owned(), cache: cache.join("rouse/cluster"), caches: None })
    }

    /// The folder of one module's programs: another one for each state of the module and of our flags.
    pub(crate) fn folder(&self, module: Module) -> Result<PathBuf> {
        let mut state = Sha256::new();
        state.update(RECIPE);
        for file in ["go.mod", "go.sum"] {
            let path = self.module(module).join(file);
            state.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        for program in PROGRAMS.iter().filter(|program| program.module == module) {
            let (tags, cgo) = program.tags();
            for part in [program.name, program.package, &program.ldflags("v1.2.3"), tags, cgo] {
                state.update(part);
            }
        }
        Ok(self.cache.join(format!("{}-{}", module.name(), &hex(&state.finalize())[..16])))
    }

    /// A program that has been built.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        let program = PROGRAMS.iter().find(|program| program.name == name);
        let program = program.with_context(|| format!("no program of the cluster is called {name}"))?;
        Ok(self.folder(program.module)?.join(name))
    }

    /// Builds all of them that are not there yet.
    pub(crate) fn build_all(&self) -> Result<()> {
        self.build(&Module::ALL)
    }

    /// The same with Go's own caches thrown away as soon as nothing shares them any more, for machines with small disks.
    pub(crate) fn build_all_small(&self) -> Result<()> {
        let caches = self.cache.join("go");
        let small = Self { caches: Some(caches.clone()), ..self.clone() };
        // Within a group most packages are the same.
        for group in [&Module::ALL[..3], &Module::ALL[3..5], &Module::ALL[5..]] {
            let built = small.build(group);
            if caches.exists() {
                // What Go downloads is write-protected.
                let _ = small.go(group[0]).args(["clean", "-modcache"]).status();
                fs::remove_dir_all(&caches).with_context(|| format!("cannot remove {}", caches.display()))?;
            }
            built?;
        }
        Ok(())
    }

    /// Builds what is not there yet, and says how long each took.
    pub(crate) fn build(&self, modules: &[Module]) -> Result<()> {
        let missing = self.missing(modules)?;
        if missing.is_empty() {
            return Ok(());
        }
        setup::for_cluster()?;
        if process::which("go").is_none() {
            bail!("no Go compiler, expected `go` on the PATH: get it from https://go.dev/dl");
        }
        fs::create_dir_all(&self.cache).with_context(|| format!("cannot make {}", self.cache.display()))?;
        let lock =
            fs::File::create(self.cache.join("lock")).context("cannot make the lock of the cluster's programs")?;
        lock.lock().context("cannot wait for another build of the cluster's programs")?;
        // Whoever held the lock may have built them.
        let missing = self.missing(modules)?;
        println!("cluster: building {} programs from Go modules; kept in {}", missing.len(), self.cache.display());
        for (number, program) in missing.iter().enumerate() {
            let started = Instant::now();
            let size = self.build_one(program)?;
            let (number, all, seconds) = (number + 1, missing.len(), started.elapsed().as_secs());
            println!("cluster: built {number}/{all} {:24} {seconds:4} s {:4} MiB", program.name, size >> 20);
        }
        Ok(())
    }

    fn missing(&self, modules: &[Module]) -> Result<Vec<Program>> {
        let mut missing = Vec::new();
        for program in PROGRAMS.iter().filter(|program| modules.contains(&program.module)) {
            if !self.path(program.name)?.is_file() {
                missing.push(*program);
            }
        }
        Ok(missing)
    }

    fn build_one(&self, program: &Program) -> Result<u64> {
        let folder = self.folder(program.module)?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (to, partial) = (folder.join(program.name), folder.join(format!("{}.partial", program.name)));
        let (tags, cgo) = program.tags();
        let mut go = self.go(program.module);
        go.args(["build", "-tags", tags, "-ldflags"]).arg(program.ldflags(&self.version(program)?));
        if program.module == Module::Coredns {
            go.arg("-modfile").arg(self.coredns_plugins(&folder)?);
        }
        process::run(go.arg("-o").arg(&partial).arg(program.package).env("CGO_ENABLED", cgo))?;
        if program.name == "keda" {
            keda::keep_manifests(&self.source(Module::Keda, "github.com/kedacore/keda/v2")?, &folder)?;
        }
        if program.name == "kubelet" {
            self.pause(&folder)?;
        }
        if program.module == Module::Coredns {
            fs::remove_dir_all(folder.join("source")).context("cannot remove the copy of CoreDNS' source")?;
        }
        let size = fs::metadata(&partial)?.len();
        fs::rename(&partial, &to).with_context(|| format!("cannot put {} in place", to.display()))?;
        Ok(size)
    }

    fn module(&self, module: Module) -> PathBuf {
        self.root.join(MODULES).join(module.name())
    }

    fn go(&self, module: Module) -> Command {
        let mut go = Command::new("go");
        go.current_dir(self.module(module));
        if let Some(caches) = &self.caches {
            go.env("GOCACHE", caches.join("build")).env("GOMODCACHE", caches.join("modules"));
        }
        go
    }

    fn version(&self, program: &Program) -> Result<String> {
        if program.module != Module::Kube {
            return Ok(String::new());
        }
        let version =
            process::output(self.go(Module::Kube).args(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]))?;
        Ok(version.trim().to_owned())
    }

    /// Where Go keeps the source of a module that ours needs.
    fn source(&self, module: Module, path: &str) -> Result<PathBuf> {
        process::run(self.go(module).args(["mod", "download", path]))?;
        Ok(process::output(self.go(module).args(["list", "-m", "-f", "{{.Dir}}", path]))?.trim().into())
    }

    /// The container that holds a pod's namespaces: Kubernetes' own, in C.
    fn pause(&self, folder: &Path) -> Result<()> {
        let source = self.source(Module::Kube, "k8s.io/kubernetes")?.join("build/pause/linux/pause.c");
        let mut gcc = Command::new("gcc");
        process::run(gcc.args(["-Os", "-static", "-s", "-DVERSION=rouse", "-o"]).arg(folder.join("pause")).arg(source))
    }

    /// A `go.mod` for `CoreDNS` with the plugins of a cluster's name server alone: the full set brings in the kits of every cloud.
    /// In a copy of its source, this is what its `plugin.cfg` is for.
    fn coredns_plugins(&self, folder: &Path) -> Result<PathBuf> {
        let plugins = ["cache", "errors", "health", "kubernetes", "ready"];
        let copy = folder.join("source");
        keda::copy(&self.source(Module::Coredns, COREDNS)?, &copy)?;
        let imports = plugins.map(|plugin| format!("\t_ \"{COREDNS}/plugin/{plugin}\"\n")).concat();
        let file = copy.join("core/plugin/zplugin.go");
        fs::write(&file, format!("package plugin\n\nimport (\n{imports})\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let module = self.module(Module::Coredns);
        let text = fs::read_to_string(module.join("go.mod")).context("cannot read CoreDNS' go.mod")?;
        let (ours, sums) = (folder.join("build.mod"), folder.join("build.sum"));
        fs::write(&ours, format!("{text}\nreplace {COREDNS} => {}\n", copy.display()))
            .with_context(|| format!("cannot write {}", ours.display()))?;
        fs::copy(module.join("go.sum"), &sums).with_context(|| format!("cannot write {}", sums.display()))?;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_name_in_its_modules_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let programs = Programs::of(root).unwrap();
        let path = programs.path("kubectl").unwrap();
        assert_eq!(path.parent().unwrap(), programs.folder(Module::Kube).unwrap());
        assert!(programs.path("docker").is_err());
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let kubelet = PROGRAMS.iter().find(|program| program.name == "kubelet").unwrap();
        let flags = kubelet.ldflags("v1.36.3");
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.36.3"), "{flags}");
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=36"), "{flags}");
    }
}
