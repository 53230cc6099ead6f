//! The HorizontalPodAutoscaler's arithmetic: metrics to a number of replicas, within bounds, windows and policies.
//!
//! Written after kube-controller-manager's `podautoscaler`, so that what is seen here is what a cluster would do.
//! `now` is the time since the process began; nothing here reads a clock.

use std::{cmp::Ordering, collections::VecDeque, time::Duration};

/// How far the ratio of value to target may be off before anything is done (`--horizontal-pod-autoscaler-tolerance`).
pub const TOLERANCE: f64 = 0.1;

/// Bounds what is remembered per autoscaler; at one decision a second this is the longest window Kubernetes allows.
const MAX_MEMORY: usize = 3600;

/// One metric as the scaler reports it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Sum of the values.
    pub value: f64,
    /// What the value is compared with; greater than zero.
    pub target: f64,
    /// Whether the target is meant per replica.
    pub kind: TargetKind,
}

/// A trigger's `metricType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetKind {
    /// The target is a share per replica: `ceil(value / target)` replicas.
    #[default]
    AverageValue,
    /// The target is for the whole: replicas grow by the ratio of value to target.
    Value,
}

/// Fewest and most replicas; the autoscaler is never asked for fewer than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At least one.
    pub min: u32,
    /// At least `min`.
    pub max: u32,
}

/// `behavior` of a HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behavior {
    /// Rules for growing.
    pub up: Rules,
    /// Rules for shrinking.
    pub down: Rules,
}

/// One direction of [`Behavior`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Growing takes the lowest, shrinking the highest recommendation of this time.
    pub stabilization: Duration,
    /// Which policy counts.
    pub select: Select,
    /// How much may change in how long.
    pub policies: Vec<Policy>,
}

/// `selectPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The policy that allows the greatest change.
    Max,
    /// The policy that allows the least change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// One entry of `policies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How much.
    pub change: Change,
    /// In how long.
    pub period: Duration,
}

/// A policy's `type` and `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A number of replicas.
    Pods(u32),
    /// Percent of the replicas that there were at the start of the period.
    Percent(u32),
}

/// What one autoscaler remembers between decisions.
#[derive(Debug, Default)]
pub struct Hpa {
    recommendations: VecDeque<(Duration, u32)>,
    /// Replicas added (positive) and removed (negative), and when.
    changes: VecDeque<(Duration, i64)>,
}

/// What the autoscaler sees at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// Replicas that are asked for now; zero switches the autoscaler off.
    pub current: u32,
    /// Of them, those that are ready.
    pub ready: u32,
    /// One entry a metric; `None` where the scaler gave no value.
    pub metrics: &'a [Option<Metric>],
    /// Fewest and most.
    pub bounds: Bounds,
}

// === impl Behavior ===

impl Default for Behavior {
    fn default() -> Self {
        let period = Duration::from_secs(15);
        let percent = Policy { change: Change::Percent(100), period };
        Self {
            up: Rules {
                stabilization: Duration::ZERO,
                select: Select::Max,
                policies: vec![Policy { change: Change::Pods(4), period }, percent],
            },
            down: Rules { stabilization: Duration::from_mins(5), select: Select::Max, policies: vec![percent] },
        }
    }
}

// === impl Change ===

impl Change {
    fn of(self, start: u32) -> u32 {
        match self {
            Self::Pods(pods) => pods,
            Self::Percent(percent) => count(f64::from(start) * f64::from(percent) / 100.0),
        }
    }
}

// === impl Hpa ===

impl Hpa {
    /// The number of replicas to ask for at `now`, or `None` when no decision is possible.
    pub fn decide(&mut self, now: Duration, seen: Observation<'_>, behavior: &Behavior) -> Option<u32> {
        if seen.current == 0 {
            return None;
        }
        if seen.current > seen.bounds.max || seen.current < seen.bounds.min {
            return Some(self.record(now, seen.current, seen.current.clamp(seen.bounds.min, seen.bounds.max)));
        }
        let proposal = proposal(&seen)?;
        let stable = self.stabilize(now, seen.current, proposal, behavior);
        let limited = self.limit(now, seen.current, stable, behavior);
        Some(self.record(now, seen.current, limited.clamp(seen.bounds.min, seen.bounds.max)))
    }

    fn stabilize(&mut self, now: Duration, current: u32, proposal: u32, behavior: &Behavior) -> u32 {
        let (mut up, mut down) = (proposal, proposal);
        for &(at, recommended) in &self.recommendations {
            if within(now, at, behavior.up.stabilization) {
                up = up.min(recommended);
            }
            if within(now, at, behavior.down.stabilization) {
                down = down.max(recommended);
            }
        }
        let longest = behavior.up.stabilization.max(behavior.down.stabilization);
        self.recommendations.retain(|&(at, _)| within(now, at, longest));
        if self.recommendations.len() == MAX_MEMORY {
            self.recommendations.pop_front();
        }
        self.recommendations.push_back((now, proposal));
        current.clamp(up, down)
    }

    fn limit(&self, now: Duration, current: u32, desired: u32, behavior: &Behavior) -> u32 {
        match desired.cmp(&current) {
            Ordering::Equal => current,
            Ordering::Greater => {
                let (low, high) = self.allowed(now, current, &behavior.up, u32::saturating_add);
                let limit = match behavior.up.select {
                    Select::Disabled => current,
                    Select::Max => high,
                    Select::Min => low,
                };
                desired.min(limit.max(current))
            }
            Ordering::Less => {
                let (low, high) = self.allowed(now, current, &behavior.down, u32::saturating_sub);
                let limit = match behavior.down.select {
                    Select::Disabled => current,
                    Select::Max => low,
                    Select::Min => high,
                };
                desired.max(limit.min(current))
            }
        }
    }

    /// The lowest and the highest number of replicas that the policies allow.
    fn allowed(&self, now: Duration, current: u32, rules: &Rules, move_by: fn(u32, u32) -> u32) -> (u32, u32) {
        let allowed = rules.policies.iter().map(|policy| {
            let recent = self.changes.iter().filter(|(at, _)| within(now, *at, policy.period));
            let changed: i64 = recent.map(|(_, change)| change).sum();
            let start = u32::try_from(i64::from(current) - changed).unwrap_or(0);
            move_by(start, policy.change.of(start))
        });
        allowed.map(|n| (n, n)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((current, current))
    }

    fn record(&mut self, now: Duration, from: u32, to: u32) -> u32 {
        if from != to {
            if self.changes.len() == MAX_MEMORY {
                self.changes.pop_front();
            }
            self.changes.push_back((now, i64::from(to) - i64::from(from)));
        }
        to
    }
}

/// The greatest number that any metric asks for. A metric without a value forbids shrinking, all of them a decision.
fn proposal(seen: &Observation<'_>) -> Option<u32> {
    let wanted = seen.metrics.iter().flatten().map(|metric| replicas_for(metric, seen.current, seen.ready)).max()?;
    if seen.metrics.iter().any(Option::is_none) && wanted < seen.current { None } else { Some(wanted) }
}

fn replicas_for(metric: &Metric, current: u32, ready: u32) -> u32 {
    match metric.kind {
        TargetKind::AverageValue => {
            let ratio = metric.value / (metric.target * f64::from(current));
            if (1.0 - ratio).abs() <= TOLERANCE { current } else { count(metric.value / metric.target) }
        }
        TargetKind::Value => {
            let ratio = metric.value / metric.target;
            if (1.0 - ratio).abs() <= TOLERANCE { current } else { count(ratio * f64::from(ready)) }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate, and NaN is zero")]
fn count(replicas: f64) -> u32 {
    replicas.ceil() as u32
}

fn within(now: Duration, at: Duration, window: Duration) -> bool {
    now.saturating_sub(at) < window
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: 1, max: 10 };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn average(value: f64, target: f64) -> [Option<Metric>; 1] {
        [Some(Metric { value, target, kind: TargetKind::AverageValue })]
    }

    fn seen(current: u32, metrics: &[Option<Metric>]) -> Observation<'_> {
        Observation { current, ready: current, metrics, bounds: BOUNDS }
    }

    fn prompt() -> Behavior {
        let mut behavior = Behavior::default();
        behavior.down.stabilization = Duration::ZERO;
        behavior
    }

    #[test]
    fn replicas_are_the_sum_divided_by_the_target_rounded_up() {
        let mut hpa = Hpa::default();
        assert_eq!(hpa.decide(at(0), seen(1, &average(7.0, 2.0)), &prompt()), Some(4));
        assert_eq!(hpa.decide(at(20), seen(4, &average(4.0, 2.0)), &prompt()), Some(2));
    }

    #[test]
    fn a_ratio_within_the_tolerance_changes_nothing() {
        let mut hpa = Hpa::default();
        assert_eq!(hpa.decide(at(0), seen(3, &average(6.5, 2.0)), &prompt()), Some(3));
        assert_eq!(hpa.decide(at(1), seen(3, &average(5.5, 2.0)), &prompt()), Some(3));
        assert_eq!(hpa.decide(at(2), seen(3, &average(6.7, 2.0)), &prompt()), Some(4));
    }

    #[test]
    fn the_total_kind_grows_the_ready_replicas_by_the_ratio() {
        let metrics = [Some(Metric { value: 30.0, target: 10.0, kind: TargetKind::Value })];
        assert_eq!(Hpa::default().decide(at(0), seen(2, &metrics), &prompt()), Some(6));
    }

    #[test]
    fn the_bounds_hold_and_zero_replicas_switch_it_off() {
        let mut hpa = Hpa::default();
        assert_eq!(hpa.decide(at(0), seen(8, &average(100.0, 1.0)), &prompt()), Some(10));
        assert_eq!(hpa.decide(at(60), seen(2, &average(0.0, 1.0)), &prompt()), Some(1));
        assert_eq!(hpa.decide(at(61), seen(0, &average(9.0, 1.0)), &prompt()), None);
        assert_eq!(hpa.decide(at(62), seen(14, &average(1.0, 1.0)), &prompt()), Some(10), "max was lowered");
    }

    #[test]
    fn growth_is_limited_to_four_replicas_or_double_in_fifteen_seconds() {
        let mut hpa = Hpa::default();
        let behavior = Behavior::default();
        assert_eq!(hpa.decide(at(0), seen(1, &average(10.0, 1.0)), &behavior), Some(5));
        assert_eq!(hpa.decide(at(1), seen(5, &average(10.0, 1.0)), &behavior), Some(5), "the period is not over");
        assert_eq!(hpa.decide(at(15), seen(5, &average(10.0, 1.0)), &behavior), Some(10));
    }

    #[test]
    fn shrinking_waits_until_the_highest_recommendation_of_the_window_is_old() {
        let mut hpa = Hpa::default();
        let mut behavior = Behavior::default();
        behavior.down.stabilization = at(3);
        assert_eq!(hpa.decide(at(10), seen(4, &average(4.0, 1.0)), &behavior), Some(4));
        assert_eq!(hpa.decide(at(11), seen(4, &average(0.0, 1.0)), &behavior), Some(4));
        assert_eq!(hpa.decide(at(12), seen(4, &average(2.0, 1.0)), &behavior), Some(4));
        assert_eq!(hpa.decide(at(13), seen(4, &average(0.0, 1.0)), &behavior), Some(2));
        assert_eq!(hpa.decide(at(16), seen(2, &average(0.0, 1.0)), &behavior), Some(1));
    }

    #[test]
    fn a_disabled_direction_does_not_move() {
        let mut behavior = prompt();
        behavior.down.select = Select::Disabled;
        assert_eq!(Hpa::default().decide(at(0), seen(4, &average(0.0, 1.0)), &behavior), Some(4));
    }

    #[test]
    fn the_least_policy_is_taken_when_asked_for() {
        let mut behavior = prompt();
        behavior.down.select = Select::Min;
        behavior.down.policies = vec![
            Policy { change: Change::Pods(1), period: at(1) },
            Policy { change: Change::Percent(50), period: at(1) },
        ];
        assert_eq!(Hpa::default().decide(at(5), seen(6, &average(0.0, 1.0)), &behavior), Some(5));
    }

    #[test]
    fn a_metric_without_a_value_forbids_shrinking_but_not_growing() {
        let mut hpa = Hpa::default();
        let down = [average(0.0, 1.0)[0], None];
        assert_eq!(hpa.decide(at(0), seen(4, &down), &prompt()), None);
        let up = [average(6.0, 1.0)[0], None];
        assert_eq!(hpa.decide(at(1), seen(4, &up), &prompt()), Some(6));
        assert_eq!(hpa.decide(at(2), seen(4, &[None]), &prompt()), None);
    }

    #[test]
    fn absurd_values_are_bounded() {
        let mut hpa = Hpa::default();
        for value in [f64::INFINITY, 1e300] {
            assert_eq!(hpa.decide(at(0), seen(9, &average(value, 1.0)), &prompt()), Some(10));
        }
        assert_eq!(Hpa::default().decide(at(0), seen(2, &average(f64::NAN, 1.0)), &prompt()), Some(1));
    }
}
