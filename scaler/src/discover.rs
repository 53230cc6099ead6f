//! From watched objects to news for the board and addresses for the collectors: [`watch()`] reads them, [`run`] passes on
//! what they mean. The decisions are `Objects`, pure.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use interceptor_core::{ObjectKey, index::Event, service::Slice};
use runtime::watch::{Sources, WatchError, WatchEvent, WatchMetrics, core_event};
use tokio::sync::{mpsc, watch};

use crate::board::{News, Sender};

/// Something that the watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "the small one comes once")]
pub enum Change {
    /// An object changed.
    Event(Event),
    /// All objects have been read once.
    Synced,
}

/// Where interceptors are found, or node agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The Service of their admin ports.
    pub service: ObjectKey,
    /// The admin port of each.
    pub port: u16,
}

/// All whose counts are collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admins {
    /// Interceptors.
    pub interceptors: Admin,
    /// Node agents, if there are any.
    pub agents: Option<Admin>,
}

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An interceptor.
    Interceptor,
    /// A node agent: what it counts went past the interceptors.
    Agent,
}

/// What is known of an address at which counts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// What is there.
    pub kind: Kind,
    /// Whether it is about to end.
    pub leaves: bool,
}

/// The admin Services' slices.
#[derive(Debug)]
struct Objects {
    admins: Admins,
    slices: HashMap<ObjectKey, Slice>,
}

/// Batches that may wait; the watch then waits too, and joins what changes meanwhile.
const MAX_BATCHES: usize = 16;

/// Reads all sources and tells what changes, until nobody listens. What is broken stays as it was.
pub async fn watch(
    sources: Sources,
    metrics: WatchMetrics,
    changes: mpsc::Sender<Vec<Change>>,
) -> Result<(), WatchError> {
    let (events, mut watched) = mpsc::channel::<Vec<WatchEvent>>(MAX_BATCHES);
    let translate = async {
        while let Some(batch) = watched.recv().await {
            if changes.send(batch.iter().filter_map(change).collect()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ended = runtime::watch::run(sources, metrics, events) => ended,
        () = translate => Ok(()),
    }
}

fn change(event: &WatchEvent) -> Option<Change> {
    if let WatchEvent::Synced = event {
        return Some(Change::Synced);
    }
    match core_event(event) {
        Ok(event) => event.map(Change::Event),
        Err(error) => {
            tracing::warn!(%error, "an object cannot be used");
            None
        }
    }
}

/// Passes changes on until there are no more.
pub async fn run(
    mut watched: mpsc::Receiver<Vec<Change>>,
    admins: Admins,
    news: Sender,
    addresses: watch::Sender<BTreeMap<SocketAddr, Listing>>,
) -> Result<(), Infallible> {
    let mut objects = Objects { admins, slices: HashMap::new() };
    while let Some(batch) = watched.recv().await {
        let told: Vec<_> = batch.into_iter().filter_map(|change| objects.take(change)).collect();
        // Before the news: a board that is told of the sync then soon knows how many interceptors there are.
        addresses.send_if_modified(|known| {
            let listed = objects.addresses();
            let differs = *known != listed;
            *known = listed;
            differs
        });
        for news_item in told {
            // The writer outlives this task but for the end of the process.
            let _ = news.send(news_item).await;
        }
    }
    Ok(())
}

// === impl Admins ===

impl Admins {
    fn iter(&self) -> impl Iterator<Item = (Kind, &Admin)> {
        let agents = self.agents.iter().map(|agents| (Kind::Agent, agents));
        [(Kind::Interceptor, &self.interceptors)].into_iter().chain(agents)
    }
}

// === impl Objects ===

impl Objects {
    fn take(&mut self, change: Change) -> Option<News> {
        match change {
            Change::Synced => Some(News::Synced),
            Change::Event(Event::Route(route)) => Some(News::Route(route)),
            Change::Event(Event::RouteGone(kind, key)) => Some(News::RouteGone(kind, key)),
            Change::Event(Event::Slice(slice)) => {
                if self.admins.iter().any(|(_, admin)| slice.service == admin.service) {
                    self.slices.insert(slice.key.clone(), slice);
                } else {
                    self.slices.remove(&slice.key);
                }
                None
            }
            Change::Event(Event::SliceGone(key)) => {
                self.slices.remove(&key);
                None
            }
            Change::Event(
                Event::Service(_)
                | Event::ServiceGone(_)
                | Event::Bodies(_)
                | Event::BodiesGone(_)
                | Event::Namespace(..)
                | Event::NamespaceGone(_),
            ) => None,
        }
    }

    /// One address of each agent that is ready, and of each interceptor that is or was: one that is about to end still takes
    /// requests and serves those it has, for as long as it is given.
    fn addresses(&self) -> BTreeMap<SocketAddr, Listing> {
        let mut addresses = BTreeMap::new();
        for (kind, admin) in self.admins.iter() {
            for (address, leaves) in self.addresses_of(kind, admin) {
                let listing = addresses.entry(address).or_insert(Listing { kind, leaves });
                // Of two pods that had an address one after the other, the later one has it.
                listing.leaves &= leaves;
            }
        }
        addresses
    }

    /// Each with whether it is about to end. A pod of a dual-stack Service is in two slices, and counts once.
    fn addresses_of(&self, kind: Kind, admin: &Admin) -> impl Iterator<Item = (SocketAddr, bool)> {
        let mut pods: BTreeMap<Arc<str>, (IpAddr, bool)> = BTreeMap::new();
        let mut nameless: BTreeMap<IpAddr, bool> = BTreeMap::new();
        let slices = self.slices.values().filter(|slice| slice.service == admin.service);
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            let leaves = endpoint.terminating && kind == Kind::Interceptor;
            let Some(&address) = endpoint.addresses.first().filter(|_| endpoint.ready || leaves) else { continue };
            match &endpoint.pod {
                Some(pod) => {
                    let known = pods.entry(Arc::clone(pod)).or_insert((address, leaves));
                    // The lower one: IPv4, if there are both. Its slices may tell one after the other that it leaves.
                    *known = (address.min(known.0), leaves || known.1);
                }
                None => *nameless.entry(address).or_insert(leaves) &= leaves,
            }
        }
        let port = admin.port;
        let all = pods.into_values().chain(nameless);
        all.map(move |(address, leaves)| (SocketAddr::new(address, port), leaves))
    }
}

#[cfg(test)]
mod tests {
    use interceptor_core::service::SliceEndpoint;

    use super::*;

    fn slice(name: &str, service: &str, endpoints: &[(&str, bool, Option<&str>)]) -> Change {
        let endpoint = |&(address, ready, pod): &(&str, bool, Option<&str>)| endpoint(address, (ready, false), pod);
        slice_of(name, service, endpoints.iter().map(endpoint).collect())
    }

    fn endpoint(address: &str, (ready, terminating): (bool, bool), pod: Option<&str>) -> SliceEndpoint {
        let (addresses, pod) = (vec![address.parse().unwrap()], pod.map(Into::into));
        SliceEndpoint { addresses, ready, terminating, pod, uid: None, node: None }
    }

    fn slice_of(name: &str, service: &str, endpoints: Vec<SliceEndpoint>) -> Change {
        let (key, service) = (ObjectKey::new("keda", name), ObjectKey::new("keda", service));
        Change::Event(Event::Slice(Slice { key, service, ports: Vec::new(), endpoints }))
    }

    fn listed(changes: Vec<Change>) -> Vec<String> {
        let said = |(address, Listing { kind: _, leaves }): (&SocketAddr, &Listing)| {
            if *leaves { format!("{address} leaves") } else { address.to_string() }
        };
        addresses(changes).iter().map(said).collect()
    }

    fn addresses(changes: Vec<Change>) -> BTreeMap<SocketAddr, Listing> {
        let admin = |name, port| Admin { service: ObjectKey::new("keda", name), port };
        let admins = Admins { interceptors: admin("admin", 9090), agents: Some(admin("agents", 9097)) };
        let mut objects = Objects { admins, slices: HashMap::new() };
        for change in changes {
            assert!(objects.take(change).is_none());
        }
        objects.addresses()
    }

    #[test]
    fn ready_endpoints_of_the_admin_service_are_the_interceptors() {
        let changes = vec![
            slice("one", "admin", &[("10.0.0.1", true, None), ("10.0.0.2", false, None)]),
            slice("two", "admin", &[("10.0.0.1", true, None), ("10.0.0.3", true, None)]),
            slice("other", "web", &[("10.0.0.9", true, None)]),
        ];
        assert_eq!(listed(changes.clone()), ["10.0.0.1:9090", "10.0.0.3:9090"]);
        let gone = Change::Event(Event::SliceGone(ObjectKey::new("keda", "two")));
        assert_eq!(listed([changes, vec![gone]].concat()), ["10.0.0.1:9090"]);
    }

    #[test]
    fn agents_are_found_at_their_own_service_and_port() {
        let changes = vec![
            slice("one", "admin", &[("10.0.0.1", true, None)]),
            slice("two", "agents", &[("192.0.2.1", true, Some("a")), ("192.0.2.2", true, Some("b"))]),
        ];
        assert_eq!(listed(changes), ["10.0.0.1:9090", "192.0.2.1:9097", "192.0.2.2:9097"]);
    }

    #[test]
    fn a_slice_that_is_given_to_another_service_is_gone() {
        let changes = vec![
            slice("one", "admin", &[("10.0.0.1", true, None)]), //
            slice("one", "web", &[("10.0.0.1", true, None)]),
        ];
        assert!(listed(changes).is_empty());
    }

    #[test]
    fn a_pod_with_an_address_of_each_family_is_one_interceptor() {
        let changes = vec![
            slice("six", "admin", &[("fd00::1", true, Some("a")), ("fd00::2", true, Some("b"))]),
            slice("four", "admin", &[("10.0.0.1", true, Some("a"))]),
        ];
        assert_eq!(listed(changes), ["10.0.0.1:9090", "[fd00::2]:9090"]);
    }

    #[test]
    fn an_interceptor_that_is_about_to_end_is_listed_until_its_slices_list_it_no_more_and_an_agent_is_not() {
        let (ready, leaving, broken) = ((true, false), (false, true), (false, false));
        let interceptors = vec![
            endpoint("10.0.0.1", ready, Some("a")),
            endpoint("10.0.0.2", leaving, Some("b")),
            endpoint("10.0.0.3", broken, Some("c")),
            endpoint("10.0.0.4", leaving, None),
        ];
        let agents = vec![endpoint("192.0.2.1", leaving, Some("d")), endpoint("192.0.2.2", ready, Some("e"))];
        let changes = vec![slice_of("one", "admin", interceptors), slice_of("two", "agents", agents)];
        let all = ["10.0.0.1:9090", "10.0.0.2:9090 leaves", "10.0.0.4:9090 leaves", "192.0.2.2:9097"];
        assert_eq!(listed(changes.clone()), all);
        let later = slice("one", "admin", &[("10.0.0.1", true, Some("a"))]);
        assert_eq!(listed([changes, vec![later]].concat()), ["10.0.0.1:9090", "192.0.2.2:9097"]);
    }

    #[test]
    fn an_address_that_another_pod_has_now_is_that_pods() {
        let (ready, leaving) = ((true, false), (false, true));
        let one = endpoint("10.0.0.1", leaving, Some("a"));
        let other = endpoint("10.0.0.1", ready, Some("b"));
        assert_eq!(listed(vec![slice_of("one", "admin", vec![one.clone(), other.clone()])]), ["10.0.0.1:9090"]);
        assert_eq!(listed(vec![slice_of("one", "admin", vec![other, one])]), ["10.0.0.1:9090"]);
    }
}
