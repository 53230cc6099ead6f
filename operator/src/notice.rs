//! Events for users, told when a condition changes: in `kubectl describe` of the route.

use api::names::{condition, reason};
use interceptor_core::route::RouteKind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::observe::Observed;

/// An event to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about, in one word.
    pub reason: &'static str,
    /// What the operator did when it happened.
    pub action: &'static str,
    /// Whether something is wrong.
    pub warning: bool,
    /// In words.
    pub note: String,
}

/// What the change from the live conditions to `after` is worth telling.
pub fn notices(observed: &Observed, after: &[Condition]) -> Vec<Notice> {
    let before = &observed.object.conditions;
    let find = |all: &[Condition], kind: &str| all.iter().find(|condition| condition.type_ == kind).cloned();
    let changed = |kind: &str| {
        let after = find(after, kind)?;
        let before = find(before, kind);
        let same = before.as_ref().is_some_and(|it| it.status == after.status && it.reason == after.reason);
        (!same).then_some((before, after))
    };
    let mut out = Vec::new();
    if let Some((_, after)) = changed(condition::ACCEPTED) {
        let conflict = matches!(&*after.reason, reason::CONFLICT | reason::PARTIAL_CONFLICT | reason::SHADOWED);
        if after.reason == reason::HOST_NOT_ALLOWED {
            out.push(warning(reason::HOST_NOT_ALLOWED, "Route", after.message));
        } else if conflict {
            out.push(warning("RouteConflict", "Route", after.message));
        } else if after.status == "False" {
            out.push(warning("RouteInvalid", "Route", after.message));
        }
    }
    for kind in [condition::TARGET_RESOLVED, condition::FALLBACK_RESOLVED] {
        if let Some((_, after)) = changed(kind).filter(|(_, after)| after.status == "False") {
            out.push(warning("TargetMissing", "Resolve", after.message));
        }
    }
    if let Some((_, after)) = changed(condition::SCALED_OBJECT).filter(|(_, after)| tells(observed, after)) {
        out.push(warning("ScaledObjectFailed", "Scale", after.message));
    }
    if let Some((Some(before), after)) = changed(condition::ACTIVE) {
        let from_zero = before.reason == reason::IDLE && after.status == "True";
        if from_zero && observed.current().is_some_and(|scaled| !scaled.never_zero) {
            let note = "a request came while there was no demand: KEDA starts the first replica, requests wait for it";
            out.push(Notice { reason: "ColdStart", action: "Scale", warning: false, note: note.to_owned() });
        }
    }
    out
}

/// A route of a user who writes the ScaledObject later is nothing to warn of.
fn tells(observed: &Observed, after: &Condition) -> bool {
    let waits = observed.object.subject.kind == RouteKind::InterceptorRoute
        && matches!(&*after.reason, reason::NOT_FOUND | reason::NO_KEDA);
    after.status == "False" && !waits
}

fn warning(reason: &'static str, action: &'static str, note: String) -> Notice {
    Notice { reason, action, warning: true, note }
}
