//! What is counted goes on without the process that began it, where bpffs is there to pin it to.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use dataplane::count::Count;

use crate::node::{Bpffs, Node, pair};

/// One request and its answer.
fn exchange((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    _ = server.read(&mut [0; 100]).unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    _ = client.read(&mut [0; 100]).unwrap();
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_and_requests_count_on_after_the_process_that_counted_them() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    let mut old = pair(&listener);
    exchange(&mut old);
    let run = node.count.run().0;
    node.replace();
    assert_eq!(node.count.run().0, run, "the same run goes on");
    let served = node.counted(1);
    assert_eq!((served.requests(), served.opened, served.closed), (1, 1, 0));
    exchange(&mut old);
    let mut new = pair(&listener);
    exchange(&mut new);
    drop((old, new));
    let served = node.settles(1);
    assert_eq!((served.requests(), served.opened, served.failed), (3, 2, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_happens_while_there_is_no_process_is_counted() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    node.end();
    let mut between = pair(&listener);
    exchange(&mut between);
    drop(between);
    node.replace();
    let served = node.settles(1);
    assert_eq!((served.requests(), served.opened), (1, 1));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn another_route_does_not_inherit_what_was_counted_and_pods_of_routes_that_went_are_let_go() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let gone = node.listen(1, "a1", "127.0.8.1:0");
    let stays = node.listen(2, "b1", "127.0.8.2:0");
    exchange(&mut pair(&gone));
    exchange(&mut pair(&stays));
    assert_eq!(bpffs.links(), ["accepted-a1", "accepted-b1", "received-a1", "received-b1", "sent-a1", "sent-b1"]);
    node.end();
    node.forget(gone.local_addr().unwrap());
    node.replace();
    assert_eq!(bpffs.links(), ["accepted-b1", "received-b1", "sent-b1"]);
    let new = node.listen(3, "c1", "127.0.8.3:0");
    exchange(&mut pair(&new));
    assert_eq!((node.counted(1).requests(), node.settles(2).requests(), node.settles(3).requests()), (0, 1, 1));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_was_left_pinned_can_be_removed() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    node.end();
    Count::remove(Some(bpffs.path())).unwrap();
    assert!(!bpffs.path().join("rouse/count-1").exists());
    exchange(&mut pair(&listener));
    node.replace();
    assert_eq!(node.counted(1).requests(), 0, "nobody has counted");
    assert!(Count::remove(None).is_ok(), "nothing is pinned, so nothing is to be removed");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pins_that_somebody_takes_away_are_made_again_and_meanwhile_nothing_goes_uncounted() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    let mut client = pair(&listener);
    exchange(&mut client);
    let links = bpffs.links();
    fs::remove_dir_all(bpffs.path().join("rouse")).unwrap();
    exchange(&mut client);
    exchange(&mut pair(&listener));
    assert_eq!(node.counted(1).requests(), 3);
    assert_eq!((node.count.put_back(), bpffs.links()), (0, links));
    let run = node.count.run().0;
    node.replace();
    drop(client);
    assert_eq!((node.count.run().0, node.settles(1).requests()), (run, 3), "the next one knows it, too");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_pod_that_has_lost_the_programs_has_them_again_after_a_look() {
    for bpffs in [None, Some(Bpffs::mount())] {
        let mut node = bpffs.as_ref().map_or_else(Node::new, |bpffs| Node::pinned(bpffs.path()));
        drop(node.listen(1, "a1", "127.0.8.1:0"));
        // Its cgroup was made anew between two looks.
        let folder = node.folder("a1");
        fs::remove_dir(folder.join("container")).unwrap();
        fs::remove_dir(&folder).unwrap();
        node.folder("a1");
        assert_eq!([node.count.put_back(), node.count.put_back()], [1, 0]);
        let listener = node.listen(1, "a1", "127.0.8.1:0");
        exchange(&mut pair(&listener));
        assert_eq!(node.settles(1).requests(), 1);
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_another_version_has_left_is_taken_away_by_the_next_agent_or_on_demand() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    let folder = |name: &str| bpffs.path().join("rouse").join(name);
    node.end();
    fs::rename(folder("count-1"), folder("count-0")).unwrap();
    fs::create_dir(folder("other-0")).unwrap();
    node.replace();
    exchange(&mut pair(&listener));
    assert_eq!(node.settles(1).requests(), 1);
    assert!(!folder("count-0").exists());
    node.end();
    fs::rename(folder("count-1"), folder("count-0")).unwrap();
    Count::remove(Some(bpffs.path())).unwrap();
    assert!(!folder("count-0").exists());
    assert!(folder("other-0").exists());
}
