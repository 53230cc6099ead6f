//! Every map, and the only code that touches their memory.
//!
//! | map | key → value | written by | read by | capacity | when full |
//! |---|---|---|---|---|---|
//! | `FRONTENDS` | address that clients connect to → index of its Service | agent | connect | `FRONTENDS_MOST`, twice what the agent plans with, so that it may add before it removes | the agent leaves the one Service out that did not fit, and says so |
//! | `SERVICES` | index → heat, and the port of interceptors that stands for the Service | agent | connect | `SERVICES_MOST` | likewise |
//! | `INTERCEPTORS` | two halves for each family → address of an interceptor | agent | connect | `INTERCEPTORS` for each half | the agent leaves further ones out: nobody is steered to them from this node |
//! | `CHOICES` | family → which half, and how many of it | agent | connect | 2 | cannot be |
//! | `OUT` | id of an interceptor's cgroup → 0 | agent | connect | `OUT_MOST` | the agent leaves further ones out, and says so: their own connections are steered |
//! | `STEERED` | socket → what it has asked for, and what it has got | connect | getpeername | one per steered socket, freed with it | no memory: the client sees the interceptor's address, `STATS` counts it |
//! | `ALIVE` | 0 → the agent's last sign of life, `CLOCK_MONOTONIC` in nanoseconds | agent | connect | 1 | cannot be |
//! | `STATS` | 0 → counters, per CPU | connect | agent | 1 | cannot be |
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::{arch::asm, mem::offset_of, ptr::write_volatile};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::SockAddrContext,
};
use interceptor_common::{
    AddrKey,
    hold::ServiceSlot,
    steer::{self, Choice, FAMILIES, SteerStats, Steered},
};

const FRONTENDS_MOST: u32 = 131_072;
const SERVICES_MOST: u32 = 65_536;
/// Pods of interceptors on this node, and some that have gone.
const OUT_MOST: u32 = 1024;
/// How deep below the root a pod's cgroup may be.
const DEEPEST: i32 = 16;

#[map]
static FRONTENDS: HashMap<AddrKey, u32> = HashMap::with_max_entries(FRONTENDS_MOST, BPF_F_NO_PREALLOC);
#[map]
static SERVICES: Array<ServiceSlot> = Array::with_max_entries(SERVICES_MOST, 0);
#[map]
static INTERCEPTORS: Array<[u32; 4]> = Array::with_max_entries(steer::INTERCEPTORS * 2 * FAMILIES, 0);
#[map]
static CHOICES: Array<u32> = Array::with_max_entries(FAMILIES, 0);
#[map]
static OUT: HashMap<u64, u32> = HashMap::with_max_entries(OUT_MOST, BPF_F_NO_PREALLOC);
#[map]
static ALIVE: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static STATS: PerCpuArray<SteerStats> = PerCpuArray::with_max_entries(1, 0);
#[btf_map]
static STEERED: SkStorage<Steered> = SkStorage::new();

/// What is said of the Service that clients reach at an address, if it is one of ours.
#[inline(always)]
pub(crate) fn service(destination: &AddrKey) -> Option<ServiceSlot> {
    // SAFETY: values are single aligned words that user space replaces whole.
    let service = unsafe { FRONTENDS.get(destination) }.copied()?;
    SERVICES.get(service).copied()
}

/// The address of an interceptor, of the family of the one that is asked for.
#[inline(always)]
pub(crate) fn interceptor(asked: &AddrKey) -> Option<[u32; 4]> {
    let family = steer::family(asked);
    let choice = Choice::from_word(CHOICES.get(family).copied()?);
    // SAFETY: only makes a number.
    let random = unsafe { bpf_get_prandom_u32() };
    INTERCEPTORS.get(choice.pick(family, random)?).copied()
}

/// Whether whoever connects is an interceptor: it would come back to itself, or to another.
#[inline(always)]
pub(crate) fn is_interceptor() -> bool {
    let mut level = 1;
    while level <= DEEPEST {
        // SAFETY: only takes a number; zero is what it says of a level that there is not.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        // SAFETY: only whether there is a value is asked.
        if unsafe { OUT.get(&id) }.is_some() {
            return true;
        }
        level += 1;
    }
    false
}

/// Keeps with the socket what is done with it, and counts it.
#[inline(always)]
pub(crate) fn note(ctx: &SockAddrContext, asked: &AddrKey, instead: &AddrKey) {
    // SAFETY: the kernel checks map and socket, and returns null or the socket's value, which lives as long as the socket
    // does; who connects one socket twice at once may be told either.
    let noted = unsafe {
        let steered = STEERED.get_or_insert_ptr_mut(ctx, None);
        if !steered.is_null() {
            write(&raw mut (*steered).asked, asked);
            write(&raw mut (*steered).instead, instead);
        }
        !steered.is_null()
    };
    count(offset_of!(SteerStats, steered));
    if !noted {
        count(offset_of!(SteerStats, seen_through));
    }
}

/// Word by word: the compiler would move the bytes by a function that subtracts pointers, which the verifier refuses without
/// CAP_PERFMON.
///
/// # Safety
///
/// `to` must point into a map's value.
#[inline(always)]
unsafe fn write(to: *mut AddrKey, from: &AddrKey) {
    let [a, b, c, d] = from.addr_be;
    // SAFETY: the caller's promise; all of it is written.
    unsafe {
        write_volatile(&raw mut (*to).addr_be[0], a);
        write_volatile(&raw mut (*to).addr_be[1], b);
        write_volatile(&raw mut (*to).addr_be[2], c);
        write_volatile(&raw mut (*to).addr_be[3], d);
        write_volatile(&raw mut (*to).port_be, from.port_be);
        write_volatile(&raw mut (*to).proto, from.proto);
        write_volatile(&raw mut (*to).reserved, 0);
    }
}

/// What was done with a socket.
#[inline(always)]
pub(crate) fn steered(ctx: &SockAddrContext) -> Option<Steered> {
    // SAFETY: as above.
    unsafe { STEERED.get_ptr_mut(ctx).as_ref() }.copied()
}

/// Counts a connection that there is no interceptor for.
#[inline(always)]
pub(crate) fn count_nobody() {
    count(offset_of!(SteerStats, nobody));
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

/// Adds one in a single instruction: another process that connects on the same CPU can come between any two.
#[inline(always)]
fn count(counter: usize) {
    let Some(stats) = STATS.get_ptr_mut(0) else { return };
    // SAFETY: `stats` points to this CPU's value of an array slot, which lives as long as the map; the instruction writes
    // eight aligned bytes of it alone.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) stats.byte_add(counter),
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
}
