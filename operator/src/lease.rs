//! Which operator acts: the one that holds the Lease, in the manner of client-go's leader election, so that an operator of
//! the KEDA HTTP Add-on and ours never act at once. Decides by a pure function; writes with optimistic locking.

use std::{convert::Infallible, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use runtime::signal::Shutdown;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::apply::describe;

/// The Lease's name, which is the add-on's.
pub const NAME: &str = "http-add-on.keda.sh";

/// How long a lease lasts and how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long others leave it to its holder after it was last seen to be renewed.
    pub duration: Duration,
    /// How long the holder tries to renew it before it stops to act.
    pub renew_deadline: Duration,
    /// How often it is looked at.
    pub retry_period: Duration,
}

/// A candidate.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
    terms: Terms,
    seen: Option<Seen>,
}

/// The last change of the lease, by our own clock: those of others may be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: String,
    renewed: Option<Timestamp>,
    at: Instant,
}

/// What to do about the lease as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Renew,
    Take,
    Wait,
}

// === impl Terms ===

impl Default for Terms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

// === impl Candidate ===

impl Candidate {
    /// A candidate that does not hold the lease.
    pub fn new(leases: Api<Lease>, identity: String, terms: Terms) -> Self {
        Self { leases, identity, terms, seen: None }
    }

    /// Gets and keeps the lease until `shutdown`, telling `leads` whether it is held; then gives it back.
    ///
    /// Cancel safe: dropped, a lease that is held runs out.
    pub async fn run(mut self, leads: watch::Sender<bool>, mut shutdown: Shutdown) -> Result<(), Infallible> {
        // When it was asked for: others count from when they see it, which may be long before the answer comes.
        let mut renewed = Instant::now();
        let mut held = false;
        while !shutdown.is_requested() {
            let asked = Instant::now();
            let within = if held { self.left(renewed) } else { self.terms.renew_deadline };
            match timeout(within, self.try_once()).await {
                Ok(Ok(holds)) => {
                    if holds {
                        renewed = asked;
                    }
                    if holds != held {
                        tracing::info!(holds, identity = self.identity, "lease");
                    }
                    held = holds;
                }
                Ok(Err(error)) => tracing::warn!(error = describe(&error), "cannot reach the lease"),
                Err(_elapsed) => tracing::warn!("the API server does not answer about the lease"),
            }
            if held && self.left(renewed).is_zero() {
                tracing::warn!("the lease could not be renewed in time: acting no more");
                held = false;
            }
            leads.send_if_modified(|leads| std::mem::replace(leads, held) != held);
            let pause = if held { self.left(renewed) } else { Duration::MAX };
            tokio::select! {
                () = shutdown.requested() => {}
                () = tokio::time::sleep(self.terms.retry_period.min(pause)) => {}
            }
        }
        leads.send_replace(false);
        if held {
            self.give_back().await;
        }
        Ok(())
    }

    /// For how long the holder may act still.
    fn left(&self, renewed: Instant) -> Duration {
        self.terms.renew_deadline.saturating_sub(renewed.elapsed())
    }

    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let lease = self.leases.get_opt(NAME).await?;
        let step = self.decide(lease.as_ref().and_then(|lease| lease.spec.as_ref()), Instant::now());
        let written = match (step, lease) {
            (Step::Wait, _) => return Ok(false),
            (Step::Create, _) | (_, None) => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None)) };
                self.leases.create(&PostParams::default(), &lease).await
            }
            (Step::Renew | Step::Take, Some(mut lease)) => {
                lease.spec = Some(self.spec(lease.spec.as_ref()));
                self.leases.replace(NAME, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Another was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn decide(&mut self, lease: Option<&LeaseSpec>, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let holder = lease.holder_identity.clone().unwrap_or_default();
        if holder == self.identity {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        let renewed = lease.renew_time.as_ref().map(|time| time.0);
        let same = self.seen.as_ref().filter(|seen| seen.holder == holder && seen.renewed == renewed);
        let Some(seen) = same else {
            self.seen = Some(Seen { holder, renewed, at: now });
            return Step::Wait;
        };
        let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = seconds.map_or(self.terms.duration, Duration::from_secs);
        if now.duration_since(seen.at) >= lasts { Step::Take } else { Step::Wait }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|before| before.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.terms.duration.as_secs()).unwrap_or(i32::MAX).max(1)),
            acquire_time: ours.and_then(|ours| ours.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(before.is_some() && ours.is_none())),
            ..LeaseSpec::default()
        }
    }

    /// So that the next one need not wait for it to run out.
    async fn give_back(&self) {
        let free = async {
            let Some(mut lease) = self.leases.get_opt(NAME).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.leases.replace(NAME, &PostParams::default(), &lease).await.map(|_| ())
        };
        match timeout(self.terms.retry_period, free).await {
            Ok(Ok(())) => tracing::info!("lease given back"),
            Ok(Err(error)) => tracing::warn!(error = describe(&error), "cannot give the lease back: it runs out"),
            Err(_elapsed) => tracing::warn!("cannot give the lease back in time: it runs out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::{Client, client::Body};
    use runtime::signal;
    use serde_json::json;

    use super::*;

    fn candidate(identity: &str) -> Candidate {
        let nobody = tower::service_fn(|_: http::Request<Body>| async {
            Err::<http::Response<Body>, _>(std::io::Error::other("no server in this test"))
        });
        let leases = Api::namespaced(Client::new(nobody, "n"), "n");
        Candidate::new(leases, identity.to_owned(), Terms::default())
    }

    fn held_by(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test]
    async fn a_lease_is_taken_when_its_holder_has_not_renewed_it_for_so_long() {
        let mut me = candidate("me");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(me.decide(None, at(0)), Step::Create);
        assert_eq!(me.decide(Some(&held_by("you", 100)), at(0)), Step::Wait);
        assert_eq!(me.decide(Some(&held_by("you", 100)), at(14)), Step::Wait);
        assert_eq!(me.decide(Some(&held_by("you", 114)), at(15)), Step::Wait);
        assert_eq!(me.decide(Some(&held_by("you", 114)), at(29)), Step::Wait);
        assert_eq!(me.decide(Some(&held_by("you", 114)), at(30)), Step::Take);
        assert_eq!(me.decide(Some(&held_by("me", 114)), at(30)), Step::Renew);
        assert_eq!(me.decide(Some(&held_by("", 114)), at(30)), Step::Take);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_acts_no_longer_than_the_deadline_after_its_last_renewal() {
        let mut asked = 0;
        let server = tower::service_fn(move |request: http::Request<Body>| {
            asked += 1;
            let found = asked > 1;
            async move {
                let body = match *request.method() {
                    http::Method::GET if found => std::future::pending().await,
                    http::Method::GET => {
                        json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no lease"})
                    }
                    _ => json!({"metadata": {"name": NAME}}),
                };
                let code = if body["code"] == 404 { 404 } else { 200 };
                let response = http::Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
                Ok::<_, std::io::Error>(response.expect("a code and a body"))
            }
        });
        let leases = Api::namespaced(Client::new(server, "n"), "n");
        let me = Candidate::new(leases, "me".to_owned(), Terms::default());
        let (leads_tx, mut leads) = watch::channel(false);
        let (_trigger, shutdown) = signal::manual();
        let begin = Instant::now();
        runtime::task::spawn("lease", me.run(leads_tx, shutdown));
        leads.wait_for(|leads| *leads).await.unwrap();
        leads.wait_for(|leads| !leads).await.unwrap();
        assert!(begin.elapsed() <= Terms::default().renew_deadline, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_change_of_holder_is_counted_and_a_renewal_is_not() {
        let me = candidate("me");
        let taken = me.spec(Some(&held_by("you", 1)));
        assert_eq!((taken.lease_transitions, taken.holder_identity.as_deref()), (Some(5), Some("me")));
        let renewed = me.spec(Some(&taken));
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(5), taken.acquire_time));
        assert_eq!(me.spec(None).lease_transitions, Some(0));
    }
}
