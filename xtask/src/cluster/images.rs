//! Images of the cluster's own pods, and loading images into its nodes' runtimes. There is no registry.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    cluster::{
        Cluster,
        build::{Module, Programs},
        node::{CONTAINERD, PAUSE},
        place::Machine,
    },
    image::{
        Arch,
        archive::{Image, NONROOT},
    },
    process,
};

/// An image of the cluster's own: program, module, name, path in the image, user.
struct Own {
    program: &'static str,
    module: Module,
    reference: &'static str,
    path: &'static str,
    user: &'static str,
}

const fn own(program: &'static str, module: Module, reference: &'static str, path: &'static str) -> Own {
    Own { program, module, reference, path, user: NONROOT }
}

const PAUSE_IMAGE: Own = own("pause", Module::Kube, PAUSE, "/pause");
/// It listens on port 53.
const COREDNS: Own = Own { user: "", ..own("coredns", Module::Coredns, "docker.io/rouse/coredns:1", "/coredns") };
const KEDA: [Own; 3] = [
    own("keda", Module::Keda, "ghcr.io/kedacore/keda:rouse", "/keda"),
    own("keda-adapter", Module::Keda, "ghcr.io/kedacore/keda-metrics-apiserver:rouse", "/keda-adapter"),
    own("keda-webhooks", Module::Keda, "ghcr.io/kedacore/keda-admission-webhooks:rouse", "/keda-admission-webhooks"),
];

/// gRPC's own test server, for scenarios.
const GRPC_SERVER: Own = own("grpc-server", Module::Tools, Cluster::GRPC_SERVER, "/grpc-server");

/// Archives of what a node needs: `pause` each; name server and KEDA only the first, where they run.
pub(crate) fn archives(programs: &Programs, node: u8, keda: bool) -> Result<Vec<PathBuf>> {
    let mut images = vec![PAUSE_IMAGE];
    if node == 1 {
        images.push(COREDNS);
        if keda {
            images.extend(KEDA);
        }
    }
    images.iter().map(|image| image.archive(programs)).collect()
}

impl Own {
    /// Its archive, beside the program; written once.
    fn archive(&self, programs: &Programs) -> Result<PathBuf> {
        let Self { program, module, reference, path, user } = self;
        let folder = programs.folder(*module)?;
        let to = folder.join(format!("{program}.tar"));
        if !to.is_file() {
            let image = Image {
                reference: (*reference).to_owned(),
                arch: Arch::HOST.name(),
                entrypoint: vec![(*path).to_owned()],
                user,
                labels: Vec::new(),
                files: vec![(folder.join(program), (*path).to_owned())],
            };
            image.write(&to)?;
        }
        Ok(to)
    }
}

impl Cluster {
    /// The image that [`Cluster::load_grpc_server`] brings.
    pub(crate) const GRPC_SERVER: &str = "docker.io/rouse/grpc-server:1";

    /// Loads gRPC's own test server into every node's runtime.
    pub(crate) fn load_grpc_server(&self) -> Result<()> {
        self.programs().build(&[Module::Tools])?;
        self.load_everywhere(&GRPC_SERVER.archive(self.programs())?)
    }

    /// Loads an archive into a node's runtime.
    pub(crate) fn load(&self, node: u8, archive: &Path) -> Result<()> {
        let file = fs::File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        let mut import = self.ctr(node)?;
        // What is unpacked is not kept packed as well: disks of test machines are small.
        import.args(["images", "import", "--local", "--discard-unpacked-layers", "-"]);
        process::output(import.stdin(Stdio::from(file)))
            .with_context(|| format!("cannot load {} into node{node}", archive.display()))
            .map(drop)
    }

    /// Loads an archive into every node's runtime.
    pub(crate) fn load_everywhere(&self, archive: &Path) -> Result<()> {
        (1..=self.nodes()).try_for_each(|node| self.load(node, archive))
    }

    /// containerd's client on a node.
    fn ctr(&self, node: u8) -> Result<Command> {
        let mut command = self.inside(Machine::Node(node))?;
        command.arg(self.programs().path("ctr")?).args(["--address", CONTAINERD, "--namespace", "k8s.io"]);
        Ok(command)
    }
}
