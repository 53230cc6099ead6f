//! What one call of the kernel adds to a slot's counters.

/// What is to be added. Flags, because most calls add nothing and none adds much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Some of the flags.
    pub flags: u32,
    /// How many requests started, where it is not one.
    pub started: u32,
    /// How many requests ended, where it is not one.
    pub ended: u32,
    /// Of those that started, how many were counted before: requests that have come from another slot.
    pub undone: u32,
    /// What is added to the time that requests were outstanding; wraps, since a start subtracts and an end adds.
    pub busy_ns: u64,
    /// Time from the request's beginning to its answer's; meaningful with [`Moved::FIRST_BYTE`].
    pub first_byte_ns: u64,
}

impl Moved {
    /// A socket bears a slot.
    pub const TAGGED: Self = Self { flags: 1, started: 0, ended: 0, undone: 0, busy_ns: 0, first_byte_ns: 0 };
    /// Nothing.
    pub const NOTHING: Self = Self { flags: 0, started: 0, ended: 0, undone: 0, busy_ns: 0, first_byte_ns: 0 };
    /// The socket bears it no more.
    pub const RELEASED: u32 = 2;
    /// A connection opened.
    pub const OPENED: u32 = 4;
    /// It closed.
    pub const CLOSED: u32 = 8;
    /// It closed with a request that had no answer.
    pub const FAILED: u32 = 16;
    /// One request started. Where its beginning was not seen, it ends at once and takes no time.
    pub const STARTED: u32 = 32;
    /// One request ended.
    pub const ENDED: u32 = 64;
    /// A request that was counted was none.
    pub const UNDONE: u32 = 128;
    /// One more connection moves bytes in this span of time.
    pub const MOVING: u32 = 256;
    /// An answer began.
    pub const FIRST_BYTE: u32 = 512;

    /// Whether `flag` is among what is to be added.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    #[inline(always)]
    pub(crate) const fn add(&mut self, flag: u32) {
        self.flags |= flag;
    }

    /// So many requests start now.
    #[inline(always)]
    pub const fn start(&mut self, count: u32, now_ns: u64) {
        self.started += count;
        self.busy_ns = self.busy_ns.wrapping_sub(now_ns.wrapping_mul(count as u64));
    }

    /// So many requests end now.
    #[inline(always)]
    pub const fn end(&mut self, count: u32, now_ns: u64) {
        self.ended += count;
        self.busy_ns = self.busy_ns.wrapping_add(now_ns.wrapping_mul(count as u64));
    }

    #[inline(always)]
    pub(crate) const fn first_byte(&mut self, begun_ns: u64, now_ns: u64) {
        self.flags |= Self::FIRST_BYTE;
        self.first_byte_ns = now_ns.wrapping_sub(begun_ns);
    }

    /// Whether there is nothing to add.
    #[inline(always)]
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.flags == 0 && self.started == 0 && self.ended == 0 && self.undone == 0 && self.busy_ns == 0
    }

    /// All requests that started.
    #[inline(always)]
    #[must_use]
    pub const fn starts(&self) -> u32 {
        self.started + self.has(Self::STARTED) as u32
    }

    /// All requests that ended.
    #[inline(always)]
    #[must_use]
    pub const fn ends(&self) -> u32 {
        self.ended + self.has(Self::ENDED) as u32
    }

    /// All requests that were counted and are not to be.
    #[inline(always)]
    #[must_use]
    pub const fn undos(&self) -> u32 {
        self.undone + self.has(Self::UNDONE) as u32
    }
}
