//! EndpointSlices of Services whose pods are local processes: what they contain, and their files.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use interceptor_core::ObjectKey;
use k8s_openapi::{
    List,
    api::{
        core::v1::{ObjectReference, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{
        apis::meta::v1::{ListMeta, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use crate::workload::Template;

/// The label that ties a slice to its Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A pod as a Service sees it.
#[derive(Clone, Copy, Debug)]
pub struct Backend<'a> {
    /// The pod's name.
    pub name: &'a Arc<str>,
    /// Its namespace.
    pub namespace: &'a str,
    /// Labels and named ports.
    pub template: &'a Template,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it is to get requests.
    pub ready: bool,
    /// Whether it was asked to end.
    pub terminating: bool,
}

/// Writes slices as files that replace each other at once, so that no reader ever sees half of one.
#[derive(Debug)]
pub struct SliceFiles {
    dir: PathBuf,
    staging: PathBuf,
    written: BTreeMap<ObjectKey, String>,
}

/// The slices of one Service: one for each set of port numbers, since a named port may differ from pod to pod.
pub fn slices(key: &ObjectKey, service: &Service, pods: &[Backend<'_>]) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let selector = spec.selector.clone().unwrap_or_default();
    if selector.is_empty() {
        return Vec::new();
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut groups: BTreeMap<Vec<Option<u16>>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        let selected = selector.iter().all(|(name, value)| pod.template.labels.get(name) == Some(value));
        if selected && pod.namespace == key.namespace() {
            let numbers = ports.iter().map(|port| target(port, Some(pod.template))).collect();
            groups.entry(numbers).or_default().push(endpoint(pod));
        }
    }
    if groups.is_empty() {
        groups.insert(ports.iter().map(|port| target(port, None)).collect(), Vec::new());
    }
    let slice = |(index, (numbers, endpoints)): (usize, (Vec<Option<u16>>, _))| {
        let ports = ports.iter().zip(numbers).filter_map(|(port, number)| Some(endpoint_port(port, number?))).collect();
        EndpointSlice {
            address_type: "IPv4".to_owned(),
            metadata: ObjectMeta {
                name: Some(format!("{}-local-{index}", key.name())),
                namespace: Some(key.namespace().to_owned()),
                labels: Some(BTreeMap::from([(SERVICE_LABEL.to_owned(), key.name().to_owned())])),
                ..ObjectMeta::default()
            },
            endpoints,
            ports: Some(ports),
        }
    };
    groups.into_iter().enumerate().map(slice).collect()
}

/// The container port that a Service port leads to, on a pod of that template.
fn target(port: &ServicePort, template: Option<&Template>) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => template?.port_named(name),
    }
}

fn endpoint_port(port: &ServicePort, number: u16) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(i32::from(number)),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(pod: &Backend<'_>) -> Endpoint {
    Endpoint {
        addresses: vec![pod.address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(pod.ready && !pod.terminating),
            serving: Some(pod.ready),
            terminating: Some(pod.terminating),
        }),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.to_string()),
            namespace: Some(pod.namespace.to_owned()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

// === impl SliceFiles ===

impl SliceFiles {
    /// Into `dir`, by way of `staging` on the same file system.
    pub fn new(dir: PathBuf, staging: PathBuf) -> Self {
        Self { dir, staging, written: BTreeMap::new() }
    }

    /// Brings the files in line with `wanted`; touches only what differs.
    pub fn write(&mut self, wanted: BTreeMap<ObjectKey, Vec<EndpointSlice>>) -> io::Result<()> {
        let gone: Vec<ObjectKey> = self.written.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            fs::remove_file(self.file(&key))?;
            self.written.remove(&key);
        }
        for (key, items) in wanted {
            let text = serde_json::to_string_pretty(&List { items, metadata: ListMeta::default() })?;
            if self.written.get(&key) == Some(&text) {
                continue;
            }
            replace(&self.staging, &self.file(&key), &text)?;
            self.written.insert(key, text);
        }
        Ok(())
    }

    fn file(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join(format!("{}.{}.json", key.namespace(), key.name()))
    }
}

/// Writes a file elsewhere and moves it into place.
pub fn replace(staging: &Path, file: &Path, text: &str) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let staged = staging.join(name);
    fs::write(&staged, text)?;
    fs::rename(staged, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::template;

    fn service(yaml: &str) -> Service {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    const HELLO: &str = "
spec:
  selector: { app: hello }
  ports:
  - { name: web, port: 80, targetPort: http, appProtocol: kubernetes.io/h2c }
  - { name: admin, port: 9090 }
";

    fn key() -> ObjectKey {
        ObjectKey::new("default", "hello")
    }

    fn pod<'a>(name: &'a Arc<str>, template: &'a Template, last: u8) -> Backend<'a> {
        let address = Ipv4Addr::new(127, 9, 9, last);
        Backend { name, namespace: "default", template, address, ready: true, terminating: false }
    }

    fn numbers(slice: &EndpointSlice) -> Vec<Option<i32>> {
        slice.ports.iter().flatten().map(|port| port.port).collect()
    }

    #[test]
    fn pods_that_the_selector_matches_are_listed_with_their_target_ports() {
        let template = template("hello", &[("http", 8000)]);
        let other = super::super::workload::tests::template("other", &[("http", 8000)]);
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let made = slices(&key(), &service(HELLO), &[pod(&a, &template, 1), pod(&b, &other, 2)]);
        assert_eq!(made.len(), 1);
        assert_eq!(numbers(&made[0]), [Some(8000), Some(9090)]);
        assert_eq!(made[0].ports.as_ref().unwrap()[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
        assert_eq!(made[0].endpoints.len(), 1);
        assert_eq!(made[0].endpoints[0].addresses, ["127.9.9.1"]);
        assert_eq!(made[0].metadata.labels.as_ref().unwrap()[SERVICE_LABEL], "hello");
    }

    #[test]
    fn a_pod_that_is_asked_to_end_is_listed_as_not_ready() {
        let template = template("hello", &[("http", 8000)]);
        let name = Arc::from("a");
        let ending = Backend { terminating: true, ..pod(&name, &template, 1) };
        let made = slices(&key(), &service(HELLO), &[ending]);
        let conditions = made[0].endpoints[0].conditions.as_ref().unwrap();
        assert_eq!((conditions.ready, conditions.terminating), (Some(false), Some(true)));
    }

    #[test]
    fn a_named_port_that_differs_from_pod_to_pod_makes_two_slices() {
        let (old, new) = (template("hello", &[("http", 8000)]), template("hello", &[("http", 8001)]));
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let made = slices(&key(), &service(HELLO), &[pod(&a, &old, 1), pod(&b, &new, 2)]);
        let ports: Vec<_> = made.iter().map(numbers).collect();
        assert_eq!(ports, [[Some(8000), Some(9090)], [Some(8001), Some(9090)]]);
        assert_ne!(made[0].metadata.name, made[1].metadata.name);
    }

    #[test]
    fn a_service_without_pods_has_an_empty_slice_and_one_without_selector_none() {
        let made = slices(&key(), &service(HELLO), &[]);
        assert_eq!((made.len(), made[0].endpoints.len()), (1, 0));
        assert!(slices(&key(), &service("spec: { ports: [{ port: 80 }] }"), &[]).is_empty());
    }

    #[test]
    fn files_appear_change_and_go_with_their_services() {
        let dir = tempfile::tempdir().unwrap();
        let (slices_dir, staging) = (dir.path().join("slices"), dir.path().join("staging"));
        fs::create_dir(&slices_dir).unwrap();
        fs::create_dir(&staging).unwrap();
        let mut files = SliceFiles::new(slices_dir.clone(), staging);
        files.write(BTreeMap::from([(key(), slices(&key(), &service(HELLO), &[]))])).unwrap();
        let text = fs::read_to_string(slices_dir.join("default.hello.json")).unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["items"][0]["kind"], "EndpointSlice");
        files.write(BTreeMap::new()).unwrap();
        assert_eq!(fs::read_dir(slices_dir).unwrap().count(), 0);
    }
}
