//! Which pods to start and which to stop, from what runs and what is asked for.

use std::{cmp::Reverse, sync::Arc};

/// A pod as this decision sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: Arc<str>,
    /// Greater for younger pods.
    pub number: u64,
    /// Whether it was made from the template as it is now.
    pub fresh: bool,
    /// Whether it gets requests.
    pub ready: bool,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many pods to start.
    pub start: usize,
    /// Which to stop.
    pub stop: Vec<Arc<str>>,
}

/// Compares the pods that were not asked to end with `desired`.
///
/// Pods of an older template go only as new ones become ready, so that an edit never makes a workload unavailable.
pub fn plan(pods: &[Seen], desired: usize) -> Plan {
    let (mut fresh, mut stale): (Vec<&Seen>, Vec<&Seen>) = pods.iter().partition(|pod| pod.fresh);
    let start = desired.saturating_sub(fresh.len());
    let ready = fresh.iter().filter(|pod| pod.ready).count();
    let mut stop = surplus(&mut fresh, desired);
    stop.extend(surplus(&mut stale, desired.saturating_sub(ready)));
    Plan { start, stop }
}

/// All but `keep`: first those that are not ready, then the youngest.
fn surplus(pods: &mut [&Seen], keep: usize) -> Vec<Arc<str>> {
    pods.sort_by_key(|pod| (pod.ready, Reverse(pod.number)));
    let excess = pods.len().saturating_sub(keep);
    pods.iter().take(excess).map(|pod| Arc::clone(&pod.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u64, fresh: bool, ready: bool) -> Seen {
        Seen { name: number.to_string().into(), number, fresh, ready }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.stop.iter().map(AsRef::as_ref).collect()
    }

    #[test]
    fn missing_pods_are_started() {
        assert_eq!(plan(&[pod(1, true, true)], 3), Plan { start: 2, stop: Vec::new() });
    }

    #[test]
    fn surplus_pods_go_unready_ones_first_then_the_youngest() {
        let pods = [pod(1, true, true), pod(2, true, false), pod(3, true, true), pod(4, true, true)];
        assert_eq!(names(&plan(&pods, 2)), ["2", "4"]);
        assert_eq!(plan(&pods, 0).stop.len(), 4);
    }

    #[test]
    fn pods_of_an_old_template_go_as_new_ones_become_ready() {
        let old = [pod(1, false, true), pod(2, false, true)];
        assert_eq!(plan(&old, 2), Plan { start: 2, stop: Vec::new() });
        let half = [pod(1, false, true), pod(2, false, true), pod(3, true, true), pod(4, true, false)];
        assert_eq!(names(&plan(&half, 2)), ["2"]);
        let done = [pod(1, false, true), pod(3, true, true), pod(4, true, true)];
        assert_eq!(names(&plan(&done, 2)), ["1"]);
    }
}
