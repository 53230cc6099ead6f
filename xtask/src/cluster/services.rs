//! Starting a machine: its plan, and the first process of its namespaces.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::cluster::{
    build::{Module, Programs},
    control_plane,
    machine::{HERE, Plan, Service},
    node,
    place::{Machine, Place},
};

/// A program of a module, by `module/program`.
pub(crate) fn service<const N: usize>(name: &str, program: &str, args: [String; N]) -> Service {
    let program = format!("{HERE}/bin/{program}");
    Service { name: name.to_owned(), argv: std::iter::once(program).chain(args).collect(), needs: None }
}

/// Starts a machine; it goes on when this process ends.
pub(crate) fn start(place: &Place, programs: &Programs, machine: Machine) -> Result<()> {
    let plan = plan(place, programs, machine)?;
    let file = place.folder().join(format!("{machine}.json"));
    fs::write(&file, serde_json::to_vec_pretty(&plan)?).with_context(|| format!("cannot write {}", file.display()))?;
    let logs = place.logs();
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let log = fs::File::create(logs.join(format!("{machine}.log"))).context("cannot make the machine's log")?;
    let mut netns = std::ffi::OsString::from("--net=");
    netns.push(place.netns(machine));
    let mut command = Command::new("setsid");
    command.arg("nsenter").arg(netns).arg("--");
    command.args([
        "unshare",
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
        "--",
    ]);
    command.arg(env::current_exe().context("cannot find this program")?).args(["cluster", "machine"]).arg(&file);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    // Programs of the cluster find their own; what the caller has set for his own Kubernetes is not for them.
    command.env_remove("KUBECONFIG");
    command.spawn().context("cannot start setsid")?;
    Ok(())
}

fn plan(place: &Place, programs: &Programs, machine: Machine) -> Result<Plan> {
    let mut binds: Vec<(PathBuf, String)> = vec![(place.folder(), "state".to_owned())];
    for module in Module::ALL {
        let folder = programs.folder(module)?;
        if folder.is_dir() {
            binds.push((folder, format!("bin/{}", module.name())));
        }
    }
    let (state, services) = match machine {
        Machine::ControlPlane => (Vec::new(), control_plane::services()),
        Machine::Node(number) => (node::state(number), node::services(number)),
    };
    Ok(Plan { hostname: machine.to_string(), binds, state, node: matches!(machine, Machine::Node(_)), services })
}
