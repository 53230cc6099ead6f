//! The `scaler` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use runtime::{args::with_double_dashes, env::Env, log, signal, watch};
use scaler::{
    app,
    args::{self, Args},
};

fn main() -> ExitCode {
    let args = Args::parse_from(with_double_dashes(std::env::args_os()));
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not have been set up")]
            {
                eprintln!("scaler: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let Args { sources, log, kube } = args;
    let env = Env::from_process();
    log::init(&log, env.optional_string("ROUSE_LOG")?.as_deref())?;
    let config = args::config(sources, kube, &env)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let shutdown = signal::install().context("cannot receive signals")?;
        watch::check(&config.sources).await?;
        Ok(app::build(config).await?.run(shutdown).await?)
    })
}
