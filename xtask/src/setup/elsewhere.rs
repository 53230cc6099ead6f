//! Debian packages that are not for this machine: unpacked into `.rouse`, not installed, with package lists of their own, so that the
//! machine keeps its one architecture and its one release. Read by `setup.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// Debian's own key, wherever the packages come from.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt as if on another machine that has nothing installed.
pub(super) struct Elsewhere {
    work: PathBuf,
    options: Vec<String>,
}

impl Elsewhere {
    /// A machine of another architecture.
    pub(super) fn architecture(work: PathBuf, architecture: &str) -> Result<Self> {
        let options = ["APT::Architecture", "APT::Architectures"].map(|name| format!("{name}={architecture}"));
        Self::new(work, options.into())
    }

    /// A machine of another release of Debian, from where this machine has its own.
    pub(super) fn release(work: PathBuf, codename: &str) -> Result<Self> {
        let list = work.join("sources.list");
        let sources = format!("deb [signed-by={KEYRING}] {} {codename} main\n", source()?);
        let options = vec![format!("Dir::Etc::sourcelist={}", list.display()), "Dir::Etc::sourceparts=-".to_owned()];
        let elsewhere = Self::new(work, options)?;
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        Ok(elsewhere)
    }

    fn new(work: PathBuf, mut options: Vec<String>) -> Result<Self> {
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(work.join("state/lists/partial"))?;
        fs::create_dir_all(work.join("cache/archives/partial"))?;
        fs::write(work.join("status"), "")?;
        for (name, path) in [("Dir::State", "state"), ("Dir::State::status", "status"), ("Dir::Cache", "cache")] {
            options.push(format!("{name}={}", work.join(path).display()));
        }
        options.push("APT::Sandbox::User=root".to_owned());
        Ok(Self { work, options })
    }

    /// Reads the package lists.
    pub(super) fn update(&self) -> Result<()> {
        self.get(&["update", "--quiet"])
    }

    /// The first package that another one depends on.
    pub(super) fn dependency(&self, package: &str) -> Result<String> {
        let shown = process::output(self.apt("apt-cache").args(["depends", package]))?;
        let first = shown.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(first.with_context(|| format!("package {package} depends on none"))?.to_owned())
    }

    /// Downloads a package, unpacks it into a folder, and takes the lists away.
    pub(super) fn unpack(self, package: &str, folder: &Path) -> Result<()> {
        self.get(&["download", "--quiet", package])?;
        let files = fs::read_dir(&self.work)?.flatten().map(|entry| entry.path());
        let package = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        let package = package.context("apt-get downloaded no package")?;
        process::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
        fs::remove_dir_all(&self.work).context("cannot remove apt's lists")
    }

    fn get(&self, verb: &[&str]) -> Result<()> {
        process::run(self.apt("apt-get").args(verb).stdout(std::io::stderr()))
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.current_dir(&self.work).env("LC_ALL", "C");
        apt.args(self.options.iter().flat_map(|option| ["-o", option]));
        apt
    }
}

/// Where this machine has Debian's packages from.
fn source() -> Result<String> {
    let format = ["indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)", "Created-By: Packages"];
    let targets = process::output(Command::new("apt-get").args(format))?;
    first(&targets).map(str::to_owned).context("this machine has no packages from Debian: `apt-get update` may help")
}

/// The address of the first full release: those of updates and of security have a hyphen in their names.
fn first(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        ["Debian", "main", codename, address] if !codename.contains('-') => Some(address),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_full_release_is_found_among_others() {
        let targets = "Node main x http://node/\nDebian main a-updates http://one/\nDebian contrib a http://two/\n\
                       Debian main a http://three/\nDebian main b http://four/\n";
        assert_eq!(first(targets), Some("http://three/"));
        assert_eq!(first(""), None);
    }
}
