//! The kinds of object that are read, and what of them the index wants.

use std::fmt;

use api::{ConvertError, HTTPScaledObject, InterceptorRoute, ScaledObject, convert};
use interceptor_core::{ObjectKey, index::Event, route::RouteKind};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Secret, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::{ApiResource, GroupVersionKind};

use super::WatchEvent;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `http.keda.sh/v1beta1` InterceptorRoute.
    InterceptorRoute,
    /// `http.keda.sh/v1alpha1` HTTPScaledObject.
    HttpScaledObject,
    /// `keda.sh/v1alpha1` ScaledObject.
    ScaledObject,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Secret.
    Secret,
    /// `v1` ConfigMap.
    ConfigMap,
    /// `apps/v1` Deployment.
    Deployment,
    /// `v1` Namespace, which is in no namespace itself: its key's is to be ignored.
    Namespace,
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// An InterceptorRoute.
    InterceptorRoute(Box<InterceptorRoute>),
    /// An HTTPScaledObject.
    HttpScaledObject(Box<HTTPScaledObject>),
    /// KEDA's ScaledObject.
    ScaledObject(Box<ScaledObject>),
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// A Secret; its `stringData` is in its `data`.
    Secret(Box<Secret>),
    /// A ConfigMap.
    ConfigMap(Box<ConfigMap>),
    /// A Deployment.
    Deployment(Box<Deployment>),
    /// A Namespace.
    Namespace(Box<Namespace>),
}

// === impl Kind ===

impl Kind {
    const ALL: [Self; 9] = [
        Self::InterceptorRoute,
        Self::HttpScaledObject,
        Self::ScaledObject,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::ConfigMap,
        Self::Deployment,
        Self::Namespace,
    ];

    /// Its name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::InterceptorRoute => "InterceptorRoute",
            Self::HttpScaledObject => "HTTPScaledObject",
            Self::ScaledObject => "ScaledObject",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Deployment => "Deployment",
            Self::Namespace => "Namespace",
        }
    }

    /// Its API version in a manifest.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::InterceptorRoute => "http.keda.sh/v1beta1",
            Self::HttpScaledObject => "http.keda.sh/v1alpha1",
            Self::ScaledObject => "keda.sh/v1alpha1",
            Self::Service | Self::Secret | Self::ConfigMap | Self::Namespace => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Deployment => "apps/v1",
        }
    }

    /// How an API server is asked for it.
    pub(super) fn resource(self) -> ApiResource {
        let (group, version) = self.api_version().split_once('/').unwrap_or(("", self.api_version()));
        let gvk = GroupVersionKind::gvk(group, version, self.name());
        // True of all these kinds.
        ApiResource::from_gvk_with_plural(&gvk, &format!("{}s", self.name().to_ascii_lowercase()))
    }

    /// The kind of this name, whatever its API version.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Object ===

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::InterceptorRoute(_) => Kind::InterceptorRoute,
            Self::HttpScaledObject(_) => Kind::HttpScaledObject,
            Self::ScaledObject(_) => Kind::ScaledObject,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Secret(_) => Kind::Secret,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Deployment(_) => Kind::Deployment,
            Self::Namespace(_) => Kind::Namespace,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::InterceptorRoute(object) => &object.metadata,
            Self::HttpScaledObject(object) => &object.metadata,
            Self::ScaledObject(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Secret(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
            Self::Namespace(object) => &object.metadata,
        }
    }

    pub(super) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::InterceptorRoute(object) => &mut object.metadata,
            Self::HttpScaledObject(object) => &mut object.metadata,
            Self::ScaledObject(object) => &mut object.metadata,
            Self::Service(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::Secret(object) => &mut object.metadata,
            Self::ConfigMap(object) => &mut object.metadata,
            Self::Deployment(object) => &mut object.metadata,
            Self::Namespace(object) => &mut object.metadata,
        }
    }

    /// Its namespace and name.
    pub fn key(&self) -> Result<ObjectKey, ConvertError> {
        convert::key(self.metadata())
    }

    /// What the index wants of it, if anything.
    pub(super) fn core_event(&self) -> Result<Option<Event>, ConvertError> {
        Ok(match self {
            Self::InterceptorRoute(object) => Some(Event::Route(convert::interceptor_route(object)?)),
            Self::HttpScaledObject(object) => Some(Event::Route(convert::http_scaled_object(object)?)),
            Self::Service(object) => Some(Event::Service(convert::service(object)?)),
            Self::EndpointSlice(object) => Some(match convert::slice(object)? {
                Some(slice) => Event::Slice(slice),
                // It may have belonged to a Service before.
                None => Event::SliceGone(self.key()?),
            }),
            Self::ConfigMap(object) => Some(match convert::response_bodies(object)? {
                Some(bodies) => Event::Bodies(bodies),
                // It may have had the label before.
                None => Event::BodiesGone(self.key()?),
            }),
            Self::Namespace(object) => {
                let (name, hosts) = convert::namespace(object)?;
                Some(Event::Namespace(name, hosts))
            }
            Self::ScaledObject(_) | Self::Secret(_) | Self::Deployment(_) => None,
        })
    }
}

/// What an event means to the index, if anything. An event of [`run`](super::run) holds no object that can't be converted.
pub fn core_event(event: &WatchEvent) -> Result<Option<Event>, ConvertError> {
    Ok(match event {
        WatchEvent::Applied(object) => object.core_event()?,
        WatchEvent::Deleted(Kind::InterceptorRoute, key) => {
            Some(Event::RouteGone(RouteKind::InterceptorRoute, key.clone()))
        }
        WatchEvent::Deleted(Kind::HttpScaledObject, key) => {
            Some(Event::RouteGone(RouteKind::HttpScaledObject, key.clone()))
        }
        WatchEvent::Deleted(Kind::Service, key) => Some(Event::ServiceGone(key.clone())),
        WatchEvent::Deleted(Kind::EndpointSlice, key) => Some(Event::SliceGone(key.clone())),
        WatchEvent::Deleted(Kind::ConfigMap, key) => Some(Event::BodiesGone(key.clone())),
        WatchEvent::Deleted(Kind::Namespace, key) => Some(Event::NamespaceGone(key.name().into())),
        WatchEvent::Deleted(Kind::ScaledObject | Kind::Secret | Kind::Deployment, _)
        | WatchEvent::Invalid(_)
        | WatchEvent::Repaired(_)
        | WatchEvent::Synced => None,
    })
}
