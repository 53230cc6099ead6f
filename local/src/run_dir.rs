//! The folder of one run: slices, logs and what is being written. Removed when the run ends, unless it is to be kept.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::sleep;

/// A log beyond this is cut to nothing; its writer appends, so it simply goes on.
const MAX_LOG: u64 = 16 << 20;
/// How often logs are measured.
const ROTATION: Duration = Duration::from_secs(5);

/// The folder; dropping it removes it.
#[derive(Debug)]
pub struct RunDir {
    dir: TempDir,
}

// === impl RunDir ===

impl RunDir {
    /// Makes one among the temporary files.
    pub fn create(keep: bool) -> io::Result<Self> {
        let prefix = format!("rouse-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).disable_cleanup(keep).tempdir()?;
        let run = Self { dir };
        for sub in [run.slices(), run.logs(), run.staging()] {
            fs::create_dir(sub)?;
        }
        Ok(run)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// EndpointSlices, as the interceptor and the scaler read them.
    pub fn slices(&self) -> PathBuf {
        self.path().join("slices")
    }

    /// What children print.
    pub fn logs(&self) -> PathBuf {
        self.path().join("logs")
    }

    /// Files on their way into `slices`.
    pub fn staging(&self) -> PathBuf {
        self.path().join("staging")
    }
}

/// Keeps logs small. Never ends.
pub async fn rotate(logs: PathBuf) {
    loop {
        sleep(ROTATION).await;
        if let Err(error) = cut(&logs) {
            tracing::warn!(%error, "cannot cut logs");
        }
    }
}

fn cut(logs: &Path) -> io::Result<()> {
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        if entry.metadata()?.len() > MAX_LOG {
            fs::OpenOptions::new().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    Ok(())
}

/// The last lines of a log, for people.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_the_run() {
        let run = RunDir::create(false).unwrap();
        let path = run.path().to_owned();
        fs::write(run.logs().join("a.log"), "1\n2\n3\n").unwrap();
        assert_eq!(tail(&run.logs().join("a.log"), 2), "2\n3");
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn a_log_that_grew_too_long_is_cut() {
        let run = RunDir::create(false).unwrap();
        let log = run.logs().join("a.log");
        fs::File::create(&log).unwrap().set_len(MAX_LOG + 1).unwrap();
        cut(&run.logs()).unwrap();
        assert_eq!(fs::metadata(log).unwrap().len(), 0);
    }
}
