//! Everything that can be seen of a running demonstration; read by the terminal view and by `--once`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use interceptor_core::ObjectKey;
use tokio::sync::watch;

use crate::{
    cluster::{Address, Cluster, RouteName},
    cold_start::{Phases, explain},
    kubelet::PodStatus,
    platform::{Health, Ports},
    replicas,
    request::Requester,
    scaling::scaled::ScaledWorkload,
    state::{ColdStart, StateClient},
    timeline::Entry,
};

/// Handles on all parts.
#[derive(Clone, Debug)]
pub struct World {
    /// Objects, replicas asked for, and what happened.
    pub cluster: Cluster,
    /// The kubelet's books.
    pub pods: watch::Receiver<Arc<Vec<PodStatus>>>,
    /// The interceptor's.
    pub state: StateClient,
    /// The way in for requests.
    pub requester: Requester,
    /// Where everything listens.
    pub ports: Ports,
    /// The run's mark on its pods.
    pub run: String,
    /// Name and health of interceptor and scaler.
    pub processes: Vec<(&'static str, watch::Receiver<Health>)>,
    /// Logs of all processes.
    pub logs: PathBuf,
    /// The manifests.
    pub manifests: PathBuf,
}

/// A route that is scaled.
#[derive(Clone, Debug)]
pub struct ScaledRoute {
    /// Its name.
    pub name: RouteName,
    /// How to reach it.
    pub address: Address,
    /// What scales it.
    pub scaled: Arc<ScaledWorkload>,
}

// === impl World ===

impl World {
    /// Routes with a ScaledObject: each InterceptorRoute before each HTTPScaledObject, then by name.
    pub fn scaled_routes(&self) -> Vec<ScaledRoute> {
        let state = self.cluster.load();
        let scaled = |(name, address): (&RouteName, &Address)| {
            let scaled = Arc::clone(state.scaled_for(name)?);
            Some(ScaledRoute { name: name.clone(), address: address.clone(), scaled })
        };
        let mut routes: Vec<ScaledRoute> = state.routes.iter().filter_map(scaled).collect();
        routes.sort_by_key(|route| (route.name.kind != "InterceptorRoute", route.name.key.clone()));
        routes
    }

    /// Where a cold start's time went, when its route is scaled here.
    pub fn explain(&self, cold: &ColdStart, entries: &[Entry]) -> Option<Phases> {
        let key = ObjectKey::new(cold.namespace.as_str(), cold.name.as_str());
        let route = self.scaled_routes().into_iter().find(|route| route.name.key == key)?;
        Some(explain(cold, entries, &route.scaled.key, &route.scaled.workload))
    }

    /// Replica processes of a Deployment, as the kernel lists them.
    pub fn replica_processes(&self, workload: &ObjectKey) -> BTreeMap<String, u32> {
        replicas::running(&self.run, &workload.to_string())
    }

    /// A process that is not running, and why.
    pub fn broken(&self) -> Option<String> {
        self.processes.iter().find_map(|(name, health)| match &*health.borrow() {
            Health::Ended(how) => Some(format!("{name} {how}")),
            Health::Running { .. } => None,
        })
    }
}
