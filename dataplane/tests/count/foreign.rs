//! Foreign servers and clients: what they say that they did is what was counted.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use dataplane::count::Origins;
use tempfile::TempDir;

use crate::{
    node::{Bpffs, Node, Program, eventually},
    theirs::PYTHON,
};

/// nginx in a pod, a port for each way to speak with it.
struct Nginx {
    node: Node,
    folder: TempDir,
    _program: Program,
}

const HTTP1: u32 = 1;
const HTTP2: u32 = 2;
const TLS: u32 = 3;
const DEFERRED: u32 = 4;
const MUTUAL: u32 = 5;

impl Nginx {
    fn start() -> Self {
        Self::start_on(Node::new())
    }

    fn start_on(mut node: Node) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let (key, cert) = (format!("{path}/key"), format!("{path}/cert"));
        let subject = ["-subj", "/CN=test", "-days", "2", "-keyout", &key, "-out", &cert];
        let curve = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        run(Command::new("openssl").args(curve).args(subject));
        fs::write(folder.path().join("big"), vec![b'x'; 1 << 20]).unwrap();
        let [http1, http2, tls, deferred, mutual, behind] = free();
        let config = format!(
            "daemon off; pid {path}/pid; error_log {path}/error; worker_processes 2; events {{ worker_connections 4096; }}
            http {{
                access_log off; keepalive_requests 1000000; client_max_body_size 1g; root {path};
                client_body_temp_path {path}/b; proxy_temp_path {path}/p; fastcgi_temp_path {path}/f;
                uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
                ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
                server {{
                    listen {http1}; listen {http2} http2; listen {tls} ssl; listen {deferred} deferred;
                    location / {{ return 200 x; }}
                    location /big {{ }}
                    location /up {{ proxy_pass http://{behind}; }}
                }}
                server {{
                    listen {mutual} ssl; ssl_ecdh_curve prime256v1; ssl_verify_client optional_no_ca;
                    location / {{ return 200 x; }}
                }}
                server {{ listen {behind}; location / {{ return 200 x; }} }}
            }}"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let program = node.run("a1", "nginx", &["-p", &path, "-c", file.to_str().unwrap()]);
        for addr in [http1, http2, tls, deferred, mutual, behind] {
            eventually("nginx listens", || TcpStream::connect(addr).is_ok());
        }
        for (id, addr) in [(HTTP1, http1), (HTTP2, http2), (TLS, tls), (DEFERRED, deferred), (MUTUAL, mutual)] {
            node.list(id, "a1", addr);
        }
        Self { node, folder, _program: program }
    }

    /// Sends a body in three ways.
    fn upload(&self, id: u32) {
        let body = self.folder.path().join("methods");
        fs::write(&body, b"GET / HTTP/1.1\r\n\r\n".repeat(200_000)).unwrap();
        for header in ["Expect: 100-continue", "Expect:", "Transfer-Encoding: chunked"] {
            let url = self.url(id, "/up");
            run(Command::new("curl").args(["-sSf", "-H", header, "-T", body.to_str().unwrap(), &url]));
        }
    }

    fn url(&self, id: u32, path: &str) -> String {
        let scheme = if id == TLS || id == MUTUAL { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.node.addr(id))
    }
}

/// Ports that were free a moment ago.
fn free<const N: usize>() -> [SocketAddr; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.8.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

fn run(command: &mut Command) -> String {
    let name = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn h2load(args: &[&str], expected: u64) {
    let text = run(Command::new("h2load").args(args));
    assert!(text.contains(&format!("status codes: {expected} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{text}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn h2loads_requests_are_counted_exactly_over_http1_and_tls() {
    let nginx = Nginx::start();
    h2load(&["--h1", "-n20000", "-c50", &nginx.url(HTTP1, "/")], 20_000);
    h2load(&["--h1", "-n300", "-c20", &nginx.url(HTTP1, "/big")], 300);
    let sum = nginx.node.settles(HTTP1);
    assert_eq!((sum.requests(), sum.opened, sum.failed), (20_300, 70, 0));
    h2load(&["--h1", "-n5000", "-c50", &nginx.url(TLS, "/")], 5000);
    let sum = nginx.node.settles(TLS);
    assert_eq!((sum.requests(), sum.opened), (5000, 50));
}

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn h2loads_streams_are_counted_exactly() {
    let nginx = Nginx::start();
    let mut expected = 0;
    for (streams, path, requests) in
        [("-m1", "/", 5000), ("-m10", "/", 20_000), ("-m100", "/", 20_000), ("-m10", "/big", 200)]
    {
        h2load(&[&format!("-n{requests}"), "-c10", streams, &nginx.url(HTTP2, path)], requests);
        expected += requests;
        assert_eq!(nginx.node.settles(HTTP2).requests(), expected, "{streams} {path}");
    }
    let body = nginx.folder.path().join("body");
    fs::write(&body, vec![b'x'; 300_000]).unwrap();
    let data = format!("-d{}", body.display());
    h2load(&["-n200", "-c10", "-m10", &data, &nginx.url(HTTP2, "/up")], 200);
    assert_eq!(nginx.node.settles(HTTP2).requests(), expected + 200);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn requests_that_come_with_the_handshake_are_counted() {
    let mut nginx = Nginx::start();
    h2load(&["--h1", "-n400", "-c100", &nginx.url(DEFERRED, "/")], 400);
    let sum = nginx.node.settles(DEFERRED);
    assert_eq!((sum.requests(), sum.opened), (400, 100));
    nginx.upload(DEFERRED);
    assert_eq!(nginx.node.settles(DEFERRED).requests(), 403);
    nginx.node.origins(&Origins { own: vec!["127.0.9.1".parse().unwrap()], ..Origins::default() });
    for _ in 0..5 {
        let probe = ["-sSf", "--interface", "127.0.9.1", "-A", "kube-probe/1.36", &nginx.url(DEFERRED, "/")];
        run(Command::new("curl").args(probe));
    }
    let sum = nginx.node.settles(DEFERRED);
    assert_eq!((sum.requests(), sum.opened, sum.failed), (403, 103, 0), "the kubelet's probes are none");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_end_of_a_tls_handshake_is_no_request_however_it_looks() {
    let nginx = Nginx::start();
    let path = nginx.folder.path().display().to_string();
    let (cert, key, url) = (format!("{path}/cert"), format!("{path}/key"), nginx.url(MUTUAL, "/"));
    // The server wants another curve than the first that is offered, and a certificate.
    for (number, version) in ["1.3", "1.2"].into_iter().enumerate() {
        let args = [
            "-sSkf",
            "--tls-max",
            version,
            "--curves",
            "X25519:P-256",
            "--cert",
            &cert,
            "--key",
            &key,
            &url,
            &url,
            &url,
        ];
        run(Command::new("curl").args(args));
        let (requests, connections) = (3 * (number as u64 + 1), number as u64 + 1);
        let sum = nginx.node.settles(MUTUAL);
        assert_eq!((sum.requests(), sum.opened), (requests, connections), "{version}");
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn wrks_requests_are_counted_and_those_it_left_in_flight() {
    let nginx = Nginx::start();
    let text = run(Command::new("wrk").args(["-t2", "-c50", "-d1s", &nginx.url(HTTP1, "/")]));
    let line = text.lines().find(|line| line.contains(" requests in ")).expect("wrk says how many");
    let told: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    let counted = nginx.node.settles(HTTP1).requests();
    assert!((told..=told + 50).contains(&counted), "wrk tells of {told}, the kernel of {counted}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn uploads_made_of_methods_are_one_request_each() {
    let nginx = Nginx::start();
    nginx.upload(HTTP1);
    assert_eq!(nginx.node.settles(HTTP1).requests(), 3);
}

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn clients_that_are_killed_leave_nothing_in_flight() {
    let nginx = Nginx::start();
    for (id, args) in [(HTTP1, vec!["--h1", "-c50"]), (HTTP2, vec!["-c10", "-m50"]), (TLS, vec!["--h1", "-c20"])] {
        let before = nginx.node.requests(id).0;
        let mut client = Command::new("h2load")
            .args(["-n100000000"])
            .args(args)
            .arg(nginx.url(id, "/"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("it is in full swing", || nginx.node.requests(id).0 > before + 1000);
        client.kill().unwrap();
        client.wait().unwrap();
        nginx.node.settles(id);
    }
}

/// A program that says a line when it is ready.
fn ready(command: &mut Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, output)
}

const GRPC_SERVER: &str = "
import sys, grpc, threading
from concurrent import futures
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == '/t/One':
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        def stream(request, context):
            yield b'first'
            done = threading.Event()
            context.add_callback(done.set)
            done.wait()
        return grpc.unary_stream_rpc_method_handler(stream)
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Handler(),))
assert server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
";

const GRPC_CLIENT: &str = "
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
one, stream = channel.unary_unary('/t/One'), channel.unary_stream('/t/Stream')
for _ in range(200):
    assert one(b'x' * 2000) == b'x' * 2000
watch = stream(b'')
assert next(watch) == b'first'
for _ in range(1500):
    one(b'y')
print('ready', flush=True)
sys.stdin.readline()
watch.cancel()
print('cancelled', flush=True)
sys.stdin.readline()
";

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn grpc_calls_are_counted_and_a_stream_is_in_flight_until_it_is_cancelled() {
    let mut node = Node::new();
    let [addr] = free();
    let _server = node.run("a1", PYTHON, &["-c", GRPC_SERVER, &addr.to_string()]);
    eventually("the server listens", || TcpStream::connect(addr).is_ok());
    node.list(1, "a1", addr);
    let (mut client, mut output) = ready(Command::new(PYTHON).args(["-c", GRPC_CLIENT, &addr.to_string()]));
    assert_eq!(node.requests(1), (1701, 1), "more calls than streams are told apart, and one that lasts");
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    output.read_line(&mut String::new()).unwrap();
    eventually("the stream is cancelled", || node.requests(1) == (1701, 0));
    drop(input);
    client.wait().unwrap();
    node.settles(1);
}

const WEBSOCKET_SERVER: &str = "
import sys, asyncio, websockets
async def echo(socket, path=None):
    async for message in socket:
        await socket.send(message)
async def main():
    host, port = sys.argv[1].split(':')
    async with websockets.serve(echo, host, int(port)):
        await asyncio.Future()
asyncio.run(main())
";

const WEBSOCKET_CLIENT: &str = "
import sys, asyncio, websockets
async def main():
    async with websockets.connect('ws://' + sys.argv[1]) as socket:
        for number in range(200):
            await socket.send('GET %d' % number)
            assert await socket.recv() == 'GET %d' % number
        print('ready', flush=True)
        sys.stdin.readline()
asyncio.run(main())
";

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_websocket_is_one_request_for_as_long_as_it_lives() {
    let mut node = Node::new();
    let [addr] = free();
    let _server = node.run("a1", PYTHON, &["-c", WEBSOCKET_SERVER, &addr.to_string()]);
    eventually("the server listens", || TcpStream::connect(addr).is_ok());
    node.list(1, "a1", addr);
    let (mut client, _output) = ready(Command::new(PYTHON).args(["-c", WEBSOCKET_CLIENT, &addr.to_string()]));
    assert_eq!(node.requests(1), (1, 1));
    drop(client.stdin.take());
    client.wait().unwrap();
    assert_eq!(node.settles(1).requests(), 1);
}

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn nothing_is_lost_or_counted_twice_while_what_counts_is_replaced_under_load() {
    let bpffs = Bpffs::mount();
    let mut nginx = Nginx::start_on(Node::pinned(bpffs.path()));
    for (id, args) in [(HTTP1, &["--h1", "-n60000", "-c40"][..]), (HTTP2, &["-n60000", "-c10", "-m10"])] {
        let url = nginx.url(id, "/");
        let (mut rounds, mut replaced) = (0, 0);
        while replaced < 3 {
            let mut load = Command::new("h2load").args(args).arg(&url).stdout(Stdio::piped()).spawn().unwrap();
            rounds += 1;
            while load.try_wait().unwrap().is_none() {
                nginx.node.replace();
                replaced += 1;
            }
            let text = std::io::read_to_string(load.stdout.take().unwrap()).unwrap();
            assert!(text.contains("status codes: 60000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{text}");
        }
        let sum = nginx.node.settles(id);
        assert_eq!((sum.requests(), sum.failed), (rounds * 60_000, 0));
    }
}
