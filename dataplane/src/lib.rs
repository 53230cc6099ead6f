//! The user side of the kernel: probe, load, attach, maps in step, counters.
