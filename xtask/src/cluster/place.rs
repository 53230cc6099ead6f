//! What a cluster is called and where it lies: its folder, its machines' namespaces and cgroups. All of it follows from the
//! repository's path and the cluster's name, so that whoever comes later, after whatever crash, finds it again.

use std::{
    fmt,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// Where `ip netns` keeps named network namespaces.
const NETNS: &str = "/run/netns";
/// Longest name of a cluster: it becomes part of names of files, cgroups and hosts.
const LONGEST: usize = 20;

/// A cluster's name: small letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

/// One of a cluster's machines: a set of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Machine {
    /// etcd, API server, controller manager, scheduler; and the switch that joins the nodes.
    ControlPlane,
    /// A node, counted from 1.
    Node(u8),
}

/// A cluster of this repository.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    root: PathBuf,
    name: Name,
    /// `rouse-<repository>-<name>.`; names have no dot, so no cluster's prefix begins another's.
    prefix: String,
}

// === impl Name ===

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(fits) {
            bail!("cluster name {text:?}, expected at most {LONGEST} of a–z, 0–9 and -");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Machine ===

impl Machine {
    /// The last part of its addresses in `172.30.0.0/24` and `fd00:30::/64`.
    const fn host(self) -> u8 {
        match self {
            Self::ControlPlane => 254,
            Self::Node(number) => number,
        }
    }

    /// Its address on the switch.
    pub(crate) fn address(self) -> String {
        let [address, _] = self.addresses();
        address
    }

    /// The same of both families.
    pub(crate) fn addresses(self) -> [String; 2] {
        let host = self.host();
        [format!("172.30.0.{host}"), format!("fd00:30::{host}")]
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane => f.write_str("cp"),
            Self::Node(number) => write!(f, "node{number}"),
        }
    }
}

impl FromStr for Machine {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "cp" {
            return Ok(Self::ControlPlane);
        }
        let number = text.strip_prefix("node").and_then(|number| number.parse().ok());
        number.map(Self::Node).with_context(|| format!("machine {text:?}, expected cp or node1, node2, …"))
    }
}

// === impl Place ===

impl Place {
    /// The cluster of this name in the repository at `root`.
    pub(crate) fn new(root: &Path, name: &Name) -> Self {
        let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let repository = hex(&Sha256::digest(root.as_os_str().as_encoded_bytes()));
        let prefix = format!("rouse-{}-{name}.", &repository[..6]);
        Self { root, name: name.clone(), prefix }
    }

    /// The repository.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The cluster's name.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Everything the cluster writes.
    pub(crate) fn folder(&self) -> PathBuf {
        self.root.join(".rouse/cluster").join(&self.name.0)
    }

    /// Keys, certificates, tokens.
    pub(crate) fn pki(&self) -> PathBuf {
        self.folder().join("pki")
    }

    /// Logs of the cluster's own programs, one a file.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder().join("admin.kubeconfig")
    }

    /// Name of a machine's network namespace and of its cgroups.
    pub(crate) fn machine(&self, machine: Machine) -> String {
        format!("{}{machine}", self.prefix)
    }

    /// A machine's network namespace.
    pub(crate) fn netns(&self, machine: Machine) -> PathBuf {
        Path::new(NETNS).join(self.machine(machine))
    }

    /// Those of the names in a folder that are this cluster's.
    pub(crate) fn own_in(&self, folder: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let own = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&self.prefix));
        entries.flatten().filter(own).map(|entry| entry.path()).collect()
    }

    /// Its machines that exist, the control plane's first.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        let name = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix(&self.prefix)?.parse().ok();
        let mut machines: Vec<Machine> = self.own_netns().into_iter().filter_map(name).collect();
        machines.sort_unstable();
        machines
    }

    /// Its network namespaces that exist.
    pub(crate) fn own_netns(&self) -> Vec<PathBuf> {
        self.own_in(Path::new(NETNS))
    }
}

/// Bytes as small hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_not_fit_into_paths_and_cgroups_are_refused() {
        for name in ["", "a.b", "A", "a/b", "a_b", "123456789012345678901"] {
            assert!(name.parse::<Name>().is_err(), "{name:?}");
        }
        assert!("two-2".parse::<Name>().is_ok());
    }

    #[test]
    fn no_two_clusters_share_a_prefix() {
        let place = |root: &str, name: &str| Place::new(Path::new(root), &name.parse().unwrap()).prefix;
        let all = [place("/a", "x"), place("/a", "x-1"), place("/b", "x")];
        for one in &all {
            assert_eq!(all.iter().filter(|other| other.starts_with(one.as_str())).count(), 1, "{one}");
        }
    }

    #[test]
    fn a_machine_is_read_as_it_is_written() {
        for machine in [Machine::ControlPlane, Machine::Node(2)] {
            assert_eq!(machine.to_string().parse::<Machine>().unwrap(), machine);
        }
        assert!("node".parse::<Machine>().is_err());
    }
}
