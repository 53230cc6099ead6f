//! What runs beside the request path, on one thread: discovery, counts, the kernel's maps, `/state`.

pub(crate) mod counts;
pub(crate) mod discover;
pub(crate) mod kernel;
pub(crate) mod namespaces;
pub(crate) mod queue;
pub(crate) mod secrets;
pub(crate) mod state;
pub(crate) mod taken;
pub(crate) mod uncounted;
pub(crate) mod waiting;
