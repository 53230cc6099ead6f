//! Every map, and the only code that touches their memory.
//!
//! | map | key → value | written by | read by | capacity | when full |
//! |---|---|---|---|---|---|
//! | `FRONTENDS` | address that clients connect to → index of its Service | agent | ingress | `FRONTENDS_MOST`, twice what the agent plans with, so that it may add before it removes | the agent leaves the one Service out that did not fit, and says so |
//! | `SERVICES` | index → heat | agent | ingress | `SERVICES_MOST` | likewise |
//! | `TRIED` | flow whose first packet was sent on → 0 | agent; egress removes | egress | `TRIED_MOST` | the flow is not sent on now, but when there is room |
//! | `WITHDRAWN` | flow whose entry the agent is taking away → 0 | agent | egress | `WITHDRAWN_MOST`, one at a time | cannot be |
//! | `SEEN` | ring buffer of what was seen | both | agent | 1 MiB, 5,461 records | the packet is dropped untold, the client sends another; `STATS` counts it |
//! | `ALIVE` | 0 → the agent's last sign of life, `CLOCK_MONOTONIC` in nanoseconds | agent | both | 1 | cannot be |
//! | `STATS` | 0 → counters, per CPU | both | agent | 1 | cannot be |
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
    programs::TcContext,
};
use interceptor_common::{
    AddrKey,
    hold::{Flow, HEARTBEAT_NS, HoldStats, Seen, ServiceSlot, What},
};

use crate::segment;

const FRONTENDS_MOST: u32 = 131_072;
const SERVICES_MOST: u32 = 65_536;
const TRIED_MOST: u32 = 65_536;
const WITHDRAWN_MOST: u32 = 16;
const SEEN_BYTES: u32 = 1 << 20;
/// Ethernet, IPv4 and TCP without options.
const SHORTEST: u32 = 54;

#[map]
static FRONTENDS: HashMap<AddrKey, u32> = HashMap::with_max_entries(FRONTENDS_MOST, BPF_F_NO_PREALLOC);
#[map]
static SERVICES: Array<ServiceSlot> = Array::with_max_entries(SERVICES_MOST, 0);
#[map]
static TRIED: HashMap<Flow, u32> = HashMap::with_max_entries(TRIED_MOST, BPF_F_NO_PREALLOC);
#[map]
static WITHDRAWN: HashMap<Flow, u32> = HashMap::with_max_entries(WITHDRAWN_MOST, BPF_F_NO_PREALLOC);
#[map]
static SEEN: RingBuf = RingBuf::with_byte_size(SEEN_BYTES, 0);
#[map]
static ALIVE: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static STATS: PerCpuArray<HoldStats> = PerCpuArray::with_max_entries(1, 0);

/// The heat of the Service that clients reach at an address, if it is one of ours.
#[inline(always)]
pub(crate) fn heat(destination: &AddrKey) -> Option<u32> {
    // SAFETY: values are single aligned words that user space replaces whole.
    let service = unsafe { FRONTENDS.get(destination) }.copied()?;
    SERVICES.get(service).map(|slot| slot.heat)
}

/// Whether the flow's first packet was sent on and nobody has answered yet.
#[inline(always)]
pub(crate) fn is_tried(flow: &Flow) -> bool {
    // SAFETY: only whether there is a value is asked.
    unsafe { TRIED.get(flow) }.is_some()
}

/// Whether the flow is not tried any more by this: not if the agent, or another CPU, was sooner.
#[inline(always)]
pub(crate) fn tried_no_more(flow: &Flow) -> bool {
    TRIED.remove(flow).is_ok()
}

/// Whether the agent is taking the flow's entry away.
#[inline(always)]
pub(crate) fn is_withdrawn(flow: &Flow) -> bool {
    // SAFETY: only whether there is a value is asked.
    unsafe { WITHDRAWN.get(flow) }.is_some()
}

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: only reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub(crate) fn heartbeat_ns() -> u64 {
    ALIVE.get(0).copied().unwrap_or(0)
}

/// Whether the agent has given a sign of life lately.
#[inline(always)]
pub(crate) fn is_alive() -> bool {
    now_ns().saturating_sub(heartbeat_ns()) <= HEARTBEAT_NS
}

/// Tells the agent of a packet, with a copy of its headers, and counts it.
#[inline(always)]
pub(crate) fn tell(ctx: &TcContext, what: u32, flow: Flow) {
    let told = record(ctx, what, flow);
    let Some(stats) = STATS.get_ptr_mut(0) else { return };
    // SAFETY: `stats` points to this CPU's value of an array slot, which lives as long as the map. Another packet on the
    // same CPU cannot come between, for both run in softirq with bottom halves off.
    unsafe {
        match (told, what) {
            (false, _) => (*stats).untold += 1,
            (true, What::SYN) => (*stats).held += 1,
            (true, What::REFUSED) => (*stats).swallowed += 1,
            (true, _) => (*stats).taken += 1,
        }
    }
}

#[inline(always)]
fn record(ctx: &TcContext, what: u32, flow: Flow) -> bool {
    let length = ctx.len();
    let length = if length > Seen::MOST as u32 { Seen::MOST as u32 } else { length };
    let Some(mut entry) = SEEN.reserve::<Seen>(0) else { return false };
    let seen = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; the helper writes at most `MOST` bytes, the field's size.
    let copied = unsafe {
        (&raw mut (*seen).at_ns).write(bpf_ktime_get_ns());
        (&raw mut (*seen).what).write(what);
        (&raw mut (*seen).device).write(segment::device(ctx));
        (&raw mut (*seen).flow).write(flow);
        (&raw mut (*seen).length).write(length);
        (&raw mut (*seen).reserved).write(0);
        length >= SHORTEST
            && length <= Seen::MOST as u32
            && bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, (&raw mut (*seen).packet).cast(), length) == 0
    };
    if copied {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    copied
}
