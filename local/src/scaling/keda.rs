//! KEDA's part of scaling: between zero and one, on activity. What lies above one is the HPA's.
//!
//! Written after KEDA's `scaleexecutor` and its external-push scaler. `now` is the time since the process began.

use std::time::Duration;

use super::hpa::Bounds;

/// A stream that failed is opened again after this long, and after twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_mins(1);

/// The part of a ScaledObject's spec that activity needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `minReplicaCount`, zero by default.
    pub min: u32,
    /// `maxReplicaCount`, 100 by default.
    pub max: u32,
    /// `idleReplicaCount`: replicas while inactive, instead of `min`.
    pub idle: Option<u32>,
    /// `cooldownPeriod`: inactive for so long before zero.
    pub cooldown: Duration,
    /// `initialCooldownPeriod`: the same when it has never been active.
    pub initial_cooldown: Duration,
}

/// What the triggers said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// At least one is active.
    Active,
    /// All answered, none is active.
    Inactive,
    /// None is active, and at least one gave no answer: nothing is known, so nothing is taken away.
    Unknown,
}

/// What one ScaledObject remembers.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    created: Duration,
    last_active: Option<Duration>,
}

/// The delay before a broken stream is opened again.
#[derive(Clone, Copy, Debug)]
pub struct Retry(Duration);

// === impl Limits ===

impl Limits {
    /// What the HPA may choose from: never zero.
    pub fn bounds(&self) -> Bounds {
        let min = self.min.max(1);
        Bounds { min, max: self.max.max(min) }
    }
}

// === impl Memory ===

impl Memory {
    /// Of a ScaledObject that is seen for the first time.
    pub fn new(now: Duration) -> Self {
        Self { created: now, last_active: None }
    }

    /// The number of replicas to ask for, when it is another than `current`.
    pub fn decide(&mut self, now: Duration, activity: Activity, current: u32, limits: &Limits) -> Option<u32> {
        match activity {
            Activity::Active => {
                self.last_active = Some(now);
                let asleep = current == 0 || limits.idle.is_some() && current < limits.min;
                asleep.then(|| limits.bounds().min)
            }
            Activity::Unknown => None,
            Activity::Inactive => {
                let floor = limits.idle.unwrap_or(limits.min);
                if current > floor && (limits.idle.is_some() || limits.min == 0) {
                    self.cooled_down(now, limits).then_some(floor)
                } else if current < limits.min && limits.idle.is_none() {
                    Some(limits.min)
                } else {
                    None
                }
            }
        }
    }

    /// When it was active last.
    pub fn last_active(&self) -> Option<Duration> {
        self.last_active
    }

    fn cooled_down(&self, now: Duration, limits: &Limits) -> bool {
        match self.last_active {
            Some(at) => now >= at + limits.cooldown,
            None => now >= self.created + limits.initial_cooldown,
        }
    }
}

// === impl Retry ===

impl Default for Retry {
    fn default() -> Self {
        Self(FIRST_RETRY)
    }
}

impl Retry {
    /// How long to wait now; `clean` when the stream's other end closed it in order.
    pub fn after(&mut self, clean: bool) -> Duration {
        if clean {
            self.0 = FIRST_RETRY;
        }
        let delay = self.0;
        self.0 = (delay * 2).min(LAST_RETRY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        min: 0,
        max: 5,
        idle: None,
        cooldown: Duration::from_secs(30),
        initial_cooldown: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn activity_wakes_one_replica_at_once_and_leaves_more_alone() {
        let mut memory = Memory::new(at(0));
        assert_eq!(memory.decide(at(1), Activity::Active, 0, &LIMITS), Some(1));
        assert_eq!(memory.decide(at(2), Activity::Active, 3, &LIMITS), None);
        let three = Limits { min: 3, ..LIMITS };
        assert_eq!(memory.decide(at(3), Activity::Active, 0, &three), Some(3));
    }

    #[test]
    fn idleness_leads_to_zero_after_the_cooldown_and_not_before() {
        let mut memory = Memory::new(at(0));
        memory.decide(at(100), Activity::Active, 1, &LIMITS);
        assert_eq!(memory.decide(at(129), Activity::Inactive, 2, &LIMITS), None);
        assert_eq!(memory.decide(at(130), Activity::Inactive, 2, &LIMITS), Some(0));
        assert_eq!(memory.decide(at(131), Activity::Inactive, 0, &LIMITS), None);
    }

    #[test]
    fn what_was_never_active_waits_for_the_initial_cooldown() {
        let mut memory = Memory::new(at(100));
        assert_eq!(memory.decide(at(109), Activity::Inactive, 1, &LIMITS), None);
        assert_eq!(memory.decide(at(110), Activity::Inactive, 1, &LIMITS), Some(0));
    }

    #[test]
    fn a_scaler_that_does_not_answer_takes_nothing_away() {
        let mut memory = Memory::new(at(0));
        assert_eq!(memory.decide(at(1000), Activity::Unknown, 2, &LIMITS), None);
    }

    #[test]
    fn a_minimum_above_zero_is_kept_while_inactive() {
        let two = Limits { min: 2, ..LIMITS };
        let mut memory = Memory::new(at(0));
        assert_eq!(memory.decide(at(1000), Activity::Inactive, 4, &two), None);
        assert_eq!(memory.decide(at(1000), Activity::Inactive, 1, &two), Some(2));
    }

    #[test]
    fn an_idle_count_replaces_zero() {
        let idle = Limits { min: 4, idle: Some(1), ..LIMITS };
        let mut memory = Memory::new(at(0));
        assert_eq!(memory.decide(at(20), Activity::Inactive, 5, &idle), Some(1));
        assert_eq!(memory.decide(at(21), Activity::Active, 1, &idle), Some(4));
    }

    #[test]
    fn a_broken_stream_is_retried_after_two_seconds_doubling_to_sixty() {
        let mut retry = Retry::default();
        let delays: Vec<u64> = (0..7).map(|_| retry.after(false).as_secs()).collect();
        assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(retry.after(true).as_secs(), 2, "a clean end starts over");
    }
}
