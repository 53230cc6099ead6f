//! KEDA and the kubelet for one machine: an autoscaler whose pods are local processes, and its terminal view.
//!
//! ```text
//! manifests ─► interceptor, scaler      (the real binaries, children of this process)
//!     │             ▲          ▲ StreamIsActive, IsActive, GetMetrics
//!     └► cluster ◄──│───── scaling (KEDA, HPA)
//!           │       │ EndpointSlice files
//!           └───► kubelet ─► pods (processes on loopback addresses)
//!
//! timeline + /state ─► view (terminal) or once (checks)
//! ```

#![forbid(unsafe_code)]

pub mod app;
pub mod args;
pub mod cgroup;
pub mod cluster;
pub mod cold_start;
pub mod demo_app;
pub mod kubelet;
pub mod manifests;
pub mod once;
pub mod platform;
pub mod process;
pub mod replicas;
pub mod request;
pub mod run_dir;
pub mod scaling;
pub mod slices;
pub mod start;
pub mod state;
pub mod timeline;
pub mod view;
pub mod workload;
pub mod world;
