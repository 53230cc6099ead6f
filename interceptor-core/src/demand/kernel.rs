//! What kernels counted of connections to a route's pods, summed over sources. Written by [`super::Demand`].

use std::time::Duration;

/// One source's counters of one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Connections ever opened.
    pub opened: u64,
    /// Connections ever closed.
    pub closed: u64,
    /// Connections that never came about.
    pub failed: u64,
    /// Smoothed round-trip time of the last connection that had one; zero if none had.
    pub srtt: Duration,
}

/// The counters of all sources. The counts of sources that have left stay in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelSum {
    /// Connections seen to open; never goes down.
    pub opened: u64,
    /// Connections seen to close; never goes down.
    pub closed: u64,
    /// Connections seen to fail; never goes down.
    pub failed: u64,
    /// Connections open now, of sources that are still listed.
    pub open: u64,
    srtt: Duration,
    timed: u32,
}

// === impl KernelSum ===

impl KernelSum {
    /// The mean of the sources' round-trip times; `None` if no source has one.
    pub fn srtt(&self) -> Option<Duration> {
        self.srtt.checked_div(self.timed)
    }

    /// A source's counters grew from `base` to `now`; what fell adds nothing.
    pub(super) fn observe(&mut self, base: Option<Kernel>, now: Option<Kernel>) {
        let Some(now) = now else { return };
        let base = base.unwrap_or_default();
        self.opened = self.opened.saturating_add(now.opened.saturating_sub(base.opened));
        self.closed = self.closed.saturating_add(now.closed.saturating_sub(base.closed));
        self.failed = self.failed.saturating_add(now.failed.saturating_sub(base.failed));
        self.open = self.open.saturating_add(now.open());
        self.srtt = self.srtt.saturating_add(now.srtt);
        self.timed += u32::from(!now.srtt.is_zero());
    }

    /// What a source said last stands no more.
    pub(super) fn withdraw(&mut self, last: Option<Kernel>) {
        let Some(last) = last else { return };
        self.open = self.open.saturating_sub(last.open());
        self.srtt = self.srtt.saturating_sub(last.srtt);
        self.timed -= u32::from(!last.srtt.is_zero());
    }
}

// === impl Kernel ===

impl Kernel {
    fn open(&self) -> u64 {
        self.opened.saturating_sub(self.closed)
    }
}
