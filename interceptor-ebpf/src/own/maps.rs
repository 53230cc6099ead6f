//! Every map, and the only code that touches their memory.
//!
//! | map | key → value | written by | read by | capacity | when full |
//! |---|---|---|---|---|---|
//! | `UPSTREAM_OF` | pod address → slot | user space | sockops | `ADDRESSES`, twice what user space plans with, so that it may add before it removes | user space leaves the one upstream out that did not fit, and says so |
//! | `STATS` | slot → counters, per CPU | sockops | user space | `SLOTS`, set at load by the number of CPUs; slot 0 is the self-test's | user space leaves the upstream out and says so |
//! | `CONN` | socket → slot and phase | sockops | sockops | one per counted socket, freed with it | no memory: the connection is not counted, `MISSED` counts it and a log line says so |
//! | `MISSED` | 0 → connections that could not be tagged, per CPU | sockops | user space | 1 | cannot be |
//! | `AYA_LOGS` | ring buffer of log records | programs | user space | 128 KiB | records are dropped |
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::{
    arch::asm,
    ptr::{addr_of, null_mut},
};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::{bpf_ktime_get_ns, generated::bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{HashMap, PerCpuArray},
};
use interceptor_common::{AddrKey, Conn, Stats, Step};

const ADDRESSES: u32 = 65_536;
/// Replaced at load.
const SLOTS: u32 = 1024;

#[map]
static UPSTREAM_OF: HashMap<AddrKey, u32> = HashMap::with_max_entries(ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static STATS: PerCpuArray<Stats> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static MISSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[btf_map]
static CONN: SkStorage<Conn> = SkStorage::new();

/// The slot of a pod's address.
#[inline(always)]
pub(crate) fn slot_of(key: &AddrKey) -> Option<u32> {
    // SAFETY: values are single aligned words that user space replaces whole.
    unsafe { UPSTREAM_OF.get(key) }.copied()
}

/// What is kept with a socket, if it is counted.
#[inline(always)]
pub(crate) fn conn<'a>(sk: *mut bpf_sock) -> Option<&'a mut Conn> {
    storage(sk, 0)
}

/// What is kept with a socket, zeroed if it is new; `None` when there is no memory.
#[inline(always)]
pub(crate) fn conn_or_new<'a>(sk: *mut bpf_sock) -> Option<&'a mut Conn> {
    storage(sk, BPF_SK_STORAGE_GET_F_CREATE.into())
}

#[inline(always)]
fn storage<'a>(sk: *mut bpf_sock, flags: u64) -> Option<&'a mut Conn> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: the kernel checks map and socket, and returns null or the socket's value, which only calls for this
    // socket touch; the kernel makes them one at a time, under the socket's lock.
    unsafe {
        bpf_sk_storage_get(addr_of!(CONN).cast_mut().cast(), sk.cast(), null_mut(), flags).cast::<Conn>().as_mut()
    }
}

/// Counts a connection that begins.
#[inline(always)]
pub(crate) fn count_attempt(slot: u32) {
    if let Some(stats) = STATS.get_ptr_mut(slot) {
        // SAFETY: `stats` points to this CPU's value of an array slot, which lives as long as the map.
        unsafe { add_one(&raw mut (*stats).attempted) };
        touch(stats);
    }
}

/// Counts what a connection did.
#[inline(always)]
pub(crate) fn count(slot: u32, step: Step) {
    let Some(stats) = STATS.get_ptr_mut(slot) else { return };
    // SAFETY: as in `count_attempt`.
    unsafe {
        match step {
            Step::Opened => add_one(&raw mut (*stats).opened),
            Step::Closed => add_one(&raw mut (*stats).closed),
            Step::Failed => add_one(&raw mut (*stats).failed),
            Step::Nothing => return,
        }
    }
    touch(stats);
}

/// Takes a connection's smoothed round-trip time into its slot's.
#[inline(always)]
pub(crate) fn sample(slot: u32, srtt_us: u64) {
    let Some(stats) = STATS.get_ptr_mut(slot) else { return };
    // SAFETY: as in `count_attempt`. A softirq between read and write may lose a sample, which a smoothed value bears.
    unsafe { (*stats).srtt_us = Stats::smooth((*stats).srtt_us, srtt_us) };
    touch(stats);
}

/// Counts a connection that could not be tagged; returns how many this CPU has seen before.
#[inline(always)]
pub(crate) fn count_missed() -> u64 {
    let Some(missed) = MISSED.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `count_attempt`.
    unsafe {
        let before = *missed;
        add_one(missed);
        before
    }
}

#[inline(always)]
fn touch(stats: *mut Stats) {
    // SAFETY: as in `count_attempt`; one aligned store. The helper only reads a clock.
    unsafe { (*stats).last_ns = bpf_ktime_get_ns() };
}

/// Adds one in a single instruction: a softirq that runs the program for another socket on the same CPU can come between
/// any two, and would otherwise lose a count. The target has no `AtomicU64::fetch_add`.
///
/// # Safety
///
/// `counter` must point to an aligned `u64` in a map's value.
#[inline(always)]
unsafe fn add_one(counter: *mut u64) {
    // SAFETY: the caller's promise; the instruction writes those eight bytes alone.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1_u64, options(nostack))
    };
}
