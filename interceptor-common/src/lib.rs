//! The ABI between kernel and user space, and decisions that both share.
