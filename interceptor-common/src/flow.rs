//! The life of one accepted connection: what is kept with its socket, and what each segment of it adds to the counters.
//! Pure, so that every rule is tested on the host; the programs load bytes, take the lock, and carry out what is said.
//!
//! A request begins when a client that waits for nothing sends a method's word (HTTP/1), application data (TLS), or a new
//! stream's headers (HTTP/2, see [`crate::http2`]); it has been answered when the server's next head, data or end of stream
//! goes out. Sequence numbers tell new bytes from repeated ones. Any other protocol has no requests: its connection counts
//! as one while bytes move.

use crate::http2;

mod change;
mod moved;
mod says;

pub use self::{moved::Moved, says::Says};

/// The kernel's lock on a map's value; the kernel knows it by this name in the type information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct bpf_spin_lock {
    /// The kernel's.
    pub val: u32,
}

/// What is kept in the storage of a socket of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Held while the rest is looked at or changed: both directions of a connection may be handled at the same time.
    pub lock: bpf_spin_lock,
    /// The slot whose counters it moves.
    pub slot: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// A [`Phase`].
    pub phase: u32,
    /// Some of [`Trait`].
    pub traits: u32,
    /// Sequence number of the client's first byte that can be seen.
    pub rx_first: u32,
    /// Sequence number at which the last request began.
    pub rx_begun: u32,
    /// Sequence number after the server's last byte.
    pub tx_next: u32,
    /// The last span of time in which it was counted as one that moves bytes; see [`span`].
    pub span: u32,
    /// Of which version of the list of addresses its slot is, or that it has none.
    pub version: u32,
    /// When the last request began, nanoseconds of `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// When its answer began.
    pub answered_ns: u64,
    /// When the last byte of the answer was seen.
    pub sent_ns: u64,
}

const _: () = assert!(size_of::<Flow>() == 64);

/// What a connection speaks; a number, because it crosses into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kind;

/// How far a connection's request has come; a number likewise.
#[derive(Clone, Copy, Debug)]
pub struct Phase;

/// What else is known of a connection; bits.
#[derive(Clone, Copy, Debug)]
pub struct Trait;

/// One segment's payload, as far as it is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Sequence number of its first byte.
    pub seq: u32,
    /// How many bytes it has; never zero.
    pub len: u32,
    /// What it says; some of [`Says`].
    pub says: u32,
}

impl Kind {
    /// The client has said nothing yet.
    pub const UNKNOWN: u32 = 0;
    /// Nothing of it counts: a probe, or a connection that has ended.
    pub const IGNORED: u32 = 1;
    /// HTTP/1.0 or HTTP/1.1.
    pub const HTTP1: u32 = 2;
    /// TLS, with whatever is in it.
    pub const TLS: u32 = 3;
    /// HTTP/2 in clear.
    pub const HTTP2: u32 = 4;
    /// Any other protocol.
    pub const OTHER: u32 = 5;
}

impl Phase {
    /// No request is outstanding.
    pub const IDLE: u32 = 0;
    /// A request has begun, and no answer has.
    pub const WAITING: u32 = 1;
    /// The answer has begun; where it ends is not known.
    pub const ANSWERING: u32 = 2;
    /// It has turned into another protocol and counts as one request until it is closed.
    pub const SWITCHED: u32 = 3;
}

impl Trait {
    /// `opened` was counted.
    pub const OPEN: u32 = 1;
    /// The client is this machine, and may be the kubelet with a probe: counted only once it has shown that it is not.
    pub const HOST: u32 = 2;
    /// It had sent what may have been a probe.
    pub const ASKED: u32 = 4;
    /// It is older than the programs: seen in the middle of something.
    pub const ADOPTED: u32 = 8;
    /// Its first bytes came with the handshake, where they can't be seen.
    pub const UNSEEN: u32 = 16;
    /// A byte of a protocol without requests was seen.
    pub const SPOKE: u32 = 32;
    /// Its address was none of ours.
    pub const FOREIGN: u32 = 64;
    /// The client's TLS handshake has ended.
    pub const SHAKEN: u32 = 128;
}

/// The span of time that an instant is in. Spans have 2³⁰ ns, 1.07 s.
#[inline(always)]
#[must_use]
pub const fn span(now_ns: u64) -> u32 {
    (now_ns >> 30) as u32
}

/// How long after its beginning an answer counts as one that goes on: from here on it is counted once in each [`span`] in
/// which it moves bytes. 2²⁷ ns, 0.13 s.
const LONG_NS: u64 = 1 << 27;

// === impl Flow ===

impl Flow {
    /// A connection that has just been accepted: `rx_first` and `tx_next` are where its bytes begin, and `unseen` of the
    /// client's came with the handshake.
    #[inline(always)]
    pub fn accept(
        &mut self,
        slot: u32,
        host: bool,
        (rx_first, unseen): (u32, u32),
        tx_next: u32,
        now_ns: u64,
    ) -> Moved {
        let mut moved = Moved::TAGGED;
        self.slot = slot;
        self.kind = Kind::UNKNOWN;
        self.phase = Phase::IDLE;
        self.traits = 0;
        self.rx_first = rx_first.wrapping_add(unseen);
        self.rx_begun = rx_first.wrapping_sub(1);
        self.tx_next = tx_next;
        self.span = 0;
        if host {
            self.traits = Trait::HOST;
        } else {
            self.traits = Trait::OPEN;
            moved.add(Moved::OPENED);
        }
        if unseen > 0 {
            self.traits |= Trait::UNSEEN;
            // What comes with the handshake can't be told from a probe. Of this machine it is taken for one.
            if !host {
                self.begin(rx_first, now_ns, &mut moved);
            }
        }
        moved
    }

    /// A connection that is older than the programs, at the first segment that is seen of it.
    #[inline(always)]
    pub fn adopt(&mut self, slot: u32, host: bool, rx_first: u32, tx_next: u32) -> Moved {
        let mut moved = self.accept(slot, host, (rx_first, 0), tx_next, 0);
        self.traits |= Trait::ADOPTED | Trait::SHAKEN;
        if host {
            // Probes are over within a second: one that has lasted is none. What this costs is one request.
            self.traits |= Trait::OPEN;
            moved.add(Moved::OPENED);
        }
        moved
    }

    /// The client sent a segment.
    #[inline(always)]
    pub fn received(&mut self, segment: &Segment, now_ns: u64) -> Moved {
        let mut moved = Moved::NOTHING;
        if self.kind == Kind::UNKNOWN {
            self.classify(segment);
        }
        match self.kind {
            Kind::HTTP1 if segment.says & Says::REQUEST != 0 => self.begin_at(segment.seq, now_ns, &mut moved),
            Kind::TLS => {
                if segment.says & Says::DONE != 0 {
                    self.traits |= Trait::SHAKEN;
                }
                if segment.says & Says::DATA != 0 {
                    self.begin_at(segment.seq, now_ns, &mut moved);
                }
            }
            Kind::OTHER => self.moves(now_ns, &mut moved),
            Kind::UNKNOWN if self.traits & Trait::ADOPTED != 0 => self.moves(now_ns, &mut moved),
            _ => {}
        }
        moved
    }

    /// The server sent a segment.
    #[inline(always)]
    pub fn sent(&mut self, segment: &Segment, now_ns: u64) -> Moved {
        let mut moved = Moved::NOTHING;
        // A repeated segment may begin with old bytes and end with new ones.
        let new = !before(segment.seq, self.tx_next);
        let end = segment.seq.wrapping_add(segment.len);
        if before(self.tx_next, end) {
            self.tx_next = end;
        }
        if !new {
            return moved;
        }
        if self.kind == Kind::UNKNOWN {
            self.classify_by_answer(segment, now_ns, &mut moved);
        }
        match self.kind {
            Kind::HTTP1 => self.status(segment.says, now_ns, &mut moved),
            Kind::TLS => match self.phase {
                Phase::WAITING if segment.says & Says::DATA != 0 => self.answer(now_ns, &mut moved),
                Phase::ANSWERING => self.goes_on(now_ns, &mut moved),
                _ => {}
            },
            Kind::OTHER => self.moves(now_ns, &mut moved),
            Kind::UNKNOWN if self.traits & Trait::ADOPTED != 0 => self.moves(now_ns, &mut moved),
            _ => {}
        }
        moved
    }

    /// The connection has ended, with so many of its HTTP/2 streams open.
    #[inline(always)]
    pub fn closed(&mut self, streams: u32, now_ns: u64) -> Moved {
        let mut moved = Moved::NOTHING;
        if self.traits & Trait::OPEN != 0 {
            moved.add(Moved::CLOSED);
        }
        let outstanding = self.outstanding(streams);
        if outstanding > 0 {
            if self.phase != Phase::SWITCHED {
                moved.add(Moved::FAILED);
            }
            moved.end(outstanding, now_ns);
        }
        if self.slot != 0 {
            moved.add(Moved::RELEASED);
        }
        self.kind = Kind::IGNORED;
        self.phase = Phase::IDLE;
        self.traits = 0;
        self.slot = 0;
        moved
    }

    /// Sequence number of the client's first frame of HTTP/2.
    #[inline(always)]
    #[must_use]
    pub const fn first_frame(&self) -> u32 {
        // What came with the handshake was the preface, and whole frames.
        if self.traits & Trait::UNSEEN != 0 { self.rx_first } else { self.rx_first.wrapping_add(http2::PREFACE) }
    }

    /// The socket's address is none of ours, as the list of this version has it.
    #[inline(always)]
    pub const fn foreign(&mut self, version: u32) {
        self.kind = Kind::IGNORED;
        self.traits = Trait::FOREIGN;
        self.version = version;
    }

    /// Whether it may have become ours, or another slot's, by this version of the list.
    #[inline(always)]
    #[must_use]
    pub const fn is_outdated(&self, version: u32) -> bool {
        self.version != version && (self.slot != 0 || self.traits & Trait::FOREIGN != 0)
    }

    /// A stream of HTTP/2 has begun; says whether it counts. The first request of this machine may be a probe.
    #[inline(always)]
    pub fn streams(&mut self, moved: &mut Moved) -> bool {
        if self.traits & (Trait::HOST | Trait::OPEN) == Trait::HOST {
            if self.traits & Trait::ASKED == 0 {
                self.traits |= Trait::ASKED;
                return false;
            }
            self.traits |= Trait::OPEN;
            moved.add(Moved::OPENED);
        }
        true
    }

    /// Nobody counts the streams of this connection of HTTP/2: it counts as one of any other protocol. This machine's may be the
    /// kubelet's, whose probes nothing tells from requests then, and count as nothing.
    #[inline(always)]
    pub fn without_streams(&mut self, now_ns: u64) -> Moved {
        let mut moved = Moved::NOTHING;
        if self.traits & (Trait::HOST | Trait::OPEN) == Trait::HOST {
            self.kind = Kind::IGNORED;
        } else {
            self.kind = Kind::OTHER;
            self.moves(now_ns, &mut moved);
        }
        moved
    }

    #[inline(always)]
    fn classify(&mut self, segment: &Segment) {
        // What can be seen goes on with what can't; the answer decides.
        if self.traits & Trait::UNSEEN != 0 {
            return;
        }
        let adopted = self.traits & Trait::ADOPTED != 0;
        // A segment that has overtaken the first one says nothing.
        if segment.seq != self.rx_first && !adopted {
            return;
        }
        self.kind = if segment.says & Says::REQUEST != 0 {
            if segment.says & Says::PROBE != 0 { Kind::IGNORED } else { Kind::HTTP1 }
        } else if segment.says & Says::RECORD != 0 {
            if segment.says & Says::PROBE != 0 { Kind::IGNORED } else { Kind::TLS }
        } else if adopted {
            Kind::UNKNOWN
        } else if segment.says & Says::PREFACE != 0 {
            if segment.says & Says::PROBE != 0 { Kind::IGNORED } else { Kind::HTTP2 }
        } else {
            Kind::OTHER
        };
    }

    #[inline(always)]
    fn classify_by_answer(&mut self, segment: &Segment, now_ns: u64, moved: &mut Moved) {
        let http1 = segment.says & Says::ANSWER != 0;
        if self.traits & Trait::UNSEEN != 0 {
            if http1 {
                self.kind = Kind::HTTP1;
                return;
            }
            // What came with the handshake was no request of HTTP/1.
            if self.phase == Phase::WAITING {
                self.phase = Phase::IDLE;
                moved.end(1, now_ns);
                moved.add(Moved::UNDONE);
            }
            self.kind = if segment.says & Says::RECORD != 0 {
                Kind::TLS
            } else if segment.says & Says::SETTINGS != 0 {
                Kind::HTTP2
            } else {
                Kind::OTHER
            };
        } else if self.traits & Trait::ADOPTED == 0 {
            // The server speaks first, as many servers of HTTP/2 do.
            self.kind = if segment.says & Says::SETTINGS != 0 { Kind::HTTP2 } else { Kind::OTHER };
        } else if http1 {
            self.kind = Kind::HTTP1;
        }
    }

    #[inline(always)]
    fn status(&mut self, says: u32, now_ns: u64, moved: &mut Moved) {
        let says = says & (Says::ANSWER | Says::INTERIM | Says::SWITCHING);
        if says == Says::ANSWER | Says::SWITCHING && self.phase == Phase::WAITING {
            moved.first_byte(self.begun_ns, now_ns);
            self.phase = Phase::SWITCHED;
        }
        match (says, self.phase) {
            (Says::ANSWER, Phase::WAITING) => self.answer(now_ns, moved),
            // The request's head was not seen: it came behind the end of a body in one segment.
            (Says::ANSWER, Phase::IDLE | Phase::ANSWERING)
                if self.traits & (Trait::HOST | Trait::OPEN) != Trait::HOST =>
            {
                moved.add(Moved::STARTED);
                moved.add(Moved::ENDED);
                self.phase = Phase::ANSWERING;
                self.answered_ns = now_ns;
                self.sent_ns = now_ns;
            }
            (0, Phase::ANSWERING) => self.goes_on(now_ns, moved),
            _ => {}
        }
    }

    /// A request begins here, unless one is outstanding or this was seen before.
    #[inline(always)]
    fn begin_at(&mut self, seq: u32, now_ns: u64, moved: &mut Moved) {
        if self.phase != Phase::IDLE && self.phase != Phase::ANSWERING {
            return;
        }
        if !before(self.rx_begun, seq) {
            return;
        }
        if self.traits & (Trait::HOST | Trait::OPEN) == Trait::HOST {
            // A probe in clear is known by its name; of one in TLS only the second request tells that it is none.
            if self.kind == Kind::TLS && self.traits & Trait::ASKED == 0 {
                self.traits |= Trait::ASKED;
                self.rx_begun = seq;
                return;
            }
            self.traits |= Trait::OPEN;
            moved.add(Moved::OPENED);
        }
        self.begin(seq, now_ns, moved);
    }

    #[inline(always)]
    fn begin(&mut self, seq: u32, now_ns: u64, moved: &mut Moved) {
        self.phase = Phase::WAITING;
        self.rx_begun = seq;
        self.begun_ns = now_ns;
        moved.start(1, now_ns);
    }

    #[inline(always)]
    fn answer(&mut self, now_ns: u64, moved: &mut Moved) {
        self.phase = Phase::ANSWERING;
        self.answered_ns = now_ns;
        self.sent_ns = now_ns;
        moved.end(1, now_ns);
        moved.first_byte(self.begun_ns, now_ns);
    }

    /// More of an answer: a short one's time is added, a long one counts in each span of time in which it moves bytes.
    #[inline(always)]
    fn goes_on(&mut self, now_ns: u64, moved: &mut Moved) {
        if now_ns.wrapping_sub(self.answered_ns) < LONG_NS {
            moved.busy_ns = moved.busy_ns.wrapping_add(now_ns.wrapping_sub(self.sent_ns));
            self.sent_ns = now_ns;
        } else if self.span != span(now_ns) {
            self.span = span(now_ns);
            moved.add(Moved::MOVING);
        }
    }

    /// Bytes of a protocol without requests.
    #[inline(always)]
    fn moves(&mut self, now_ns: u64, moved: &mut Moved) {
        if self.traits & Trait::SPOKE == 0 {
            self.traits |= Trait::SPOKE;
            // The connection itself is what there is to count.
            moved.add(Moved::STARTED);
            moved.add(Moved::ENDED);
            if self.traits & Trait::OPEN == 0 {
                self.traits |= Trait::OPEN;
                moved.add(Moved::OPENED);
            }
        }
        if self.span != span(now_ns) {
            self.span = span(now_ns);
            moved.add(Moved::MOVING);
        }
    }
}

/// Whether sequence number `a` comes before `b` (RFC 9293 §3.4).
#[inline(always)]
#[must_use]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests;
