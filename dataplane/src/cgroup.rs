//! Finds the cgroup that the programs are to be attached to: this process's own, or the one that was asked for.
//! Parsing is pure; `Cgroup::find` reads `/proc` and looks at the folder.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::ffi::OsStringExt as _},
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::syscall::{self, Hook};

/// A cgroup of the v2 hierarchy that programs may be attached to.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    dir: fs::File,
}

/// Why there is none. Each is a reason to do without the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("{path} cannot be read")]
    Proc { path: &'static str, source: io::Error },
    #[error("no cgroup v2 hierarchy is mounted (/proc/self/mountinfo)")]
    NotMounted,
    #[error("/proc/self/cgroup has no line of cgroup v2 (0::)")]
    NoOwn,
    #[error("this process's cgroup {0} is under no cgroup v2 mount of its mount namespace")]
    OutOfSight(String),
    #[error("cgroup {path} cannot be opened")]
    Open { path: PathBuf, source: io::Error },
    #[error("cgroup {0}: expected a folder of a cgroup v2 hierarchy")]
    NotV2(PathBuf),
    #[error(
        "cgroup {0} is the root of its hierarchy, where every process's connections would be counted: \
         start the interceptor in a cgroup of its own"
    )]
    Root(PathBuf),
    #[error("this process is in cgroup {own}, not in {asked}, so its connections would not be counted there")]
    NotMember { own: PathBuf, asked: PathBuf },
}

/// A mounted cgroup v2 hierarchy: which part of it (`root`) is seen where (`point`).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
}

// === impl Cgroup ===

impl Cgroup {
    /// Finds and opens it, and checks that it is v2, not the hierarchy's root, and holds this process.
    pub(crate) fn find(asked: Option<&Path>) -> Result<Self, CgroupError> {
        let own = own_path();
        let (path, own) = match asked {
            // What cannot be told about the own cgroup, the self-test will show.
            Some(asked) => (asked.to_owned(), own.ok().and_then(|own| fs::canonicalize(own).ok())),
            None => (own?, None),
        };
        let opened = |source| CgroupError::Open { path: path.clone(), source };
        let dir = fs::File::open(&path).map_err(opened)?;
        let path = fs::canonicalize(&path).map_err(opened)?;
        match statfs(&path) {
            Ok(fs) if fs.filesystem_type() == CGROUP2_SUPER_MAGIC && path.is_dir() => {}
            _ => return Err(CgroupError::NotV2(path)),
        }
        // Every cgroup but the root of the whole hierarchy has a type, also where a namespace calls it "/".
        if !path.join("cgroup.type").exists() {
            return Err(CgroupError::Root(path));
        }
        if let Some(own) = own.filter(|own| !own.starts_with(&path)) {
            return Err(CgroupError::NotMember { own, asked: path });
        }
        Ok(Self { path, dir })
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its folder, open.
    pub(crate) fn dir(&self) -> &fs::File {
        &self.dir
    }

    /// How many other processes are in it: their connections to the same pods are counted too.
    pub(crate) fn others(&self) -> usize {
        let own = std::process::id().to_string();
        let procs = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter(|pid| *pid != own).count()
    }
}

/// Where cgroup v2 hierarchies are mounted, in the order of their mounting.
pub(crate) fn mount_points() -> io::Result<Vec<PathBuf>> {
    let bytes = fs::read("/proc/self/mountinfo")?;
    Ok(mounts(&String::from_utf8_lossy(&bytes)).into_iter().map(|mount| mount.point).collect())
}

/// Makes sure that no program of others stops to run when ours come onto a cgroup. One above it may have been attached so that it
/// gives way to any below (`BPF_F_ALLOW_OVERRIDE`), which the kernel lets it do without a word.
pub(crate) fn nobody_gives_way(path: &Path, hooks: &[Hook]) -> io::Result<()> {
    for hook in hooks {
        // What is above the hierarchy, or out of sight, cannot be asked.
        let mut asked = path.ancestors().map_while(|at| {
            let dir = fs::File::open(at).ok()?;
            Some((at, syscall::attached(dir.as_fd(), *hook).ok()?))
        });
        if let Some((at, theirs)) = asked.find(|(_, attached)| !attached.ids.is_empty())
            && theirs.gives_way
            && at != path
        {
            return Err(io::Error::other(format!(
                "a program of others on {} would no longer run: it gives way to any below (BPF_F_ALLOW_OVERRIDE)",
                at.display()
            )));
        }
    }
    Ok(())
}

fn own_path() -> Result<PathBuf, CgroupError> {
    let read = |path: &'static str| {
        let bytes = fs::read(path).map_err(|source| CgroupError::Proc { path, source })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let mounts = mounts(&read("/proc/self/mountinfo")?);
    if mounts.is_empty() {
        return Err(CgroupError::NotMounted);
    }
    let cgroups = read("/proc/self/cgroup")?;
    let own = own(&cgroups).ok_or(CgroupError::NoOwn)?;
    locate(Path::new(own), &mounts).ok_or_else(|| CgroupError::OutOfSight(own.to_owned()))
}

/// The v2 line of `/proc/self/cgroup`. On a hybrid hierarchy the others are v1's.
fn own(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The cgroup v2 mounts of `/proc/self/mountinfo`, in its order.
fn mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    Some(Mount { root: unescape(fields.next()?), point: unescape(fields.next()?) })
}

/// Where `own` is seen: under the mount that shows the part of the hierarchy it is in.
fn locate(own: &Path, mounts: &[Mount]) -> Option<PathBuf> {
    mounts.iter().find_map(|Mount { root, point }| {
        let rest = own.strip_prefix(root).ok()?;
        // A cgroup outside of this process's namespace is told as "/../…".
        let inside = rest.components().all(|part| part != Component::ParentDir);
        inside.then(|| point.join(rest).components().collect())
    })
}

/// Undoes mountinfo's octal escapes of blanks and backslashes.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = (*first == b'\\').then(|| octal(tail.get(..3)?)).flatten();
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn path(own: &str, mountinfo: &str) -> Option<String> {
        locate(Path::new(own), &mounts(mountinfo)).map(|path| path.display().to_string())
    }

    #[test]
    fn the_own_cgroup_is_found_on_unified_and_on_hybrid_hierarchies() {
        assert_eq!(path("/kubepods/pod1", UNIFIED).unwrap(), "/sys/fs/cgroup/kubepods/pod1");
        assert_eq!(path("/a", HYBRID).unwrap(), "/sys/fs/cgroup/unified/a");
        assert_eq!(path("/", HYBRID).unwrap(), "/sys/fs/cgroup/unified");
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_shows_only_what_is_in_it() {
        let bound = "30 23 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        assert_eq!(path("/kubepods/pod1", bound).unwrap(), "/sys/fs/cgroup");
        assert_eq!(path("/kubepods/pod1/x", bound).unwrap(), "/sys/fs/cgroup/x");
        assert_eq!(path("/kubepods/pod10", bound), None);
        assert_eq!(path("/other", &format!("{bound}{UNIFIED}")).unwrap(), "/sys/fs/cgroup/other");
    }

    #[test]
    fn a_cgroup_outside_of_the_namespace_is_not_guessed_at() {
        assert_eq!(path("/../other", UNIFIED), None);
    }

    #[test]
    fn only_the_line_of_version_2_names_the_own_cgroup() {
        assert_eq!(own("9:name=systemd:/x\n4:memory:/y\n0::/z\n"), Some("/z"));
        assert_eq!(own("4:memory:/y\n"), None);
        assert_eq!(own(""), None);
    }

    #[test]
    fn version_1_alone_is_no_mount_and_garbage_is_skipped() {
        assert_eq!(mounts("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), []);
        assert_eq!(mounts("\n - cgroup2\nx y - cgroup2 z\n"), []);
    }

    #[test]
    fn escaped_blanks_in_a_mount_point_are_undone() {
        let odd = r"30 23 0:26 / /mnt/a\040b\134c\9 rw - cgroup2 cgroup2 rw";
        assert_eq!(path("/x", odd).unwrap(), r"/mnt/a b\c\9/x");
    }

    #[test]
    fn a_folder_that_is_missing_or_not_of_version_2_is_refused_by_name() {
        let missing = Cgroup::find(Some(Path::new("/nonexistent/cgroup"))).unwrap_err();
        assert_eq!(missing.to_string(), "cgroup /nonexistent/cgroup cannot be opened");
        let proc = Cgroup::find(Some(Path::new("/proc"))).unwrap_err();
        assert_eq!(proc.to_string(), "cgroup /proc: expected a folder of a cgroup v2 hierarchy");
    }
}
