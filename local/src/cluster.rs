//! What a control plane would hold: the objects of the manifests and the replicas asked for. Written by the manifest
//! reader and by the autoscalers, each in its own fields; read by the kubelet, the autoscalers and the view.

use std::{collections::BTreeMap, sync::Arc};

use interceptor_core::ObjectKey;
use k8s_openapi::api::core::v1::Service;
use tokio::sync::watch;

use crate::{
    scaling::scaled::ScaledWorkload,
    timeline::{Actor, Event, Timeline},
    workload::Workload,
};

/// The state at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Deployments that can be run here.
    pub workloads: BTreeMap<ObjectKey, Arc<Workload>>,
    /// Replicas asked for, of each of them.
    pub replicas: BTreeMap<ObjectKey, u32>,
    /// Services.
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// `ScaledObjects`, written or derived from `HTTPScaledObjects`.
    pub scaled: BTreeMap<ObjectKey, Arc<ScaledWorkload>>,
    /// How to reach each route, by kind and name.
    pub routes: BTreeMap<RouteName, Address>,
    /// What is wrong with which object.
    pub problems: BTreeMap<String, String>,
}

/// A route's kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteName {
    /// The object.
    pub key: ObjectKey,
    /// `InterceptorRoute` or `HTTPScaledObject`.
    pub kind: &'static str,
}

/// What a request must carry to reach a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A host that matches, wildcards filled in; `None` when any does.
    pub host: Option<String>,
    /// A path prefix that matches.
    pub path: String,
    /// Headers that must be there.
    pub headers: Vec<(String, String)>,
}

/// The handle on the state; clones share it.
#[derive(Clone, Debug)]
pub struct Cluster {
    state: Arc<watch::Sender<Arc<State>>>,
    timeline: Timeline,
}

// === impl State ===

impl State {
    /// The ScaledObject that a route's requests are counted for.
    pub fn scaled_for(&self, route: &RouteName) -> Option<&Arc<ScaledWorkload>> {
        self.scaled.values().find(|scaled| scaled.serves(route))
    }
}

// === impl Cluster ===

impl Cluster {
    /// An empty one.
    pub fn new(timeline: Timeline) -> Self {
        Self { state: Arc::new(watch::Sender::default()), timeline }
    }

    /// The state now.
    pub fn load(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Where things are written down.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Changes objects; for the manifest reader.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| change(Arc::make_mut(state)));
    }

    /// Asks for `to` replicas; for the autoscalers. Nothing happens when the Deployment is gone or has as many.
    pub fn scale(&self, workload: &ObjectKey, to: u32, by: Actor, why: impl FnOnce() -> String) {
        let mut before = None;
        self.state.send_if_modified(|state| {
            let Some(&from) = state.replicas.get(workload) else { return false };
            if from == to {
                return false;
            }
            before = Some(from);
            Arc::make_mut(state).replicas.insert(workload.clone(), to);
            true
        });
        if let Some(from) = before {
            self.timeline.add(Event::Scaled { workload: workload.clone(), from, to, by, why: why() });
        }
    }

    /// Puts down or takes back what is wrong with an object.
    pub fn problem(&self, object: &str, message: Option<String>) {
        let known = self.state.borrow().problems.get(object) == message.as_ref();
        if known {
            return;
        }
        if let Some(message) = &message {
            self.timeline.add(Event::Problem { object: object.to_owned(), message: message.clone() });
        }
        self.edit(|state| match message {
            Some(message) => drop(state.problems.insert(object.to_owned(), message)),
            None => drop(state.problems.remove(object)),
        });
    }
}
