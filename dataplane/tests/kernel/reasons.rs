//! Every reason for doing without the kernel that can be provoked, in the words one gets, and what `required` does.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use aya::util::KernelVersion;
use dataplane::{Config, Level, open};

use crate::cell::{Cell, myself, root};

/// The cgroup that the child is to ask for; empty for none in particular.
const CGROUP: &str = "ROUSE_TEST_CGROUP";

fn ask(cgroup: Option<&Path>) -> (Level, String) {
    let (dataplane, level, why) = open(Config { cgroup: cgroup.map(Into::into), ..Config::default() }).unwrap();
    assert_eq!((dataplane.level(), dataplane.reason()), (level, &*why));
    (level, why)
}

/// Runs the test below under `wrapper` and returns what it prints.
fn child(wrapper: &[&str], cgroup: &Path) -> String {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(myself()).env(CGROUP, cgroup);
    let name = "reasons::opening_never_fails_unless_the_level_is_required";
    let output = command.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("opened: ")).expect("the child says what it got");
    line.1.to_owned()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
#[expect(clippy::print_stdout, reason = "read by the tests that run this as a child")]
fn opening_never_fails_unless_the_level_is_required() {
    let asked = env::var_os(CGROUP).map(PathBuf::from);
    // As a child it is where its parent has put it.
    let cell = asked.is_none().then(Cell::enter);
    let cgroup = asked.or_else(|| cell.as_ref().map(|cell| cell.path().to_owned()));
    let cgroup = cgroup.filter(|path| !path.as_os_str().is_empty());
    let (level, why) = ask(cgroup.as_deref());
    println!("opened: {level}: {why}");
    let required = open(Config { required: true, cgroup, ..Config::default() });
    match level {
        Level::None => {
            let error = required.map(|(_, level, _)| level).unwrap_err();
            assert_eq!(error.to_string(), format!("data plane level auto is required: {why}"));
        }
        Level::SelfLevel => assert_eq!(required.unwrap().1, Level::SelfLevel),
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_hierarchys_root_is_refused_because_every_process_would_be_counted() {
    let (level, why) = ask(Some(&root()));
    assert_eq!(level, Level::None);
    let expected = format!("cgroup {} is the root of its hierarchy", root().display());
    assert!(why.starts_with(&expected), "{why}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_cgroup_that_is_missing_is_named() {
    let missing = root().join("rouse-test-nowhere");
    let (level, why) = ask(Some(&missing));
    assert_eq!(level, Level::None);
    assert_eq!(why, format!("cgroup {} cannot be opened: No such file or directory (os error 2)", missing.display()));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_cgroup_that_this_process_is_not_in_is_refused() {
    let cell = Cell::enter();
    let other = cell.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let (level, why) = ask(Some(&other));
    std::fs::remove_dir(&other).unwrap();
    assert_eq!(level, Level::None);
    assert!(why.starts_with("this process is in cgroup "), "{why}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_own_cgroup_is_found_without_being_told() {
    let cell = Cell::enter();
    assert_eq!(ask(None), (Level::SelfLevel, format!("attached to {}", cell.path().display())));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_ancestor_of_the_own_cgroup_will_do() {
    let cell = Cell::enter();
    let inner = cell.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", inner.display());
    let got = child(&["sh", "-c", &script, "sh"], cell.path());
    std::fs::remove_dir(&inner).unwrap();
    assert_eq!(got, format!("self: attached to {}", cell.path().display()));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn missing_capabilities_are_named() {
    let cell = Cell::enter();
    for (dropped, missing) in [
        ("-bpf,-sys_admin", "none: missing CAP_BPF"),
        ("-net_admin,-sys_admin", "none: missing CAP_NET_ADMIN"),
        ("-all", "none: missing CAP_BPF and CAP_NET_ADMIN"),
    ] {
        let bounding = format!("--bounding-set={dropped}");
        assert_eq!(child(&["setpriv", &bounding], cell.path()), missing);
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_two_capabilities_alone_suffice() {
    let cell = Cell::enter();
    let got = child(&["setpriv", "--bounding-set=-all,+bpf,+net_admin"], cell.path());
    assert_eq!(got, format!("self: attached to {}", cell.path().display()));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn where_maps_count_as_locked_memory_a_limit_that_cannot_be_raised_is_a_reason() {
    let cell = Cell::enter();
    let few = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-all,+bpf,+net_admin"];
    let got = child(&few, cell.path());
    if KernelVersion::current().unwrap() < KernelVersion::new(5, 11, 0) {
        assert!(
            got.starts_with("none: before Linux 5.11 maps count as locked memory: missing CAP_SYS_RESOURCE"),
            "{got}"
        );
    } else {
        assert_eq!(got, format!("self: attached to {}", cell.path().display()));
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_user_namespaces_capabilities_are_not_the_kernels() {
    let cell = Cell::enter();
    let got = child(&["unshare", "--user", "--map-root-user"], cell.path());
    assert!(got.starts_with("none: bpf(2) is refused in spite of the capabilities"), "{got}");
    assert!(got.ends_with("Operation not permitted (os error 1)"), "{got}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_connection_that_the_self_test_cannot_make_is_a_reason() {
    let cell = Cell::enter();
    // In a new network namespace loopback is down.
    let got = child(&["unshare", "--net"], cell.path());
    assert!(got.starts_with("none: self-test over loopback: "), "{got}");
}

/// Runs a script in a mount namespace of its own before the child.
fn after(script: &str, cgroup: &Path, unshare: &[&str]) -> String {
    let script = format!("{script} && exec \"$@\"");
    let wrapper = [&["unshare", "--mount"], unshare, &["sh", "-c", &script, "sh"]].concat();
    child(&wrapper, cgroup)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_kernel_without_type_information_is_a_reason() {
    let cell = Cell::enter();
    let got = after("mount -t tmpfs none /sys/kernel/btf", cell.path(), &[]);
    assert!(
        got.starts_with("none: the kernel has no type information (/sys/kernel/btf/vmlinux): No such file"),
        "{got}"
    );
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn no_cgroup_v2_is_a_reason() {
    let _cell = Cell::enter();
    let got = after(&format!("umount -l {}", root().display()), Path::new(""), &[]);
    assert_eq!(got, "none: no cgroup v2 hierarchy is mounted (/proc/self/mountinfo)");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_cgroup_namespace_its_root_is_not_taken_for_the_hierarchys() {
    let _cell = Cell::enter();
    let mount = root().display().to_string();
    // What a container runtime does: the container's own cgroup is all that its mount shows.
    let script = format!("umount -l {mount} && mount -t cgroup2 none {mount}");
    assert_eq!(after(&script, Path::new(""), &["--cgroup"]), format!("self: attached to {mount}"));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_cgroup_outside_of_the_namespace_is_told_as_such() {
    let cell = Cell::enter();
    let inner = cell.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    // In a namespace of the inner cgroup, but moved out of it again.
    let script = format!("echo $$ > {}/cgroup.procs", cell.path().display());
    let enter = format!("echo $$ > {}/cgroup.procs && exec unshare --cgroup \"$@\"", inner.display());
    let moved = format!("{script} && exec \"$@\"");
    let got = child(&["sh", "-c", &enter, "sh", "sh", "-c", &moved, "sh"], Path::new(""));
    std::fs::remove_dir(&inner).unwrap();
    assert!(got.starts_with("none: this process's cgroup /.. is under no cgroup v2 mount"), "{got}");
}
