//! Ready sooner than the kubelet says: the app listens after 400 ms, the kubelet would see it seconds later.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::{
    client::Client,
    tenant::{App, Metric, PATIENCE, Tenant, route, scaled_object},
};
use crate::cluster::Cluster;

/// From the app's listening to the whole answer at the client.
const AT_MOST: Duration = Duration::from_millis(100);
/// The kubelet's first probe may fall right after the listening by chance; not each time.
const TRIES: usize = 3;

/// A probe every 10 seconds, and an answer within 100 ms of listening.
pub(super) fn sooner_than_the_kubelet(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "sooner")?;
    tenant.apply(&App::new("sooner").slow_start(400, 10).objects())?;
    tenant.apply(&[route("sooner", "sooner.e2e", Metric::Concurrency(10)), scaled_object("sooner", 1)])?;
    tenant.scaled("sooner")?;
    tenant.until("interceptorroute/sooner", "a readiness probe in the status", PATIENCE, |object| {
        object["status"]["readinessProbe"]["httpGet"]["port"] == 8000
    })?;
    let client = Client::new(cluster, "sooner.e2e")?;
    let mut waits = Vec::new();
    for _ in 0..TRIES {
        tenant.asleep("sooner")?;
        let answer = client.succeeds("/")?;
        let answered = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is set")?;
        ensure!(answer.cold_start == "true", "the workload did not sleep");
        waits.push(answered.saturating_sub(listening_since(&tenant)?));
    }
    waits.sort_unstable();
    println!(
        "    answers {} ms after listening",
        waits.iter().map(|wait| wait.as_millis().to_string()).collect::<Vec<_>>().join(", ")
    );
    let median = waits[TRIES / 2];
    ensure!(median <= AT_MOST, "the answers came {waits:?} after the app listened, expected {AT_MOST:?}");
    tenant.finish()
}

/// When the app wrote that it listens, since the epoch.
fn listening_since(tenant: &Tenant<'_>) -> Result<Duration> {
    let cluster = tenant.cluster;
    cluster.wait_for("the app's line `listening`", PATIENCE, || {
        let log = cluster.kubectl(&["logs", "--namespace", &tenant.namespace, "deployment/sooner"])?;
        let line = log.lines().find(|line| line.contains("listening address="));
        Ok(line.and_then(|line| since_epoch(line.split_whitespace().next()?)))
    })
}

/// `2026-11-22T05:39:21.920730Z` as a time since the epoch.
fn since_epoch(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<u64>().ok()?, time.next()?.parse::<u64>().ok()?);
    let seconds = Duration::try_from_secs_f64(time.next()?.parse().ok()?).ok()?;
    // Days from civil: years begin in March, so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let whole = u64::try_from(days).ok()? * 86_400 + hour * 3600 + minute * 60;
    Some(Duration::from_secs(whole) + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_lines_time_is_read() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00.5Z", 0.5),
            ("2026-11-22T05:39:21.25Z", 1_795_325_961.25),
            ("2024-02-29T12:00:00Z", 1_709_208_000.0),
        ] {
            let expected = Duration::try_from_secs_f64(seconds).unwrap();
            assert_eq!(since_epoch(text), Some(expected), "{text}");
        }
        assert_eq!(since_epoch("yesterday"), None);
    }
}
