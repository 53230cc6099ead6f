//! What a watch tells of, reduced.

use interceptor_core::{ObjectKey, index::AllowedHosts, service::Service};

use crate::object::{Object, OwnSlice, Scaled, ShadowSlice, Slice, Workload};

/// An object of a watched kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A route of either kind.
    Route(Box<Object>),
    /// A ScaledObject.
    Scaled(Box<Scaled>),
    /// A Service.
    Service(Service),
    /// A workload's generation: which template it has.
    Workload(Workload, i64),
    /// A namespace, and the hosts that it lists, if it lists any.
    Namespace(ObjectKey, Option<AllowedHosts>),
    /// A slice of a Service's pods.
    Slice(Slice),
    /// A slice of interceptors or of agents.
    Interceptors(OwnSlice),
    /// A slice that lists interceptors in place of a Service's pods.
    Shadow(Box<ShadowSlice>),
}

impl Item {
    pub(crate) fn key(&self) -> &ObjectKey {
        match self {
            Self::Route(object) => &object.subject.key,
            Self::Scaled(scaled) => &scaled.key,
            Self::Service(service) => &service.key,
            Self::Workload(workload, _) => &workload.key,
            Self::Namespace(key, _) => key,
            Self::Slice(slice) => &slice.key,
            Self::Interceptors(slice) => &slice.key,
            Self::Shadow(slice) => &slice.key,
        }
    }
}
