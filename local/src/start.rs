//! From the command line to a run. The view and the checks have the main thread; everything that time matters for has
//! the runtime's one other thread, which lives to the end: the kernel ties children to the thread that started them.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use runtime::signal::{self, Shutdown};

use crate::{
    app::{Own, Run},
    args::RunArgs,
    once::{self, Options, Report},
    view,
};

/// Runs until it is done or told to end.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let mut shutdown = signal::install().context("cannot listen for signals")?;
        let own = Own::read()?;
        if args.once { check(args, &own, &mut shutdown).await } else { show(args, &own, &mut shutdown).await }
    })
}

/// Says why it ended, with all causes.
pub fn complain(error: &anyhow::Error) {
    // Standard error may be closed; then there is nobody to tell.
    let _ = writeln!(io::stderr(), "rouse-local: {error:#}");
}

async fn show(args: &RunArgs, own: &Own, shutdown: &mut Shutdown) -> anyhow::Result<ExitCode> {
    if !io::stdout().is_terminal() {
        anyhow::bail!("standard output is not a terminal: use --once");
    }
    say("starting the interceptor and the scaler …");
    let run = Run::start(args, own, shutdown).await?;
    let result = view::run(&run.world, args, shutdown).await;
    say("ending pods, interceptor and scaler …");
    let kept = args.keep.then(|| run.folder().display().to_string());
    run.end().await;
    if let Some(folder) = kept {
        say(&format!("logs and EndpointSlices are in {folder}"));
    }
    result.map(|()| ExitCode::SUCCESS)
}

async fn check(args: &RunArgs, own: &Own, shutdown: &mut Shutdown) -> anyhow::Result<ExitCode> {
    let run = Run::start(args, own, shutdown).await?;
    let options = Options {
        route: args.route.clone(),
        load: args.load,
        load_path: args.load_path.clone(),
        settle: args.hpa_sync_period.mul_f64(1.5),
    };
    let mut progress = |line: &str| if args.json { whisper(line) } else { say(line) };
    let report = tokio::select! {
        report = once::run(&run.world, &options, &mut progress) => Some(report),
        () = shutdown.requested() => None,
    };
    let last_words = run.last_words();
    let kept = args.keep.then(|| run.folder().display().to_string());
    run.end().await;
    if let Some(folder) = kept {
        whisper(&format!("logs and EndpointSlices are in {folder}"));
    }
    let report = report.context("interrupted")?;
    tell(&report, args.json)?;
    if !report.ok {
        whisper(&last_words);
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        say(&serde_json::to_string_pretty(report).context("cannot write the summary")?);
    } else {
        say(&report.to_string());
    }
    Ok(())
}

fn say(line: &str) {
    // Whoever reads us may have gone; the run goes on for its exit code.
    let _ = writeln!(io::stdout(), "{line}");
}

fn whisper(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
