//! The control plane's programs and their flags: etcd, API server, controller manager, scheduler.

use crate::cluster::{
    machine::{HERE, Need, Service},
    netns::SERVICES,
    pki::PORT,
    place::Machine,
    services::service,
};

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";

/// What runs on the control plane's machine.
pub(crate) fn services() -> Vec<Service> {
    let listens = || api_server_listens();
    vec![
        etcd(),
        api_server(),
        Service { needs: listens(), ..controller_manager() },
        Service { needs: listens(), ..scheduler() },
    ]
}

/// The API server's port accepts; it may not be ready yet.
pub(crate) fn api_server_listens() -> Option<Need> {
    format!("{}:{PORT}", Machine::ControlPlane.address()).parse().ok().map(Need::Listener)
}

fn etcd() -> Service {
    let args = [
        format!("--data-dir={HERE}/state/etcd"),
        // Nobody needs this cluster's data after a power cut.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster=default={ETCD_PEER}"),
    ];
    service("etcd", "etcd/etcd", args)
}

fn api_server() -> Service {
    let pki = format!("{HERE}/state/pki");
    let args = [
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={}", Machine::ControlPlane.address()),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={PORT}"),
        format!("--tls-cert-file={pki}/apiserver.crt"),
        format!("--tls-private-key-file={pki}/apiserver.key"),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--token-auth-file={pki}/tokens.csv"),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--service-cluster-ip-range={}", SERVICES.join(",")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-signing-key-file={pki}/sa.key"),
        format!("--service-account-key-file={pki}/sa.pub"),
        format!("--requestheader-client-ca-file={pki}/front-ca.crt"),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={pki}/front-proxy.crt"),
        format!("--proxy-client-key-file={pki}/front-proxy.key"),
        // There is no kube-proxy here: aggregated APIs and webhooks are reached by the addresses of their pods.
        "--enable-aggregator-routing=true".to_owned(),
        format!("--kubelet-client-certificate={pki}/kubelet-client.crt"),
        format!("--kubelet-client-key={pki}/kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ];
    service("kube-apiserver", "kube/kube-apiserver", args)
}

fn controller_manager() -> Service {
    let args = [
        format!("--kubeconfig={HERE}/state/kcm.kubeconfig"),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        format!("--root-ca-file={HERE}/state/pki/ca.crt"),
        format!("--service-account-private-key-file={HERE}/state/pki/sa.key"),
        "--use-service-account-credentials=true".to_owned(),
        // A test does not wait fifteen seconds for the next look at a metric.
        "--horizontal-pod-autoscaler-sync-period=1s".to_owned(),
        // Its dozens of controllers all start at once here, and somebody waits.
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
        "--profiling=false".to_owned(),
    ];
    service("kube-controller-manager", "kube/kube-controller-manager", args)
}

fn scheduler() -> Service {
    let config = format!("{HERE}/state/scheduler.kubeconfig");
    let args = [
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        "--profiling=false".to_owned(),
    ];
    service("kube-scheduler", "kube/kube-scheduler", args)
}
