//! The chart: what many settings make of it is accepted by the API server, what can't be is refused with a reason, and the
//! dashboard's metrics exist.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    client::{Client, NODE},
    tenant::{SOON, SYSTEM, Tenant},
};
use crate::cluster::Cluster;

/// Settings that the chart must take: name, and `--set` arguments.
const MATRIX: &[(&str, &[&str])] = &[
    ("the defaults", &[]),
    ("one replica of each", &["interceptor.replicas.min=1", "interceptor.replicas.max=1", "scaler.replicas=1"]),
    ("no operator", &["operator.replicas=0"]),
    ("no KEDA for interceptors", &["interceptor.scaledObject.enabled=false"]),
    (
        "one namespace",
        &[
            "interceptor.watchNamespace=default",
            "scaler.watchNamespace=default",
            "operator.watchNamespace=default",
            "agent.enabled=true",
        ],
    ),
    ("level self", &["interceptor.dataplane.level=self", "interceptor.dataplane.required=true"]),
    (
        "secured metrics",
        &[
            "operator.metrics.secure=true",
            "operator.metrics.auth=true",
            "operator.metrics.certDir=/certs",
            "operator.extraVolumes[0].name=certs",
            "operator.extraVolumes[0].secret.secretName=certs",
            "operator.extraVolumeMounts[0].name=certs",
            "operator.extraVolumeMounts[0].mountPath=/certs",
        ],
    ),
    (
        "certificates in Secrets, and hosts by namespace",
        &[
            "routing.hostGuard=allow-list",
            "interceptor.tls.enabled=true",
            "interceptor.tls.secrets={*,default/*,default/one,kube-system/two,kube-system/three}",
            "interceptor.tls.defaultSecret=default/tls",
        ],
    ),
    (
        "a Secret for pods, and the hosts of one namespace",
        &[
            "routing.hostGuard=allow-list",
            "interceptor.watchNamespace=default",
            "operator.watchNamespace=default",
            "interceptor.tls.secrets={default/client}",
        ],
    ),
    ("network policies", &["networkPolicy.enabled=true"]),
    (
        "network policies with peers",
        &[
            "networkPolicy.enabled=true",
            "networkPolicy.clients[0].namespaceSelector.matchLabels.team=web",
            "networkPolicy.direct[0].namespaceSelector.matchLabels.team=shop",
            "networkPolicy.keda[0].podSelector.matchLabels.app=keda-operator",
            "networkPolicy.prometheus[0].ipBlock.cidr=10.0.0.0/8",
        ],
    ),
    (
        "places",
        &[
            "interceptor.nodeSelector.disk=fast",
            "interceptor.tolerations[0].operator=Exists",
            "interceptor.priorityClassName=system-cluster-critical",
            "interceptor.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=zone",
            "scaler.topologySpreadConstraints[0].maxSkew=2",
            "scaler.topologySpreadConstraints[0].topologyKey=zone",
            "scaler.topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule",
        ],
    ),
    (
        "extras",
        &[
            "additionalLabels.team=web",
            "interceptor.extraEnvs.KEDA_HTTP_LOG_REQUESTS=true",
            "interceptor.extraArgs[0]=--workers=2",
            "interceptor.imagePullSecrets[0]=registry",
            "scaler.imagePullSecrets[0].name=registry",
            "scaler.additionalEnvVars[0].name=A",
            "scaler.additionalEnvVars[0].value=1",
            "interceptor.extraVolumes[0].name=tmp",
            "interceptor.extraVolumes[0].emptyDir.medium=Memory",
            "interceptor.extraVolumeMounts[0].name=tmp",
            "interceptor.extraVolumeMounts[0].mountPath=/tmp",
            "operator.podLabels.sidecar=none",
            "operator.podAnnotations.note=text",
            "rbac.aggregateToDefaultRoles=true",
            "monitoring.dashboard.enabled=true",
        ],
    ),
    (
        "TLS",
        &[
            "interceptor.tls.enabled=true",
            "interceptor.tls.certStores={first,second}",
            "interceptor.tls.caSecrets[0]=authority",
            "interceptor.tls.minVersion=1.3",
        ],
    ),
    (
        "the agent",
        &["agent.enabled=true", "agent.required=true", "agent.extraEnvs.ROUSE_LOG=debug", "agent.podLabels.a=b"],
    ),
    (
        "an agent confined otherwise",
        &[
            "agent.enabled=true",
            "agent.appArmorProfile.type=Localhost",
            "agent.appArmorProfile.localhostProfile=rouse",
            "agent.seccompProfile.type=Unconfined",
            "agent.seLinuxOptions.type=spc_t",
            "agent.maxUnavailable=10%",
        ],
    ),
    ("pods that must stay", &["interceptor.pdb.minAvailable=50%", "scaler.pdb.enabled=false"]),
    ("a load balancer", &["interceptor.proxy.serviceType=LoadBalancer", "interceptor.proxy.appProtocol=http"]),
    (
        "the add-on's values",
        &[
            "interceptor.replicas.waitTimeout=20s",
            "interceptor.responseHeaderTimeout=500ms",
            "interceptor.forceHTTP2=false",
            "interceptor.keepAlive=1s",
            "interceptor.idleConnTimeout=90s",
            "interceptor.tlsHandshakeTimeout=10s",
            "interceptor.expectContinueTimeout=1s",
            "interceptor.endpointsCachePollingIntervalMS=250",
            "interceptor.tls.certSecret=certs",
            "interceptor.tls.cert_path=/certs/tls.crt",
            "interceptor.pullPolicy=Always",
            "logging.interceptor.stackTracesEnabled=false",
            "logging.operator.kubeRbacProxy.level=10",
            "images.kubeRbacProxy.tag=v0.13.0",
            "operator.port=8443",
            "operator.metrics.auth=true",
            "scaler.healthPort=9091",
            "operator.kubeRbacProxy.resources.limits.cpu=300m",
            "profiling.interceptor.enabled=true",
            "podSecurityContext.fsGroup=1000",
            "securityContext.interceptor.readOnlyRootFilesystem=true",
        ],
    ),
];

/// Settings that the chart must refuse, and what the reason names.
const REFUSED: [(&str, &str); 7] = [
    ("interceptor.replcas.min=1", "replcas"),
    ("interceptor.readinessTimeout=soon", "readinessTimeout"),
    ("interceptor.replicas.max=2", "interceptor.replicas"),
    ("interceptor.dataplane.level=most", "level"),
    ("agent.port=70000", "port"),
    ("agent.appArmorProfile.type=unconfined", "appArmorProfile"),
    ("scaler.grpcPort=70000", "grpcPort"),
];

/// Each setting of the matrix goes through the API server's dry run; each of the refused is refused.
pub(super) fn settings(cluster: &Cluster) -> Result<()> {
    let chart = chart(cluster)?;
    // As new objects: those that are there would be merged with what they are already.
    let tenant = Tenant::new(cluster, "settings")?;
    cluster.helm(&["lint", "--strict", "--kube-version", "1.36", &chart])?;
    for (name, settings) in MATRIX {
        let objects = rendered(&tenant, &chart, settings).with_context(|| format!("chart with {name}"))?;
        cluster
            .fed(&["apply", "--dry-run=server", "--server-side", "--force-conflicts", "--filename", "-"], &objects)
            .with_context(|| format!("the API server on the chart with {name}"))?;
    }
    agents(&tenant, &chart)?;
    let objects =
        rendered(&tenant, &chart, &["networkPolicy.enabled=true", "networkPolicy.clients[0].ipBlock.cidr=10.0.0.0/8"])?;
    let stand_ins =
        objects.split("    - ports:").find(|rule| rule.contains("endPort")).context("no rule of stand-ins")?;
    ensure!(!stand_ins.contains("from:"), "clients of direct Services are kept out: {stand_ins}");
    for (setting, named) in REFUSED {
        match rendered(&tenant, &chart, &[setting]) {
            Ok(_) => bail!("{setting} was accepted"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains(named), "{setting} was refused without a word about {named}: {said}");
            }
        }
    }
    tenant.finish()
}

/// An agent may read what it watches, may pin, whatever the API server's version, and its metrics are read.
fn agents(tenant: &Tenant<'_>, chart: &str) -> Result<()> {
    let agent = "agent.enabled=true";
    let objects = rendered(tenant, chart, &[agent, "interceptor.watchNamespace=default"])?;
    for namespace in ["default", &tenant.namespace] {
        let reads = objects.split("\n---\n").filter(|object| object.contains("kind: Role\n")).any(|role| {
            let is = |line: &str| role.lines().any(|found| found.trim() == line);
            is(&format!("namespace: {namespace}"))
                && is("app.kubernetes.io/component: agent")
                && is("resources: [endpointslices]")
        });
        ensure!(reads, "an agent of one namespace may not read EndpointSlices of {namespace}");
    }
    for (version, unconfined) in [
        ("1.36", "appArmorProfile:\n              type: Unconfined"),
        ("1.29", "container.apparmor.security.beta.kubernetes.io/keda-add-ons-http-agent: unconfined"),
    ] {
        let objects = rendered_for(version, tenant, chart, &[agent])?;
        ensure!(objects.contains(unconfined), "AppArmor keeps agents from pinning on {version}");
    }
    for monitor in ["podMonitor", "serviceMonitor"] {
        let objects = rendered(tenant, chart, &[agent, &format!("monitoring.{monitor}.enabled=true")])?;
        let kind = format!("kind: {}", monitor.to_lowercase());
        let reads = |port| {
            let mut monitors = objects.split("\n---\n").filter(|object| object.to_lowercase().contains(&kind));
            monitors.any(|monitor| monitor.contains(&format!("- port: {port}\n")))
        };
        ensure!(reads("metrics") && reads("admin"), "a {monitor} does not read all metrics");
    }
    Ok(())
}

/// Metrics that appear when something goes wrong for the first time.
const SELDOM: [&str; 2] = ["interceptor_cold_start_rejections_total", "rouse_connect_failures_total"];
/// Metrics and where they are told about.
const DASHBOARD: &str = "charts/http-add-on/files/dashboards/rouse.json";
const DOCUMENTED: &str = "docs/operations.md";

/// Every metric that the dashboard asks for is one that a process of the installation has, and the guide tells of all they have.
pub(super) fn metrics(cluster: &Cluster) -> Result<()> {
    let read = |file: &str| fs::read_to_string(cluster.place().root().join(file)).with_context(|| format!("no {file}"));
    let mut asked = BTreeSet::new();
    collect(&serde_json::from_str(&read(DASHBOARD)?).context("the dashboard is JSON")?, &mut asked);
    ensure!(asked.len() > 10, "few metrics on the dashboard: {asked:?}");
    let guide = read(DOCUMENTED)?;
    // A response that an interceptor makes itself, from each of them sooner or later.
    let client = Client::new(cluster, "nobody.e2e")?;
    cluster.wait_for("metrics of all processes", SOON, || {
        ensure!(client.get("/")?.code == 404, "there is a route for nobody");
        let mut known = String::new();
        for (service, port) in
            [("interceptor-metrics", 2223), ("external-scaler", 2223), ("controller-manager-metrics-service", 8080)]
        {
            let address = cluster.service_address(SYSTEM, &format!("keda-add-ons-http-{service}"))?;
            known +=
                &cluster.curl(NODE, &["--fail", "--max-time", "5", &format!("http://{address}:{port}/metrics")])?;
        }
        let known: BTreeSet<&str> = known.lines().filter_map(name).chain(SELDOM).collect();
        let missing: Vec<&String> =
            asked.iter().filter(|name| !known.contains(name.trim_end_matches("_bucket"))).collect();
        ensure!(missing.is_empty(), "nobody has {missing:?}; there are {known:?}");
        let untold: Vec<&&str> = known.iter().filter(|name| !guide.contains(&format!("`{name}`"))).collect();
        ensure!(untold.is_empty(), "{DOCUMENTED} says nothing of {untold:?}");
        Ok(Some(()))
    })
}

/// The metric that a line of an exposition declares.
fn name(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.split(' ').next()
}

/// Names of our metrics in any text of the board.
fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let ours =
                words.filter(|word| ["interceptor_", "scaler_", "rouse_"].iter().any(|start| word.starts_with(start)));
            names.extend(ours.map(str::to_owned));
        }
        Value::Array(all) => all.iter().for_each(|value| collect(value, names)),
        Value::Object(all) => all.values().for_each(|value| collect(value, names)),
        _ => {}
    }
}

fn rendered(tenant: &Tenant<'_>, chart: &str, settings: &[&str]) -> Result<String> {
    rendered_for("1.36", tenant, chart, settings)
}

fn rendered_for(version: &str, tenant: &Tenant<'_>, chart: &str, settings: &[&str]) -> Result<String> {
    let mut args = vec!["template", "settings", chart, "--namespace", &tenant.namespace, "--kube-version", version];
    for setting in settings {
        args.extend(["--set", setting]);
    }
    tenant.cluster.helm(&args)
}

/// The chart's folder, for Helm's command line.
pub(super) fn chart(cluster: &Cluster) -> Result<String> {
    let folder = cluster.place().root().join("charts/http-add-on");
    folder.to_str().map(str::to_owned).context("the repository's path is text")
}
