//! One object as the API server sent it: only its metadata is looked at here, so that no object can break the list or
//! the watch it comes in.

use std::borrow::Cow;

use interceptor_core::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::{Kind, Object, manifest};

/// An object, unread but for what tells it from others.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Name, namespace and version alone.
    meta: ObjectMeta,
    body: Value,
}

// === impl Item ===

impl Item {
    /// Its namespace and name; `None` if it has no name, as no object of an API server is.
    pub(super) fn key(&self) -> Option<ObjectKey> {
        let name = self.meta.name.as_deref().filter(|name| !name.is_empty())?;
        Some(ObjectKey::new(self.meta.namespace.as_deref().unwrap_or_default(), name))
    }

    /// What changes whenever it changes.
    pub(super) fn version(&self) -> &str {
        self.meta.resource_version.as_deref().unwrap_or_default()
    }

    /// The object, if it can be used.
    pub(super) fn read(&self, kind: Kind) -> Result<Box<Object>, String> {
        let object = manifest::typed(kind, &self.body)?;
        object.core_event().map_err(|error| error.to_string())?;
        Ok(Box::new(object))
    }

    #[cfg(test)]
    pub(super) fn new(body: Value) -> Self {
        Self::from(body)
    }
}

impl From<Value> for Item {
    fn from(mut body: Value) -> Self {
        let mut meta = ObjectMeta::default();
        if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
            // Who wrote which field: often more than the rest of the object.
            metadata.remove("managedFields");
            let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
            meta.name = text("name");
            meta.namespace = text("namespace");
            meta.resource_version = text("resourceVersion");
        }
        Self { meta, body }
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}

impl Resource for Item {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
