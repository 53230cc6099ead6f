//! Generated gRPC types: KEDA's external scaler and our counts stream.
//! Written by `cargo xtask codegen` from `proto/*.proto`; never edited.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    clippy::clone_on_ref_ptr,
    clippy::use_self,
    clippy::unused_trait_names,
    unused_qualifications,
    reason = "generated code"
)]

/// KEDA's `externalscaler` package.
pub mod externalscaler {
    include!("gen/externalscaler.rs");
}

/// Our `rouse.counts.v1` package.
pub mod counts {
    include!("gen/rouse.counts.v1.rs");
}

/// The encoded file descriptor set, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");
