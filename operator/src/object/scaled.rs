//! A ScaledObject, ours or anybody's: whom it belongs to, which routes it names, what KEDA says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use api::names::{FIELD_MANAGER, HTTP_SCALED_OBJECT_KEY, INTERCEPTOR_ROUTE_KEY};
use interceptor_core::{ObjectKey, route::RouteKind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::{Meta, Subject, Workload};

/// The field manager of the KEDA HTTP Add-on's operator.
pub const ORIGINAL: &str = "operator";

/// KEDA's cool-down and polling interval where a ScaledObject does not tell, in seconds.
const COOLDOWN: u64 = 300;
const INTERVAL: u64 = 30;

/// A ScaledObject.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaled {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its metadata.
    pub meta: Meta,
    /// Its controller.
    pub owner: Option<Owner>,
    /// Its triggers that name a route.
    pub triggers: Vec<Trigger>,
    /// What it scales.
    pub workload: Option<Workload>,
    /// Whether it keeps a replica while idle.
    pub never_zero: bool,
    /// Its owner references, labels, annotations and spec, if it has to do with a route.
    pub body: Value,
    /// The fields of labels, annotations and spec that the operator wrote.
    pub applied: BTreeSet<String>,
    /// Where the KEDA HTTP Add-on's operator stands in the list of managed fields.
    pub original: Option<usize>,
    /// KEDA's condition Ready.
    pub ready: Option<Verdict>,
    /// KEDA's condition Active.
    pub active: Option<Verdict>,
    /// KEDA's condition Paused.
    pub paused: bool,
}

/// The controller of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
}

/// A trigger that names a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The route.
    pub subject: Subject,
    /// Whether KEDA is told of demand at once rather than by its polls.
    pub push: bool,
}

/// What a condition of KEDA's says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `Some(true)`, `Some(false)`, or unknown.
    pub holds: Option<bool>,
    /// In words.
    pub message: String,
}

// === impl Scaled ===

impl Scaled {
    /// Reads a ScaledObject as far as it can be read.
    pub fn read(object: &DynamicObject) -> Option<Self> {
        let key = api::convert::key(&object.metadata).ok()?;
        let spec = object.data.get("spec").unwrap_or(&Value::Null);
        let triggers = triggers(key.namespace(), spec);
        let owner = owner(&object.metadata);
        let ours = owner.as_ref().is_some_and(|owner| matches!(&*owner.kind, "InterceptorRoute" | "HTTPScaledObject"));
        let body = if ours || !triggers.is_empty() { body(&object.metadata, spec) } else { Value::Null };
        let condition = |kind: &str| condition(object.data.get("status"), kind);
        Some(Self {
            meta: Meta { labels: BTreeMap::new(), annotations: BTreeMap::new(), ..Meta::of(&object.metadata) },
            owner,
            triggers,
            workload: workload(key.namespace(), spec),
            never_zero: ["minReplicaCount", "idleReplicaCount"]
                .iter()
                .any(|field| spec.get(field).and_then(Value::as_i64).is_some_and(|count| count > 0)),
            body,
            applied: applied(&object.metadata),
            original: original(&object.metadata),
            ready: condition("Ready"),
            active: condition("Active"),
            paused: condition("Paused").is_some_and(|paused| paused.holds == Some(true)),
            key,
        })
    }

    /// After which time without demand KEDA may take the last replica away, if it does; less the time by which it may have
    /// looked too early, and `ahead`.
    pub fn sleeps_after(&self, ahead: Duration) -> Option<Duration> {
        let spec = &self.body["spec"];
        let count = |field: &str| spec.get(field).and_then(Value::as_i64);
        let least = count("idleReplicaCount").or_else(|| count("minReplicaCount")).unwrap_or_default();
        let seconds = |field: &str, default: u64| spec.get(field).and_then(Value::as_u64).unwrap_or(default);
        // KEDA counts from when it last saw demand, which it may have done a whole interval before it ended.
        let idle = seconds("cooldownPeriod", COOLDOWN).saturating_sub(seconds("pollingInterval", INTERVAL));
        (least == 0).then(|| Duration::from_secs(idle).saturating_sub(ahead))
    }

    /// Whether `subject` made it.
    pub fn is_owned_by(&self, subject: &Subject, uid: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| {
            owner.uid == uid || owner.kind.eq_ignore_ascii_case(subject.kind_name()) && owner.name == subject.key.name()
        }) && self.key.namespace() == subject.key.namespace()
    }

    /// Whether one of its triggers names `subject`.
    pub fn names(&self, subject: &Subject) -> bool {
        self.triggers.iter().any(|trigger| trigger.subject == *subject)
    }

    /// Whether anything else is different than the version and what changes all the time.
    pub fn differs(&self, other: &Self) -> bool {
        let unversioned = |it: &Self| Self { meta: Meta { version: String::new(), ..it.meta.clone() }, ..it.clone() };
        unversioned(self) != unversioned(other)
    }
}

fn owner(metadata: &ObjectMeta) -> Option<Owner> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let ours = owner.api_version.starts_with(concat!("http.keda.sh", "/"));
    // Another group's kind of the same name is a stranger.
    let kind = if ours { owner.kind.clone() } else { format!("{} of {}", owner.kind, owner.api_version) };
    Some(Owner { kind, name: owner.name.clone(), uid: owner.uid.clone() })
}

fn triggers(namespace: &str, spec: &Value) -> Vec<Trigger> {
    let listed = spec.get("triggers").and_then(Value::as_array).into_iter().flatten();
    let named = listed.filter_map(|trigger| {
        let push = match trigger.get("type")?.as_str()? {
            "external-push" => true,
            "external" => false,
            _ => return None,
        };
        let metadata = trigger.get("metadata")?;
        // The order in which the scaler looks.
        let (kind, name) = [
            (RouteKind::InterceptorRoute, INTERCEPTOR_ROUTE_KEY),
            (RouteKind::HttpScaledObject, HTTP_SCALED_OBJECT_KEY),
        ]
        .into_iter()
        .find_map(|(kind, field)| Some((kind, metadata.get(field)?.as_str()?)))?;
        Some(Trigger { subject: Subject { kind, key: ObjectKey::new(namespace, name) }, push })
    });
    named.collect()
}

fn workload(namespace: &str, spec: &Value) -> Option<Workload> {
    let target = spec.get("scaleTargetRef")?;
    let text = |field: &str| target.get(field).and_then(Value::as_str).map(str::to_owned);
    Some(Workload::new(namespace, text("apiVersion").as_ref(), text("kind").as_ref(), &text("name")?))
}

fn body(metadata: &ObjectMeta, spec: &Value) -> Value {
    json!({
        "metadata": {
            "labels": metadata.labels.clone().unwrap_or_default(),
            "annotations": metadata.annotations.clone().unwrap_or_default(),
            "ownerReferences": metadata.owner_references.clone().unwrap_or_default(),
        },
        "spec": spec,
    })
}

fn condition(status: Option<&Value>, kind: &str) -> Option<Verdict> {
    let conditions = status?.get("conditions")?.as_array()?;
    let condition = conditions.iter().find(|condition| condition.get("type").is_some_and(|it| it == kind))?;
    let holds = match condition.get("status").and_then(Value::as_str) {
        Some("True") => Some(true),
        Some("False") => Some(false),
        _ => None,
    };
    let message = condition.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(Verdict { holds, message })
}

fn original(metadata: &ObjectMeta) -> Option<usize> {
    metadata.managed_fields.iter().flatten().position(|entry| {
        let its = entry.manager.as_deref() == Some(ORIGINAL) && entry.operation.as_deref() == Some("Update");
        its && entry.subresource.as_deref().unwrap_or_default().is_empty()
    })
}

/// Paths of the fields that the operator applied, such as `spec.cooldownPeriod`.
fn applied(metadata: &ObjectMeta) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let entries = metadata.managed_fields.iter().flatten().filter(|entry| {
        let ours = entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply");
        ours && entry.subresource.as_deref().unwrap_or_default().is_empty()
    });
    for fields in entries.filter_map(|entry| entry.fields_v1.as_ref()) {
        for part in ["f:metadata", "f:spec"] {
            let Some(fields) = fields.0.get(part) else { continue };
            collect(part.trim_start_matches("f:"), fields, &mut paths);
        }
    }
    paths
}

fn collect(path: &str, fields: &Value, paths: &mut BTreeSet<String>) {
    let inner: Vec<_> = fields
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, fields)| Some((name.strip_prefix("f:")?, fields)))
        .collect();
    if inner.is_empty() {
        paths.insert(path.to_owned());
    }
    for (name, fields) in inner {
        collect(&format!("{path}.{name}"), fields, paths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(value: Value) -> Scaled {
        Scaled::read(&serde_json::from_value(value).unwrap()).unwrap()
    }

    #[test]
    fn a_users_scaled_object_is_known_by_its_trigger() {
        let read = scaled(json!({
            "metadata": {"namespace": "n", "name": "mine"},
            "spec": {"scaleTargetRef": {"name": "app"}, "triggers": [
                {"type": "cron", "metadata": {"interceptorRoute": "no"}},
                {"type": "external", "metadata": {"interceptorRoute": "r"}},
                {"type": "external-push", "metadata": {"httpScaledObject": "h"}},
            ]},
            "status": {"conditions": [{"type": "Active", "status": "False", "message": "idle"}]},
        }));
        let of = |kind, name| Subject { kind, key: ObjectKey::new("n", name) };
        assert!(read.names(&of(RouteKind::InterceptorRoute, "r")) && read.names(&of(RouteKind::HttpScaledObject, "h")));
        assert!(!read.names(&of(RouteKind::InterceptorRoute, "no")));
        assert_eq!(read.triggers.iter().map(|trigger| trigger.push).collect::<Vec<_>>(), [false, true]);
        assert_eq!(read.active.unwrap().holds, Some(false));
        assert_eq!(read.workload.unwrap().kind, "Deployment");
    }

    #[test]
    fn whatever_a_scaled_object_holds_it_is_read() {
        let read = scaled(json!({"metadata": {"namespace": "n", "name": "odd"}, "spec": 7, "status": []}));
        assert!(read.triggers.is_empty() && read.workload.is_none() && read.body.is_null());
    }

    #[test]
    fn the_fields_that_the_operator_wrote_are_told_from_others() {
        let read = scaled(json!({"metadata": {"namespace": "n", "name": "r", "managedFields": [
            {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {"f:maxReplicaCount": {}}}},
            {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {
                "f:metadata": {"f:labels": {"f:a": {}}, "f:ownerReferences": {"k:{\"uid\":\"u\"}": {}}},
                "f:spec": {"f:cooldownPeriod": {}, "f:advanced": {"f:restoreToOriginalReplicaCount": {}}}}},
        ]}}));
        let expected = [
            "metadata.labels.a",
            "metadata.ownerReferences",
            "spec.advanced.restoreToOriginalReplicaCount",
            "spec.cooldownPeriod",
        ];
        assert_eq!(read.applied.into_iter().collect::<Vec<_>>(), expected);
    }
}
