//! Clients and servers of others over a connection that was held: any protocol over TCP.

use std::process::Output;

use integration::{agent::Agent, eventually, net::Host, soon};
use proto::counts::{WatchRequest, counts_client::CountsClient};
use tokio::process::{Child, Command};
use tonic::transport::Endpoint;

use crate::bench::{Bench, VIP};

/// What a client wrote, of which the server must be one that was started after the client.
async fn over_a_held_connection(client: (&str, &[&str]), server: (&str, &[&str])) -> String {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let asking = running(&bench.client, client);
    agent.until_held("web", 1).await;
    let _server = running(&bench.pod, server);
    bench.endpoints(&[&bench.pod]);
    let Output { status, stdout, stderr } = soon("the client ends", asking.wait_with_output()).await.unwrap();
    let (text, said) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{client:?} wrote {text:?} and {said:?}");
    text.into_owned()
}

fn running(host: &Host, (program, args): (&str, &[&str])) -> Child {
    let mut command: Command = host.command(program);
    command.args(args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.kill_on_drop(true).spawn().unwrap()
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn curl_gets_a_page_of_pythons_server() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("page"), "a page").unwrap();
    let root = folder.path().to_str().unwrap();
    let server = ["-m", "http.server", "8080", "--directory", root];
    let page = over_a_held_connection(("curl", &["--silent", "--fail", "http://10.96.0.1/page"]), ("python3", &server));
    assert_eq!(page.await, "a page");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn curl_speaks_tls_with_openssls_server() {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("certificate.pem"));
    let made = rcgen::generate_simple_self_signed(vec![VIP.to_owned()]).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
    let client = ["--silent", "--fail", "--cacert", certificate, "https://10.96.0.1:80/"];
    let server = ["s_server", "-accept", "8080", "-www", "-key", key, "-cert", certificate];
    let page = over_a_held_connection(("curl", &client), ("openssl", &server)).await;
    assert!(page.contains("Ciphers supported"), "{page}");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn redis_answers_its_own_client() {
    let client = ["-h", VIP, "-p", "80", "SET", "key", "value"];
    let server = ["--port", "8080", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"];
    assert_eq!(over_a_held_connection(("redis-cli", &client), ("redis-server", &server)).await.trim(), "OK");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn postgresql_answers_its_own_client() {
    // It refuses to run as root.
    const AS_POSTGRES: &str = "set -e; PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH; cd \"$1\"; \
         as='setpriv --reuid=postgres --regid=postgres --clear-groups'";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let bench = Bench::new();
    let made = format!(
        "{AS_POSTGRES}; chown postgres .; $as initdb --pgdata=data --auth=trust --no-sync >&2; \
         echo 'host all all 0.0.0.0/0 trust' >> data/pg_hba.conf"
    );
    bench.pod.output("sh", &["-c", &made, "sh", path]);
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let query = "SELECT sum(n) FROM generate_series(1, 100000) AS n";
    let client = ["-h", VIP, "-p", "80", "-U", "postgres", "--no-align", "--tuples-only", "-c", query];
    let asking = running(&bench.client, ("psql", &client));
    agent.until_held("web", 1).await;
    let server = format!("{AS_POSTGRES}; exec $as postgres -D data -p 8080 -h '*' -k \"$1\" -F");
    let _server = running(&bench.pod, ("sh", &["-c", &server, "sh", path]));
    // It listens before it has started, and would say so to the client: what a readiness probe is for.
    let asked = ["--quiet", "--host=127.0.0.1", "--port=8080"];
    let is_ready = async || bench.pod.command("pg_isready").args(asked).status().await.unwrap().success().then_some(());
    eventually("the server has started", is_ready).await;
    bench.endpoints(&[&bench.pod]);
    let Output { status, stdout, stderr } = soon("the client ends", asking.wait_with_output()).await.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    assert_eq!(String::from_utf8_lossy(&stdout).trim(), "5000050000");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_server_that_speaks_first_is_heard() {
    // As databases and mail servers do: the client says nothing before it has read.
    let server =
        "import socket; s = socket.create_server(('', 8080)); c, _ = s.accept(); c.sendall(b'220 ready'); c.close()";
    let client = "import socket; print(socket.create_connection(('10.96.0.1', 80), 20).recv(100).decode())";
    let heard = over_a_held_connection(("python3", &["-c", client]), ("python3", &["-c", server])).await;
    assert_eq!(heard.trim(), "220 ready");
}

/// What scalers are told of a route, as its concurrency and its connections, until both are as expected.
async fn told(node: &Host, expected: u64) {
    let watched = node.start(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let channel = Endpoint::from_static("http://127.0.0.1:9097").connect().await.unwrap();
            let mut client = CountsClient::new(channel);
            let request = WatchRequest { scaler: "test".to_owned() };
            let mut stream = client.watch(request).await.unwrap().into_inner();
            loop {
                let update = stream.message().await.unwrap().unwrap();
                let mut routes =
                    update.routes.iter().filter(|counts| [counts.concurrency, counts.connections] == [expected; 2]);
                if routes.any(|counts| counts.route.as_ref().is_some_and(|route| route.name == "web")) {
                    return;
                }
            }
        });
    });
    soon("scalers are told", watched).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn scalers_are_told_of_held_connections_and_of_their_end() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let node = bench.net.node();
    told(&node, 0).await;
    let held = [bench.held(), bench.held()];
    told(&node, 2).await;
    let _pod = crate::clients::listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    for held in held {
        soon("the connection opens", held).await.unwrap().unwrap();
    }
    told(&node, 0).await;
    eventually("nothing is held", async || (agent.metric("rouse_hold_waiting_connections").await == 0).then_some(()))
        .await;
}
