//! Every map, and the only code that touches their memory.
//!
//! | map | key → value | written by | read by | capacity | when full |
//! |---|---|---|---|---|---|
//! | `SLOT_OF` | pod address → slot | user space | all | `ADDRESSES`, replaced at load | user space leaves the one upstream out that did not fit, and says so |
//! | `ORIGINS` | slot and client's prefix → [`Origin`]'s meaning | user space | all | `ORIGINS_MAX` | user space refuses further prefixes and says so: their clients count |
//! | `PROBES` | pod address and first bytes of a kubelet's probe that does not name itself → 1 | user space | `segments` | `PROBES_MAX` | user space refuses further ones and says so: these probes count |
//! | `SERVED` | slot → counters, per CPU | programs | user space | `SLOTS`, replaced at load; slot 0 is nobody's | user space leaves the upstream out and says so |
//! | `FLOWS` | socket → what it speaks and how far it has come | programs | programs | one per socket of the pods, freed with it | no memory: the connection is not counted, `MISSED` counts it |
//! | `STREAMS` | socket → HTTP/2 streams | programs | programs | one per socket that speaks HTTP/2, freed with it | as above |
//! | `VERSION` | 0 → version of `SLOT_OF` | user space | programs | 1 | cannot be |
//! | `JUMPS_RECEIVED`, `JUMPS_SENT` | [`Jump`] → program that goes on with a segment; the kernel wants one map a direction | user space, once | programs | `Jump::COUNT` | cannot be |
//! | `USES` | slot → whose it is, and what it had counted before | user space | user space that comes later | `SLOTS`, replaced at load | as `SERVED` |
//! | `RUN` | 0 → since when is counted | user space | user space that comes later | 1 | cannot be |
//! | `RESTS` | slot → 1 if user space knows that it has nothing to do and wants to be told when it has | both | programs | `SLOTS`, replaced at load | as `SERVED` |
//! | `NOTICES` | ring buffer of [`Notice`] | programs | user space | 64 KiB, 1,365 records | what would be told is seen at the next reading or try, `UNTOLD` counts it |
//! | `MISSED` | 0 → connections that could not be tagged, per CPU | programs | user space | 1 | cannot be |
//! | `UNTOLD` | 0 → notices that had no room, per CPU | programs | user space | 1 | cannot be |
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{addr_of, null_mut, read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::generated::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_storage_get, bpf_spin_lock, bpf_spin_unlock},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key},
    programs::SkBuffContext,
};
use interceptor_common::{
    AddrKey, Jump, Notice, Origin, Run, Served, SlotUse, Stats, Subject,
    flow::{Flow, Moved},
    http2::Streams,
    kubelet::ProbeHead,
};
use interceptor_ebpf::word::unknown;

/// Replaced at load.
const ADDRESSES: u32 = 65_536;
/// Replaced at load.
const SLOTS: u32 = 1024;
/// Interceptors, the node's own addresses, and what routes leave out.
const ORIGINS_MAX: u32 = 16_384;
/// Pods of this machine, each as often as it has such probes.
const PROBES_MAX: u32 = 4096;
const NOTICES_BYTES: u32 = 64 << 10;

#[map]
static SLOT_OF: HashMap<AddrKey, u32> = HashMap::with_max_entries(ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static ORIGINS: LpmTrie<Origin, u32> = LpmTrie::with_max_entries(ORIGINS_MAX, BPF_F_NO_PREALLOC);
#[map]
static PROBES: LpmTrie<ProbeHead, u32> = LpmTrie::with_max_entries(PROBES_MAX, BPF_F_NO_PREALLOC);
#[map]
static SERVED: PerCpuArray<Served> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static VERSION: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static RESTS: Array<u32> = Array::with_max_entries(SLOTS, 0);
#[map]
static NOTICES: RingBuf = RingBuf::with_byte_size(NOTICES_BYTES, 0);
#[map]
static USES: Array<SlotUse> = Array::with_max_entries(SLOTS, 0);
#[map]
static RUN: Array<Run> = Array::with_max_entries(1, 0);
#[map]
static MISSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static UNTOLD: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static JUMPS_RECEIVED: ProgramArray = ProgramArray::with_max_entries(Jump::COUNT, 0);
#[map]
static JUMPS_SENT: ProgramArray = ProgramArray::with_max_entries(Jump::COUNT, 0);
#[btf_map]
static FLOWS: SkStorage<Flow> = SkStorage::new();
#[btf_map]
static STREAMS: SkStorage<Streams> = SkStorage::new();

/// Leaves a client's segment to another program, and comes back only where there is none.
#[inline(always)]
pub(crate) fn jump_received(ctx: &SkBuffContext, to: u32) {
    // SAFETY: the program is of the same type as those that jump to it.
    unsafe { _ = JUMPS_RECEIVED.tail_call(ctx, to) };
}

/// The same for a server's segment.
#[inline(always)]
pub(crate) fn jump_sent(ctx: &SkBuffContext, to: u32) {
    // SAFETY: as above.
    unsafe { _ = JUMPS_SENT.tail_call(ctx, to) };
}

/// The slot of a pod's address.
#[inline(always)]
pub(crate) fn slot_of(key: &AddrKey) -> Option<u32> {
    // SAFETY: values are single aligned words that user space replaces whole.
    unsafe { SLOT_OF.get(key) }.copied()
}

/// What a client's address means for a slot, or else for all; zero if nothing.
#[inline(always)]
pub(crate) fn origin(slot: u32, client: &AddrKey) -> u32 {
    let of = |slot| ORIGINS.get(Key::new(ORIGIN_BITS, Origin::new(slot, client.octets()))).copied();
    of(slot).or_else(|| of(0)).unwrap_or(0)
}

/// Whether a request is a probe that user space knows.
///
/// # Safety
///
/// `key` must point to as many bytes as a [`Key`] of the map has.
#[inline(always)]
pub(crate) unsafe fn is_probe(key: *const c_void) -> bool {
    // SAFETY: the caller's promise.
    !unsafe { bpf_map_lookup_elem(addr_of!(PROBES).cast_mut().cast(), key) }.is_null()
}

/// A key to look up is given with all its bits.
const ORIGIN_BITS: u32 = 160;

/// The version of the list of addresses.
#[inline(always)]
pub(crate) fn version() -> u32 {
    // SAFETY: an aligned word of a map that lives as long as the program.
    element::<u32>(addr_of!(VERSION).cast(), 0).map_or(0, |version| unsafe { *version })
}

/// An element of an array. The key takes a whole word of the stack: where the verifier may not trust (without CAP_PERFMON)
/// it refuses that a part of one is written in which a pointer was.
#[inline(always)]
pub(crate) fn element<T>(array: *const c_void, index: u32) -> Option<*mut T> {
    let key = u64::from(index);
    // SAFETY: the kernel checks the map, and reads as many bytes of the key as the map's keys have, the lower four.
    let value = unsafe { bpf_map_lookup_elem(array.cast_mut(), (&raw const key).cast()) };
    if value.is_null() { None } else { Some(value.cast()) }
}

/// What is kept with a socket, if anything is.
#[inline(always)]
pub(crate) fn flow<'a>(sk: *mut bpf_sock) -> Option<&'a mut Flow> {
    storage(addr_of!(FLOWS).cast(), sk, 0)
}

/// What is kept with a socket, zeroed if it is new; `None` when there is no memory.
#[inline(always)]
pub(crate) fn flow_or_new<'a>(sk: *mut bpf_sock) -> Option<&'a mut Flow> {
    storage(addr_of!(FLOWS).cast(), sk, BPF_SK_STORAGE_GET_F_CREATE.into())
}

/// A socket's streams, if it speaks HTTP/2.
#[inline(always)]
pub(crate) fn streams<'a>(sk: *mut bpf_sock) -> Option<&'a mut Streams> {
    storage(addr_of!(STREAMS).cast(), sk, 0)
}

/// A socket's streams, none if they are new; `None` when there is no memory.
#[inline(always)]
pub(crate) fn streams_or_new<'a>(sk: *mut bpf_sock) -> Option<&'a mut Streams> {
    storage(addr_of!(STREAMS).cast(), sk, BPF_SK_STORAGE_GET_F_CREATE.into())
}

#[inline(always)]
fn storage<'a, T>(map: *const c_void, sk: *mut bpf_sock, flags: u64) -> Option<&'a mut T> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: the kernel checks map and socket, and returns null or the socket's value. What two programs may write at the
    // same time they write under the flow's lock.
    unsafe { bpf_sk_storage_get(map.cast_mut(), sk.cast(), null_mut(), flags).cast::<T>().as_mut() }
}

/// Does something with a flow while nobody else does. It must not call anything: the verifier refuses it.
#[inline(always)]
pub(crate) fn locked<T>(flow: &mut Flow, act: impl FnOnce(&mut Flow) -> T) -> T {
    // SAFETY: the lock is a field of a map's value that the verifier knows by its type; it is released on every path.
    unsafe {
        bpf_spin_lock((&raw mut flow.lock).cast());
        let result = act(flow);
        bpf_spin_unlock((&raw mut flow.lock).cast());
        result
    }
}

/// Counts a connection's end, and that of what was in flight on it.
#[inline(always)]
pub(crate) fn ended(sk: *mut bpf_sock, flow: &mut Flow) {
    let streams = streams(sk);
    let now = now();
    let (slot, moved) = locked(flow, |flow| {
        let open = match streams {
            Some(streams) => streams.counted(),
            None => 0,
        };
        (flow.slot, flow.closed(open, now))
    });
    count(slot, &moved, now);
}

/// The clock of all time stamps.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: only reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

/// The same, of which the verifier knows nothing: it would go on with each number that it knows.
#[inline(always)]
pub(crate) fn forgotten(flow: &Flow, moved: &Moved) -> Moved {
    // SAFETY: an aligned word of a map's value, which the verifier does not know.
    let any = unsafe { read_volatile(&raw const flow.begun_ns) };
    let Moved { flags, started, ended, undone, busy_ns, first_byte_ns } = *moved;
    let word = |number: u32| unknown(number.into(), any) as u32;
    Moved {
        flags: word(flags),
        started: word(started),
        ended: word(ended),
        undone: word(undone),
        busy_ns: unknown(busy_ns, any),
        first_byte_ns: unknown(first_byte_ns, any),
    }
}

/// Adds what one call has moved.
#[inline(always)]
pub(crate) fn count(slot: u32, moved: &Moved, now_ns: u64) {
    if moved.is_nothing() {
        return;
    }
    let Some(served) = element::<Served>(addr_of!(SERVED).cast(), slot) else { return };
    // SAFETY: `served` points to this CPU's value of an array slot, which lives as long as the map.
    unsafe {
        let one = |flag, counter: *mut u64| {
            if moved.has(flag) {
                add(counter, 1);
            }
        };
        one(Moved::TAGGED.flags, &raw mut (*served).tagged);
        one(Moved::RELEASED, &raw mut (*served).released);
        one(Moved::OPENED, &raw mut (*served).opened);
        one(Moved::CLOSED, &raw mut (*served).closed);
        one(Moved::FAILED, &raw mut (*served).failed);
        one(Moved::MOVING, &raw mut (*served).moving);
        if moved.starts() != 0 {
            add(&raw mut (*served).started, moved.starts().into());
        }
        if moved.ends() != 0 {
            add(&raw mut (*served).ended, moved.ends().into());
        }
        if moved.undos() != 0 {
            add(&raw mut (*served).undone, moved.undos().into());
        }
        if moved.busy_ns != 0 {
            add(&raw mut (*served).busy_ns, moved.busy_ns);
        }
        if moved.has(Moved::FIRST_BYTE) {
            add(&raw mut (*served).first_byte_ns, moved.first_byte_ns);
            let any = read_volatile(&raw const (*served).last_ns);
            let class = unknown(Served::class(moved.first_byte_ns) as u64, any) & 7;
            add((&raw mut (*served).first_bytes).cast::<u64>().add(class as usize), 1);
        }
        (*served).last_ns = now_ns;
    }
    if moved.starts() != 0 || moved.has(Moved::MOVING) || moved.has(Moved::OPENED) {
        wake(slot, now_ns);
    }
}

/// Tells that a slot has something to do, once each time user space has said that it rests.
#[inline(always)]
fn wake(slot: u32, now_ns: u64) {
    let Some(rests) = element::<u32>(addr_of!(RESTS).cast(), slot) else { return };
    // SAFETY: an aligned word of a map that lives as long as the program. Another CPU that reads it before this has written
    // tells the same once more, which does no harm.
    unsafe {
        if read_volatile(rests) == 0 {
            return;
        }
        write_volatile(rests, 0);
    }
    tell(now_ns, Subject::BUSY, slot, ([0, 0, 0, 0], 0));
}

/// Tells that a pod listens.
#[inline(always)]
pub(crate) fn tell_listens(addr: AddrKey) {
    tell(now(), Subject::LISTENS, 0, (addr.addr_be, addr.port_be));
}

/// Written word by word: the compiler would clear the record in a loop, which the verifier refuses without CAP_PERFMON.
#[inline(always)]
fn tell(at_ns: u64, subject: u32, slot: u32, (addr_be, port_be): ([u32; 4], u16)) {
    let Some(mut entry) = NOTICES.reserve::<Notice>(0) else {
        if let Some(untold) = element::<u64>(addr_of!(UNTOLD).cast(), 0) {
            // SAFETY: as in `count`.
            unsafe { add(untold, 1) };
        }
        return;
    };
    let [a, b, c, d] = addr_be;
    let notice = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted, and all of it is written.
    unsafe {
        write_volatile(&raw mut (*notice).at_ns, at_ns);
        write_volatile(&raw mut (*notice).subject, subject);
        write_volatile(&raw mut (*notice).slot, slot);
        write_volatile(&raw mut (*notice).addr.addr_be[0], a);
        write_volatile(&raw mut (*notice).addr.addr_be[1], b);
        write_volatile(&raw mut (*notice).addr.addr_be[2], c);
        write_volatile(&raw mut (*notice).addr.addr_be[3], d);
        write_volatile(&raw mut (*notice).addr.port_be, port_be);
        write_volatile(&raw mut (*notice).addr.proto, AddrKey::TCP);
        write_volatile(&raw mut (*notice).addr.reserved, 0);
        write_volatile(&raw mut (*notice).reserved, 0);
    }
    entry.submit(0);
}

/// Takes a connection's smoothed round-trip time into its slot's.
#[inline(always)]
pub(crate) fn sample(slot: u32, srtt_us: u64) {
    let Some(served) = element::<Served>(addr_of!(SERVED).cast(), slot) else { return };
    // SAFETY: as in `count`. A softirq between read and write may lose a sample, which a smoothed value bears.
    unsafe { (*served).srtt_us = Stats::smooth((*served).srtt_us, srtt_us) };
}

/// Counts a connection that could not be tagged.
#[inline(always)]
pub(crate) fn count_missed() {
    if let Some(missed) = element::<u64>(addr_of!(MISSED).cast(), 0) {
        // SAFETY: as in `count`.
        unsafe { add(missed, 1) };
    }
}

/// Adds in a single instruction: a softirq that runs a program for another socket on the same CPU can come between any two,
/// and would otherwise lose a count. The target has no `AtomicU64::fetch_add`.
///
/// # Safety
///
/// `counter` must point to an aligned `u64` in a map's value.
#[inline(always)]
unsafe fn add(counter: *mut u64, more: u64) {
    // SAFETY: the caller's promise; the instruction writes those eight bytes alone.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {more}", counter = in(reg) counter, more = in(reg) more, options(nostack))
    };
}
