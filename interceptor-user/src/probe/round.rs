//! One Service's starting pods, asked again and again until they answer or the round is dropped.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    future::Future,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use interceptor_core::{ObjectKey, probe::Probe};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    Pod, ask,
    metrics::{Outcome, ProbeMetrics},
};

/// Pods of one Service that are asked at the same time; the others take their turns.
const MAX_AT_ONCE: usize = 16;

/// Pauses between two probes of a pod, evenly spread: so that many interceptors do not ask in step.
const LEAST_PAUSE: Duration = Duration::from_millis(10);
const MORE_PAUSE_MICROS: u64 = 15_000;
/// The same when pods begin to listen, however often they do.
const LISTENS_PAUSE: Duration = Duration::from_millis(1);
/// The same while a pod takes no connection, which costs little: a part of the time that it has taken none, and no less than
/// lets all rounds together ask two thousand pods a second.
const REFUSED_PART: u32 = 200;
const REFUSED_PAUSE: Duration = Duration::from_micros(500);

/// A round.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) service: ObjectKey,
    pub(super) probe: Arc<Probe>,
    pub(super) pods: watch::Receiver<BTreeSet<IpAddr>>,
    /// Told when one of them may have begun to listen.
    pub(super) listens: Arc<Notify>,
    pub(super) answers: mpsc::Sender<Pod>,
    pub(super) limit: Arc<Semaphore>,
    /// How many rounds there are, this one included.
    pub(super) rounds: Arc<AtomicUsize>,
    pub(super) metrics: ProbeMetrics,
}

/// How far the pods have come. Pure.
#[derive(Debug, Default)]
struct Progress {
    /// Successes in a row.
    successes: BTreeMap<IpAddr, u32>,
    asked: HashSet<IpAddr>,
    /// The last that was asked: the next turn begins behind it.
    last: Option<IpAddr>,
}

// === impl Round ===

impl Round {
    /// Runs until nobody listens; dropped, all its probes end.
    pub(super) async fn run(self) {
        let probe = Arc::clone(&self.probe);
        self.run_with(move |pod| {
            let probe = Arc::clone(&probe);
            async move { ask::ask(pod, &probe).await }
        })
        .await;
    }

    /// Runs with another way to ask.
    pub(super) async fn run_with<F: Future<Output = Outcome>>(mut self, ask: impl Fn(IpAddr) -> F) {
        let noise = RandomState::new();
        let mut progress = Progress::default();
        let mut asked = FuturesUnordered::new();
        let mut next = Instant::now();
        let mut last = None;
        // Since when pods have refused, without any other answer.
        let mut refused: Option<Instant> = None;
        // Who was being asked when a pod began to listen may have been asked too early.
        let mut once_more = false;
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    let now = Instant::now();
                    last = Some(now);
                    next = now + LEAST_PAUSE + Duration::from_micros(noise.hash_one(now) % MORE_PAUSE_MICROS);
                    let room = MAX_AT_ONCE.saturating_sub(asked.len());
                    let turn = progress.turn(&self.pods.borrow(), room);
                    for pod in turn {
                        let Ok(permit) = Arc::clone(&self.limit).try_acquire_owned() else {
                            self.metrics.skipped();
                            progress.skipped(pod);
                            continue;
                        };
                        let answer = ask(pod);
                        asked.push(async move {
                            let outcome = answer.await;
                            drop(permit);
                            (pod, outcome)
                        });
                    }
                }
                Some((pod, outcome)) = asked.next() => {
                    self.metrics.probed(outcome);
                    let is_ready = progress.answered(pod, outcome, self.probe.successes);
                    if is_ready && self.answers.send((self.service.clone(), pod)).await.is_err() {
                        return;
                    }
                    if !is_ready && std::mem::take(&mut once_more) {
                        next = soon(last);
                    }
                    let now = Instant::now();
                    refused = (outcome == Outcome::Refused).then(|| refused.unwrap_or(now));
                    if let (Some(since), Some(last)) = (refused, last) {
                        let rounds = u32::try_from(self.rounds.load(Relaxed)).unwrap_or(u32::MAX);
                        next = next.min(last + again(now - since, self.pods.borrow().len(), rounds));
                    }
                }
                () = self.listens.notified() => {
                    once_more = !asked.is_empty();
                    next = soon(last);
                }
                changed = self.pods.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    progress.keep(&self.pods.borrow_and_update());
                    // A pod that has just been listed is asked at once.
                    next = Instant::now();
                }
            }
        }
    }
}

/// The pause when pods refuse, and have for so long.
fn again(refused: Duration, pods: usize, rounds: u32) -> Duration {
    let at_once = u32::try_from(pods.min(MAX_AT_ONCE)).unwrap_or(u32::MAX);
    (refused / REFUSED_PART).max(REFUSED_PAUSE.saturating_mul(at_once.saturating_mul(rounds)))
}

/// At once, but for a pause since the last time.
fn soon(last: Option<Instant>) -> Instant {
    let now = Instant::now();
    last.map_or(now, |last| now.max(last + LISTENS_PAUSE))
}

// === impl Progress ===

impl Progress {
    /// Whose turn it is: those that are not being asked, in a circle, as many as there is room for.
    fn turn(&mut self, pods: &BTreeSet<IpAddr>, room: usize) -> Vec<IpAddr> {
        let (before, behind): (Vec<IpAddr>, Vec<IpAddr>) = pods.iter().partition(|pod| Some(**pod) <= self.last);
        let circle = behind.into_iter().chain(before).filter(|pod| !self.asked.contains(pod));
        let turn: Vec<_> = circle.take(room).collect();
        self.last = turn.last().copied().or(self.last);
        self.asked.extend(&turn);
        turn
    }

    fn skipped(&mut self, pod: IpAddr) {
        self.asked.remove(&pod);
    }

    /// Whether that makes the pod ready.
    fn answered(&mut self, pod: IpAddr, outcome: Outcome, wanted: u32) -> bool {
        self.asked.remove(&pod);
        if outcome != Outcome::Ready {
            self.successes.remove(&pod);
            return false;
        }
        let successes = self.successes.entry(pod).or_default();
        *successes = successes.saturating_add(1);
        *successes >= wanted
    }

    fn keep(&mut self, pods: &BTreeSet<IpAddr>) {
        self.successes.retain(|pod, _| pods.contains(pod));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(last: impl IntoIterator<Item = u8>) -> BTreeSet<IpAddr> {
        last.into_iter().map(pod).collect()
    }

    fn pod(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn pods_take_turns_and_none_is_asked_twice_at_once() {
        let mut progress = Progress::default();
        let pods = pods(1..=5);
        assert_eq!(progress.turn(&pods, 2), [pod(1), pod(2)]);
        assert_eq!(progress.turn(&pods, 2), [pod(3), pod(4)]);
        progress.answered(pod(1), Outcome::Refused, 1);
        assert_eq!(progress.turn(&pods, 9), [pod(5), pod(1)]);
        assert!(progress.turn(&pods, 9).is_empty());
    }

    /// When a pod of a Service alone is asked until it is ready, by how it answers the first time, the second, and so on.
    async fn asked<F: Future<Output = Outcome>>(
        listens: Arc<Notify>,
        rounds: usize,
        answer: impl Fn(usize) -> F,
    ) -> Vec<Instant> {
        let (_keep, receiver) = watch::channel(pods([1]));
        let (answers, mut answered) = mpsc::channel(1);
        let action = interceptor_core::probe::Action::Tcp(1);
        let second = Duration::from_secs(1);
        let probe = Probe { action, timeout: second, period: second, initial_delay: second, successes: 1, failures: 1 };
        let round = Round {
            service: ObjectKey::new("shop", "web"),
            probe: Arc::new(probe),
            pods: receiver,
            listens,
            answers,
            limit: Arc::new(Semaphore::new(1)),
            rounds: Arc::new(AtomicUsize::new(rounds)),
            metrics: ProbeMetrics::default(),
        };
        let times = std::cell::RefCell::new(Vec::new());
        let ask = |_pod| {
            times.borrow_mut().push(Instant::now());
            answer(times.borrow().len())
        };
        tokio::select! {
            () = round.run_with(ask) => panic!("it goes on while it is listened to"),
            pod_ready = answered.recv() => assert_eq!(pod_ready.unwrap().1, pod(1)),
        }
        times.into_inner()
    }

    fn pauses(times: &[Instant]) -> Vec<Duration> {
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_not_ready_is_asked_every_ten_to_twenty_five_milliseconds() {
        let times =
            asked(Arc::default(), 1, |nth| async move { if nth < 20 { Outcome::Unready } else { Outcome::Ready } })
                .await;
        assert_eq!(times.len(), 20);
        // A timer of tokio's is exact to a millisecond.
        let allowed = Duration::from_millis(10)..=Duration::from_millis(26);
        assert!(pauses(&times).iter().all(|pause| allowed.contains(pause)), "{:?}", pauses(&times));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_refuses_is_asked_after_a_part_of_the_time_that_it_has() {
        let outcome = |nth| async move { if nth < 600 { Outcome::Refused } else { Outcome::Ready } };
        let times = asked(Arc::default(), 1, outcome).await;
        for (pause, at) in pauses(&times).into_iter().zip(&times[1..]) {
            let most = ((*at - times[0]) / REFUSED_PART + Duration::from_millis(2)).min(Duration::from_millis(26));
            assert!(pause <= most, "{pause:?} after {:?}", *at - times[0]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_refuse_are_asked_less_often_the_more_rounds_there_are() {
        let outcome = |nth| async move { if nth < 20 { Outcome::Refused } else { Outcome::Ready } };
        let times = asked(Arc::default(), 16, outcome).await;
        let allowed = Duration::from_millis(8)..=Duration::from_millis(10);
        assert!(pauses(&times).iter().all(|pause| allowed.contains(pause)), "{:?}", pauses(&times));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_begins_to_listen_is_asked_at_once_and_again_if_it_was_just_being_asked() {
        let listens = Arc::new(Notify::new());
        let answer = |nth| {
            let listens = Arc::clone(&listens);
            async move {
                match nth {
                    1 => listens.notify_one(),
                    2 => {
                        listens.notify_one();
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                    _ => return Outcome::Ready,
                }
                Outcome::Unready
            }
        };
        let began = Instant::now();
        let times = asked(Arc::clone(&listens), 1, answer).await;
        assert_eq!(times.len(), 3);
        assert!(began.elapsed() < LEAST_PAUSE, "{:?}", began.elapsed());
    }

    #[test]
    fn a_pod_is_ready_after_as_many_successes_in_a_row_as_its_probe_wants() {
        let mut progress = Progress::default();
        let outcomes = [Outcome::Ready, Outcome::Unready, Outcome::Ready, Outcome::Ready];
        let ready = outcomes.map(|outcome| progress.answered(pod(1), outcome, 2));
        assert_eq!(ready, [false, false, false, true]);
    }
}
