//! KEDA in the cluster, from the manifests of its own module, with the certificates that it would make for itself at its first
//! start: it ends and starts again for them otherwise.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    cluster::{Cluster, build::Module, pki},
    process,
};

/// Manifests of KEDA's module, copied when it is built.
const CONFIG: &str = "config";
/// What we change of them, below the repository's root.
const OVERLAY: &str = "xtask/cluster/keda";
const NAMESPACE: &str = "keda";
const DEPLOYMENTS: [&str; 3] = ["keda-operator", "keda-metrics-apiserver", "keda-admission"];
/// The API that the autoscaler reads its metrics from.
const API: &str = "v1beta1.external.metrics.k8s.io";
const PATIENCE: Duration = Duration::from_mins(2);

/// Keeps the manifests beside the program, because Go's folder of sources may be emptied.
pub(crate) fn keep_manifests(source: &Path, folder: &Path) -> Result<()> {
    copy(&source.join("config"), &folder.join(CONFIG))
}

/// A folder and all below it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            // Not with its permissions: Go's sources are read-only, and this may be written again.
            fs::write(&to, fs::read(entry.path())?).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

impl Cluster {
    /// Installs KEDA, so that its pods start; [`Cluster::await_keda`] waits for them.
    pub(crate) fn install_keda(&self) -> Result<()> {
        let work = self.place().folder().join("keda");
        copy(&self.programs().folder(Module::Keda)?.join(CONFIG), &work.join(CONFIG))?;
        copy(&self.place().root().join(OVERLAY), &work.join("overlay"))?;
        let kubectl = self.programs().path("kubectl")?;
        let manifests = process::output(Command::new(kubectl).arg("kustomize").arg(work.join("overlay")))?;
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        self.apply(&self.certificates()?)?;
        self.apply(&manifests)
    }

    /// Installs KEDA's custom resources alone, for tests that need no KEDA behind them.
    pub(crate) fn install_keda_crds(&self) -> Result<()> {
        let folder = self.programs().folder(Module::Keda)?.join(CONFIG).join("crd/bases");
        let folder = folder.to_str().context("the folder of KEDA's manifests has a name that is no text")?;
        self.kubectl(&["apply", "--server-side", "--filename", folder]).map(|_| ())
    }

    /// Waits until KEDA's pods are ready and its metrics are served.
    pub(crate) fn await_keda(&self) -> Result<()> {
        for deployment in DEPLOYMENTS {
            self.rolled_out(NAMESPACE, deployment, PATIENCE)?;
        }
        self.wait_for("KEDA's metrics API", PATIENCE, || {
            let api = self.json(&["get", "apiservice", API])?;
            let conditions = api["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let available = |one: &serde_json::Value| one["type"] == "Available" && one["status"] == "True";
            Ok(conditions.iter().any(available).then_some(()))
        })
    }

    /// The Secret in which KEDA keeps its certificates, with valid ones.
    fn certificates(&self) -> Result<String> {
        let services = ["keda-operator", "keda-metrics-apiserver", "keda-admission-webhooks"];
        let forms = |service: &str| {
            ["", ".keda", ".keda.svc", ".keda.svc.cluster.local"].map(|rest| format!("DNS:{service}{rest}"))
        };
        let names: Vec<String> = services.into_iter().flat_map(forms).collect();
        pki::make_keda(self.place(), &names.join(","))?;
        let folder = self.place().pki();
        let mut secret = Command::new(self.programs().path("kubectl")?);
        secret.args([
            "create",
            "secret",
            "generic",
            "kedaorg-certs",
            "--namespace",
            NAMESPACE,
            "--dry-run=client",
            "-o",
            "yaml",
        ]);
        for (name, file) in
            [("ca.crt", "keda-ca.crt"), ("ca.key", "keda-ca.key"), ("tls.crt", "keda.crt"), ("tls.key", "keda.key")]
        {
            secret.arg(format!("--from-file={name}={}", folder.join(file).display()));
        }
        process::output(&mut secret)
    }
}
