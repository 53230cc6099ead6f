//! Keeps ScaledObjects and statuses in step with InterceptorRoutes and HTTPScaledObjects.

#![forbid(unsafe_code)]

pub mod crds;
