//! Watches of an API server that refuses.

use std::{collections::VecDeque, sync::Arc};

use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// What the API server answers to lists and to watches, one after the other; then it refuses lists, and watches stay open.
#[derive(Clone, Debug, Default)]
struct Answers {
    lists: VecDeque<Value>,
    watches: VecDeque<Value>,
    /// Whether watches are refused then, too.
    refuses: bool,
}

fn refusal() -> Value {
    json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "message": "not allowed", "code": 403})
}

fn slice(name: &str) -> Value {
    let labels = json!({"kubernetes.io/service-name": "interceptors"});
    let metadata = json!({"namespace": "keda", "name": name, "resourceVersion": "2", "labels": labels});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "endpoints": []})
}

fn list(slices: &[Value]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"},
        "items": slices})
}

fn answer(value: &Value) -> Response<Body> {
    let code = value["code"].as_u64().map_or(200, |code| u16::try_from(code).unwrap());
    Response::builder().status(code).body(Body::from(format!("{value}\n").into_bytes())).unwrap()
}

/// What comes of watching the interceptors' slices of such a server.
fn watched(answers: &Arc<Mutex<Answers>>) -> mpsc::Receiver<Event> {
    let answers = Arc::clone(answers);
    let server = tower::service_fn(move |request: Request<Body>| {
        let mut answers = answers.lock();
        let is_watch = request.uri().query().unwrap_or_default().contains("watch=true");
        let refuses = answers.refuses;
        let next = if is_watch { answers.watches.pop_front() } else { answers.lists.pop_front() };
        let next = next.or_else(|| (!is_watch || refuses).then(refusal));
        async move {
            match next {
                Some(value) => Ok::<_, std::io::Error>(answer(&value)),
                None => std::future::pending().await,
            }
        }
    });
    let (changes, events) = mpsc::channel(MAX_WAITING);
    let scope = Scope { namespace: None, interceptors: ObjectKey::new("keda", "interceptors"), agents: None };
    runtime::task::spawn("watch", watch(Kind::Interceptors, Client::new(server, "n"), scope, changes));
    events
}

async fn told(events: &mut mpsc::Receiver<Event>) -> String {
    let key = |item: Item| item.key().name().to_owned();
    match events.recv().await.unwrap() {
        Event::All(_, items) => format!("all {:?}", items.into_iter().map(key).collect::<Vec<_>>()),
        Event::Put(item) => format!("put {}", key(item)),
        Event::Absent(_) => "absent".to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_when_a_watch_resumes_takes_nothing_away() {
    let added = |name| json!({"type": "ADDED", "object": slice(name)});
    let watches = [added("b"), refusal(), refusal(), added("c")].into();
    let answers = Answers { lists: [list(&[slice("a")])].into(), watches, refuses: false };
    let mut events = watched(&Arc::new(Mutex::new(answers)));
    assert_eq!(told(&mut events).await, r#"all ["a"]"#);
    assert_eq!(told(&mut events).await, "put b");
    assert_eq!(told(&mut events).await, "put c");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_once_is_absent_after_a_minute_of_refusals_and_back_with_a_new_list() {
    let begin = Instant::now();
    let lists = [list(&[slice("a")])].into();
    let answers = Arc::new(Mutex::new(Answers { lists, watches: VecDeque::new(), refuses: true }));
    let mut events = watched(&answers);
    assert_eq!(told(&mut events).await, r#"all ["a"]"#);
    assert_eq!(told(&mut events).await, "absent");
    assert!(begin.elapsed() >= Duration::from_mins(1), "{:?}", begin.elapsed());
    *answers.lock() = Answers { lists: [list(&[slice("b")])].into(), ..Answers::default() };
    assert_eq!(told(&mut events).await, r#"all ["b"]"#);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_just_started_may_refuse_a_first_list_for_a_moment() {
    let lists = [refusal(), refusal(), list(&[])].into();
    let mut events = watched(&Arc::new(Mutex::new(Answers { lists, ..Answers::default() })));
    assert_eq!(told(&mut events).await, "all []");
    let mut events = watched(&Arc::default());
    assert_eq!(told(&mut events).await, "absent", "one that goes on to refuse is believed");
}
