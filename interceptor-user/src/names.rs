//! Services that are reached by a name: the names are looked up ahead of requests, and again when an answer's time is over.
//! Which they are, the snapshot tells; what they are found to be goes to discovery, and so into the next snapshot.

use std::{collections::HashMap, convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::TokioResolver;
use interceptor_core::ObjectKey;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use runtime::snapshot::Reader;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

/// Lookups under way at once; the others wait for their turn.
const MAX_LOOKUPS: usize = 16;

/// For how long an answer counts, whatever it says of it itself.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(5);

/// First and longest pause after a lookup that failed; meanwhile what was found last counts.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Answers that wait to be taken in.
const QUEUE: usize = 64;

/// What a Service's name was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) service: ObjectKey,
    pub(crate) addresses: Vec<IpAddr>,
}

/// How names are looked up.
pub(crate) trait Lookup: Clone + Send + 'static {
    /// Addresses, and for how long they count; or why there are none.
    fn look_up(&self, name: Arc<str>) -> impl Future<Output = Result<(Vec<IpAddr>, Duration), String>> + Send;
}

/// The name servers of `/etc/resolv.conf`, asked when there is first something to ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct System(Arc<tokio::sync::OnceCell<TokioResolver>>);

/// The task that looks names up.
#[derive(Debug)]
pub(crate) struct Names<L = System> {
    reader: Reader,
    lookup: L,
    found: mpsc::Sender<Found>,
    failures: Counter,
    /// As many as there are routes to such Services, at most.
    wanted: HashMap<ObjectKey, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    name: Arc<str>,
    due: Instant,
    failures: u32,
    is_asked: bool,
}

type Answer = (ObjectKey, Arc<str>, Result<(Vec<IpAddr>, Duration), String>);

// === impl System ===

impl Lookup for System {
    async fn look_up(&self, name: Arc<str>) -> Result<(Vec<IpAddr>, Duration), String> {
        let build = async || TokioResolver::builder_tokio()?.build();
        let resolver = self.0.get_or_try_init(build).await.map_err(|error| error.to_string())?;
        let answer = resolver.lookup_ip(&*name).await.map_err(|error| error.to_string())?;
        let valid = answer.valid_until().saturating_duration_since(Instant::now().into_std());
        Ok((answer.iter().collect(), valid))
    }
}

// === impl Names ===

impl Names {
    pub(crate) fn new(reader: Reader, registry: &mut Registry) -> (Self, mpsc::Receiver<Found>) {
        let failures = Counter::default();
        let ours = registry.sub_registry_with_prefix("rouse");
        ours.register("name_lookup_failures", "Names of Services that could not be looked up", failures.clone());
        Self::with(System::default(), reader, failures)
    }
}

impl<L: Lookup> Names<L> {
    fn with(lookup: L, reader: Reader, failures: Counter) -> (Self, mpsc::Receiver<Found>) {
        let (found, receiver) = mpsc::channel(QUEUE);
        (Self { reader, lookup, found, failures, wanted: HashMap::new() }, receiver)
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        let mut names = imbl::OrdMap::default();
        let mut lookups = JoinSet::new();
        loop {
            let current = self.reader.load().names.clone();
            if !names.ptr_eq(&current) {
                self.follow(&current);
                names = current;
            }
            self.ask(&mut lookups);
            let due = self.wanted.values().filter(|wanted| !wanted.is_asked).map(|wanted| wanted.due).min();
            let due = due.filter(|_| lookups.len() < MAX_LOOKUPS);
            tokio::select! {
                () = self.reader.published() => {}
                Some(Ok(answer)) = lookups.join_next() => if !self.take(answer).await {
                    return Ok(());
                },
                () = sleep_until(due) => {}
            }
        }
    }

    /// Takes over which names are wanted.
    fn follow(&mut self, names: &imbl::OrdMap<ObjectKey, Arc<str>>) {
        self.wanted.retain(|service, wanted| names.get(service) == Some(&wanted.name));
        for (service, name) in names {
            let new = || Wanted { name: Arc::clone(name), due: Instant::now(), failures: 0, is_asked: false };
            self.wanted.entry(service.clone()).or_insert_with(new);
        }
    }

    /// Begins the lookups that are due, as many as may be under way.
    fn ask(&mut self, lookups: &mut JoinSet<Answer>) {
        let now = Instant::now();
        for (service, wanted) in self.wanted.iter_mut().filter(|(_, wanted)| !wanted.is_asked && wanted.due <= now) {
            if lookups.len() >= MAX_LOOKUPS {
                return;
            }
            wanted.is_asked = true;
            let (service, name, lookup) = (service.clone(), Arc::clone(&wanted.name), self.lookup.clone());
            lookups.spawn(async move {
                let answer = lookup.look_up(Arc::clone(&name)).await;
                (service, name, answer)
            });
        }
    }

    /// Tells what was found. `false` when nobody listens any more.
    async fn take(&mut self, (service, name, answer): Answer) -> bool {
        let Some(wanted) = self.wanted.get_mut(&service).filter(|wanted| wanted.name == name) else { return true };
        wanted.is_asked = false;
        match answer {
            Ok((mut addresses, valid)) => {
                addresses.sort_unstable();
                addresses.dedup();
                wanted.failures = 0;
                wanted.due = Instant::now() + valid.clamp(SHORTEST, LONGEST);
                self.found.send(Found { service, addresses }).await.is_ok()
            }
            Err(error) => {
                self.failures.inc();
                if wanted.failures == 0 {
                    tracing::warn!(%service, %name, %error, "cannot look up the name of a Service");
                }
                let pause = BACKOFF_FIRST.saturating_mul(1 << wanted.failures.min(16)).min(BACKOFF_MAX);
                wanted.failures = wanted.failures.saturating_add(1);
                wanted.due = Instant::now() + pause;
                true
            }
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use interceptor_core::{
        Index,
        index::Event,
        inflight::NoSink,
        service::{Reach, Service},
    };
    use parking_lot::Mutex;
    use runtime::{snapshot, task};

    use super::*;

    /// Answers as the test says.
    #[derive(Clone, Debug, Default)]
    struct Book {
        answers: Arc<Mutex<HashMap<String, (IpAddr, Duration)>>>,
    }

    impl Lookup for Book {
        async fn look_up(&self, name: Arc<str>) -> Result<(Vec<IpAddr>, Duration), String> {
            let answer = self.answers.lock().get(&*name).map(|(address, valid)| (vec![*address], *valid));
            answer.ok_or_else(|| "no such name".to_owned())
        }
    }

    fn index() -> Index {
        let mut index = Index::new(1, Arc::new(NoSink));
        let route = serde_json::json!({
            "metadata": { "name": "a", "namespace": "shop" },
            "spec": { "target": { "service": "web", "port": 80 }, "scalingMetric": { "concurrency": { "targetValue": 1 } } },
        });
        let route = api::convert::interceptor_route(&serde_json::from_value(route).unwrap()).unwrap();
        index.apply(Event::Route(route));
        index
    }

    fn named(name: &str) -> Event {
        let reach = Reach { external_name: Some(name.into()), ..Reach::default() };
        Event::Service(Service { key: ObjectKey::new("shop", "web"), ports: Vec::new(), addresses: Vec::new(), reach })
    }

    fn found(address: &str) -> Found {
        Found { service: ObjectKey::new("shop", "web"), addresses: vec![address.parse().unwrap()] }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_when_it_is_wanted_and_again_when_its_time_is_over() {
        let (mut index, book) = (index(), Book::default());
        let (mut writer, reader) = snapshot::channel(index.snapshot());
        let (names, mut answers) = Names::with(book.clone(), reader, Counter::default());
        let task = task::spawn("names", names.run());
        let say = |address: &str, seconds| {
            let answer = (address.parse().unwrap(), Duration::from_secs(seconds));
            book.answers.lock().insert("there.example".to_owned(), answer);
        };
        say("192.0.2.1", 60);
        index.apply(named("there.example"));
        writer.publish(index.snapshot(), &[]);
        assert_eq!(answers.recv().await.unwrap(), found("192.0.2.1"));
        say("192.0.2.2", 0);
        let began = Instant::now();
        assert_eq!(answers.recv().await.unwrap(), found("192.0.2.2"));
        assert_eq!(began.elapsed().as_secs(), 60);
        assert_eq!(answers.recv().await.unwrap(), found("192.0.2.2"));
        assert_eq!(began.elapsed().as_secs(), 65, "an answer counts for a while even if it says that it does not");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_cannot_be_found_is_tried_again_later_and_later() {
        let (mut index, book) = (index(), Book::default());
        let (mut writer, reader) = snapshot::channel(index.snapshot());
        let failures = Counter::default();
        let (names, mut answers) = Names::with(book.clone(), reader, failures.clone());
        let task = task::spawn("names", names.run());
        index.apply(named("nowhere.example"));
        writer.publish(index.snapshot(), &[]);
        assert!(tokio::time::timeout(Duration::from_mins(2), answers.recv()).await.is_err());
        // At 0, 1, 3, 7, 15, 31, 61 and 91 seconds.
        assert_eq!(failures.get(), 8);
        let answer = ("192.0.2.3".parse().unwrap(), Duration::from_mins(1));
        book.answers.lock().insert("nowhere.example".to_owned(), answer);
        assert_eq!(answers.recv().await.unwrap(), found("192.0.2.3"));
        task.abort();
    }
}
