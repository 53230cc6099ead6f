//! Keeps KEDA from taking the last replica away before the Service's EndpointSlices list interceptors in its place. Pure; owned
//! by the board, one for each route that has shadow slices.
//!
//! ```text
//! demand ends ── after ──► the operator publishes ── settle ──► KEDA may
//!        └── meanwhile KEDA is told so, as long as its cool-down keeps it from acting; then that there is demand still
//! ```
//!
//! The time counts from the end of demand as well as from the publication: an operator that is withdrawing slices at this very
//! moment, since it has heard of demand, hears of its end and publishes them again before the time is over.

use std::time::Duration;

use interceptor_core::route::Shadow;

/// From the publication until everybody who reads slices acts on it. kube-proxy writes its rules once a second unless told
/// otherwise.
pub const SETTLE: Duration = Duration::from_secs(3);

/// How much later than the operator, which publishes some time before KEDA could act, KEDA is held back.
const LENIENCE: Duration = Duration::from_secs(7);

/// Since when something is so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Since {
    /// It is not.
    #[default]
    Never,
    /// Since before anybody here looked.
    Ever,
    At(Duration),
}

/// What has been seen of one route.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    looked: bool,
    arrived: u64,
    quiet: Since,
    published: Since,
}

/// What KEDA is to be told of a route without demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// That there is demand all the same.
    pub holds: bool,
    /// When that may be otherwise.
    pub again: Option<Duration>,
}

// === impl Gate ===

impl Gate {
    /// Looks at a route that is `active` or not, of which so many requests have `arrived` ever.
    pub fn look(&mut self, shadow: Option<Shadow>, (active, arrived): (bool, u64), now: Duration) -> Verdict {
        let Self { looked, arrived: before, quiet, published } = self;
        let first = !std::mem::replace(looked, true);
        let since = if first { Since::Ever } else { Since::At(now) };
        let came = std::mem::replace(before, arrived) != arrived && !first;
        *quiet = match *quiet {
            _ if active => Since::Never,
            Since::Never => since,
            _ if came => Since::At(now),
            known => known,
        };
        *published = match (shadow.is_some_and(|shadow| shadow.published), *published) {
            (false, _) => Since::Never,
            (true, Since::Never) => since,
            (true, known) => known,
        };
        let Some(after) = shadow.and_then(|shadow| shadow.after).filter(|_| !active) else { return Verdict::default() };
        let from = match *quiet {
            Since::At(at) if !after.is_zero() => at + after + LENIENCE,
            Since::At(at) => at,
            Since::Ever | Since::Never => Duration::ZERO,
        };
        let settled = match (*published, *quiet) {
            (Since::Never, _) => None,
            (Since::Ever, Since::At(at)) | (Since::At(at), Since::Ever | Since::Never) => Some(at + SETTLE),
            (Since::At(one), Since::At(other)) => Some(one.max(other) + SETTLE),
            (Since::Ever, Since::Ever | Since::Never) => Some(Duration::ZERO),
        };
        if settled.is_some_and(|settled| now >= settled) {
            return Verdict::default();
        }
        if now < from {
            return Verdict { holds: false, again: Some(from) };
        }
        Verdict { holds: true, again: settled }
    }
}

// === impl Verdict ===

impl Verdict {
    /// The same if there may be demand that nobody counts.
    #[must_use]
    pub fn while_uncounted(self, uncounted: bool) -> Self {
        if uncounted { Self { holds: true, again: None } } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn shadow(published: bool, after: Option<u64>) -> Shadow {
        Shadow { port: 20_000.try_into().unwrap(), published, after: after.map(secs) }
    }

    const FREE: Verdict = Verdict { holds: false, again: None };

    fn held(again: Option<u64>) -> Verdict {
        Verdict { holds: true, again: again.map(secs) }
    }

    #[test]
    fn what_nobody_counts_is_not_taken_away() {
        let mut gate = Gate::default();
        gate.look(Some(shadow(true, Some(0))), (true, 1), secs(0));
        let verdict = gate.look(Some(shadow(true, Some(0))), (false, 1), secs(1000));
        assert_eq!(verdict.while_uncounted(true), held(None), "nobody knows whether there is demand");
        let verdict = gate.look(Some(shadow(true, Some(0))), (false, 1), secs(1003));
        assert_eq!(verdict.while_uncounted(false), FREE);
        assert_eq!(Verdict::default().while_uncounted(true), held(None), "of a route without interceptors, too");
    }

    #[test]
    fn with_a_short_cool_down_demand_ends_for_keda_once_interceptors_are_listed_and_that_has_settled() {
        let mut gate = Gate::default();
        assert_eq!(gate.look(Some(shadow(false, Some(0))), (true, 1), secs(10)), FREE);
        assert_eq!(gate.look(Some(shadow(false, Some(0))), (false, 1), secs(20)), held(None));
        assert_eq!(gate.look(Some(shadow(true, Some(0))), (false, 1), secs(21)), held(Some(24)));
        assert_eq!(gate.look(Some(shadow(true, Some(0))), (false, 1), secs(24)), FREE);
    }

    #[test]
    fn a_long_cool_down_runs_while_nobody_need_be_listed_yet_and_is_broken_off_if_nobody_is() {
        let mut gate = Gate::default();
        gate.look(Some(shadow(false, Some(200))), (true, 1), secs(0));
        let waits = Verdict { holds: false, again: Some(secs(307)) };
        assert_eq!(gate.look(Some(shadow(false, Some(200))), (false, 1), secs(100)), waits);
        assert_eq!(gate.look(Some(shadow(false, Some(200))), (false, 1), secs(306)), waits);
        assert_eq!(gate.look(Some(shadow(false, Some(200))), (false, 1), secs(307)), held(None));
        assert_eq!(gate.look(Some(shadow(true, Some(200))), (false, 1), secs(310)), held(Some(313)));
        assert_eq!(gate.look(Some(shadow(true, Some(200))), (false, 1), secs(313)), FREE);
    }

    #[test]
    fn what_was_published_for_the_quiet_before_settles_anew() {
        let mut gate = Gate::default();
        gate.look(Some(shadow(true, Some(0))), (true, 1), secs(0));
        assert_eq!(gate.look(Some(shadow(true, Some(0))), (false, 1), secs(50)), held(Some(53)));
        assert_eq!(
            gate.look(Some(shadow(true, Some(0))), (false, 2), secs(52)),
            held(Some(55)),
            "a request came and went"
        );
        assert_eq!(gate.look(Some(shadow(false, Some(0))), (false, 2), secs(54)), held(None), "it was being withdrawn");
        assert_eq!(gate.look(Some(shadow(true, Some(0))), (false, 2), secs(56)), held(Some(59)));
    }

    #[test]
    fn a_scaler_that_starts_wakes_no_workload_that_sleeps() {
        assert_eq!(Gate::default().look(Some(shadow(true, Some(0))), (false, 9), secs(1)), FREE);
        assert_eq!(Gate::default().look(None, (false, 0), secs(1)), FREE, "nobody has been listed ever");
        let withdrawn = Gate::default().look(Some(shadow(false, Some(100))), (false, 9), secs(1));
        assert_eq!(withdrawn, held(None), "replicas are ready, since when they are idle nobody knows");
    }

    #[test]
    fn a_workload_that_keeps_a_replica_is_idle_when_it_is() {
        let mut gate = Gate::default();
        gate.look(Some(shadow(false, None)), (true, 1), secs(0));
        assert_eq!(gate.look(Some(shadow(false, None)), (false, 1), secs(1)), FREE);
    }
}
