//! Accept queues as the kernel has them, against what the peers did. They need root, and an object that was built in.
#![cfg(ebpf_object)]
#![expect(clippy::unwrap_used, reason = "tests: the lint knows only functions that bear the attribute")]

use std::{
    cell::RefCell,
    fs::File,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
};

use dataplane::{Queues, Unread};
use interceptor_common::{
    AddrKey,
    queue::{Answer, Ask},
};
use nix::sched::{CloneFlags, setns};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use socket2::{Domain, Socket, Type};

/// Two network namespaces and a cable between them, for as long as it lives.
struct Cable {
    node: String,
    pod: String,
}

impl Cable {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rouse-queue-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed));
        let cable = Self { node: format!("{name}-node"), pod: format!("{name}-pod") };
        let Self { node, pod } = &cable;
        for netns in [node, pod] {
            ip(&["netns", "add", netns]);
            ip(&["-n", netns, "link", "set", "lo", "up"]);
        }
        ip(&["-n", node, "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", pod]);
        for (netns, device, number) in [(node, "veth0", 1), (pod, "eth0", 2)] {
            ip(&["-n", netns, "address", "add", &format!("10.244.1.{number}/24"), "dev", device]);
            ip(&["-n", netns, "address", "add", &format!("fd00:244::{number}/64"), "dev", device, "nodad"]);
            ip(&["-n", netns, "link", "set", device, "up"]);
        }
        cable
    }

    /// Runs in a thread on the node's side, where an agent is.
    fn node<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.node, work)
    }

    fn pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.pod, work)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for netns in [&self.pod, &self.node] {
            _ = Command::new("ip").args(["netns", "delete", netns]).output();
        }
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {}", args.join(" "));
}

fn within<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(format!("/run/netns/{netns}")).unwrap();
    let work = || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Zero where nobody listens.
fn depth(queues: &mut Queues, addr: SocketAddr) -> Result<u32, Unread> {
    queues.queue(addr).map(|queue| queue.map_or(0, |queue| queue.depth))
}

fn connect(addr: SocketAddr, clients: usize) -> Vec<TcpStream> {
    (0..clients).map(|_| TcpStream::connect(addr).unwrap()).collect()
}

/// A listener that shares its address with others of its kind.
fn one_of_several(addr: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_wait_from_when_they_are_established_until_they_are_accepted() {
    let cable = Cable::new();
    // The any address of IPv6 takes both families.
    let listener = cable.pod(|| TcpListener::bind("[::]:8080").unwrap());
    cable.node(|| {
        let mut queues = Queues::open().unwrap();
        queues.look().unwrap();
        for addr in ["10.244.1.2:8080", "[fd00:244::2]:8080"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(depth(&mut queues, addr), Ok(0));
            let clients = connect(addr, 20);
            assert_eq!(depth(&mut queues, addr), Ok(20));
            // Another process has the same answer: nothing is kept.
            let mut another = Queues::open().unwrap();
            another.look().unwrap();
            assert_eq!(depth(&mut another, addr), Ok(20));
            let first = listener.accept().unwrap();
            assert_eq!(depth(&mut queues, addr), Ok(19));
            // The pod still has to accept those that have left: they take up its room until then.
            drop(clients);
            assert_eq!(depth(&mut queues, addr), Ok(19));
            let rest: Vec<_> = (1..20).map(|_| listener.accept().unwrap()).collect();
            assert_eq!(depth(&mut queues, addr), Ok(0));
            drop((first, rest));
        }
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn sockets_that_share_an_address_are_one_queue() {
    let cable = Cable::new();
    let addr = "10.244.1.2:8080".parse().unwrap();
    let mut listeners: Vec<_> = cable.pod(|| (0..5).map(|_| one_of_several(addr)).collect());
    let clients = cable.node(|| {
        let mut queues = Queues::open().unwrap();
        queues.look().unwrap();
        let clients = connect(addr, 40);
        assert_eq!(depth(&mut queues, addr), Ok(40));
        let gone = listeners.pop().unwrap();
        gone.set_nonblocking(true).unwrap();
        let accepted = gone.incoming().take_while(Result::is_ok).count();
        assert!(accepted < 40, "they are spread");
        assert_eq!(depth(&mut queues, addr), Ok(40 - u32::try_from(accepted).unwrap()));
        clients
    });
    drop(clients);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_queue_is_known_by_whichever_of_its_addresses_it_is_found() {
    let cable = Cable::new();
    let [v4, v6] = ["10.244.1.2:8080", "[fd00:244::2]:8080"].map(|addr| addr.parse::<SocketAddr>().unwrap());
    let both = cable.pod(|| TcpListener::bind("[::]:8080").unwrap());
    cable.node(|| {
        let mut queues = Queues::open().unwrap();
        queues.look().unwrap();
        let clients = [connect(v4, 3), connect(v6, 4)];
        let found = [v4, v6].map(|addr| queues.queue(addr).unwrap().unwrap());
        assert_eq!((found[0], found[0].depth), (found[1], 7));
        drop((both, clients));
        let _apart = cable.pod(|| [v4, v6].map(one_of_several));
        let _clients = [connect(v4, 3), connect(v6, 4)];
        let found = [v4, v6].map(|addr| queues.queue(addr).unwrap().unwrap());
        assert_ne!(found[0].id, found[1].id);
        assert_eq!(found.map(|queue| queue.depth), [3, 4]);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn whatever_it_is_asked_the_program_finds_nobody_or_a_queue() {
    let cable = Cable::new();
    // In a namespace in which nobody listens whatever is asked finds nobody; one of a number that is nobody's is not this one.
    cable.node(|| {
        let queues = RefCell::new(Queues::open().unwrap());
        let run = |packet: &[u8]| queues.borrow_mut().run(packet).unwrap();
        // Of what names itself IP in the frame the kernel itself refuses what is too short.
        TestRunner::default()
            .run(&vec(any::<u8>(), 0..64), |asked| {
                prop_assert_eq!(run(&[&[0; 16][..], &asked].concat()), Answer::NOBODY);
                Ok(())
            })
            .unwrap();
        let listener = TcpListener::bind("10.244.1.1:8080").unwrap();
        let _client = connect(listener.local_addr().unwrap(), 1);
        let ask = |netns| Ask { frame: [0; 16], netns, addr: AddrKey::new(listener.local_addr().unwrap()) }.bytes();
        assert_eq!((run(&ask(-1)), run(&ask(1 << 20))), (1, Answer::NOBODY));
        assert_eq!(run(&ask(-1)[..30]), Answer::NOBODY, "what is cut asks nothing");
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn nobody_who_listens_has_no_queue_and_an_address_out_of_sight_is_told_apart() {
    let cable = Cable::new();
    let [pod, node, elsewhere] =
        ["10.244.1.2:8080", "10.244.1.1:8081", "10.244.9.9:80"].map(|addr| addr.parse().unwrap());
    cable.node(|| {
        let mut queues = Queues::open().unwrap();
        assert_eq!(depth(&mut queues, pod), Err(Unread::Nowhere), "nobody has looked");
        queues.look().unwrap();
        assert_eq!(depth(&mut queues, pod), Ok(0));
        assert_eq!(depth(&mut queues, elsewhere), Err(Unread::Nowhere));
        // As one of a pod in the node's own network.
        let listener = TcpListener::bind(node).unwrap();
        let client = connect(node, 1);
        assert_eq!(depth(&mut queues, node), Ok(1));
        drop((listener, client));
        assert_eq!(depth(&mut queues, node), Ok(0));
        let taken: IpAddr = pod.ip();
        ip(&["-n", &cable.node, "address", "add", &format!("{taken}/32"), "dev", "lo"]);
        queues.look().unwrap();
        assert_eq!(depth(&mut queues, pod), Err(Unread::Ambiguous));
    });
}
