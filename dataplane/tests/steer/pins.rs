//! Steering goes on without the process that began it, where bpffs is there to pin it to.

use std::{fs, path::Path, process::Command, time::Duration};

use dataplane::{monotonic, steer::Steer};
use interceptor_common::hold::HEARTBEAT_NS;

use crate::{
    node::{Node, SERVICE, interceptors, lead, refused_at_last},
    refused,
};

/// A bpffs of the test's own.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        assert!(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder.path()).status().unwrap().success());
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// How many links are pinned.
    fn links(&self) -> usize {
        let entries = fs::read_dir(self.path().join("rouse/steer-1")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains('-')).count()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Pins go with it, and with them what they held.
        _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_are_steered_while_a_process_ends_and_another_takes_over() {
    let (node, bpffs) = (Node::new(), Bpffs::mount());
    let (port, [interceptor]) = interceptors(["127.0.9.1"]);
    let mut first = Steer::open(Some(bpffs.path())).unwrap();
    lead(&mut first, port, &["127.0.9.1"]);
    assert_eq!(first.attach(&[node.kubepods()]), []);
    let others = first.others(&node.kubepods()).unwrap();
    let client = node.connect(SERVICE).unwrap();
    drop(first);
    node.connect(SERVICE).unwrap();
    assert_eq!(client.peer_addr().unwrap().to_string(), SERVICE);
    let mut second = Steer::open(Some(bpffs.path())).unwrap();
    assert_eq!((second.attached(), bpffs.links()), (1, 4), "what is there is taken over");
    assert_eq!(second.others(&node.kubepods()).unwrap(), others, "the links have its programs");
    assert_eq!(second.repair().unwrap(), 0, "it knows what the maps hold");
    node.connect(SERVICE).unwrap();
    assert_eq!(client.peer_addr().unwrap().to_string(), SERVICE, "what was steered before is still told of");
    assert_eq!(second.stats().unwrap().steered, 3);
    assert_eq!(second.attach(&[node.kubepods()]), []);
    assert_eq!(bpffs.links(), 4);
    assert_eq!(second.attach(&[]), []);
    assert_eq!(bpffs.links(), 0);
    refused_at_last(&node, SERVICE);
    drop(interceptor);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn who_takes_over_gives_no_sign_of_life_before_it_says_so() {
    let (node, bpffs) = (Node::new(), Bpffs::mount());
    let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
    let mut first = Steer::open(Some(bpffs.path())).unwrap();
    lead(&mut first, port, &["127.0.9.1"]);
    assert_eq!(first.attach(&[node.kubepods()]), []);
    first.beat_as_of(monotonic().saturating_sub(Duration::from_nanos(HEARTBEAT_NS + 1))).unwrap();
    drop(first);
    let mut second = Steer::open(Some(bpffs.path())).unwrap();
    refused(&node, SERVICE);
    second.beat().unwrap();
    node.connect(SERVICE).unwrap();
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_was_left_pinned_can_be_removed_and_what_was_left_incomplete_is_not_taken_over() {
    let (node, bpffs) = (Node::new(), Bpffs::mount());
    let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
    let mut steer = Steer::open(Some(bpffs.path())).unwrap();
    lead(&mut steer, port, &["127.0.9.1"]);
    assert_eq!(steer.attach(&[node.kubepods()]), []);
    drop(steer);
    let pins = fs::read_dir(bpffs.path().join("rouse/steer-1")).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(pins.into_iter().find(|pin| pin.display().to_string().contains("/peer4-")).unwrap()).unwrap();
    let steer = Steer::open(Some(bpffs.path())).unwrap();
    assert_eq!((steer.attached(), bpffs.links()), (0, 0));
    refused_at_last(&node, SERVICE);
    let mut steer = steer;
    assert_eq!(steer.attach(&[node.kubepods()]), []);
    node.connect(SERVICE).unwrap();
    drop(steer);
    Steer::remove(Some(bpffs.path())).unwrap();
    assert!(!bpffs.path().join("rouse/steer-1").exists());
    refused_at_last(&node, SERVICE);
    assert!(Steer::remove(None).is_ok(), "nothing is pinned, so nothing is to be removed");
}
