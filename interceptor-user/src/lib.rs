//! The interceptor: an HTTP proxy that holds requests while their workload wakes.
