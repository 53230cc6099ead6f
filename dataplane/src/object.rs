//! The eBPF objects, if they were built in.

/// Whether the eBPF objects were built in.
pub const EMBEDDED: bool = OWN.is_some();

/// The bytes of one object, aligned as the loader needs them.
macro_rules! object {
    ($(#[$doc:meta])* $constant:ident, $name:literal) => {
        $(#[$doc])*
        #[cfg(ebpf_object)]
        pub(crate) const $constant: Option<&[u8]> =
            Some(aya::include_bytes_aligned!(concat!(env!("ROUSE_EBPF_FOLDER"), "/", $name)));

        $(#[$doc])*
        #[cfg(not(ebpf_object))]
        pub(crate) const $constant: Option<&[u8]> = None;
    };
}

object!(
    /// Level `self`.
    OWN, "own"
);
object!(
    /// Level `node`: counting.
    COUNT, "count"
);
object!(
    /// Level `node`: holding.
    HOLD, "hold"
);
object!(
    /// Level `node`: accept queues.
    QUEUE, "queue"
);
object!(
    /// Level `node`: steering.
    STEER, "steer"
);
