//! Requests of HTTP/2 in clear: walks the headers of frames (RFC 9113 §4.1) through the segments of both directions, and
//! keeps which streams are open. Pure; the programs lend it a way to load bytes.
//!
//! What the server sends is seen in order. What the client sends is seen as it arrives: a segment that overtakes another
//! leaves a gap, after which the walk goes on where a segment begins with a plausible header. Stream identifiers only grow,
//! so a later one tells how many were missed, and an answer to an unseen one reveals it.

use crate::http1::HEAD;

/// Bytes of a frame's header.
pub const HEADER: u32 = 9;
/// Bytes of the client's preface, which comes before its first frame.
pub const PREFACE: u32 = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// How many streams are told apart by a bit each; those that are further apart share one.
const BITS: u32 = 1024;
/// How many of those that share a bit with an older one that is still open are kept by name.
const ASIDE: usize = 4;
/// How many streams that were missed are still kept as open; of more, the older ones count as ended.
const MISSED: u32 = 16;
/// How far identifiers may leap for a header after a gap to be plausible.
const LEAP: u32 = 1 << 16;

/// Where one direction's walk stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Walk {
    /// Sequence number of the next byte to look at: the next header's, or, within one, the first that is missing.
    pub next: u32,
    /// How many bytes of a header were at the end of the last segment.
    pub have: u32,
    /// Whether something was missed since the last stream began.
    pub blind: u32,
    /// Always zero.
    pub reserved: u32,
    /// Those bytes.
    pub part: [u8; HEAD],
}

/// What is kept of a connection's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Streams {
    /// The client's direction.
    pub rx: Walk,
    /// The server's.
    pub tx: Walk,
    /// The highest stream that the client has begun.
    pub last: u32,
    /// How many are open.
    pub open: u32,
    /// Which are, by identifier: those that share their bit with an older one.
    pub aside: [u32; ASIDE],
    /// Which are, a bit each.
    pub bits: [u32; (BITS / 32) as usize],
    /// How many of them are not counted for a slot yet: those that began in a segment that is being looked at, less those that ended in it.
    pub uncounted: u32,
    /// Always zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Walk>() == 32);
const _: () = assert!(size_of::<Streams>() == 224);

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Length of what follows.
    pub len: u32,
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
}

/// How many requests a frame starts and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Starts.
    pub started: u32,
    /// Ends.
    pub ended: u32,
}

/// Where in a segment a walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nowhere: what it has was seen before, or belongs to a frame's content, or cannot be made out.
    Skip,
    /// At this offset.
    At(u32),
}

/// A segment's bytes, as the walk needs them.
pub trait Bytes {
    /// Loads `take` bytes at `at` of the segment to `have` of `part`; false if that fails. `have + take` is at most
    /// [`HEADER`], and neither is negative.
    fn load(&self, at: u32, part: &mut [u8; HEAD], have: u32, take: u32) -> bool;
}

// === impl Frame ===

impl Frame {
    /// A header's nine bytes.
    #[inline(always)]
    #[must_use]
    pub const fn parse(head: &[u8; HEAD]) -> Self {
        Self {
            len: u32::from_be_bytes([0, head[0], head[1], head[2]]),
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
        }
    }

    /// Whether a client that has begun stream `last` may send this.
    #[inline(always)]
    const fn is_plausible(&self, last: u32) -> bool {
        let Self { len, kind, flags, stream } = *self;
        if len > 1 << 20 || stream > last.saturating_add(LEAP) {
            return false;
        }
        let odd = stream & 1 == 1;
        match kind {
            0 => odd && flags & !0x9 == 0,
            1 => odd && flags & !0x2d == 0 && len > 0,
            2 => odd && len == 5 && flags == 0,
            3 => odd && len == 4 && flags == 0,
            4 => stream == 0 && len.is_multiple_of(6) && flags & !1 == 0,
            6 => stream == 0 && len == 8 && flags & !1 == 0,
            7 => stream == 0 && len >= 8 && flags == 0,
            8 => len == 4 && flags == 0 && (odd || stream == 0),
            9 => odd && flags & !4 == 0,
            _ => false,
        }
    }
}

// === impl Walk ===

impl Walk {
    /// Where the walk goes on in a segment of `len` bytes at `seq` that begins with `head`.
    #[inline(always)]
    pub fn enter(&mut self, seq: u32, len: u32, head: &[u8; HEAD], last: u32) -> Entry {
        let ahead = self.next.wrapping_sub(seq);
        if (ahead as i32) < 0 {
            self.blind = 1;
            if len < HEADER || !Frame::parse(head).is_plausible(last) {
                return Entry::Skip;
            }
            self.have = 0;
            return Entry::At(0);
        }
        if ahead < len { Entry::At(ahead) } else { Entry::Skip }
    }

    /// Reads the header at `pos` and moves `pos` to the next one; `None` when the segment has none that is whole. Whoever
    /// calls it tells [`Walk::leave`] in the end.
    #[inline(always)]
    pub fn step(&mut self, pos: &mut u32, len: u32, bytes: &impl Bytes) -> Option<Frame> {
        let have = self.have & 15;
        if *pos >= len || have >= HEADER {
            return None;
        }
        let left = len - *pos;
        let missing = HEADER - have;
        let take = if left < missing { left } else { missing };
        if !bytes.load(*pos, &mut self.part, have, take) {
            return None;
        }
        *pos += take;
        if take < missing {
            self.have = have + take;
            return None;
        }
        self.have = 0;
        let frame = Frame::parse(&self.part);
        *pos += frame.len;
        Some(frame)
    }

    /// The segment at `seq` was looked at up to `pos`.
    #[inline(always)]
    pub const fn leave(&mut self, seq: u32, pos: u32) {
        self.next = seq.wrapping_add(pos);
    }
}

// === impl Streams ===

impl Streams {
    /// A connection on which the client's first frame is at `rx` and the server's at `tx`.
    #[inline(always)]
    pub fn begin(&mut self, rx: u32, tx: u32) {
        self.rx.next = rx;
        self.tx.next = tx;
    }

    /// How many are open and counted.
    #[inline(always)]
    #[must_use]
    pub const fn counted(&self) -> u32 {
        self.open.wrapping_sub(self.uncounted)
    }

    /// A frame has changed so much, which is counted when the whole segment has been looked at.
    #[inline(always)]
    pub const fn count_later(&mut self, change: Change) {
        self.uncounted = self.uncounted.wrapping_add(change.started).wrapping_sub(change.ended);
    }

    /// All of a segment's changes are counted now.
    #[inline(always)]
    pub const fn count_now(&mut self, all: Change) {
        self.uncounted = self.uncounted.wrapping_sub(all.started).wrapping_add(all.ended);
    }

    /// Whether a client's frame begins a stream.
    #[inline(always)]
    #[must_use]
    pub const fn begins(&self, frame: &Frame) -> bool {
        frame.kind == HEADERS && frame.stream & 1 == 1 && frame.stream > self.last
    }

    /// The client sent a frame. Whether a stream that begins now `counts`, the caller knows.
    #[inline(always)]
    pub fn client(&mut self, frame: Frame, counts: bool) -> Change {
        match frame.kind {
            HEADERS if self.begins(&frame) => {
                let missed = if self.rx.blind == 0 { 0 } else { self.missed(frame.stream) };
                self.rx.blind = 0;
                if !counts {
                    self.last = frame.stream;
                    return Change::default();
                }
                self.start(frame.stream, missed)
            }
            RST_STREAM => self.end(frame.stream),
            _ => Change::default(),
        }
    }

    /// The server sent a frame.
    #[inline(always)]
    pub fn server(&mut self, frame: Frame) -> Change {
        let Frame { len: _, kind, flags, stream } = frame;
        let ends = match kind {
            HEADERS | DATA => flags & END_STREAM != 0,
            RST_STREAM => true,
            _ => return Change::default(),
        };
        let mut change = Change::default();
        if stream & 1 == 1 && stream > self.last && self.rx.blind != 0 {
            change = self.start(stream, self.missed(stream));
        }
        if ends {
            change.ended += self.end(stream).ended;
        }
        change
    }

    /// How many streams before this one were not seen to begin.
    #[inline(always)]
    fn missed(&self, stream: u32) -> u32 {
        (stream - self.last).div_ceil(2) - 1
    }

    #[inline(always)]
    fn start(&mut self, stream: u32, missed: u32) -> Change {
        let kept = if missed < MISSED { missed } else { MISSED };
        let mut change = Change { started: missed + 1, ended: missed - kept };
        // Their bits follow one another, in at most two words. Neither a branch nor a loop: the verifier would follow every
        // combination, and, without CAP_PERFMON, more rounds than there are.
        let first = (stream >> 1).wrapping_sub(kept) & (BITS - 1);
        let (word, next) = ((first >> 5) as usize & 31, ((first >> 5) + 1) as usize & 31);
        let mask = ((1_u64 << (kept & 31)) - 1) << (first & 31);
        let before = u64::from(self.bits[word]) | u64::from(self.bits[next]) << 32;
        let after = before | mask;
        self.bits[word] = after as u32;
        self.bits[next] = (after >> 32) as u32;
        self.open += (mask & !before).count_ones();
        change.ended += (mask & before).count_ones();
        // Where it can't be kept, its end can't be known.
        change.ended += u32::from(!self.keep(stream));
        self.last = stream;
        change
    }

    /// Marks a stream as open; false if there is no room.
    #[inline(always)]
    fn keep(&mut self, stream: u32) -> bool {
        let (word, bit) = place(stream);
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.open += 1;
            return true;
        }
        let mut at = 0;
        while at < ASIDE {
            if self.aside[at] == 0 {
                self.aside[at] = stream;
                self.open += 1;
                return true;
            }
            at += 1;
        }
        false
    }

    #[inline(always)]
    fn end(&mut self, stream: u32) -> Change {
        if stream & 1 == 0 || stream > self.last {
            return Change::default();
        }
        let mut at = 0;
        let mut found = false;
        while at < ASIDE {
            if self.aside[at] == stream {
                self.aside[at] = 0;
                found = true;
            }
            at += 1;
        }
        let (word, bit) = place(stream);
        if !found && self.bits[word] & bit != 0 {
            self.bits[word] &= !bit;
            found = true;
        }
        if found {
            self.open = self.open.wrapping_sub(1);
        }
        Change { started: 0, ended: u32::from(found) }
    }
}

/// A stream's word and bit.
#[inline(always)]
const fn place(stream: u32) -> (usize, u32) {
    let at = (stream >> 1) & (BITS - 1);
    ((at >> 5) as usize & 31, 1 << (at & 31))
}

#[cfg(test)]
mod tests;
