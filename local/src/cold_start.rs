//! Where a cold start's time went: the interceptor's own times, and between them what the autoscaler and the kubelet did.

use std::fmt;

use interceptor_core::ObjectKey;
use serde::Serialize;

use crate::{
    state::ColdStart,
    timeline::{Entry, Event},
};

/// The parts of one cold start, in microseconds. They add up to the time from the request's arrival to the first byte
/// of its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phases {
    /// Arrival → the scaler's message is here.
    pub signal: u64,
    /// → replicas are asked for.
    pub decision: u64,
    /// → the pod's process runs.
    pub start: u64,
    /// → its probe succeeded and the interceptor knows the endpoint.
    pub ready: u64,
    /// → the first byte of the response.
    pub forward: u64,
}

/// Explains `cold` by what happened to the ScaledObject and the Deployment behind its route.
///
/// A request that joins a wake under way has waited only for what was left of it: phases that were over are zero.
pub fn explain(cold: &ColdStart, entries: &[Entry], scaled: &ObjectKey, workload: &ObjectKey) -> Phases {
    let before = |entry: &&Entry| entry.at <= cold.endpoint_seen;
    let woken = entries
        .iter()
        .filter(before)
        .rfind(|entry| matches!(&entry.event, Event::Scaled { workload: of, from: 0, .. } if of == workload));
    let signal = woken.and_then(|woken| {
        let earlier = entries.iter().filter(|entry| entry.number < woken.number);
        earlier.rev().find(|entry| matches!(&entry.event, Event::Signal { scaled: of } if of == scaled))
    });
    let started = woken.and_then(|woken| {
        let later = entries.iter().filter(before).filter(|entry| entry.number > woken.number);
        later.into_iter().find(|entry| matches!(&entry.event, Event::PodStarted(pod) if pod.workload == *workload))
    });
    let decided_at = woken.map_or(cold.arrived, |entry| entry.at);
    // Without a signal, polling noticed it: all the time until the decision was spent on noticing.
    let signal_at = signal.filter(|entry| entry.at >= cold.arrived).map_or(decided_at, |entry| entry.at);
    let started_at = started.map_or(decided_at, |entry| entry.at);
    let mut last = cold.arrived;
    let mut until = |at: u64| {
        let at = at.clamp(last, cold.first_byte.max(last));
        let spent = at - last;
        last = at;
        spent
    };
    Phases {
        signal: until(signal_at),
        decision: until(decided_at),
        start: until(started_at),
        ready: until(cold.endpoint_seen),
        forward: until(cold.first_byte),
    }
}

// === impl Phases ===

impl Phases {
    /// Names and durations, in order.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        let Self { signal, decision, start, ready, forward } = *self;
        [
            ("signal to scaler", signal),
            ("scale decision", decision),
            ("process start", start),
            ("ready", ready),
            ("forward", forward),
        ]
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, micros)| micros).sum()
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} =", millis(self.total()))?;
        for (index, (name, micros)) in self.parts().into_iter().enumerate() {
            write!(f, "{} {name} {}", if index == 0 { "" } else { " ·" }, millis(micros))?;
        }
        Ok(())
    }
}

/// Microseconds as people like to read them.
pub fn millis(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        10_000..1_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{}.{:02} s", micros / 1_000_000, micros % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Actor, Pod};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn log(events: Vec<(u64, Event)>) -> Vec<Entry> {
        let entry = |(number, (at, event))| Entry { at, number, event };
        (0..).zip(events).map(entry).collect()
    }

    fn wake(from: u64) -> Vec<(u64, Event)> {
        let pod = Pod { workload: key("app"), name: "app-1".into() };
        let scaled = |to, from| Event::Scaled { workload: key("app"), from, to, by: Actor::Keda, why: String::new() };
        vec![
            (from + 2, Event::Signal { scaled: key("so") }),
            (from + 5, scaled(1, 0)),
            (from + 9, Event::PodStarted(pod.clone())),
            (from + 400, Event::PodReady(pod)),
        ]
    }

    fn cold(arrived: u64) -> ColdStart {
        ColdStart { arrived, endpoint_seen: 1410, connected: 1412, first_byte: 1420, ..ColdStart::default() }
    }

    #[test]
    fn the_time_from_arrival_to_first_byte_is_split_at_what_happened() {
        let phases = explain(&cold(1000), &log(wake(1000)), &key("so"), &key("app"));
        assert_eq!(phases, Phases { signal: 2, decision: 3, start: 4, ready: 401, forward: 10 });
        assert_eq!(phases.total(), 420);
    }

    #[test]
    fn a_request_that_joins_a_wake_has_waited_only_for_the_rest() {
        let phases = explain(&cold(1100), &log(wake(1000)), &key("so"), &key("app"));
        assert_eq!(phases, Phases { ready: 310, forward: 10, ..Phases::default() });
    }

    #[test]
    fn an_earlier_wake_and_other_workloads_do_not_count() {
        let mut events = wake(10);
        events.extend(wake(1000));
        let phases = explain(&cold(1000), &log(events.clone()), &key("so"), &key("app"));
        assert_eq!(phases.signal, 2);
        let phases = explain(&cold(1000), &log(events), &key("other"), &key("other"));
        assert_eq!(phases, Phases { ready: 410, forward: 10, ..Phases::default() });
    }

    #[test]
    fn without_a_signal_the_poll_took_the_time() {
        let events = wake(1000).into_iter().skip(1).collect();
        let phases = explain(&cold(1000), &log(events), &key("so"), &key("app"));
        assert_eq!((phases.signal, phases.decision, phases.total()), (5, 0, 420));
    }

    #[test]
    fn times_are_written_for_people() {
        for (micros, text) in [(7, "7 µs"), (1_250, "1.2 ms"), (48_900, "48 ms"), (1_046_000, "1.04 s")] {
            assert_eq!(millis(micros), text);
        }
    }
}
