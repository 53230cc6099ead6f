//! Whether what is there is what should be there.

use std::collections::BTreeSet;

use api::names::condition;
use serde_json::Value;

use crate::object::Scaled;

/// Types of conditions that are ours to write and to take away.
const OURS: [&str; 7] = [
    condition::READY,
    condition::ACCEPTED,
    condition::TARGET_RESOLVED,
    condition::FALLBACK_RESOLVED,
    condition::SCALED_OBJECT,
    condition::ACTIVE,
    condition::DATA_PATH,
];

/// Whether `live` has all that `desired` says, and nothing that the operator once wrote and does not want any more.
///
/// What others added to it stays: users set HPA behaviour on `ScaledObjects` that the operator made.
pub(super) fn is_as_desired(live: &Scaled, desired: &Value) -> bool {
    let mut wanted = BTreeSet::new();
    for part in ["metadata", "spec"] {
        paths(part, &desired[part], &mut wanted);
    }
    // Names are in no list of fields that somebody wrote.
    let written = |path: &&String| !matches!(path.as_str(), "metadata.name" | "metadata.namespace");
    let as_written = wanted.iter().filter(written).eq(&live.applied);
    as_written && covers(&live.body["spec"], &desired["spec"]) && metadata(live, &desired["metadata"])
}

/// Whether the status holds what it should, and no condition of ours that it should not.
pub(super) fn is_settled(live: &Value, desired: &Value) -> bool {
    let conditions = |status: &Value| {
        let listed = status["conditions"].as_array().cloned().unwrap_or_default();
        let ours = |condition: &Value| OURS.iter().any(|kind| condition["type"] == *kind);
        let mut listed: Vec<_> = listed.into_iter().filter(ours).collect();
        listed.sort_by_key(|condition| condition["type"].to_string());
        listed
    };
    let fields = ["readinessProbe", "shadow", "uncounted", "unnamedProbes", "targetWorkload", "targetService"];
    conditions(live) == conditions(desired)
        && fields
            .iter()
            .all(|field| live.get(field).unwrap_or(&Value::Null) == desired.get(field).unwrap_or(&Value::Null))
}

fn metadata(live: &Scaled, desired: &Value) -> bool {
    let live = &live.body["metadata"];
    let owners = desired["ownerReferences"].as_array().into_iter().flatten();
    let has = |owner: &Value| live["ownerReferences"].as_array().is_some_and(|all| all.contains(owner));
    owners.clone().all(has)
        && ["labels", "annotations"].iter().all(|field| desired.get(field).is_none_or(|it| covers(&live[*field], it)))
}

/// Objects may have more; lists and values are the same.
fn covers(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(name, desired)| live.get(name).is_some_and(|live| covers(live, desired)))
        }
        (live, desired) => live == desired,
    }
}

/// Paths of all leaves, as the API server lists them.
fn paths(path: &str, value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                paths(&format!("{path}.{name}"), value, out);
            }
        }
        _ => {
            out.insert(path.to_owned());
        }
    }
}
