//! When a `StreamIsActive` says what: each change at once, and a `true` again now and then. Pure; one per open stream.

use std::time::Duration;

/// How soon `true` is said again while a route stays active: KEDA may have failed to act on the first (a conflict, an
/// API server that is away), and would next look by itself after its polling interval, 30 s by default.
const REPEAT_FIRST: Duration = Duration::from_secs(2);
/// Each repetition doubles the pause up to KEDA's own polling interval: from then on KEDA knows anyway, and each `true`
/// costs it a scale request.
const REPEAT_MAX: Duration = Duration::from_secs(30);

/// What is known of a subject at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Whether any of its metrics is above zero.
    pub active: bool,
    /// Requests that have arrived so far. One that came and went between two reports shows here alone.
    pub arrived: u64,
    /// When it turns inactive by time alone.
    pub quiet_at: Option<Duration>,
    /// When it has to be looked at again though nothing has changed.
    pub again: Option<Duration>,
    /// Whether it may be active although it seems not to be: then nothing is said.
    pub doubtful: bool,
}

/// What has been said on one stream.
#[derive(Clone, Debug)]
pub struct Push {
    interval: Duration,
    said: Option<Said>,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Say this.
    Say(bool),
    /// Nothing before the subject changes or this time has come.
    Wait(Option<Duration>),
}

#[derive(Clone, Copy, Debug)]
struct Said {
    active: bool,
    at: Duration,
    /// When the subject was last seen active.
    seen: Duration,
    arrived: u64,
    repeat: Duration,
}

// === impl Push ===

impl Push {
    /// A stream that has just been opened. `interval` is the least time from a `true` to the `false` after it.
    pub fn new(interval: Duration) -> Self {
        Self { interval, said: None }
    }

    /// What to do about `activity` at `now`. A [`Step::Say`] must be carried out.
    ///
    /// `true` after `false` is never delayed; what ends within the interval is told as having lasted for it.
    pub fn step(&mut self, activity: Activity, now: Duration) -> Step {
        if activity.doubtful {
            return Step::Wait(activity.again);
        }
        let Activity { active, arrived, quiet_at, again: _, doubtful: _ } = activity;
        let Some(said) = &mut self.said else {
            self.said = Some(Said { active, at: now, seen: now, arrived, repeat: REPEAT_FIRST });
            return Step::Say(active);
        };
        let pulse = arrived > said.arrived;
        said.arrived = arrived;
        if active || pulse {
            said.seen = now;
        }
        match (said.active, active || pulse) {
            (false, true) => {
                *said = Said { active: true, at: now, repeat: REPEAT_FIRST, ..*said };
                Step::Say(true)
            }
            (true, _) if active => {
                let due = said.at + said.repeat.max(self.interval);
                if now < due {
                    return Step::Wait(Some(quiet_at.map_or(due, |quiet| quiet.min(due))));
                }
                *said = Said { at: now, repeat: (said.repeat * 2).min(REPEAT_MAX), ..*said };
                Step::Say(true)
            }
            (true, _) => {
                let due = said.seen.max(said.at) + self.interval;
                if now < due {
                    return Step::Wait(Some(due));
                }
                *said = Said { active: false, at: now, ..*said };
                Step::Say(false)
            }
            (false, false) => Step::Wait(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn activity(active: bool, arrived: u64) -> Activity {
        Activity { active, arrived, ..Activity::default() }
    }

    fn opened(active: bool) -> Push {
        let mut push = Push::new(INTERVAL);
        assert_eq!(push.step(activity(active, 5), ms(0)), Step::Say(active));
        push
    }

    #[test]
    fn the_value_is_said_at_once_on_open_and_then_only_when_it_changes() {
        let mut push = opened(false);
        assert_eq!(push.step(activity(false, 5), ms(1)), Step::Wait(None));
        assert_eq!(push.step(activity(true, 6), ms(2)), Step::Say(true));
        assert_eq!(push.step(activity(true, 7), ms(3)), Step::Wait(Some(ms(2002))));
        assert_eq!(push.step(activity(false, 7), ms(1000)), Step::Say(false));
    }

    #[test]
    fn a_rising_edge_is_never_delayed_and_a_falling_one_waits_for_the_interval() {
        let mut push = opened(false);
        assert_eq!(push.step(activity(true, 6), ms(10)), Step::Say(true));
        assert_eq!(push.step(activity(false, 6), ms(11)), Step::Wait(Some(ms(210))));
        assert_eq!(push.step(activity(false, 6), ms(210)), Step::Say(false));
        assert_eq!(push.step(activity(true, 7), ms(211)), Step::Say(true));
    }

    #[test]
    fn flapping_within_the_interval_is_one_activity() {
        let mut push = opened(false);
        assert_eq!(push.step(activity(true, 6), ms(0)), Step::Say(true));
        for at in (0..1500).step_by(100) {
            assert!(matches!(push.step(activity(false, 6), ms(at)), Step::Wait(Some(_))));
            assert!(matches!(push.step(activity(true, 6), ms(at + 50)), Step::Wait(Some(_))));
        }
    }

    #[test]
    fn a_request_that_came_and_went_between_two_reports_is_told() {
        let mut push = opened(false);
        assert_eq!(push.step(activity(false, 6), ms(10)), Step::Say(true));
        assert_eq!(push.step(activity(false, 6), ms(11)), Step::Wait(Some(ms(210))));
        assert_eq!(push.step(activity(false, 7), ms(100)), Step::Wait(Some(ms(300))));
        assert_eq!(push.step(activity(false, 7), ms(300)), Step::Say(false));
        assert_eq!(push.step(activity(false, 7), ms(301)), Step::Wait(None));
    }

    #[test]
    fn true_is_repeated_less_and_less_often_while_active() {
        let mut push = opened(true);
        let mut said = Vec::new();
        let mut now = ms(0);
        while now < Duration::from_secs(130) {
            match push.step(activity(true, 5), now) {
                Step::Say(active) => said.push((active, now.as_secs())),
                Step::Wait(Some(due)) => now = due,
                Step::Wait(None) => panic!("an active subject has a repetition due"),
            }
        }
        assert_eq!(said, [2, 6, 14, 30, 60, 90, 120].map(|at| (true, at)));
    }

    #[test]
    fn a_rate_that_runs_out_is_noticed_when_it_does() {
        let mut push = opened(true);
        let fading = Activity { active: true, arrived: 5, quiet_at: Some(ms(700)), ..Activity::default() };
        assert_eq!(push.step(fading, ms(1)), Step::Wait(Some(ms(700))));
        assert_eq!(push.step(activity(false, 5), ms(700)), Step::Say(false));
    }

    #[test]
    fn a_total_that_began_anew_is_no_request() {
        let mut push = opened(false);
        assert_eq!(push.step(activity(false, 0), ms(1)), Step::Wait(None));
        assert_eq!(push.step(activity(false, 1), ms(2)), Step::Say(true));
    }
}
