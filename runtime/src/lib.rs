//! What the processes share: arguments, logs, admin port, readiness, drain, tasks, watch and snapshot.
