//! All that is known of the cluster: watch events in, [`Observed`] out. Owned by the task that reconciles. Every event tells
//! which routes have to be looked at again; a batch of events costs one look at the problems of all routes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use interceptor_core::{
    ObjectKey,
    index::{self, HostGuard, Index, Problem},
    inflight::NoSink,
    route::RouteKind,
};
use tokio::time::Instant;

mod item;
mod shadow;

pub use self::item::Item;
use crate::{
    object::{Object, Scaled, Subject, Workload},
    observe::{Observed, Probed},
    shadow::Shadows,
};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `InterceptorRoutes`.
    Routes,
    /// `HTTPScaledObjects`.
    HttpScaledObjects,
    /// KEDA's `ScaledObjects`.
    ScaledObjects,
    /// Services.
    Services,
    /// Deployments, by their metadata.
    Deployments,
    /// `StatefulSets`, by their metadata.
    StatefulSets,
    /// Namespaces, where they list the hosts that routes may claim.
    Namespaces,
    /// `EndpointSlices` of Services, and our own.
    Slices,
    /// `EndpointSlices` of the interceptors.
    Interceptors,
}

/// A change.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object was added or changed.
    Put(Item),
    /// An object is gone.
    Gone(Kind, ObjectKey),
    /// All objects of a kind: what is not among them is gone.
    All(Kind, Vec<Item>),
    /// The API server has no such kind, or does not let us read it.
    Absent(Kind),
    /// The scaler says whether there is demand for an `InterceptorRoute`, or says nothing any more.
    Demand(ObjectKey, Option<bool>),
}

/// The pods of a workload, as they were read.
#[derive(Clone, Debug)]
struct Known {
    /// The generation that the watch had told of when they were read.
    generation: Option<i64>,
    probe: Probed,
    users: BTreeSet<Subject>,
}

/// All that is known.
#[derive(Debug)]
pub struct World {
    guard: HostGuard,
    index: Index,
    objects: BTreeMap<Subject, Object>,
    scaled: BTreeMap<ObjectKey, Scaled>,
    /// `ScaledObjects` by the routes that their triggers name.
    named: BTreeMap<Subject, BTreeSet<ObjectKey>>,
    problems: BTreeMap<Subject, Vec<Problem>>,
    generations: HashMap<Workload, i64>,
    known: HashMap<Workload, Known>,
    synced: BTreeSet<Kind>,
    absent: BTreeSet<Kind>,
    dirty: BTreeSet<Subject>,
    /// Whether the index may find other problems than before.
    unchecked: bool,
    /// Of shadow slices, if there are to be any.
    shadows: Option<Shadows>,
    now: Instant,
}

impl Kind {
    /// Those that are watched, whatever the settings.
    pub const ALWAYS: [Self; 8] = [
        Self::Routes,
        Self::HttpScaledObjects,
        Self::ScaledObjects,
        Self::Services,
        Self::Deployments,
        Self::StatefulSets,
        Self::Slices,
        Self::Interceptors,
    ];

    /// Those that are watched.
    pub fn watched(guard: HostGuard) -> impl Iterator<Item = Self> {
        let namespaces = (guard == HostGuard::AllowList).then_some(Self::Namespaces);
        Self::ALWAYS.into_iter().chain(namespaces)
    }
}

// === impl World ===

impl Default for World {
    fn default() -> Self {
        Self {
            guard: HostGuard::Off,
            index: Index::new(1, Arc::new(NoSink)),
            objects: BTreeMap::new(),
            scaled: BTreeMap::new(),
            named: BTreeMap::new(),
            problems: BTreeMap::new(),
            generations: HashMap::new(),
            known: HashMap::new(),
            synced: BTreeSet::new(),
            absent: BTreeSet::new(),
            dirty: BTreeSet::new(),
            unchecked: false,
            shadows: None,
            now: Instant::now(),
        }
    }
}

impl World {
    /// One in which hosts belong to namespaces, or do not, as they do for interceptors.
    pub fn guarded(guard: HostGuard) -> Self {
        let world = Self::default();
        Self { guard, index: world.index.guarded(guard), ..world }
    }

    /// Takes a batch of changes in.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            match event {
                Event::Put(item) => self.put(item, false),
                Event::Gone(kind, key) => self.take(kind, &key),
                Event::All(kind, items) => self.replace(kind, items),
                Event::Absent(kind) => self.miss(kind),
                Event::Demand(key, active) => self.shadow_demand(&key, active),
            }
        }
        if std::mem::take(&mut self.unchecked) {
            self.compare_problems();
        }
    }

    /// Takes in what the API server answered to writes: news of objects that are there. One that the watch has not told of
    /// yet, or has told to be gone since, is left to the watch.
    pub fn refresh(&mut self, items: Vec<Item>) {
        let known = |item: &Item| match item {
            Item::Route(object) => {
                self.objects.get(&object.subject).is_some_and(|known| known.meta.uid == object.meta.uid)
            }
            Item::Scaled(scaled) => self.scaled.get(&scaled.key).is_some_and(|known| known.meta.uid == scaled.meta.uid),
            // What was made just now the watch may not have told of yet.
            Item::Shadow(_) => true,
            Item::Service(_) | Item::Workload(..) | Item::Namespace(..) | Item::Slice(_) | Item::Interceptors(_) => {
                false
            }
        };
        let news: Vec<_> = items.into_iter().filter(known).map(Event::Put).collect();
        self.apply(news);
    }

    /// Whether every kind was listed once, or is known not to be there.
    pub fn is_synced(&self) -> bool {
        Kind::watched(self.guard).all(|kind| self.synced.contains(&kind))
    }

    /// The routes that have to be looked at since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Subject> {
        std::mem::take(&mut self.dirty)
    }

    /// All routes.
    pub fn subjects(&self) -> Vec<Subject> {
        self.objects.keys().cloned().collect()
    }

    /// The workload whose pods must be read before `subject` can be planned.
    pub fn unread(&self, subject: &Subject) -> Option<Workload> {
        let workload = self.workload(subject)?;
        let generation = self.generations.get(&workload).copied();
        match self.known.get(&workload) {
            Some(known) if known.generation == generation => None,
            _ => Some(workload),
        }
    }

    /// What was read of a workload's pods, of which [`unread`](Self::unread) told.
    pub fn learn(&mut self, workload: Workload, probe: Probed) {
        let generation = self.generations.get(&workload).copied();
        let known = self.known.entry(workload).or_insert_with(|| Known {
            generation,
            probe: Probed::Unknown,
            users: BTreeSet::new(),
        });
        known.generation = generation;
        if known.probe != probe {
            known.probe = probe;
            self.dirty.extend(known.users.iter().cloned());
        }
    }

    /// Forgets the pods of workloads that no watch tells of, and of those that could not be read: they are read again.
    pub fn forget_unwatched(&mut self) {
        let Self { known, dirty, generations, .. } = self;
        known.retain(|workload, known| {
            let keep = generations.contains_key(workload) && !matches!(known.probe, Probed::Unreadable);
            if !keep {
                dirty.extend(known.users.iter().cloned());
            }
            keep
        });
    }

    /// What is known of a route, or `None` once it is gone.
    pub fn observe(&mut self, subject: &Subject) -> Option<Observed> {
        let workload = self.workload(subject);
        let object = self.objects.get(subject)?.clone();
        let probe = match workload.and_then(|workload| self.known.get_mut(&workload)) {
            None => Probed::Unknown,
            Some(known) => {
                known.users.insert(subject.clone());
                known.probe.clone()
            }
        };
        let naming: Vec<_> = self.naming(subject).cloned().collect();
        let same_name = self.scaled.get(&subject.key).cloned();
        let mut observed = Observed {
            problems: self.problems.get(subject).cloned().unwrap_or_default(),
            same_name,
            naming,
            keda: !self.absent.contains(&Kind::ScaledObjects),
            probe,
            shadow: None,
            after: None,
            again: None,
            object,
        };
        self.see_shadows(&mut observed);
        Some(observed)
    }

    /// The workload that `subject` scales, through its ScaledObject or as it says itself.
    fn workload(&self, subject: &Subject) -> Option<Workload> {
        let object = self.objects.get(subject)?;
        let theirs = self.naming(subject).find_map(|scaled| scaled.workload.clone());
        object.workload().or(theirs)
    }

    fn naming(&self, subject: &Subject) -> impl Iterator<Item = &Scaled> {
        self.named.get(subject).into_iter().flatten().filter_map(|key| self.scaled.get(key))
    }

    fn index(&mut self, event: index::Event) {
        self.index.apply(event);
        self.unchecked = true;
    }

    /// A `listed` object replaces a newer version too: the API server may have been restored to an earlier state.
    fn put(&mut self, item: Item, listed: bool) {
        match item {
            Item::Route(object) => self.put_object(*object, listed),
            Item::Scaled(scaled) => self.put_scaled(*scaled, listed),
            Item::Service(service) => {
                self.shadow_service(&service.key);
                self.index(index::Event::Service(service));
            }
            Item::Namespace(key, hosts) => self.index(index::Event::Namespace(key.name().into(), hosts)),
            Item::Slice(slice) => self.shadow_slice(slice),
            Item::Interceptors(slice) => self.shadow_interceptors(slice),
            Item::Shadow(slice) => self.shadow_live(*slice, listed),
            Item::Workload(workload, generation) => {
                if self.generations.insert(workload.clone(), generation) != Some(generation) {
                    self.workload_changed(&workload);
                }
            }
        }
    }

    fn put_object(&mut self, object: Object, listed: bool) {
        let subject = object.subject.clone();
        let outdated = |old: &Object| !listed && is_older(&object.meta.version, &old.meta.version);
        if self.objects.get(&subject).is_some_and(|old| outdated(old) || *old == object) {
            return;
        }
        // A status that was written changes no route.
        if self.objects.get(&subject).is_none_or(|old| old.route != object.route) {
            self.index(match &object.route {
                Ok(route) => index::Event::Route(route.clone()),
                Err(_) => index::Event::RouteGone(subject.kind, subject.key.clone()),
            });
        }
        self.shadow_route(&object);
        let known = self.objects.insert(subject.clone(), object);
        if known.is_none() && subject.kind == RouteKind::HttpScaledObject {
            tracing::warn!(object = %subject.key, "HTTPScaledObject is deprecated: write an InterceptorRoute");
        }
        self.dirty.insert(subject);
    }

    fn put_scaled(&mut self, scaled: Scaled, listed: bool) {
        let key = scaled.key.clone();
        let old = self.scaled.get(&key);
        if old.is_some_and(|old| !listed && is_older(&scaled.meta.version, &old.meta.version)) {
            return;
        }
        if old.is_none_or(|old| old.differs(&scaled)) {
            self.unname(&key);
            for trigger in &scaled.triggers {
                self.named.entry(trigger.subject.clone()).or_default().insert(key.clone());
            }
            self.touch_users(&scaled);
        }
        self.scaled.insert(key, scaled);
    }

    /// Takes a ScaledObject from the routes that it names, which have to be looked at.
    fn unname(&mut self, key: &ObjectKey) {
        let Some(old) = self.scaled.get(key).cloned() else { return };
        for trigger in &old.triggers {
            if let Some(keys) = self.named.get_mut(&trigger.subject) {
                keys.remove(key);
                if keys.is_empty() {
                    self.named.remove(&trigger.subject);
                }
            }
        }
        self.touch_users(&old);
    }

    fn touch_users(&mut self, scaled: &Scaled) {
        let same_name = [RouteKind::InterceptorRoute, RouteKind::HttpScaledObject]
            .map(|kind| Subject { kind, key: scaled.key.clone() });
        let named = scaled.triggers.iter().map(|trigger| trigger.subject.clone());
        let users = same_name.into_iter().chain(named).filter(|subject| self.objects.contains_key(subject));
        self.dirty.extend(users.collect::<Vec<_>>());
    }

    fn workload_changed(&mut self, workload: &Workload) {
        if let Some(known) = self.known.get(workload) {
            self.dirty.extend(known.users.iter().cloned());
        }
    }

    fn take(&mut self, kind: Kind, key: &ObjectKey) {
        match kind {
            Kind::Routes => self.take_object(RouteKind::InterceptorRoute, key),
            Kind::HttpScaledObjects => self.take_object(RouteKind::HttpScaledObject, key),
            Kind::ScaledObjects => {
                self.unname(key);
                self.scaled.remove(key);
            }
            Kind::Namespaces => self.index(index::Event::NamespaceGone(key.name().into())),
            Kind::Services => {
                self.shadow_service(key);
                self.index(index::Event::ServiceGone(key.clone()));
            }
            Kind::Slices => self.shadow_slice_gone(key),
            Kind::Interceptors => self.shadow_interceptors_gone(key),
            Kind::Deployments | Kind::StatefulSets => {
                let workload = workload_of(kind, key);
                self.generations.remove(&workload);
                self.workload_changed(&workload);
            }
        }
    }

    fn take_object(&mut self, kind: RouteKind, key: &ObjectKey) {
        let subject = Subject { kind, key: key.clone() };
        self.index(index::Event::RouteGone(kind, key.clone()));
        self.shadow_route_gone(&subject);
        self.objects.remove(&subject);
        self.dirty.remove(&subject);
        self.known.retain(|_, known| {
            known.users.remove(&subject);
            !known.users.is_empty()
        });
    }

    fn replace(&mut self, kind: Kind, items: Vec<Item>) {
        if self.absent.remove(&kind) {
            self.dirty.extend(self.objects.keys().cloned());
        }
        self.synced.insert(kind);
        if kind == Kind::Services {
            let services = items.into_iter().filter_map(|item| match item {
                Item::Service(service) => Some(service),
                _ => None,
            });
            self.index.reset(index::Relist::Services(services.collect()));
            self.shadow_all();
            self.unchecked = true;
            return;
        }
        if kind == Kind::Namespaces {
            let namespaces = items.into_iter().filter_map(|item| match item {
                Item::Namespace(key, hosts) => Some((key.name().into(), hosts)),
                _ => None,
            });
            self.index.reset(index::Relist::Namespaces(namespaces.collect()));
            self.unchecked = true;
            return;
        }
        let listed: BTreeSet<ObjectKey> = items.iter().map(|item| item.key().clone()).collect();
        for key in self.keys(kind) {
            if !listed.contains(&key) {
                self.take(kind, &key);
            }
        }
        for item in items {
            self.put(item, true);
        }
    }

    fn miss(&mut self, kind: Kind) {
        if self.absent.contains(&kind) {
            return;
        }
        self.replace(kind, Vec::new());
        self.absent.insert(kind);
        self.dirty.extend(self.objects.keys().cloned());
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let of_kind = |wanted: RouteKind| {
            let subjects = self.objects.keys().filter(move |subject| subject.kind == wanted);
            subjects.map(|subject| subject.key.clone()).collect()
        };
        match kind {
            Kind::Routes => of_kind(RouteKind::InterceptorRoute),
            Kind::HttpScaledObjects => of_kind(RouteKind::HttpScaledObject),
            Kind::ScaledObjects => self.scaled.keys().cloned().collect(),
            Kind::Services | Kind::Namespaces => Vec::new(),
            Kind::Slices => self.shadows.as_ref().map(Shadows::slice_keys).unwrap_or_default(),
            Kind::Interceptors => self.shadows.as_ref().map(Shadows::own_keys).unwrap_or_default(),
            Kind::Deployments | Kind::StatefulSets => {
                let same = workload_of(kind, &ObjectKey::new("", "")).kind;
                let workloads = self.generations.keys().filter(|workload| workload.kind == same);
                workloads.map(|workload| workload.key.clone()).collect()
            }
        }
    }

    /// Finds whose problems are others than before.
    fn compare_problems(&mut self) {
        let mut problems: BTreeMap<Subject, Vec<Problem>> = BTreeMap::new();
        for problem in self.index.every_problem() {
            let subject = Subject { kind: problem.route_kind, key: problem.object.clone() };
            problems.entry(subject).or_default().push(problem);
        }
        for list in problems.values_mut() {
            list.sort_unstable();
        }
        let changed = |subject: &&Subject| self.problems.get(*subject) != problems.get(*subject);
        let changed = self.problems.keys().chain(problems.keys()).filter(changed);
        let changed = changed.filter(|subject| self.objects.contains_key(*subject));
        self.dirty.extend(changed.cloned().collect::<Vec<_>>());
        self.problems = problems;
    }
}

/// Which workload an object of a watched kind is.
pub fn workload_of(kind: Kind, key: &ObjectKey) -> Workload {
    let name = if kind == Kind::StatefulSets { "StatefulSet" } else { "Deployment" };
    Workload { api_version: "apps/v1".to_owned(), kind: name.to_owned(), key: key.clone() }
}

/// What the API server answered to a write may be newer than what the watch tells next.
fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}

#[cfg(test)]
mod tests;
