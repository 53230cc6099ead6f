//! `cargo xtask cluster status`: what of a cluster runs and where it is, for people and for programs.

use serde_json::{Value, json};

use crate::cluster::{
    netns,
    place::{Machine, Place},
};

/// Prints it.
pub(crate) fn run(place: &Place, as_json: bool) {
    let status = of(place);
    if as_json {
        println!("{status:#}");
        return;
    }
    let machines = status["machines"].as_array().cloned().unwrap_or_default();
    if machines.is_empty() {
        println!("cluster: {} is not up", place.name());
    }
    for machine in machines {
        let text = |name: &str| machine[name].as_str().unwrap_or_default().to_owned();
        let services: Vec<&str> =
            machine["services"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        println!("{:6} {:13} {}", text("name"), text("address"), services.join(" "));
    }
}

/// A cluster as JSON: `machines` is empty where nothing is.
pub(crate) fn of(place: &Place) -> Value {
    let machines: Vec<Value> = place.machines().into_iter().map(|machine| one(place, machine)).collect();
    json!({
        "name": place.name().to_string(),
        "folder": place.folder(),
        "kubeconfig": place.kubeconfig(),
        "machines": machines,
    })
}

fn one(place: &Place, machine: Machine) -> Value {
    let netns = place.netns(machine);
    let processes = netns::processes(&netns);
    let first = processes.iter().find(|process| process.is_first());
    let known = ["etcd", "kube-apiserver", "kube-controller", "kube-scheduler", "containerd", "kubelet", "kube-proxy"];
    let services: Vec<&str> =
        processes.iter().map(|one| one.name.as_str()).filter(|name| known.contains(name)).collect();
    json!({
        "name": machine.to_string(),
        "address": machine.address(),
        "netns": netns,
        "pid": first.map(|process| process.pid),
        "services": services,
    })
}
