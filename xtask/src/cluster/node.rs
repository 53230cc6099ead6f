//! A node's programs and their settings: containerd, kubelet, kube-proxy. `cluster up` writes the settings into the node's folder.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::cluster::{
    cgroups,
    control_plane::api_server_listens,
    machine::{HERE, Need, Service},
    netns::{DNS, PODS, pods_of},
    place::{Machine, Place},
    services::service,
};

/// Where containerd listens, on the node.
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The image of the container that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "docker.io/rouse/pause:1";

/// What containerd loads for nothing here.
const NO_PLUGINS: &str = r#""io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs""#;

/// Folders of a node's file system and the ones of the cluster's folder they are.
pub(crate) fn state(node: u8) -> Vec<(String, String)> {
    let at = |path: &str, folder: &str| (path.to_owned(), format!("node{node}/{folder}"));
    vec![at("/var/lib/kubelet", "kubelet"), at("/var/log/pods", "pods"), at("/var/log/containers", "containers")]
}

/// What runs on a node.
pub(crate) fn services(node: u8) -> Vec<Service> {
    let folder = format!("{HERE}/state/node{node}");
    let containerd = service("containerd", "cri/containerd", [format!("--config={folder}/containerd.toml")]);
    let kubelet = [
        format!("--config={folder}/kubelet.yaml"),
        format!("--kubeconfig={HERE}/state/node{node}.kubeconfig"),
        format!("--hostname-override=node{node}"),
        format!("--node-ip={}", Machine::Node(node).addresses().join(",")),
        "--root-dir=/var/lib/kubelet".to_owned(),
        "--cert-dir=/var/lib/kubelet/pki".to_owned(),
        "--v=2".to_owned(),
    ];
    let proxy = [format!("--config={folder}/proxy.yaml"), "--v=2".to_owned()];
    vec![
        containerd,
        // Its first request would fail, and the next come seconds later.
        Service { needs: api_server_listens(), ..service("kube-proxy", "kube/kube-proxy", proxy) },
        Service { needs: Some(Need::File(CONTAINERD.into())), ..service("kubelet", "kube/kubelet", kubelet) },
    ]
}

/// Writes a node's settings into its folder.
pub(crate) fn write(place: &Place, node: u8) -> Result<()> {
    let folder = place.folder().join(format!("node{node}"));
    fs::create_dir_all(folder.join("cni")).with_context(|| format!("cannot make {}", folder.display()))?;
    let cgroup = place.machine(Machine::Node(node));
    cgroups::make(&cgroup)?;
    for (name, text) in [
        ("cni/10-rouse.conflist", network(node)),
        ("containerd.toml", containerd(node)),
        ("kubelet.yaml", kubelet(node, &cgroup)),
        ("proxy.yaml", proxy(node, ProxyMode::Nftables)),
    ] {
        put(&folder.join(name), &text)?;
    }
    Ok(())
}

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyMode {
    Nftables,
    Iptables,
}

/// Writes the settings of a node's kube-proxy, which reads them when it starts.
pub(super) fn write_proxy(place: &Place, node: u8, mode: ProxyMode) -> Result<()> {
    put(&place.folder().join(format!("node{node}/proxy.yaml")), &proxy(node, mode))
}

// === impl ProxyMode ===

impl ProxyMode {
    /// kube-proxy's own name of it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn network(node: u8) -> String {
    let [v4, v6] = pods_of(node);
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "rouse", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipMasq": false, "ipam": {{"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{{"subnet": "{v4}"}}], [{{"subnet": "{v6}"}}]],
  "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}}]}}
"#
    )
}

fn containerd(node: u8) -> String {
    format!(
        r#"version = 3
root = "{HERE}/state/node{node}/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [{NO_PLUGINS}]
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{HERE}/bin/cri"]
    conf_dir = "{HERE}/state/node{node}/cni"
    use_internal_loopback = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "{HERE}/bin/cri/runc"
        SystemdCgroup = false
"#
    )
}

fn kubelet(node: u8, cgroup: &str) -> String {
    let address = Machine::Node(node).address();
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
enforceNodeAllocatable: []
failSwapOn: false
containerRuntimeEndpoint: unix://{CONTAINERD}
address: {address}
authentication: {{anonymous: {{enabled: false}}, x509: {{clientCAFile: {HERE}/state/pki/ca.crt}}, webhook: {{enabled: true}}}}
authorization: {{mode: Webhook}}
clusterDomain: cluster.local
clusterDNS: ["{DNS}"]
resolvConf: ""
volumePluginDir: /var/lib/kubelet/volume-plugins
evictionHard: {{memory.available: "100Mi"}}
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 24h
registerNode: true
syncFrequency: 10s
nodeStatusUpdateFrequency: 4s
"#
    )
}

fn proxy(node: u8, mode: ProxyMode) -> String {
    let address = Machine::Node(node).address();
    let (mode, pods) = (mode.name(), PODS.join(","));
    format!(
        r"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
clientConnection: {{kubeconfig: {HERE}/state/proxy.kubeconfig}}
hostnameOverride: node{node}
bindAddress: {address}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clusterCIDR: {pods}
detectLocalMode: ClusterCIDR
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s, udpTimeout: 0s, udpStreamTimeout: 0s}}
nftables: {{minSyncPeriod: 100ms, syncPeriod: 30s}}
iptables: {{minSyncPeriod: 100ms, syncPeriod: 30s}}
"
    )
}
