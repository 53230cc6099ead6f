//! What must be true of an installation on real nodes: the table of scenarios, in the order in which they run.

mod chart;
mod classic;
mod client;
mod cold_start;
mod direct;
mod disruption;
mod examples;
mod flaps;
mod load;
mod readiness;
mod release;
mod rights;
mod routing;
mod services;
mod tenant;
mod tls;

use anyhow::Result;

use crate::cluster::Cluster;

/// One thing that must be true. It cleans up after itself; after a failure it leaves its namespace to be looked at.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// What is true when it passes.
    pub(crate) name: &'static str,
    /// Sees to it.
    pub(crate) run: fn(&Cluster) -> Result<()>,
}

/// All of them. They share one installation, so those that replace or remove it come last.
pub(crate) const ALL: &[Scenario] = &[
    scenario("cold-start-http", cold_start::http),
    scenario("cold-start-grpc", cold_start::grpc),
    scenario("ready-sooner", readiness::sooner_than_the_kubelet),
    scenario("http-scaled-object", classic::http_scaled_object),
    scenario("route-edited", routing::edited_live),
    scenario("port-renamed", routing::port_renamed),
    scenario("one-host-twice", routing::one_host_twice),
    scenario("fallback", routing::fallback),
    scenario("load-concurrency", load::by_concurrency),
    scenario("load-rate", load::by_rate),
    scenario("load-of-interceptors", load::of_interceptors),
    scenario("examples", examples::all_work),
    scenario("direct-cold", direct::cold),
    scenario("direct-ipv6", direct::cold_ipv6),
    scenario("direct-accept-queue", direct::accept_queue),
    scenario("direct-load", direct::load),
    scenario("direct-flaps", flaps::under_load),
    scenario("chart-settings", chart::settings),
    scenario("metrics", chart::metrics),
    scenario("interceptors-rolled", disruption::interceptors_rolled),
    scenario("scalers-rolled", disruption::scalers_rolled),
    scenario("operator-rolled", disruption::operator_rolled),
    scenario("keda-restarted", disruption::keda_restarted),
    scenario("node-drained", disruption::node_drained),
    scenario("rights", rights::of_interceptors),
    scenario("tls", tls::served),
    scenario("by-service-name", services::by_name),
    scenario("taken-over", release::taken_over),
    scenario("upgraded", release::upgraded),
    scenario("removed", release::removed),
    scenario("removed-for-good", release::removed_for_good),
];

const fn scenario(name: &'static str, run: fn(&Cluster) -> Result<()>) -> Scenario {
    Scenario { name, run }
}
