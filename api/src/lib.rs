//! The custom resources, and how Kubernetes objects become the core's types.
