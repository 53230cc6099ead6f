//! Conditions: what is true of a route, in words that say what to do about it. Pure; written by `apply` when they change.

use api::names::{condition, reason};
use interceptor_core::{
    index::{Problem, ProblemKind},
    route::{Backend, RouteKind, Traffic},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{
    object::{Scaled, Spec},
    observe::Observed,
    plan::Standing,
};

mod data_path;

/// How many conflicts a message lists.
const MAX_LISTED: usize = 5;

/// Longer messages are cut; the API server would refuse 32 KiB and more.
const MAX_MESSAGE: usize = 1024;

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds; unknown without.
    pub holds: Option<bool>,
    /// One of [`reason`].
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// All findings about a route, Ready first. `failure` is why the ScaledObject could not be written; `is_listed` whether
/// interceptors are listed as the Service's endpoints.
pub fn findings(observed: &Observed, standing: &Standing, (is_listed, failure): (bool, Option<&str>)) -> Vec<Finding> {
    let accepted = accepted(observed);
    let target = resolved(observed, condition::TARGET_RESOLVED, Backend::Target);
    let fallback = has_fallback(observed).then(|| resolved(observed, condition::FALLBACK_RESOLVED, Backend::Fallback));
    let scaled = match failure {
        Some(failure) => Finding::no(condition::SCALED_OBJECT, reason::CREATE_ERROR, failed(failure)),
        None => scaled_object(observed, standing),
    };
    let active = active(observed, standing);
    let data_path = data_path::finding(observed, [&accepted, &target], is_listed);
    let ready = match observed.object.subject.kind {
        RouteKind::InterceptorRoute => route_ready(observed, &accepted, &scaled),
        RouteKind::HttpScaledObject => http_ready(standing, failure, &accepted),
    };
    [Some(ready), Some(accepted), Some(target), fallback, Some(scaled), Some(active), Some(data_path)]
        .into_iter()
        .flatten()
        .collect()
}

/// The findings as conditions; one whose status is what it was keeps its time.
pub fn conditions(findings: Vec<Finding>, live: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let condition = |Finding { kind, holds, reason, message }: Finding| {
        let status = match holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = live.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            last_transition_time: before.map_or(Time(now), |condition| condition.last_transition_time.clone()),
            message: cut(message),
            observed_generation: Some(generation),
            reason: reason.to_owned(),
            status: status.to_owned(),
            type_: kind.to_owned(),
        }
    };
    findings.into_iter().map(condition).collect()
}

fn accepted(observed: &Observed) -> Finding {
    const KIND: &str = condition::ACCEPTED;
    let route = match &observed.object.route {
        Ok(route) => route,
        Err(error) => {
            return Finding::no(KIND, reason::INVALID, format!("{error}; what was read of it before stays in force"));
        }
    };
    let of_kind = |kind| observed.problems.iter().filter(move |problem: &&Problem| problem.kind == kind);
    if let Some(problem) = of_kind(ProblemKind::Refused).next() {
        return Finding::no(KIND, reason::INVALID, problem.message.clone());
    }
    if let Some(problem) = of_kind(ProblemKind::Shadowed).next() {
        return Finding::no(KIND, reason::SHADOWED, format!("{}: delete one of them", problem.message));
    }
    let places: usize = route.rules.iter().map(|rule| rule.hosts.len().max(1) * rule.paths.len().max(1)).sum();
    let is_taken = |problem: &&Problem| {
        matches!(problem.kind, ProblemKind::Conflict | ProblemKind::Barred | ProblemKind::HostNotAllowed)
    };
    let conflicts: Vec<_> = observed.problems.iter().filter(is_taken).collect();
    if route.traffic == Traffic::Tcp {
        return Finding::yes(KIND, reason::ACCEPTED, "every connection to the Service is the route's".to_owned());
    }
    if places == 0 {
        return Finding::no(KIND, reason::NO_RULES, "no request is taken: spec.rules is empty".to_owned());
    }
    if conflicts.is_empty() {
        return Finding::yes(KIND, reason::ACCEPTED, "the rules are in the routing table".to_owned());
    }
    let listed: Vec<_> = conflicts.iter().take(MAX_LISTED).map(|problem| problem.message.as_str()).collect();
    let more = conflicts.len() - listed.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let listed = format!("{}{more}", listed.join("; "));
    let is_part = conflicts.len() < places;
    let (reason, listed) = if conflicts.iter().any(|problem| problem.kind == ProblemKind::HostNotAllowed) {
        (
            reason::HOST_NOT_ALLOWED,
            format!("{listed}: change the route's hosts, or have the namespace's annotation changed"),
        )
    } else {
        let reason = if is_part { reason::PARTIAL_CONFLICT } else { reason::CONFLICT };
        (reason, format!("{listed}: change host, path or headers of one of the routes"))
    };
    if is_part { Finding::yes(KIND, reason, listed) } else { Finding::no(KIND, reason, listed) }
}

fn resolved(observed: &Observed, kind: &'static str, backend: Backend) -> Finding {
    let Ok(route) = &observed.object.route else {
        return Finding::unknown(kind, reason::INVALID, "the object cannot be read".to_owned());
    };
    let about = observed.problems.iter().find(|problem| problem.backend == Some(backend));
    match about {
        Some(problem) if problem.kind == ProblemKind::NoPort => {
            Finding::no(kind, reason::PORT_NOT_FOUND, format!("{}: name one of them", problem.message))
        }
        Some(problem) => {
            let message = format!("{}: create it, or name another", problem.message);
            Finding::no(kind, reason::SERVICE_NOT_FOUND, message)
        }
        None if backend == Backend::Target => {
            let target = &route.target;
            let message = format!("Service {} has the port {}", target.service.name(), target.port);
            Finding::yes(kind, reason::RESOLVED, message)
        }
        None => Finding::yes(kind, reason::RESOLVED, "the fallback's Service has the port".to_owned()),
    }
}

fn has_fallback(observed: &Observed) -> bool {
    match &observed.object.spec {
        Ok(Spec::Route(spec)) => spec.cold_start.as_ref().is_some_and(|cold_start| cold_start.fallback.is_some()),
        Ok(Spec::Http(spec)) => spec.cold_start_timeout_failover_ref.is_some(),
        Err(_) => false,
    }
}

fn scaled_object(observed: &Observed, standing: &Standing) -> Finding {
    const KIND: &str = condition::SCALED_OBJECT;
    let subject = &observed.object.subject;
    match standing {
        Standing::Invalid(why) => Finding::no(KIND, reason::INVALID, why.clone()),
        Standing::NoKeda => {
            let message = "there are no ScaledObjects in this cluster, so nothing scales: install KEDA".to_owned();
            Finding::no(KIND, reason::NO_KEDA, message)
        }
        Standing::Foreign(why) => Finding::no(KIND, reason::FOREIGN, why.clone()),
        Standing::Skipped(annotation) => Finding::yes(
            KIND,
            reason::SKIPPED,
            format!("the annotation {annotation} leaves the ScaledObject to the user"),
        ),
        Standing::Created => {
            let message = format!("the operator keeps ScaledObject {}", subject.key.name());
            match observed.owned() {
                Some(scaled) => keda_says(scaled, reason::CREATED, message),
                None => Finding::yes(KIND, reason::CREATED, message),
            }
        }
        Standing::Found => match observed.naming.first() {
            Some(scaled) => keda_says(scaled, reason::FOUND, found(observed, scaled)),
            None => Finding::no(KIND, reason::NOT_FOUND, not_found(observed)),
        },
    }
}

fn found(observed: &Observed, scaled: &Scaled) -> String {
    let slow = scaled.triggers.iter().any(|trigger| trigger.subject == observed.object.subject && !trigger.push);
    let slow = if slow { "; its trigger is polled: the type external-push starts replicas sooner" } else { "" };
    format!("ScaledObject {} names this route{slow}", scaled.key.name())
}

fn not_found(observed: &Observed) -> String {
    let name = observed.object.subject.key.name();
    format!(
        "no ScaledObject in this namespace has a trigger of type external-push with the metadata interceptorRoute: {name}; \
         nothing scales: write one, or set spec.scaling"
    )
}

fn keda_says(scaled: &Scaled, reason: &'static str, message: String) -> Finding {
    match &scaled.ready {
        Some(ready) if ready.holds == Some(false) => {
            let name = scaled.key.name();
            let said = &ready.message;
            let message = format!("{message}, and KEDA says of it: {said}: see kubectl describe scaledobject {name}");
            Finding::no(condition::SCALED_OBJECT, reason::KEDA_ERROR, message)
        }
        _ => Finding::yes(condition::SCALED_OBJECT, reason, message),
    }
}

fn active(observed: &Observed, standing: &Standing) -> Finding {
    const KIND: &str = condition::ACTIVE;
    let pending = |name: &str| format!("KEDA has not looked at ScaledObject {name} yet");
    let scaled = match (observed.current(), standing) {
        (Some(scaled), _) => scaled,
        (None, Standing::Created) => {
            return Finding::unknown(KIND, reason::PENDING, pending(observed.object.subject.key.name()));
        }
        (None, _) => return Finding::unknown(KIND, reason::NOT_FOUND, "there is no ScaledObject to ask".to_owned()),
    };
    let name = scaled.key.name();
    if scaled.paused {
        let message = format!("ScaledObject {name} is paused: remove its annotation autoscaling.keda.sh/paused");
        return Finding::no(KIND, reason::PAUSED, message);
    }
    match scaled.active.as_ref().and_then(|active| active.holds) {
        Some(true) => Finding::yes(KIND, reason::DEMAND, "KEDA scales by demand".to_owned()),
        Some(false) if scaled.never_zero => {
            Finding::no(KIND, reason::IDLE, "no demand: KEDA keeps the least number of replicas".to_owned())
        }
        Some(false) => Finding::no(KIND, reason::IDLE, "no demand: the next request starts a replica".to_owned()),
        None => Finding::unknown(KIND, reason::PENDING, pending(name)),
    }
}

/// The original's is true of every route, and who waits for it may have neither Service nor rules yet: those have conditions
/// of their own. What the original is silent about, or does not know, makes it false: rules that are lost or can't be used,
/// and a ScaledObject that the route wants and can't have.
fn route_ready(observed: &Observed, accepted: &Finding, scaled: &Finding) -> Finding {
    let wants = matches!(&observed.object.spec, Ok(Spec::Route(spec)) if spec.scaling.is_some());
    let accepted = Some(accepted).filter(|accepted| accepted.reason != reason::NO_RULES);
    let needed = [accepted, Some(scaled).filter(|_| wants)];
    match needed.into_iter().flatten().find(|finding| finding.holds != Some(true)) {
        Some(finding) => Finding::no(condition::READY, finding.reason, finding.message.clone()),
        None => Finding::yes(condition::READY, reason::RECONCILED, "InterceptorRoute reconciled".to_owned()),
    }
}

/// In the words that users of HTTPScaledObject know. One that interceptors cannot read stopped all of the original.
fn http_ready(standing: &Standing, failure: Option<&str>, accepted: &Finding) -> Finding {
    let why = match (failure, standing) {
        (Some(failure), _) => failure,
        (None, Standing::Invalid(why) | Standing::Foreign(why)) => why,
        (None, Standing::NoKeda) => "there are no ScaledObjects in this cluster: install KEDA",
        (None, _) if accepted.reason == reason::INVALID => {
            return Finding::no(condition::READY, reason::INVALID, accepted.message.clone());
        }
        (None, Standing::Created | Standing::Found | Standing::Skipped(_)) => {
            let message = "ScaledObject created and configured".to_owned();
            return Finding::yes(condition::READY, reason::RECONCILED, message);
        }
    };
    Finding::no(condition::READY, reason::CREATE_ERROR, failed(why))
}

fn failed(why: &str) -> String {
    format!("Failed to create scaled objects: {why}")
}

fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push('…');
    }
    message
}

// === impl Finding ===

impl Finding {
    fn yes(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, holds: Some(true), reason, message }
    }

    fn no(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, holds: Some(false), reason, message }
    }

    fn unknown(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, holds: None, reason, message }
    }
}
