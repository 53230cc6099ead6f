//! The eBPF object, if one was built in.

/// Whether an eBPF object was built in.
pub const EMBEDDED: bool = OBJECT.is_some();

/// The object's bytes, aligned as the loader needs them.
#[cfg(ebpf_object)]
pub(crate) const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("ROUSE_EBPF_OBJECT_PATH")));

/// The object's bytes, aligned as the loader needs them.
#[cfg(not(ebpf_object))]
pub(crate) const OBJECT: Option<&[u8]> = None;
