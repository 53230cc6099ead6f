//! Manifests as users write, edit and break them, through the real file system.

use std::{collections::BTreeMap, fs, time::Duration};

use tempfile::TempDir;
use tokio::{sync::mpsc, time};

use super::*;

/// A watched folder, and what its events add up to.
struct Folder {
    dir: TempDir,
    events: mpsc::Receiver<Vec<WatchEvent>>,
    objects: BTreeMap<String, Object>,
    invalid: Vec<String>,
    synced: bool,
    batches: usize,
}

impl Folder {
    async fn with(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let (tx, events) = mpsc::channel(16);
        let source = Sources::dir(dir.path());
        crate::task::spawn("watch", async move { run(source, WatchMetrics::default(), tx).await.unwrap() });
        let mut folder = Self { dir, events, objects: BTreeMap::new(), invalid: Vec::new(), synced: false, batches: 0 };
        folder.until(|folder| folder.synced).await;
        folder
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn replace(&self, name: &str, text: &str) {
        self.write(".new", text);
        self.rename(".new", name);
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.dir.path().join(from), self.dir.path().join(to)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let all = async {
            while !done(self) {
                let batch = self.events.recv().await.expect("the watch goes on");
                self.batches += 1;
                for event in batch {
                    self.take(event);
                }
            }
        };
        let seen = time::timeout(Duration::from_secs(20), all).await.is_ok();
        assert!(seen, "not seen; objects {:?}, invalid {:?}", self.names(), self.invalid);
    }

    fn take(&mut self, event: WatchEvent) {
        let name = |kind: Kind, key: &ObjectKey| format!("{kind} {key}");
        let told = |invalid: &Invalid| {
            let path = invalid.file.as_ref().unwrap();
            let file = path.file_name().unwrap().to_str().unwrap();
            invalid.to_string().replace(&path.display().to_string(), file)
        };
        core_event(&event).expect("what is told can be converted");
        match event {
            WatchEvent::Applied(object) => {
                self.objects.insert(name(object.kind(), &object.key().unwrap()), object);
            }
            WatchEvent::Deleted(kind, key) => {
                self.objects.remove(&name(kind, &key)).expect("only what was there goes");
            }
            WatchEvent::Invalid(invalid) => self.invalid.push(told(&invalid)),
            WatchEvent::Repaired(invalid) => self.invalid.retain(|known| *known != told(&invalid)),
            WatchEvent::Synced => self.synced = true,
        }
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    fn port(&self, name: &str) -> Option<i32> {
        match self.objects.get(name)? {
            Object::InterceptorRoute(route) => route.spec.target.port,
            _ => None,
        }
    }
}

fn route(name: &str, port: &str) -> String {
    format!(
        "apiVersion: http.keda.sh/v1beta1
kind: InterceptorRoute
metadata:
  name: {name}
spec:
  target: {{service: web, port: {port}}}
  scalingMetric: {{concurrency: {{targetValue: 1}}}}
"
    )
}

#[tokio::test]
async fn every_kind_is_read_and_others_are_left() {
    let text = "
# a comment before the first document
---
apiVersion: http.keda.sh/v1alpha1
kind: HTTPScaledObject
metadata: {name: old, namespace: shop}
spec: {scaleTargetRef: {service: web, port: 80}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
- {apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {a: b}}
- {apiVersion: v1, kind: Pod, metadata: {name: p}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {selector: {}, template: {}}
--- # the next
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: web}
spec: {scaleTargetRef: {name: web}, triggers: [{type: external-push, metadata: {interceptorRoute: web}}]}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: other}
---
";
    let slice = r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"}, "addressType": "IPv4", "endpoints": []}"#;
    let config = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: b}}";
    let files =
        [("all.yaml", text), ("slice.json", slice), ("c.yml", config), ("notes.txt", "x: ["), (".hidden.yaml", "x: [")];
    let folder = Folder::with(&files).await;
    assert_eq!(folder.invalid, Vec::<String>::new());
    assert_eq!(
        folder.names(),
        [
            "ConfigMap default/c",
            "Deployment default/web",
            "EndpointSlice default/web-1",
            "HTTPScaledObject shop/old",
            "ScaledObject default/web",
            "Secret default/s",
            "Service default/web",
        ]
    );
    let Object::Secret(secret) = &folder.objects["Secret default/s"] else { panic!("a Secret") };
    assert_eq!(secret.data.as_ref().unwrap()["a"].0, b"b");
}

#[tokio::test]
async fn edits_in_place_and_by_rename_take_effect() {
    let mut folder = Folder::with(&[("r.yaml", &route("r", "80"))]).await;
    assert_eq!(folder.port("InterceptorRoute default/r"), Some(80));
    folder.write("r.yaml", &route("r", "81"));
    folder.until(|folder| folder.port("InterceptorRoute default/r") == Some(81)).await;
    folder.replace("r.yaml", &route("r", "82"));
    folder.until(|folder| folder.port("InterceptorRoute default/r") == Some(82)).await;
    folder.write("s.yaml", &route("s", "90"));
    folder.until(|folder| folder.port("InterceptorRoute default/s") == Some(90)).await;
    folder.remove("r.yaml");
    folder.until(|folder| folder.names() == ["InterceptorRoute default/s"]).await;
}

#[tokio::test]
async fn a_renamed_file_changes_nothing_and_one_out_of_the_folder_takes_its_objects_along() {
    let mut folder = Folder::with(&[("a.yaml", &route("r", "80"))]).await;
    folder.rename("a.yaml", "b.yaml");
    folder.write("z.yaml", &route("z", "80"));
    // `take` would have seen the deletion of r.
    folder.until(|folder| folder.objects.len() == 2).await;
    folder.rename("b.yaml", "b.yaml.bak");
    folder.until(|folder| folder.names() == ["InterceptorRoute default/z"]).await;
}

#[tokio::test]
async fn a_broken_document_is_told_with_its_object_and_the_others_live_on() {
    let text = format!("{}---\n{}---\n{}---\nfoo: bar\n", route("a", "80"), route("b", "70000"), route("c", "[80"));
    let mut folder = Folder::with(&[("r.yaml", &text), ("other.yaml", &route("d", "80"))]).await;
    assert_eq!(folder.names(), ["InterceptorRoute default/a", "InterceptorRoute default/d"]);
    assert_eq!(
        folder.invalid[0],
        "r.yaml, document 2, InterceptorRoute default/b: spec.target.port is 70000: expected a port from 1 to 65535"
    );
    assert!(folder.invalid[1].starts_with("r.yaml, document 3, InterceptorRoute default/c: "), "{:?}", folder.invalid);
    assert_eq!(folder.invalid[2], "r.yaml, document 4: kind is empty: expected every document to have one");
    folder.write("r.yaml", &route("b", "80"));
    folder.until(|folder| folder.invalid.is_empty()).await;
    assert_eq!(folder.names(), ["InterceptorRoute default/b", "InterceptorRoute default/d"]);
}

#[tokio::test]
async fn a_wrong_type_is_told_with_its_field() {
    let folder = Folder::with(&[("r.yaml", &route("r", "http"))]).await;
    let expected =
        "r.yaml, document 1, InterceptorRoute default/r: spec.target.port: invalid type: string \"http\", expected i32";
    assert!(folder.invalid[0].starts_with(expected), "{:?}", folder.invalid);
    let version = "{apiVersion: http.keda.sh/v1, kind: InterceptorRoute, metadata: {name: r}}";
    let folder = Folder::with(&[("r.yaml", version)]).await;
    assert_eq!(
        folder.invalid,
        [
            "r.yaml, document 1, InterceptorRoute default/r: apiVersion is http.keda.sh/v1: expected http.keda.sh/v1beta1"
        ]
    );
}

#[tokio::test]
async fn the_last_good_version_stays_while_an_edit_is_broken() {
    let both = format!("{}---\n{}", route("a", "80"), route("b", "80"));
    let mut folder = Folder::with(&[("r.yaml", &both)]).await;
    // One that names its object: only that one is kept.
    folder.write("r.yaml", &route("a", "soon"));
    folder.until(|folder| folder.invalid.len() == 1).await;
    assert_eq!(folder.names(), ["InterceptorRoute default/a"]);
    assert_eq!(folder.port("InterceptorRoute default/a"), Some(80));
    // One that does not: everything of the file is kept.
    folder.write("r.yaml", "\t{[");
    folder.until(|folder| folder.invalid.iter().any(|invalid| !invalid.contains("default/a"))).await;
    assert_eq!(folder.names(), ["InterceptorRoute default/a"]);
    folder.write("r.yaml", "");
    folder.until(|folder| folder.objects.is_empty() && folder.invalid.is_empty()).await;
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_by_name_wins_and_the_other_takes_over() {
    let files = [("b.yaml", &*route("r", "81")), ("c.yaml", &*route("r", "82"))];
    let mut folder = Folder::with(&files).await;
    let name = "InterceptorRoute default/r";
    assert_eq!(folder.port(name), Some(81));
    assert_eq!(folder.invalid.len(), 1);
    assert!(folder.invalid[0].starts_with("c.yaml, document 1, InterceptorRoute default/r: "));
    assert!(folder.invalid[0].ends_with("b.yaml has the same object and wins"));
    folder.write("a.yaml", &route("r", "80"));
    folder.until(|folder| folder.port(name) == Some(80) && folder.invalid.len() == 2).await;
    folder.remove("a.yaml");
    folder.until(|folder| folder.port(name) == Some(81) && folder.invalid.len() == 1).await;
    folder.remove("b.yaml");
    folder.until(|folder| folder.port(name) == Some(82) && folder.invalid.is_empty()).await;
    let twice = format!("{}---\n{}", route("s", "80"), route("s", "81"));
    folder.write("s.yaml", &twice);
    folder.until(|folder| folder.port("InterceptorRoute default/s") == Some(80)).await;
    assert_eq!(
        folder.invalid,
        ["s.yaml, document 2, InterceptorRoute default/s: document 1 of the file is the same object and wins"]
    );
}

#[tokio::test]
async fn a_burst_of_edits_comes_in_few_batches() {
    let mut folder = Folder::with(&[]).await;
    let before = folder.batches;
    for port in 1..=500 {
        folder.write("r.yaml", &route("r", &port.to_string()));
        folder.write(&format!("r{port}.yaml"), &route(&format!("r{port}"), "80"));
    }
    folder.until(|folder| folder.port("InterceptorRoute default/r") == Some(500) && folder.objects.len() == 501).await;
    let batches = folder.batches - before;
    // The watch does not run while this test writes: what it finds then is one burst.
    assert!(batches <= 2, "1000 writes came in {batches} batches");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error_and_one_that_is_replaced_is_read_anew() {
    let (tx, _events) = mpsc::channel(1);
    let error = run(Sources::dir("/no/such/folder"), WatchMetrics::default(), tx).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");

    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("r.yaml"), route("r", "80")).unwrap();
    let (tx, mut events) = mpsc::channel(16);
    let source = Sources::dir(dir.clone());
    crate::task::spawn("watch", async move { run(source, WatchMetrics::default(), tx).await.unwrap() });
    assert!(events.recv().await.unwrap().contains(&WatchEvent::Synced));
    fs::rename(&dir, parent.path().join("old")).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("r.yaml"), route("r", "81")).unwrap();
    let batch = time::timeout(Duration::from_secs(30), events.recv()).await.unwrap().unwrap();
    assert!(
        matches!(&batch[..], [WatchEvent::Applied(Object::InterceptorRoute(route))] if route.spec.target.port == Some(81))
    );
    fs::write(dir.join("s.yaml"), route("s", "80")).unwrap();
    let batch = time::timeout(Duration::from_secs(30), events.recv()).await.unwrap().unwrap();
    assert!(matches!(&batch[..], [WatchEvent::Applied(_)]), "the new folder is watched");
}

#[tokio::test]
async fn a_mounted_volume_that_is_swapped_whole_is_read_anew() {
    let mut folder = Folder::with(&[]).await;
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, folder.dir.path().join(to)).unwrap();
    for (version, port) in [("..1", "80"), ("..2", "81")] {
        fs::create_dir(folder.dir.path().join(version)).unwrap();
        folder.write(&format!("{version}/r.yaml"), &route("r", port));
    }
    link("..1", "..data");
    link("..data/r.yaml", "r.yaml");
    link("..2", "..next");
    folder.until(|folder| folder.port("InterceptorRoute default/r") == Some(80)).await;
    folder.rename("..next", "..data");
    folder.until(|folder| folder.port("InterceptorRoute default/r") == Some(81)).await;
}

#[tokio::test]
async fn a_file_that_is_too_long_or_no_text_is_told_and_what_it_held_stays() {
    let mut folder = Folder::with(&[("r.yaml", &route("r", "80"))]).await;
    fs::write(folder.dir.path().join("r.yaml"), [0xff, 0xfe]).unwrap();
    folder.until(|folder| folder.invalid.len() == 1).await;
    assert_eq!(folder.invalid, ["r.yaml: stream did not contain valid UTF-8"]);
    let long = fs::File::create(folder.dir.path().join("long.yaml")).unwrap();
    long.set_len(MAX_FILE + 1).unwrap();
    drop(long);
    folder.until(|folder| folder.invalid.len() == 2).await;
    assert_eq!(folder.names(), ["InterceptorRoute default/r"]);
}

#[tokio::test]
async fn of_many_broken_manifests_each_is_told_by_name_and_the_good_ones_get_their_requests() {
    let rules = |host: &str| format!("  rules: [{{hosts: [{host}]}}]\n");
    let good = route("good", "80") + &rules("good.example");
    let loser = route("a-loser", "80") + &rules("good.example");
    let lost = route("lost", "80").replace("service: web", "service: nowhere") + &rules("lost.example");
    let no_port = route("no-port", "81") + &rules("no-port.example");
    let duration = route("duration", "80") + "  timeouts: {request: soon}\n";
    let service = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}";
    let files = [
        ("good.yaml", &*good),
        ("loser.yaml", &*loser),
        ("lost.yaml", &*lost),
        ("no-port.yaml", &*no_port),
        ("duration.yaml", &*duration),
        ("range.yaml", &*route("range", "65536")),
        ("unparsable.yaml", "kind: InterceptorRoute\nmetadata:\n  name: unparsable\n spec: [\n"),
        ("service.yaml", service),
    ];
    let folder = Folder::with(&files).await;
    let mut index = interceptor_core::Index::new(1, std::sync::Arc::new(interceptor_core::inflight::NoSink));
    for object in folder.objects.values() {
        if let Some(event) = core_event(&WatchEvent::Applied(object.clone())).unwrap() {
            index.apply(event);
        }
    }
    let problems = index.problems();
    let told: Vec<_> = problems.iter().map(|problem| format!("{}: {}", problem.object, problem.message)).collect();
    assert_eq!(
        told,
        [
            "default/a-loser: good.example/ goes to InterceptorRoute default/good: of two as old the later name wins",
            "default/lost: Service default/nowhere does not exist",
            "default/no-port: Service default/web has no port 81: it has 80",
        ]
    );
    let mut invalid = folder.invalid.clone();
    invalid.sort();
    assert_eq!(
        invalid[..2],
        [
            "duration.yaml, document 1, InterceptorRoute default/duration: spec.timeouts.request is \"soon\": \
             expected a duration such as 300ms, 1m30s or 0s",
            "range.yaml, document 1, InterceptorRoute default/range: spec.target.port is 65536: \
             expected a port from 1 to 65535",
        ]
    );
    assert!(
        invalid[2].starts_with("unparsable.yaml, document 1, InterceptorRoute default/unparsable: "),
        "{invalid:?}"
    );
    let snapshot = index.snapshot();
    let found = |host| snapshot.table.lookup(host, "/", &http::HeaderMap::new()).map(|entry| entry.route.key.name());
    assert_eq!(found("good.example"), Some("good"));
    assert_eq!(found("lost.example"), Some("lost"));
}

#[test]
fn no_text_of_brackets_keeps_the_watch_busy() {
    use super::manifest::{Format, parse};

    for text in ["[", "{a: ", "- ["].map(|text| text.repeat(1 << 19)) {
        let parsed = parse(&text, Format::Yaml);
        let failure = parsed[0].outcome.as_ref().unwrap_err();
        assert_eq!(failure.message, "brackets are nested more than 256 deep");
    }
    let code =
        format!("kind: ConfigMap\napiVersion: v1\nmetadata: {{name: c}}\ndata: {{a: '{}'}}\n", "{}[]".repeat(1000));
    assert!(parse(&code, Format::Yaml)[0].outcome.is_ok());
}
