//! From what is observed of a route to what has to be done about it. Pure; the plan of a converged state is empty, and no
//! plan touches an object that is somebody else's.

use std::ops::RangeInclusive;

use api::names::{self, ORPHAN_ANNOTATION, SKIP_ANNOTATION};
use interceptor_core::{index::HostGuard, route::RouteKind};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    notice::{self, Notice},
    object::{Scaled, Spec, Subject},
    observe::{Observed, Probed},
    status,
};

mod drift;
mod scaled_object;
mod shadow;

/// What every plan depends on beside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where KEDA finds the scaler.
    pub scaler_address: String,
    /// Whether hosts belong to namespaces, as interceptors were told.
    pub host_guard: HostGuard,
    /// Ports of interceptors that may stand for Services; there may be none.
    pub ports: RangeInclusive<u16>,
    /// The node agents' Service, in the interceptors' namespace, if there is one.
    pub agents: Option<String>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Takes our finalizer, which the KEDA HTTP Add-on sets, from the route: owner references do its work.
    Unfinalize {
        /// The version that the rest was read from.
        version: String,
        /// Those of others.
        rest: Vec<String>,
    },
    /// Applies the ScaledObject.
    Apply {
        /// As it should be.
        body: Value,
        /// The identity of the one to be changed; without it, one is made.
        over: Option<String>,
        /// Where in its list of managed fields the KEDA HTTP Add-on's operator stands, whose fields are ours from now on: in
        /// its name those would stay that the route no longer asks for.
        inherit: Option<usize>,
    },
    /// Deletes the ScaledObject.
    Delete {
        /// Its identity.
        uid: String,
    },
    /// Applies an EndpointSlice that lists interceptors.
    Publish {
        /// Its name.
        name: String,
        /// As it should be.
        body: Value,
    },
    /// Deletes one.
    Withdraw {
        /// Its name.
        name: String,
        /// Its identity.
        uid: String,
    },
    /// Makes the ScaledObject nobody's.
    Release {
        /// The version that the rest was read from.
        version: String,
        /// Those of others.
        rest: Value,
    },
}

/// How the route and `ScaledObjects` stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The operator keeps one.
    Created,
    /// The user keeps it.
    Found,
    /// An annotation wants none to be made.
    Skipped(&'static str),
    /// Somebody else's is in the way.
    Foreign(String),
    /// The object asks for what can't be.
    Invalid(String),
    /// KEDA is not there.
    NoKeda,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Writes, in order.
    pub actions: Vec<Action>,
    /// How things stand once they are done.
    pub standing: Standing,
    /// What the status should be then, if that is not what it is.
    pub status: Option<StatusWrite>,
}

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    /// All of it that is ours.
    pub status: Value,
    /// Whether conditions of an old form have to go first.
    pub reset: bool,
    /// What to tell users when it is written.
    pub notices: Vec<Notice>,
}

/// What has to be done about a route.
pub fn plan(observed: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let meta = &observed.object.meta;
    let unfinalize = meta.finalizers.iter().any(|finalizer| finalizer == names::FINALIZER).then(|| {
        let rest = meta.finalizers.iter().filter(|finalizer| *finalizer != names::FINALIZER).cloned().collect();
        Action::Unfinalize { version: meta.version.clone(), rest }
    });
    if meta.deleting {
        // What it owns goes with it.
        return Plan { actions: unfinalize.into_iter().collect(), standing: Standing::Found, status: None };
    }
    let (standing, write) = scaled_object(observed, settings);
    let shadows = shadow::shadows(observed);
    let status = status(observed, &standing, (shadows.status, None), now);
    // Slices first: nothing else that is to be done is a matter of a moment.
    let actions = shadows.actions.into_iter().chain(unfinalize).chain(write);
    Plan { actions: actions.collect(), standing, status }
}

/// The status when a write of the plan failed.
pub fn failed(observed: &Observed, plan: &Plan, why: &str, now: Timestamp) -> Option<StatusWrite> {
    status(observed, &plan.standing, (shadow::shadows(observed).failed, Some(why)), now)
}

fn scaled_object(observed: &Observed, settings: &Settings) -> (Standing, Option<Action>) {
    match &observed.object.spec {
        // Nothing is taken down because of an object that cannot be read.
        Err(error) => (Standing::Invalid(error.clone()), None),
        Ok(Spec::Route(spec)) if spec.scaling.is_none() => {
            let standing = if observed.keda { Standing::Found } else { Standing::NoKeda };
            (standing, observed.owned().map(delete))
        }
        Ok(Spec::Http(_)) if observed.object.meta.says(ORPHAN_ANNOTATION) => (
            Standing::Skipped(ORPHAN_ANNOTATION),
            observed.owned().map(|scaled| release(scaled, &observed.object.subject)),
        ),
        Ok(Spec::Http(_)) if observed.object.meta.says(SKIP_ANNOTATION) => {
            (Standing::Skipped(SKIP_ANNOTATION), observed.owned().map(delete))
        }
        Ok(spec) => wanted(observed, spec, settings),
    }
}

/// The route wants a ScaledObject of its name.
fn wanted(observed: &Observed, spec: &Spec, settings: &Settings) -> (Standing, Option<Action>) {
    if !observed.keda {
        return (Standing::NoKeda, None);
    }
    let body = match scaled_object::desired(&observed.object, spec, settings) {
        Ok(body) => body,
        Err(why) => return (Standing::Invalid(why), None),
    };
    if let Some(why) = in_the_way(observed) {
        return (Standing::Foreign(why), None);
    }
    let action = match &observed.same_name {
        None => Some(Action::Apply { body, over: None, inherit: None }),
        // It goes, and is made anew when it is gone.
        Some(live) if live.meta.deleting => None,
        Some(live) if drift::is_as_desired(live, &body) => None,
        Some(live) => {
            let inherit = live.original.filter(|_| live.applied.is_empty());
            Some(Action::Apply { body, over: Some(live.meta.uid.clone()), inherit })
        }
    };
    (Standing::Created, action)
}

/// Why the ScaledObject that the route wants can't be made or changed.
fn in_the_way(observed: &Observed) -> Option<String> {
    let subject = &observed.object.subject;
    if observed.owned().is_some() {
        return None;
    }
    if let Some(theirs) = &observed.same_name {
        let name = theirs.key.name();
        return match &theirs.owner {
            Some(owner) => Some(format!(
                "ScaledObject {name} belongs to {} {} and stays as it is: rename one of them",
                owner.kind, owner.name
            )),
            // Let go by an annotation that is gone by now.
            None if subject.kind == RouteKind::HttpScaledObject && theirs.names(subject) => None,
            None => Some(format!(
                "ScaledObject {name} was not made by the operator and stays as it is: delete it, or {}",
                instead(subject)
            )),
        };
    }
    let theirs = observed.naming.first()?;
    let name = theirs.key.name();
    Some(format!("ScaledObject {name} names this route already and stays as it is: delete it, or {}", instead(subject)))
}

fn instead(subject: &Subject) -> String {
    match subject.kind {
        RouteKind::InterceptorRoute => "remove spec.scaling".to_owned(),
        RouteKind::HttpScaledObject => format!("set the annotation {SKIP_ANNOTATION}: \"true\""),
    }
}

fn delete(scaled: &Scaled) -> Action {
    Action::Delete { uid: scaled.meta.uid.clone() }
}

fn release(scaled: &Scaled, subject: &Subject) -> Action {
    let owners = scaled.body["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let ours = |owner: &Value| owner["kind"] == subject.kind_name() && owner["name"] == subject.key.name();
    let rest = owners.into_iter().filter(|owner| !ours(owner)).collect::<Vec<_>>();
    Action::Release { version: scaled.meta.version.clone(), rest: rest.into() }
}

fn status(
    observed: &Observed,
    standing: &Standing,
    (shadow, failure): (Option<Value>, Option<&str>),
    now: Timestamp,
) -> Option<StatusWrite> {
    let object = &observed.object;
    let is_listed = shadow.as_ref().is_some_and(|shadow| shadow["published"] == true);
    let findings = status::findings(observed, standing, (is_listed, failure));
    let conditions = status::conditions(findings, &object.conditions, object.meta.generation, now);
    let mut desired = json!({ "conditions": conditions });
    for (field, probes) in probes(observed) {
        desired[field] = probes;
    }
    if let Some(shadow) = shadow {
        desired["shadow"] = shadow;
    }
    if observed.is_uncounted() {
        desired["uncounted"] = true.into();
    }
    if let Ok(Spec::Http(spec)) = &object.spec {
        let target = &spec.scale_target_ref;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let workload = format!("{}/{}/{}", text(&target.api_version), text(&target.kind), text(&target.name));
        desired["targetWorkload"] = workload.into();
        desired["targetService"] = format!("{}:{}", target.service, target.port.unwrap_or_default()).into();
    }
    if !object.old_conditions && drift::is_settled(&object.status, &desired) {
        return None;
    }
    let notices = notice::notices(observed, &conditions);
    Some(StatusWrite { status: desired, reset: object.old_conditions, notices })
}

/// What the status says of the pods' probes. For an HTTPScaledObject nobody asks who else than interceptors sends requests.
fn probes(observed: &Observed) -> impl Iterator<Item = (&'static str, Value)> {
    const READINESS: &str = "readinessProbe";
    const UNNAMED: &str = "unnamedProbes";
    let known = |field| observed.object.status.get(field).cloned();
    let is_route = observed.object.subject.kind == RouteKind::InterceptorRoute;
    let (readiness, unnamed) = match &observed.probe {
        Probed::Unknown => (None, None),
        Probed::Unreadable => (known(READINESS), known(UNNAMED)),
        Probed::Read(readiness, unnamed) => {
            let unnamed = (is_route && !unnamed.is_empty()).then(|| to_value(unnamed));
            (readiness.as_ref().map(to_value), unnamed)
        }
    };
    let fields = [(READINESS, readiness), (UNNAMED, unnamed)].into_iter();
    fields.filter_map(|(field, probes)| Some((field, probes.filter(|probes| !probes.is_null())?)))
}

fn to_value(probes: &impl Serialize) -> Value {
    serde_json::to_value(probes).expect("probes are plain data")
}

// === impl Plan ===

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.status.is_none()
    }
}

#[cfg(test)]
mod tests;
