//! The `interceptor` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use interceptor_user::{
    agent, app,
    config::{Args, Command, Config},
};
use runtime::{args, env::Env, log, signal, watch};

/// Read buffers are too large for glibc's per-thread cache, so each request would take its allocator's slow way.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse_from(args::with_double_dashes(std::env::args_os()));
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not have been set up")]
            {
                eprintln!("interceptor: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Args) -> anyhow::Result<()> {
    let env = Env::from_process();
    let command = args.command.take();
    let log = command.as_ref().map_or(&args.log, |Command::Agent(args)| &args.log);
    let log = Some(log::init(log, env.optional_string("ROUSE_LOG")?.as_deref())?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    if let Some(Command::Agent(args)) = command {
        if args.remove {
            return args.remove(&env);
        }
        let config = agent::Config { log, ..agent::Config::new(args, &env)? };
        return runtime.block_on(async {
            let shutdown = signal::install().context("cannot receive signals")?;
            watch::check(&config.sources).await?;
            let agent = agent::build(config).await?;
            Ok(Box::pin(agent.run(shutdown)).await?)
        });
    }
    let config = Config { log, ..Config::new(args, &env)? };
    runtime.block_on(async {
        let shutdown = signal::install().context("cannot receive signals")?;
        watch::check(&config.sources).await?;
        let outcome = app::build(config).await?.run(shutdown).await?;
        tracing::debug!(?outcome, "ended");
        Ok(())
    })
}
