//! What an agent asks the pods of other nodes, as the agent of theirs sees it.

use std::fs;

use integration::{agent::Agent, eventually, net::NODE, soon, world::NAMESPACE};
use serde_json::json;

use crate::{
    clients::PORT,
    count::{Bench, UID, VIP, requests},
};

/// Serves by TLS, and is ready when it has been asked for the second time; what it was asked for is in a file.
const SERVER: &str = r#"exec python3 -c '
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        print(self.path, file=open("asked", "a"), flush=True)
        Handler.asked += self.path == "/ready"
        self.send_response(200 if self.path != "/ready" or Handler.asked > 1 else 503)
        self.end_headers()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("certificate.pem", "key.pem")
server = http.server.HTTPServer(("", 8080), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
'"#;

/// What a node has that translates addresses, and refuses who asks for a Service without pods.
const RULES: &str = "table inet kube-proxy {\n\
    chain nat-output { type nat hook output priority -100; }\n\
    chain nat-postrouting { type nat hook postrouting priority srcnat; }\n\
    chain filter-output { type filter hook output priority filter; ct state new ip daddr 10.96.0.1 tcp dport 80 reject; }\n}\n";

fn probed(bench: &Bench) {
    let made = rcgen::generate_simple_self_signed(vec![VIP.to_owned()]).unwrap();
    fs::write(bench.world.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(bench.world.path().join("certificate.pem"), made.cert.pem()).unwrap();
    let get = json!({ "path": "/ready", "port": PORT, "scheme": "HTTPS" });
    bench.world.object(&json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": {
            "target": { "service": "web", "port": 80 }, "dataPath": "Direct", "protocol": "TCP",
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
        "status": { "readinessProbe": { "httpGet": get, "periodSeconds": 10 } },
    }));
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pods_https_probe_by_an_agent_of_another_node_is_not_counted_and_a_clients_request_is() {
    let mut bench = Bench::new();
    probed(&bench);
    bench.list(false);
    bench.cgroup();
    let agent = bench.agent().await;
    eventually("the pod is counted", async || (agent.state().await["count"]["pods"] == json!([UID])).then_some(()))
        .await;
    let elsewhere = bench.net.outside();
    elsewhere.output("ip", &["route", "add", "default", "via", NODE]);
    elsewhere.nft(RULES);
    let other = Agent::start_at(&elsewhere, &bench.world, &["env", "NODE_NAME=node-2", "ROUSE_BPFFS="]).await;
    other.until("web", "cold").await;
    let url = format!("https://{VIP}:80/held");
    let mut client = elsewhere.command("curl");
    let client = client.args(["--silent", "--insecure", "--fail", &url]).kill_on_drop(true).spawn().unwrap();
    other.until_held("web", 1).await;
    bench.start(SERVER);
    let status = soon("the client is answered", client.wait_with_output()).await.unwrap().status;
    assert!(status.success(), "{status}");
    let asked = fs::read_to_string(bench.world.path().join("asked")).unwrap();
    assert!(asked.starts_with("/ready\n/ready\n") && asked.ends_with("/held\n"), "{asked}");
    requests(&agent, 1).await;
    // What is counted late would be seen with what comes after it.
    let url = format!("https://{}:{PORT}/again", bench.pod.addresses[0]);
    bench.client.output("curl", &["--silent", "--insecure", "--fail", &url]);
    requests(&agent, 2).await;
}
