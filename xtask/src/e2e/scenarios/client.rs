//! Clients of the interceptors, started on a node: curl for single requests, wrk for load. Both are foreign to this project.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::tenant::{PROXY, SYSTEM};
use crate::{
    cluster::{Cluster, Machine},
    process,
};

/// Where clients run.
pub(super) const NODE: Machine = Machine::Node(1);

/// Clients of one host.
#[derive(Clone, Debug)]
pub(super) struct Client<'a> {
    cluster: &'a Cluster,
    proxy: String,
    host: String,
}

/// gRPC's own test client, which calls the interceptors by their address.
#[derive(Debug)]
pub(super) struct GrpcClient<'a> {
    cluster: &'a Cluster,
    pub(super) proxy: String,
}

/// A response, as curl saw it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    /// Value of `X-KEDA-HTTP-Cold-Start`.
    pub(super) cold_start: String,
    pub(super) took: Duration,
    pub(super) body: String,
}

/// wrk, running.
#[derive(Debug)]
pub(super) struct Load(Option<Child>);

/// What wrk saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) requests: u64,
    /// Responses that are no success, and connections that broke.
    pub(super) failed: u64,
    /// All it said.
    pub(super) text: String,
}

impl<'a> Client<'a> {
    /// Through the Service of the installed interceptors.
    pub(super) fn new(cluster: &'a Cluster, host: &str) -> Result<Self> {
        let address = cluster.service_address(SYSTEM, PROXY)?;
        Ok(Self { cluster, proxy: format!("{address}:8080"), host: host.to_owned() })
    }

    /// One request, whatever its answer.
    pub(super) fn get(&self, path: &str) -> Result<Answer> {
        let written = "\n%{http_code} %{time_total} %header{x-keda-http-cold-start}";
        let host = format!("Host: {}", self.host);
        let url = format!("http://{}{path}", self.proxy);
        let args = ["--max-time", "90", "--header", &host, "--write-out", written, &url];
        let text = self.cluster.curl(NODE, &args).with_context(|| format!("no answer for {}{path}", self.host))?;
        Answer::parse(&text).with_context(|| format!("curl wrote {text:?}"))
    }

    /// One request that must succeed.
    pub(super) fn succeeds(&self, path: &str) -> Result<Answer> {
        let answer = self.get(path)?;
        ensure!(answer.code == 200, "{}{path} was answered with {}: {}", self.host, answer.code, answer.body.trim());
        Ok(answer)
    }

    /// Waits until requests are answered with this status.
    pub(super) fn until(&self, code: u16, patience: Duration) -> Result<Answer> {
        let mut last = None;
        let what = format!("{} to be answered with {code}", self.host);
        let found = self.cluster.wait_for(&what, patience, || {
            let answer = self.get("/")?;
            last = Some(answer.clone());
            Ok((answer.code == code).then_some(answer))
        });
        found.with_context(|| format!("the last answer was {last:?}"))
    }

    /// A gRPC call without TLS whose request is an empty message, by nghttp; all frames of the response in its words.
    pub(super) fn call(&self, method: &str) -> Result<String> {
        let request = self.cluster.place().folder().join("empty.grpc");
        fs::write(&request, [0; 5]).with_context(|| format!("cannot write {}", request.display()))?;
        let mut command = self.cluster.beside(NODE);
        command.args(["nghttp", "--verbose", "--timeout=90", "--data"]).arg(&request);
        for header in [&format!(":authority: {}", self.host), "content-type: application/grpc", "te: trailers"] {
            command.arg(format!("--header={header}"));
        }
        process::output(command.arg(format!("http://{}{method}", self.proxy)))
    }

    /// Load over this many connections, until [`Load::finish`].
    pub(super) fn load(&self, path: &str, connections: u32) -> Result<Load> {
        let mut command = self.cluster.beside(NODE);
        command.args(["wrk", "--header", &format!("Host: {}", self.host)]);
        Load::start(command, &format!("http://{}{path}", self.proxy), connections.into())
    }
}

impl<'a> GrpcClient<'a> {
    /// Through the Service of the installed interceptors.
    pub(super) fn new(cluster: &'a Cluster) -> Result<Self> {
        Ok(Self { cluster, proxy: cluster.service_address(SYSTEM, PROXY)? })
    }

    /// Runs one of its test cases, which is an error unless all is as gRPC wants it.
    pub(super) fn call(&self, case: &str) -> Result<()> {
        let mut command = self.cluster.beside(NODE);
        command.arg(self.cluster.programs().path("grpc-client")?);
        command.args(["--server_host", &self.proxy, "--server_port", "8080", "--test_case", case]);
        process::output(&mut command).with_context(|| format!("gRPC's test case {case}")).map(drop)
    }
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let (body, last) = text.rsplit_once('\n')?;
        let mut words = last.splitn(3, ' ');
        let code = words.next()?.parse().ok()?;
        let took = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?;
        let cold_start = words.next().unwrap_or_default().trim().to_owned();
        Some(Self { code, cold_start, took, body: body.to_owned() })
    }
}

impl Load {
    /// Load by a command line that begins with wrk.
    pub(super) fn start(mut wrk: Command, url: &str, connections: u64) -> Result<Self> {
        wrk.args([
            "--threads",
            "1",
            "--connections",
            &connections.to_string(),
            "--duration",
            "10m",
            "--timeout",
            "60s",
        ]);
        wrk.arg(url).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self(Some(wrk.spawn().context("cannot start wrk")?)))
    }

    /// Ends the load and reads what came of it.
    pub(super) fn finish(mut self) -> Result<Seen> {
        let child = self.0.take().context("a load is finished once")?;
        interrupt(&child)?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Seen::parse(&text).with_context(|| format!("wrk wrote {text:?}"))
    }

    /// Ends it; not one request may have failed.
    pub(super) fn without_failure(self) -> Result<Seen> {
        let seen = self.finish()?;
        if seen.failed > 0 {
            bail!("{} of {} requests failed; wrk wrote {}", seen.failed, seen.requests, seen.text.trim());
        }
        ensure!(seen.requests > 0, "there was no request at all");
        Ok(seen)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It has ended already, or ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// wrk reports when it is interrupted.
fn interrupt(child: &Child) -> Result<()> {
    process::output(Command::new("kill").arg("-INT").arg(child.id().to_string())).map(drop)
}

impl Seen {
    fn parse(text: &str) -> Option<Self> {
        let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
        let refused = text.lines().find_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses: "));
        let refused = refused.map_or(Some(0), |count| count.trim().parse::<u64>().ok())?;
        let broken = text.lines().find_map(|line| line.trim().strip_prefix("Socket errors: "));
        let broken = broken.map_or(Some(0), |counts| {
            counts.split(", ").map(|count| count.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
        })?;
        Some(Self { requests, failed: refused + broken, text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_curl_writes_is_read() {
        let answer = Answer::parse("Hello\nthere\n\n200 1.5 true").unwrap();
        assert_eq!((answer.code, answer.cold_start.as_str(), answer.body.as_str()), (200, "true", "Hello\nthere\n"));
        assert_eq!(answer.took, Duration::from_millis(1500));
        assert_eq!(Answer::parse("\n404 0.1 ").unwrap().cold_start, "");
        assert!(Answer::parse("nothing").is_none());
    }

    #[test]
    fn what_wrk_writes_is_read() {
        let good = Seen::parse("  90 requests in 1.00s, 9KB read\nRequests/sec: 90\n").unwrap();
        assert_eq!((good.requests, good.failed), (90, 0));
        let bad = "  90 requests in 1.00s, 9KB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n  Non-2xx or 3xx responses: 4\n";
        assert_eq!(Seen::parse(bad).unwrap().failed, 10);
        assert!(Seen::parse("unable to connect").is_none());
    }
}
