//! Shadow slices: EndpointSlices that list interceptors in place of a Service's pods, for all who read slices. One for each
//! direct route and family of addresses.
//!
//! Made before it breaks. They are there before the last pod goes: KEDA is not told that demand has ended before the scaler
//! has seen in the route's status that they are published. They go after pods have been ready and demand has been there for a
//! while, and not before the status says so, which a scaler reads as the contrary. Interceptors forward in either case.

use std::collections::BTreeMap;

use api::names::{MANAGED_BY_LABEL, SERVICE_NAME_LABEL, SHADOW_MANAGER, SHADOW_ROUTE_LABEL};
use serde_json::{Value, json};

use super::Action;
use crate::{
    object::{Interceptor, ShadowSlice},
    observe::Observed,
    shadow::{Port, Seen},
};

/// Most interceptors in one slice; what Kubernetes' own slices hold.
const MAX_LISTED: usize = 100;

/// A route's name may be as long as a slice's, which has to hold more.
const MAX_NAME: usize = 200;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Shadows {
    pub(super) actions: Vec<Action>,
    /// For the status; without it there is no port.
    pub(super) status: Option<Value>,
    /// The same if the actions fail.
    pub(super) failed: Option<Value>,
}

/// Decides; the route is not being deleted.
pub(super) fn shadows(observed: &Observed) -> Shadows {
    if observed.object.route.is_err() {
        return as_it_is(observed);
    }
    let Some(seen) = &observed.shadow else { return Shadows::default() };
    let told = observed.object.status["shadow"]["published"] == true;
    let (actions, published, was) = match wanted(seen) {
        Some(Wanted::AsItIs) => (Vec::new(), told, told),
        Some(Wanted::Published) => publish(observed, seen, told),
        // First the status: a scaler that believes that they are there must not.
        None if told && !seen.live.is_empty() && observed.after.is_some() => (Vec::new(), false, told),
        None => (seen.live.iter().map(delete).collect(), false, false),
    };
    let status = |published: bool| match &seen.port {
        Port::Open { number, .. } => {
            let mut status = json!({"port": number, "published": published});
            // Before anything has been published, a workload that sleeps is nothing to be kept awake.
            if let Some(after) = observed.after.filter(|_| published || seen.ready) {
                status["afterSeconds"] = after.as_secs().into();
            }
            Some(status)
        }
        Port::Full | Port::Limit | Port::Headless | Port::Missing => None,
    };
    Shadows { actions, status: status(published), failed: status(was) }
}

/// Of a route that can't be read interceptors and scalers keep the version before, and so what they were told of it.
fn as_it_is(observed: &Observed) -> Shadows {
    let told = observed.object.status.get("shadow").filter(|shadow| !shadow.is_null()).cloned();
    Shadows { actions: Vec::new(), status: told.clone(), failed: told }
}

enum Wanted {
    Published,
    /// Nothing is decided yet.
    AsItIs,
}

fn wanted(seen: &Seen) -> Option<Wanted> {
    let Seen { port, interceptors, live, ready, needed, warm, uncounted: _, lacking: _ } = seen;
    match port {
        Port::Open { listening: false, .. } => Some(Wanted::AsItIs),
        Port::Open { .. } if !interceptors.is_empty() => {
            (!ready || *needed || (!live.is_empty() && !warm)).then_some(Wanted::Published)
        }
        Port::Open { .. } | Port::Full | Port::Limit | Port::Headless | Port::Missing => None,
    }
}

/// What there are interceptors for is published in any case, but clients of a Service with addresses of another family would find
/// nobody at those: then it is not said, and a scaler keeps the last pod.
fn publish(observed: &Observed, seen: &Seen, told: bool) -> (Vec<Action>, bool, bool) {
    let desired = desired(observed, seen);
    let live: BTreeMap<_, _> = seen.live.iter().map(|slice| (slice.key.name(), slice)).collect();
    let mut actions = Vec::new();
    for (name, body) in &desired {
        if !live.get(name.as_str()).is_some_and(|live| is_as_desired(live, body)) {
            actions.push(Action::Publish { name: name.clone(), body: body.clone() });
        }
    }
    let others = seen.live.iter().filter(|slice| !desired.contains_key(slice.key.name()));
    if seen.lacking.is_some() {
        // First the status, as always.
        actions.extend(others.filter(|_| !told).map(delete));
        return (actions, false, false);
    }
    actions.extend(others.map(delete));
    let was = desired.keys().all(|name| live.contains_key(name.as_str()));
    (actions, true, was)
}

fn delete(slice: &ShadowSlice) -> Action {
    Action::Withdraw { name: slice.key.name().to_owned(), uid: slice.meta.uid.clone() }
}

/// The slices by their names.
fn desired(observed: &Observed, seen: &Seen) -> BTreeMap<String, Value> {
    let Port::Open { number, name, .. } = &seen.port else { return BTreeMap::new() };
    let family = |ipv6: bool| {
        let all = seen.interceptors.iter().filter(move |it| it.address.is_ipv6() == ipv6);
        all.take(MAX_LISTED).map(endpoint).collect::<Vec<_>>()
    };
    let mut slices = BTreeMap::new();
    for (kind, endpoints) in [("IPv4", family(false)), ("IPv6", family(true))] {
        if !endpoints.is_empty() {
            let body = slice(observed, kind, (name, *number), &endpoints);
            slices.insert(body["metadata"]["name"].as_str().unwrap_or_default().to_owned(), body);
        }
    }
    slices
}

fn slice(observed: &Observed, family: &str, (port_name, port): (&str, u16), endpoints: &[Value]) -> Value {
    let object = &observed.object;
    let (key, uid) = (&object.subject.key, &object.meta.uid);
    let service = object.route.as_ref().map(|route| route.target.service.name()).unwrap_or_default();
    let mut stem = key.name().to_owned();
    stem.truncate(stem.floor_char_boundary(MAX_NAME));
    let stem = stem.trim_end_matches(['.', '-']);
    let start: String = uid.chars().take(8).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{stem}-shadow-{start}-{}", family.to_ascii_lowercase()),
            "namespace": key.namespace(),
            "labels": {
                SERVICE_NAME_LABEL: service,
                MANAGED_BY_LABEL: SHADOW_MANAGER,
                SHADOW_ROUTE_LABEL: uid,
            },
            "ownerReferences": [{
                "apiVersion": object.subject.api_version(),
                "kind": object.subject.kind_name(),
                "name": key.name(),
                "uid": uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "addressType": family,
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn endpoint(interceptor: &Interceptor) -> Value {
    let mut endpoint = interceptor.place.clone();
    endpoint["addresses"] = json!([interceptor.address]);
    endpoint["conditions"] = json!({"ready": true, "serving": true, "terminating": false});
    endpoint
}

fn is_as_desired(live: &ShadowSlice, desired: &Value) -> bool {
    let labels = desired["metadata"]["labels"].as_object().into_iter().flatten();
    labels.clone().all(|(name, value)| live.body["labels"].get(name) == Some(value))
        && ["addressType", "ports", "endpoints"].iter().all(|field| live.body[*field] == desired[*field])
}
