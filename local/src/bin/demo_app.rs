//! The `rouse-demo-app` process: runtime, configuration, exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use local::demo_app::{self, Config};
use runtime::{args::LogArgs, env::Env, log, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn start() -> anyhow::Result<()> {
    log::init(&LogArgs::default(), None)?;
    let config = Config::parse(&Env::from_process())?;
    Ok(demo_app::run(config, signal::install()?).await?)
}
