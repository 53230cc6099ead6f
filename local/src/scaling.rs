//! What decides how many replicas a workload has: KEDA between zero and one, the HPA above.
//!
//! `scaled` is a ScaledObject as these need it, `keda` and `hpa` are pure decisions, `client` speaks to the scaler, and
//! `autoscaler` runs one loop a ScaledObject with all of them.

pub mod autoscaler;
pub mod client;
pub mod hpa;
pub mod keda;
pub mod scaled;
