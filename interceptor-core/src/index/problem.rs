//! What the index finds wrong: told in words that name the object and, for a conflict, who won it.

use std::fmt::Write as _;

use super::{bodies::MAX_BODIES, claims::Contest, guard::Barred};
use crate::{
    ObjectKey, Route, RouteEntry, Upstream,
    route::{Backend, RouteKind},
    service::Service,
    upstream::Resolution,
};

/// How many problems are told at once; who has more than these reads the first ones first.
pub const MAX_PROBLEMS: usize = 1000;

/// How many ports of a Service a message lists.
const MAX_PORTS: usize = 16;

/// What kind of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// The rules are more than the table takes; the route is counted but gets no request.
    Refused,
    /// An InterceptorRoute of the same name stands before this HTTPScaledObject.
    Shadowed,
    /// Another route has the same host, path and headers, and wins.
    Conflict,
    /// The host belongs to another namespace.
    Barred,
    /// The namespace may not claim the host.
    HostNotAllowed,
    /// The Service of the target, or of the fallback, does not exist.
    NoService,
    /// That Service has no such port.
    NoPort,
    /// A ConfigMap's response bodies don't fit.
    NoRoom,
}

/// One problem of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Whose problem it is.
    pub object: ObjectKey,
    /// Of which kind the object is; of a ConfigMap, which kind may refer to it.
    pub route_kind: RouteKind,
    /// What kind of problem.
    pub kind: ProblemKind,
    /// Which of the object's Services it is about, if it is about one.
    pub backend: Option<Backend>,
    /// In words.
    pub message: String,
}

// === impl Problem ===

impl Problem {
    pub(super) fn refused(entry: &RouteEntry, why: &str) -> Self {
        Self::of(entry, ProblemKind::Refused, format!("takes no requests: {why}"))
    }

    pub(super) fn shadowed(key: &ObjectKey) -> Self {
        Self {
            object: key.clone(),
            route_kind: RouteKind::HttpScaledObject,
            kind: ProblemKind::Shadowed,
            backend: None,
            message: format!("ignored: InterceptorRoute {key} has the same name and stands before it"),
        }
    }

    pub(super) fn conflict(contest: &Contest<'_>) -> Self {
        let Contest { loser, winner, host, path, with_headers } = contest;
        let (ours, theirs) = (&loser.route, &winner.route);
        let why = if theirs.created < ours.created { "it is older" } else { "of two as old the later name wins" };
        let headers = if *with_headers { " with the same headers" } else { "" };
        let place = format!("{host}/{}{headers}", path.trim_matches('/'));
        let message = format!("{place} goes to {} {}: {why}", theirs.kind, theirs.key);
        Self::of(loser, ProblemKind::Conflict, message)
    }

    pub(super) fn barred(entry: &RouteEntry, barred: &Barred, owner: &Route) -> Self {
        let Barred { host, path, why: _ } = barred;
        let place = format!("{host}/{}", path.trim_matches('/'));
        let Route { kind, key, .. } = owner;
        let message = format!("{place} belongs to namespace {}: {kind} {key} was there first", key.namespace());
        Self::of(entry, ProblemKind::Barred, message)
    }

    pub(super) fn not_allowed(entry: &RouteEntry, barred: &Barred, why: &str) -> Self {
        let Barred { host, path, why: _ } = barred;
        let message = format!("{host}/{} may not be claimed: {why}", path.trim_matches('/'));
        Self::of(entry, ProblemKind::HostNotAllowed, message)
    }

    pub(super) fn unresolved(
        entry: &RouteEntry,
        backend: Backend,
        upstream: &Upstream,
        service: Option<&Service>,
    ) -> Self {
        let target = &upstream.target;
        let role = match backend {
            Backend::Target => "",
            Backend::Fallback => "the fallback's ",
        };
        let (kind, message) = if let (Resolution::NoPort, Some(service)) = (upstream.resolution, service) {
            let ports = list(service);
            (
                ProblemKind::NoPort,
                format!("{role}Service {} has no port {}: it has {ports}", target.service, target.port),
            )
        } else {
            (ProblemKind::NoService, format!("{role}Service {} does not exist", target.service))
        };
        Self { backend: Some(backend), ..Self::of(entry, kind, message) }
    }

    pub(super) fn left_out(config_map: &ObjectKey) -> Self {
        Self {
            object: config_map.clone(),
            route_kind: RouteKind::InterceptorRoute,
            kind: ProblemKind::NoRoom,
            backend: None,
            message: format!("this ConfigMap is not served: response bodies may have {} MiB in all", MAX_BODIES >> 20),
        }
    }

    fn of(entry: &RouteEntry, kind: ProblemKind, message: String) -> Self {
        Self { object: entry.route.key.clone(), route_kind: entry.route.kind, kind, backend: None, message }
    }
}

fn list(service: &Service) -> String {
    let mut out = String::new();
    for port in service.ports.iter().take(MAX_PORTS) {
        let comma = if out.is_empty() { "" } else { ", " };
        let written = match &*port.name {
            "" => write!(out, "{comma}{}", port.port),
            name => write!(out, "{comma}{} ({name})", port.port),
        };
        written.expect("a string takes any text");
    }
    if out.is_empty() { "none".to_owned() } else { out }
}
