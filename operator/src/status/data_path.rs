//! Which way clients reach the target, and why.

use api::names::{condition, reason};
use interceptor_core::{Route, route::DataPath};

use super::Finding;
use crate::{
    observe::Observed,
    shadow::{Port, Seen},
};

const KIND: &str = condition::DATA_PATH;

/// The way, if what is `needed` for any is so.
pub(super) fn finding(observed: &Observed, needed: [&Finding; 2], is_listed: bool) -> Finding {
    if let Some(finding) = needed.into_iter().find(|finding| finding.holds != Some(true)) {
        return Finding::no(KIND, reason::NO_PATH, format!("see {}: {}", finding.kind, finding.reason));
    }
    match &observed.object.route {
        Ok(route) if route.data_path == DataPath::Direct => direct(observed, route, is_listed),
        _ => Finding::yes(KIND, reason::PROXY, "requests go through an interceptor".to_owned()),
    }
}

fn direct(observed: &Observed, route: &Route, is_listed: bool) -> Finding {
    let seen = observed.shadow.as_ref();
    let is_cold = seen.is_some_and(|seen| !seen.ready);
    let port = match seen.map(|seen| &seen.port) {
        Some(Port::Open { number, .. }) => Ok(*number),
        Some(Port::Full) => Err(": all ports of interceptors are given away, give the operator more"),
        Some(Port::Limit) => {
            Err(": the namespace has as many ports of interceptors as one may have, a quarter of them")
        }
        Some(Port::Headless) => Err(": the Service has no address that could lead to interceptors"),
        Some(Port::Missing) | None => Err(""),
    };
    let port = match port {
        Ok(port) => port,
        Err(why) => {
            let message = format!(
                "clients reach pods without a proxy; while none is ready only those on nodes with the agent are held{why}"
            );
            let is_limit = seen.is_some_and(|seen| seen.port == Port::Limit);
            let reason = if is_limit { reason::PORT_LIMIT } else { reason::DIRECT_ONLY };
            return Finding::yes(KIND, reason, message + &uncounted(seen));
        }
    };
    if let Some(family) = seen.and_then(|seen| seen.lacking) {
        let message = format!(
            "clients reach pods without a proxy; no interceptor that is ready has an {family} address, as the Service has: {}",
            match (is_cold, observed.after) {
                (true, _) => "no replica is ready, and who connects there is held on nodes with the agent only",
                (false, Some(_)) => "replicas are kept from zero until one has",
                (false, None) => "while no replica is ready, who connects there is held on nodes with the agent only",
            }
        );
        return Finding::yes(KIND, reason::DIRECT_ONLY, message + &uncounted(seen));
    }
    if !is_listed {
        let message =
            format!("clients reach pods without a proxy; port {port} of interceptors is kept for when none is ready");
        return Finding::yes(KIND, reason::DIRECT, message + &uncounted(seen));
    }
    let service = route.target.service.name();
    let why = match (is_cold, route.needs_proxy_while_cold()) {
        (true, true) => {
            "no replica is ready, and agents leave connections to interceptors, which answer, hold or divert requests"
        }
        (true, false) => "no replica is ready; agents hold the connections of their own nodes",
        (false, _) => "replicas are ready, and may be taken away for want of demand",
    };
    let message = format!("Service {service} lists interceptors at port {port}: {why}");
    Finding::yes(KIND, reason::INTERCEPTORS, message + &uncounted(seen))
}

/// What is to be said of pods whose requests nobody counts.
fn uncounted(seen: Option<&Seen>) -> String {
    match seen.map(|seen| seen.uncounted.as_slice()) {
        None | Some([]) => String::new(),
        Some([node]) => {
            format!(
                "; node {node} has no agent that is ready: nobody counts what its pods take, they are kept from zero"
            )
        }
        Some([node, others @ ..]) => format!(
            "; node {node} and {} more have no agent that is ready: nobody counts what their pods take, they are kept from zero",
            others.len()
        ),
    }
}
