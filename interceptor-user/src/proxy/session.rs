//! Clients that stay with a pod: by a cookie, where the route asks for it, or by their address, where the Service does.
//!
//! A cookie tells the pod itself, so interceptors remember nothing. Addresses are remembered by the process; a client that
//! is not known goes where all interceptors would send it.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use foldhash::quality::RandomState;
use interceptor_core::{UpstreamId, route::Session};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::h1::fields::{Fields, Known};

/// How many clients are remembered. One more is not, as long as none of the others has been silent for too long.
const MAX_CLIENTS: usize = 64 * 1024;

/// How often a part that is full is looked through for clients that have been silent for too long: it takes the time of
/// thousands of entries, under its lock.
const SWEEP: Duration = Duration::from_secs(1);

/// Workers share the memory in parts, so that they seldom wait for each other.
const SHARDS: usize = 16;

/// Which pod a request is to go to, if it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// None, unless the Service asks for the client's.
    Any(IpAddr),
    /// The one of its cookie.
    Pod(PodId),
}

/// A pod in a cookie: the same at every interceptor, and nobody else learns a name or an address from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodId(u64);

/// The clients of Services that ask for it, with their pods.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    stays: HashMap<(UpstreamId, IpAddr), Stay, RandomState>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Stay {
    pod: SocketAddr,
    until: Instant,
}

// === impl PodId ===

impl PodId {
    pub(crate) fn of(addr: SocketAddr, pod: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        // The address too: a pod of a StatefulSet has its name again after it was replaced, and not its sessions.
        hash.update(pod.unwrap_or_default());
        hash.update(addr.to_string());
        let hash = hash.finalize();
        Self(u64::from_be_bytes(std::array::from_fn(|at| hash[at])))
    }
}

/// The pod that a request's cookie names, unless the session is older than the route allows.
pub(crate) fn pod_of(session: &Session, fields: &Fields, now: SystemTime) -> Option<PodId> {
    let cookies = fields.iter().filter(|field| fields.name(field).eq_ignore_ascii_case(b"cookie"));
    let pairs = cookies.flat_map(|field| fields.value(field).split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?.trim();
        pair.split_once('=').filter(|(name, _)| *name == &*session.cookie).map(|(_, value)| value)
    });
    values.find_map(|value| {
        let (pod, issued) = value.split_once('.')?;
        let issued = UNIX_EPOCH.checked_add(Duration::from_secs(issued.parse().ok()?))?;
        let is_over = |lifetime| now.duration_since(issued).is_ok_and(|age| age >= lifetime);
        let pod = u64::from_str_radix(pod, 16).ok().filter(|_| pod.len() == 16)?;
        (!session.lifetime.is_some_and(is_over)).then_some(PodId(pod))
    })
}

/// The cookie that keeps a client at `pod` from `now` on.
pub(crate) fn cookie(session: &Session, pod: PodId, is_secure: bool, now: SystemTime) -> String {
    let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{}={:016x}.{issued}; Path=/; HttpOnly; SameSite=Lax{secure}", session.cookie, pod.0)
}

/// Whether the client came by HTTPS, here or at a proxy before.
pub(crate) fn is_secure(encrypted: bool, fields: &Fields) -> bool {
    encrypted || fields.first(Known::ForwardedProto).is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"))
}

/// The client that a proxy before has seen: the last of `X-Forwarded-For`.
pub(crate) fn last_address(chain: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(chain).ok()?.rsplit(',').next()?.trim().parse().ok()
}

/// Where a client that is not known goes: the same at every interceptor of one version, and for most clients also when pods come and go
/// (rendezvous hashing: Thaler and Ravishankar, 1998).
pub(crate) fn first_pod(client: IpAddr, pods: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    let weight = |pod: &SocketAddr| {
        // Not seeded, so that all of one version agree.
        let mut hasher = DefaultHasher::new();
        (client, pod).hash(&mut hasher);
        hasher.finish()
    };
    pods.max_by_key(weight)
}

// === impl Clients ===

impl Clients {
    /// The pod that a client has, if it is remembered.
    pub(crate) fn pod(&self, upstream: UpstreamId, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        let stay = self.shard(client).lock().stays.get(&(upstream, client)).copied()?;
        (now < stay.until).then_some(stay.pod)
    }

    /// Remembers it until `until`. `false` when there is no room.
    pub(crate) fn keep(
        &self,
        upstream: UpstreamId,
        client: IpAddr,
        pod: SocketAddr,
        (now, until): (Instant, Instant),
    ) -> bool {
        let mut shard = self.shard(client).lock();
        if shard.is_full() && !shard.stays.contains_key(&(upstream, client)) {
            shard.sweep(now);
            if shard.is_full() {
                return false;
            }
        }
        shard.stays.insert((upstream, client), Stay { pod, until });
        true
    }

    fn shard(&self, client: IpAddr) -> &Mutex<Shard> {
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        &self.shards[usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()]
    }
}

// === impl Shard ===

impl Shard {
    fn is_full(&self) -> bool {
        self.stays.len() >= MAX_CLIENTS / SHARDS
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
            self.swept = Some(now);
            self.stays.retain(|_, stay| now < stay.until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(lifetime: Option<u64>) -> Session {
        Session { cookie: "s".into(), lifetime: lifetime.map(Duration::from_secs) }
    }

    fn id(address: &str, pod: Option<&str>) -> PodId {
        PodId::of(address.parse().unwrap(), pod)
    }

    fn asked(cookies: &[&str]) -> Fields {
        Fields::from_pairs(cookies.iter().map(|cookie| ("Cookie", cookie.as_bytes())))
    }

    const NOW: Duration = Duration::from_secs(1_000_000);

    #[test]
    fn a_cookie_leads_back_to_its_pod() {
        let pod = id("10.0.0.1:80", Some("a"));
        assert_ne!(pod, id("10.0.0.2:80", Some("a")));
        assert_ne!(pod, id("10.0.0.1:80", None));
        let text = cookie(&session(None), pod, false, UNIX_EPOCH + NOW);
        let (value, rest) = text.split_once(';').unwrap();
        assert_eq!(rest, " Path=/; HttpOnly; SameSite=Lax");
        assert!(value.ends_with(".1000000"), "{value}");
        for cookies in [&[value][..], &["other=1", value], &[&format!("a=b; {value};c=d")]] {
            assert_eq!(pod_of(&session(None), &asked(cookies), UNIX_EPOCH + NOW), Some(pod), "{cookies:?}");
        }
        assert!(cookie(&session(None), pod, true, UNIX_EPOCH + NOW).ends_with("; Secure"));
    }

    #[test]
    fn a_cookie_that_is_none_of_ours_or_too_old_leads_nowhere() {
        let pod = "0123456789abcdef";
        for value in ["", "x", pod, "0123.5", "0123456789abcdeg.5", "0123456789abcdef.", "0123456789abcdef.-1"] {
            assert_eq!(pod_of(&session(None), &asked(&[&format!("s={value}")]), UNIX_EPOCH + NOW), None, "{value}");
        }
        let issued = |at: u64| asked(&[&format!("s={pod}.{at}")]);
        let at = UNIX_EPOCH + NOW;
        assert!(pod_of(&session(Some(10)), &issued(999_991), at).is_some());
        assert!(pod_of(&session(Some(10)), &issued(999_990), at).is_none());
        assert!(pod_of(&session(None), &issued(u64::MAX), at).is_none(), "no time is that late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_remembered_until_it_has_been_silent_for_too_long() {
        let (clients, client, pod) = (Clients::default(), IpAddr::from([192, 0, 2, 1]), "10.0.0.1:80".parse().unwrap());
        let now = Instant::now();
        let until = now + Duration::from_secs(10);
        assert!(clients.keep(UpstreamId(0), client, pod, (now, until)));
        assert_eq!(clients.pod(UpstreamId(0), client, now), Some(pod));
        assert_eq!(clients.pod(UpstreamId(1), client, now), None);
        assert_eq!(clients.pod(UpstreamId(0), client, until), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_clients_are_remembered_than_there_is_room_for() {
        let (clients, pod, now) = (Clients::default(), "10.0.0.1:80".parse().unwrap(), Instant::now());
        let until = now + Duration::from_secs(10);
        let client = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let kept = (0..2 * 65_536).filter(|number| clients.keep(UpstreamId(0), client(*number), pod, (now, until)));
        assert_eq!(kept.count(), MAX_CLIENTS);
        assert!(
            clients.keep(UpstreamId(0), client(900_000), pod, (until, until + Duration::from_secs(1))),
            "the others have gone"
        );
    }

    #[test]
    fn clients_are_spread_and_keep_their_pod_when_another_goes() {
        let pods: Vec<SocketAddr> = (1..5).map(|n| SocketAddr::from(([10, 0, 0, n], 80))).collect();
        let mut counts = HashMap::<_, usize>::new();
        for number in 0..1000_u16 {
            let client = IpAddr::from([192, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
            let first = first_pod(client, pods.iter().copied()).unwrap();
            *counts.entry(first).or_default() += 1;
            let gone = pods[0];
            if first != gone {
                assert_eq!(first_pod(client, pods[1..].iter().copied()), Some(first));
            }
        }
        assert!(pods.iter().all(|pod| counts[pod] > 150), "{counts:?}");
    }
}
