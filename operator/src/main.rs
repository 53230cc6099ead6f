//! The `operator` binary.

#![forbid(unsafe_code)]

use std::{io, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use operator::{
    app,
    args::{self, Args, Command},
    connect, crds,
};
use runtime::{args::with_double_dashes, env::Env, log, signal};

fn main() -> ExitCode {
    let args = Args::parse_from(with_double_dashes(std::env::args_os()));
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not have been set up")]
            {
                eprintln!("operator: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let Args { command, run, log, kube } = args;
    match command {
        Some(Command::Crds { folder: Some(folder) }) => return crds::write(&folder),
        Some(Command::Crds { folder: None }) => return crds::print(&mut io::stdout().lock()),
        None => {}
    }
    let env = Env::from_process();
    log::init(&log, env.optional_string("ROUSE_LOG")?.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let shutdown = signal::install().context("cannot receive signals")?;
        let config = args::config(&run, &env, connect::config(kube.kubeconfig.as_deref()).await?)?;
        Ok(app::build(config).await?.run(shutdown).await?)
    })
}
