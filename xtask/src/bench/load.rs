//! Load: runs wrk or h2load against a peer and reads what they report. No result counts when a request failed.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench::{
        case::{Case, Load},
        manifests,
        peer::{Peer, pinned},
    },
    process,
};

/// What a load generator saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Requests answered with 200.
    pub(crate) requests: u64,
    /// Half of them were answered within this.
    pub(crate) p50: Duration,
    /// 99 of 100 were answered within this.
    pub(crate) p99: Duration,
}

/// Puts this case's load on the peer for this long.
pub(crate) fn run(case: &Case, peer: &Peer, time: Duration, folder: &Path) -> Result<Seen> {
    let seconds = time.as_secs().max(1).to_string();
    match case.load {
        Load::Http1 | Load::Http1Close => wrk(case, peer.http1, &seconds, folder),
        Load::Http2 { streams } => h2load(case, peer.http2, streams, &seconds, folder),
    }
}

fn wrk(case: &Case, address: SocketAddr, seconds: &str, folder: &Path) -> Result<Seen> {
    let script = folder.join(format!("{}.lua", case.name));
    fs::write(&script, lua(case)).with_context(|| format!("cannot write {}", script.display()))?;
    let mut command = generator("wrk")?;
    command.args(["--threads", "1", "--connections", &case.connections.to_string(), "--duration", seconds]);
    command.args(["--latency", "--timeout", "10s", "--script"]).arg(&script).arg(format!("http://{address}"));
    let text = process::output(&mut command)?;
    parse_wrk(&text).with_context(|| format!("wrk reported: {text}"))
}

/// Requests to all hosts in turn, each prepared once.
fn lua(case: &Case) -> String {
    let close = if case.load == Load::Http1Close { "Connection: close\\r\\n" } else { "" };
    // A step that shares no factor with the number of routes visits all, far apart one after the other.
    format!(
        "local requests, n, at = {{}}, {routes}, 0
for i = 0, n - 1 do
  requests[i] = string.format('GET {path} HTTP/1.1\\r\\nHost: route-%d.bench.example\\r\\n{close}\\r\\n', i)
end
request = function() at = (at + 7919) % n; return requests[at] end
",
        routes = case.routes,
        path = case.path
    )
}

fn h2load(case: &Case, address: SocketAddr, streams: u32, seconds: &str, folder: &Path) -> Result<Seen> {
    let log = folder.join("h2load.tsv");
    let _ = fs::remove_file(&log);
    let mut command = generator("h2load")?;
    command.args(["--clients", &case.connections.to_string(), "--max-concurrent-streams", &streams.to_string()]);
    command.args(["--duration", seconds, "--log-file"]).arg(&log);
    command.arg(format!("--header=:authority: {}", manifests::host(0)));
    command.arg(format!("http://{address}{}", case.path));
    let text = process::output(&mut command)?;
    check_h2load(&text).with_context(|| format!("h2load reported: {text}"))?;
    let lines = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    parse_log(&lines).context("h2load's log is not as expected")
}

fn generator(name: &str) -> Result<Command> {
    let program: PathBuf = process::which(name).with_context(|| format!("{name} is not installed"))?;
    Ok(pinned(&program, false))
}

fn parse_wrk(text: &str) -> Result<Seen> {
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors")) {
        bail!("requests failed: {}", line.trim());
    }
    let percentile = |mark: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(mark));
        value.and_then(|value| wrk_duration(value.trim())).with_context(|| format!("no {mark} in it"))
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    Ok(Seen {
        requests: requests.context("no number of requests in it")?,
        p50: percentile("50%")?,
        p99: percentile("99%")?,
    })
}

/// wrk writes `371.00us`, `1.20ms`, `2.00s`, `1.50m`.
fn wrk_duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
}

fn check_h2load(text: &str) -> Result<()> {
    let line = text.lines().find(|line| line.starts_with("requests:")).context("no line `requests:` in it")?;
    for outcome in ["failed", "errored", "timeout"] {
        let count = line.split(", ").find_map(|part| part.trim().strip_suffix(outcome)?.trim().parse::<u64>().ok());
        if count != Some(0) {
            bail!("requests failed: {line}");
        }
    }
    Ok(())
}

/// Start in microseconds, status, microseconds until the end of the response; tab between them.
fn parse_log(lines: &str) -> Result<Seen> {
    let mut took = Vec::new();
    for line in lines.lines() {
        let mut fields = line.split('\t').skip(1);
        match (fields.next(), fields.next().and_then(|micros| micros.parse::<u64>().ok())) {
            (Some("200"), Some(micros)) => took.push(micros),
            _ => bail!("request failed: {line}"),
        }
    }
    took.sort_unstable();
    let at = |hundredths: usize| took.get(took.len() * hundredths / 100).copied().map(Duration::from_micros);
    let (Some(p50), Some(p99)) = (at(50), at(99)) else { bail!("no request was answered") };
    Ok(Seen { requests: u64::try_from(took.len())?, p50, p99 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 1s test @ http://127.0.0.1:1\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   364.63us   76.68us   1.88ms   89.68%\n    Req/Sec    87.63k     2.20k   90.32k    81.82%\n  Latency Distribution\n     50%  358.00us\n     75%  378.00us\n     90%  410.00us\n     99%    1.25ms\n  95823 requests in 1.10s, 15.26MB read\nRequests/sec:  87143.10\n";

    #[test]
    fn what_wrk_reports_is_read() {
        let seen = parse_wrk(WRK).unwrap();
        let expected = Seen { requests: 95823, p50: Duration::from_micros(358), p99: Duration::from_micros(1250) };
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_run_with_failed_requests_does_not_count() {
        assert!(parse_wrk(&format!("{WRK}  Non-2xx or 3xx responses: 3\n")).is_err());
        let line = "requests: 9 total, 9 started, 9 done, 8 succeeded, 1 failed, 0 errored, 0 timeout";
        assert!(check_h2load(line).is_err());
        assert!(check_h2load(&line.replace("1 failed", "0 failed")).is_ok());
        assert!(parse_log("1\t200\t5\n2\t503\t5\n").is_err());
        assert!(parse_log("").is_err());
    }

    #[test]
    fn percentiles_come_from_the_log_of_h2load() {
        let lines: String =
            (1..=100).flat_map(|micros| ["1\t200\t".to_owned(), micros.to_string(), "\n".to_owned()]).collect();
        let seen = parse_log(&lines).unwrap();
        let expected = Seen { requests: 100, p50: Duration::from_micros(51), p99: Duration::from_micros(100) };
        assert_eq!(seen, expected);
    }
}
