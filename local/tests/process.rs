//! Children live no longer than we do, whatever ends us.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::timeout;

const ROUSE_LOCAL: &str = env!("CARGO_BIN_EXE_rouse-local");

/// Whether the process exists and is more than an entry that nobody has collected.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_child_ends_when_its_parent_is_killed() {
    let script = format!("{ROUSE_LOCAL} run-child --parent $$ -- sleep 1000 & echo $!; wait");
    let mut parent = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child: u32 = line.trim().parse().unwrap();
    let is_sleep = || fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "sleep");
    until("the child becomes what it was told", is_sleep).await;
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the child ends with its parent", || !alive(child)).await;
}

#[test]
fn a_child_whose_parent_has_gone_already_does_not_start() {
    let output =
        Command::new(ROUSE_LOCAL).args(["run-child", "--parent", "1", "--", "echo", "started"]).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("parent process 1 has ended"));
}

#[test]
fn a_program_that_does_not_exist_is_named() {
    let own = std::process::id().to_string();
    let output =
        Command::new(ROUSE_LOCAL).args(["run-child", "--parent", &own, "--", "no-such-program"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot run no-such-program"));
}

#[test]
fn a_folder_of_manifests_that_does_not_exist_is_named() {
    let output = Command::new(ROUSE_LOCAL).args(["--once", "--manifests", "/nonexistent"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no folder of manifests at /nonexistent"));
}
