//! A node as a network namespace, with pods as namespaces behind its bridge, and rules of the shape that kube-proxy writes.
//! Everything goes when it is dropped.

use std::{
    fmt::Write as _,
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::process::Command;

/// The node's own addresses on its pods' bridge, and on its uplink.
pub const GATEWAY: [&str; 2] = ["10.244.1.1", "fd00:244::1"];
/// The node's addresses towards the outside.
pub const NODE: &str = "192.0.2.1";
/// As above.
pub const NODE6: &str = "2001:db8::1";

/// A node with pods.
#[derive(Debug)]
pub struct Net {
    name: String,
    hosts: Vec<String>,
}

/// A network namespace: the node, a pod, or a machine outside.
#[derive(Clone, Debug)]
pub struct Host {
    netns: String,
    /// Its addresses, IPv4 and IPv6.
    pub addresses: [IpAddr; 2],
}

/// What the node's rules make of a Service.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where clients connect.
    pub frontend: SocketAddr,
    /// Its pods; none is refused.
    pub pods: Vec<SocketAddr>,
}

// === impl Net ===

impl Net {
    /// A node that forwards, with a bridge for pods.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rouse-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let net = Self { hosts: vec![format!("{name}-node")], name };
        let node = &net.hosts[0];
        ip(&["netns", "add", node]);
        ip(&["-n", node, "link", "set", "lo", "up"]);
        ip(&["-n", node, "link", "add", "cni0", "type", "bridge"]);
        ip(&["-n", node, "address", "add", &format!("{}/24", GATEWAY[0]), "dev", "cni0"]);
        ip(&["-n", node, "address", "add", &format!("{}/64", GATEWAY[1]), "dev", "cni0", "nodad"]);
        ip(&["-n", node, "link", "set", "cni0", "up"]);
        // As every node has one: without, a Service's address would be out of reach before any rule is asked.
        ip(&["-n", node, "route", "add", "default", "dev", "cni0"]);
        ip(&["-n", node, "-6", "route", "add", "default", "dev", "cni0"]);
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.bridge.bridge-nf-call-iptables=1",
            "net.bridge.bridge-nf-call-ip6tables=1",
            // A node's default route does not lead back to its pods: redirects would use up what refusals may be sent.
            "net.ipv4.conf.all.send_redirects=0",
            "net.ipv4.conf.cni0.send_redirects=0",
        ] {
            run("ip", &["netns", "exec", node, "sysctl", "--quiet", "--write", setting]);
        }
        net
    }

    /// The node.
    pub fn node(&self) -> Host {
        Host { netns: self.hosts[0].clone(), addresses: GATEWAY.map(|address| address.parse().unwrap()) }
    }

    /// Another pod, on a port of the bridge that also leads back to where a packet came from.
    pub fn pod(&mut self) -> Host {
        let (node, number) = (self.hosts[0].clone(), self.hosts.len() + 9);
        let (netns, port) = (format!("{}-pod{number}", self.name), format!("veth{number}"));
        let addresses = [format!("10.244.1.{number}"), format!("fd00:244::{number}")];
        self.attach(&netns, &port);
        ip(&["-n", &node, "link", "set", &port, "master", "cni0", "up"]);
        ip(&["-n", &node, "link", "set", &port, "type", "bridge_slave", "hairpin", "on"]);
        ip(&["-n", &netns, "address", "add", &format!("{}/24", addresses[0]), "dev", "eth0"]);
        ip(&["-n", &netns, "address", "add", &format!("{}/64", addresses[1]), "dev", "eth0", "nodad"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        ip(&["-n", &netns, "route", "add", "default", "via", GATEWAY[0]]);
        ip(&["-n", &netns, "-6", "route", "add", "default", "via", GATEWAY[1]]);
        Host { netns, addresses: addresses.map(|address| address.parse().unwrap()) }
    }

    /// A machine outside that reaches the node through its uplink, `uplink0`, a virtual cable.
    pub fn outside(&mut self) -> Host {
        let netns = format!("{}-out", self.name);
        self.attach(&netns, "uplink0");
        self.address_outside(netns)
    }

    /// The same by an uplink that is no virtual cable, as those of machines are not: on this one both stand upon one device.
    pub fn outside_by_macvlan(&mut self) -> Host {
        let (node, netns) = (self.hosts[0].clone(), format!("{}-out", self.name));
        ip(&["netns", "add", &netns]);
        self.hosts.push(netns.clone());
        ip(&["-n", &netns, "link", "add", "below", "type", "veth", "peer", "name", "nobody"]);
        for device in ["below", "nobody"] {
            ip(&["-n", &netns, "link", "set", device, "up"]);
        }
        for device in ["eth0", "uplink0"] {
            ip(&["-n", &netns, "link", "add", device, "link", "below", "type", "macvlan", "mode", "bridge"]);
        }
        ip(&["-n", &netns, "link", "set", "uplink0", "netns", &node]);
        self.address_outside(netns)
    }

    fn address_outside(&self, netns: String) -> Host {
        let node = &self.hosts[0];
        ip(&["-n", node, "address", "add", &format!("{NODE}/24"), "dev", "uplink0"]);
        ip(&["-n", node, "address", "add", &format!("{NODE6}/64"), "dev", "uplink0", "nodad"]);
        ip(&["-n", node, "link", "set", "uplink0", "up"]);
        let addresses = ["192.0.2.9", "2001:db8::9"];
        ip(&["-n", &netns, "address", "add", &format!("{}/24", addresses[0]), "dev", "eth0"]);
        ip(&["-n", &netns, "address", "add", &format!("{}/64", addresses[1]), "dev", "eth0", "nodad"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        Host { netns, addresses: addresses.map(|address| address.parse().unwrap()) }
    }

    /// Makes these the node's rules for Services, in place of those it had: a pod by chance, or a refusal, before and after
    /// which `more` stands in the chain that forwards.
    pub fn rules(&self, rules: &[Rule], more: &str) {
        let mut services = String::new();
        let mut refused = String::new();
        for Rule { frontend, pods } in rules {
            let family = if frontend.is_ipv4() { "ip" } else { "ip6" };
            let to = format!("{family} daddr {} tcp dport {}", frontend.ip(), frontend.port());
            if pods.is_empty() {
                _ = writeln!(refused, "ct state new {to} reject");
            } else {
                // One after the other by chance, as with iptables: elements of a map may be gone for a packet that is in the middle
                // of a change.
                for (at, pod) in pods.iter().enumerate() {
                    let left = pods.len() - at;
                    let chance = if left > 1 { format!("numgen random mod {left} 0 ") } else { String::new() };
                    _ = writeln!(services, "{to} {chance}dnat {family} to {pod}");
                }
            }
        }
        // Chains that are hooked in stay, as kube-proxy's do: a packet that passes while they were replaced might meet neither.
        let text = format!(
            "table inet kube-proxy {{\n\
             chain services {{ }}\n\
             chain refuse {{ }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat; }}\n\
             chain nat-output {{ type nat hook output priority -100; }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority srcnat; }}\n\
             chain filter-forward {{ type filter hook forward priority filter - 101; }}\n\
             chain filter-input {{ type filter hook input priority filter - 101; }}\n\
             chain filter-output {{ type filter hook output priority filter; }}\n}}\n\
             flush table inet kube-proxy\n\
             table inet kube-proxy {{\n\
             chain services {{\n{services}}}\n\
             chain refuse {{\n{refused}}}\n\
             chain nat-prerouting {{ jump services; }}\n\
             chain nat-output {{ jump services; }}\n\
             chain filter-forward {{ {more} jump refuse; }}\n\
             chain filter-input {{ jump refuse; }}\n\
             chain filter-output {{ jump refuse; }}\n}}\n"
        );
        self.node().nft(&text);
    }

    /// A new namespace whose `eth0` is the other end of a device of the node.
    fn attach(&mut self, netns: &str, device: &str) {
        let node = self.hosts[0].clone();
        self.hosts.push(netns.to_owned());
        ip(&["netns", "add", netns]);
        ip(&["-n", netns, "link", "set", "lo", "up"]);
        ip(&["-n", &node, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", netns]);
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in self.hosts.iter().rev() {
            // What is left of one that failed half way is all the same gone with the others.
            let _ = std::process::Command::new("ip").args(["netns", "delete", host]).output();
        }
    }
}

// === impl Host ===

impl Host {
    /// Its address of the same family as another.
    pub fn like(&self, other: IpAddr) -> IpAddr {
        self.addresses[usize::from(other.is_ipv6())]
    }

    /// Runs in a thread in its network namespace. Sockets that are made there belong to it for good.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).await.unwrap()
    }

    /// The same, at once and beside what follows.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> tokio::sync::oneshot::Receiver<T> {
        let netns = File::open(format!("/run/netns/{}", self.netns)).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            // Whoever does not wait does not want to know.
            let _ = tell.send(work());
        });
        told
    }

    /// A command that runs in its network namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns, program]).stdin(Stdio::null());
        command
    }

    /// What a command that runs there writes.
    pub fn output(&self, program: &str, args: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.netns, program], args].concat())
    }

    /// Puts rules into its packet filter.
    pub fn nft(&self, text: &str) {
        let mut child = std::process::Command::new("ip")
            .args(["netns", "exec", &self.netns, "nft", "--file", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
    }

    /// What is served there at a path of a port.
    pub async fn get(&self, port: u16, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = self.run(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        let text: std::io::Result<String> = response.await;
        text.unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The JSON that is served there at a path of a port.
    pub async fn json(&self, port: u16, path: &str) -> Value {
        serde_json::from_str(&self.get(port, path).await).unwrap()
    }
}

fn ip(args: &[&str]) {
    run("ip", args);
}

fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
