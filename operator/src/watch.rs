//! Watches the API server and tells the world of changes. One task a kind; each resumes, lists again and backs off by itself.
//! Objects are taken as they come and reduced at once, so that no single one can end a watch, and none is kept whole.

use std::{pin::pin, time::Duration};

use api::{HTTPScaledObject, InterceptorRoute, ScaledObject, convert, names::SERVICE_NAME_LABEL};
use futures_util::StreamExt as _;
use interceptor_core::{ObjectKey, route::RouteKind};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::Instant};

mod absence;

use self::absence::{Absence, Verdict};
use crate::{
    object::{Object, OwnSlice, Scaled, ShadowSlice, Slice},
    world::{Event, Item, Kind, workload_of},
};

/// Changes that may wait; the watches then wait too.
pub const MAX_WAITING: usize = 1024;

/// Waits after an error, doubling from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// Nobody listens any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody takes the changes of {0:?}")]
pub struct Unheard(Kind);

/// What is watched of each kind.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The only namespace, if it is one.
    pub namespace: Option<String>,
    /// The interceptors' Service.
    pub interceptors: ObjectKey,
    /// The agents' Service, in the same namespace, if there is one.
    pub agents: Option<String>,
}

/// Watches one kind, in one namespace or in all, for ever.
pub async fn watch(kind: Kind, client: Client, scope: Scope, changes: mpsc::Sender<Event>) -> Result<(), Unheard> {
    let Scope { namespace, interceptors, agents } = scope;
    match kind {
        Kind::Slices => {
            let api = dynamic::<EndpointSlice>(client, namespace.as_deref());
            let config = watcher::Config::default().labels(SERVICE_NAME_LABEL);
            follow_with(kind, api, config, slice, changes).await
        }
        Kind::Interceptors => {
            let api = dynamic::<EndpointSlice>(client, Some(interceptors.namespace()));
            let names =
                [Some(interceptors.name()), agents.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(",");
            let selector = format!("{SERVICE_NAME_LABEL} in ({names})");
            let config = watcher::Config::default().labels(&selector);
            let read = |object: &DynamicObject| OwnSlice::read(object).map(Item::Interceptors);
            follow_with(kind, api, config, read, changes).await
        }
        Kind::Routes => {
            let read = |object: &DynamicObject| route(RouteKind::InterceptorRoute, object);
            follow(kind, dynamic::<InterceptorRoute>(client, namespace.as_deref()), read, changes).await
        }
        Kind::HttpScaledObjects => {
            let read = |object: &DynamicObject| route(RouteKind::HttpScaledObject, object);
            follow(kind, dynamic::<HTTPScaledObject>(client, namespace.as_deref()), read, changes).await
        }
        Kind::ScaledObjects => {
            let read = |object: &DynamicObject| Scaled::read(object).map(|scaled| Item::Scaled(Box::new(scaled)));
            follow(kind, dynamic::<ScaledObject>(client, namespace.as_deref()), read, changes).await
        }
        Kind::Services => follow(kind, dynamic::<Service>(client, namespace.as_deref()), service, changes).await,
        Kind::Namespaces => {
            let api = Api::all_with(client, &ApiResource::erase::<Namespace>(&()));
            let config = watcher::Config {
                field_selector: namespace.map(|name| format!("metadata.name={name}")),
                ..watcher::Config::default()
            };
            follow_with(kind, api, config, self::namespace, changes).await
        }
        Kind::Deployments => {
            let api: Api<PartialObjectMeta<Deployment>> = scoped(client, namespace.as_deref());
            follow(kind, api, |it| workload(Kind::Deployments, it), changes).await
        }
        Kind::StatefulSets => {
            let api: Api<PartialObjectMeta<StatefulSet>> = scoped(client, namespace.as_deref());
            follow(kind, api, |it| workload(Kind::StatefulSets, it), changes).await
        }
    }
}

async fn follow<K>(
    kind: Kind,
    api: Api<K>,
    read: impl Fn(&K) -> Option<Item>,
    changes: mpsc::Sender<Event>,
) -> Result<(), Unheard>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    follow_with(kind, api, watcher::Config::default(), read, changes).await
}

async fn follow_with<K>(
    kind: Kind,
    api: Api<K>,
    config: watcher::Config,
    read: impl Fn(&K) -> Option<Item>,
    changes: mpsc::Sender<Event>,
) -> Result<(), Unheard>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut listed = Vec::new();
    let mut wait = FIRST_WAIT;
    let mut absence = Absence::new(kind);
    loop {
        let mut stream = pin!(watcher(api.clone(), config.clone()));
        loop {
            let Some(next) = stream.next().await else { return Err(Unheard(kind)) };
            let event = match next {
                Ok(event) => {
                    if !matches!(event, watcher::Event::Init) {
                        wait = FIRST_WAIT;
                        absence.heard();
                    }
                    heard(kind, event, &read, &mut listed)
                }
                Err(error) => {
                    let verdict = absence.failed(&error, Instant::now());
                    let absent = verdict == Verdict::Absent;
                    tracing::warn!(?kind, error = %brief(&error), absent, "cannot watch");
                    if verdict == Verdict::ListAnew {
                        break;
                    }
                    if absent {
                        wait = LAST_WAIT;
                        changes.send(Event::Absent(kind)).await.map_err(|_closed| Unheard(kind))?;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LAST_WAIT);
                    None
                }
            };
            if let Some(event) = event {
                if matches!(event, Event::All(..)) {
                    absence.listed();
                }
                changes.send(event).await.map_err(|_closed| Unheard(kind))?;
            }
        }
    }
}

/// What has changed; `listed` is what has come of a list so far.
fn heard<K: Resource>(
    kind: Kind,
    event: watcher::Event<K>,
    read: impl Fn(&K) -> Option<Item>,
    listed: &mut Vec<Item>,
) -> Option<Event> {
    let gone = |object: &K| convert::key(object.meta()).ok().map(|key| Event::Gone(kind, key));
    match event {
        watcher::Event::Init => {
            listed.clear();
            None
        }
        watcher::Event::InitApply(object) => {
            listed.extend(read(&object));
            None
        }
        watcher::Event::InitDone => Some(Event::All(kind, std::mem::take(listed))),
        watcher::Event::Apply(object) => read(&object).map(Event::Put).or_else(|| gone(&object)),
        watcher::Event::Delete(object) => gone(&object),
    }
}

fn brief(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.message.clone(),
        error => error.to_string(),
    }
}

fn route(kind: RouteKind, object: &DynamicObject) -> Option<Item> {
    Object::read(kind, object).map(|object| Item::Route(Box::new(object)))
}

fn slice(object: &DynamicObject) -> Option<Item> {
    let ours = ShadowSlice::read(object).map(|slice| Item::Shadow(Box::new(slice)));
    ours.or_else(|| Slice::read(object).map(Item::Slice))
}

fn service(object: &DynamicObject) -> Option<Item> {
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    let typed = Service { metadata: object.metadata.clone(), spec: serde_json::from_value(spec).ok(), status: None };
    convert::service(&typed).ok().map(Item::Service)
}

fn namespace(object: &DynamicObject) -> Option<Item> {
    let typed = Namespace { metadata: object.metadata.clone(), spec: None, status: None };
    let (_, hosts) = convert::namespace(&typed).ok()?;
    Some(Item::Namespace(convert::key(&object.metadata).ok()?, hosts))
}

fn workload<K>(kind: Kind, object: &PartialObjectMeta<K>) -> Option<Item> {
    let key = convert::key(&object.metadata).ok()?;
    Some(Item::Workload(workload_of(kind, &key), object.metadata.generation.unwrap_or_default()))
}

fn dynamic<K: Resource<DynamicType = ()>>(client: Client, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<K>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}

fn scoped<K>(client: Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    }
}

#[cfg(test)]
mod tests;
