//! Kubernetes objects, reduced to what planning needs. Made by `watch` from whatever the API server sends: an object that
//! cannot be read is one that says so, not a watch that ends.

use std::collections::BTreeMap;

use api::{HTTPScaledObject, HTTPScaledObjectSpec, InterceptorRoute, InterceptorRouteSpec, ScaledObject, convert};
use interceptor_core::{ObjectKey, Route, route::RouteKind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{Resource, api::DynamicObject};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::shadow::Claim;

mod scaled;
mod slice;

pub use self::{
    scaled::{ORIGINAL, Owner, Scaled, Trigger, Verdict},
    slice::{Interceptor, OwnSlice, ShadowSlice, Slice},
};

/// One route of either kind: what is reconciled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Which custom resource it is.
    pub kind: RouteKind,
    /// Its namespace and name.
    pub key: ObjectKey,
}

/// A workload that a route scales.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace and name.
    pub key: ObjectKey,
}

/// Metadata that planning looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The object's own identity, which one of the same name made later does not have.
    pub uid: String,
    /// Its version, for writes that must not undo another's.
    pub version: String,
    /// When it was made, in seconds since the epoch.
    pub created: Option<i64>,
    /// Counts changes of the spec.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its finalizers.
    pub finalizers: Vec<String>,
}

/// A spec of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// An InterceptorRoute's.
    Route(Box<InterceptorRouteSpec>),
    /// An HTTPScaledObject's.
    Http(Box<HTTPScaledObjectSpec>),
}

/// A route of either kind, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Which.
    pub subject: Subject,
    /// Its metadata.
    pub meta: Meta,
    /// Its spec, or why it can't be read.
    pub spec: Result<Spec, String>,
    /// What interceptors make of it, or why they can't.
    pub route: Result<Route, String>,
    /// Its conditions that are whole.
    pub conditions: Vec<Condition>,
    /// Whether there are conditions of a form from before 0.12, which no newer one may stand beside.
    pub old_conditions: bool,
    /// Its status.
    pub status: Value,
}

// === impl Subject ===

impl Subject {
    /// The API version of its kind.
    pub fn api_version(&self) -> &'static str {
        match self.kind {
            RouteKind::InterceptorRoute => "http.keda.sh/v1beta1",
            RouteKind::HttpScaledObject => "http.keda.sh/v1alpha1",
        }
    }

    /// Its kind, as the API names it.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            RouteKind::InterceptorRoute => "InterceptorRoute",
            RouteKind::HttpScaledObject => "HTTPScaledObject",
        }
    }
}

// === impl Meta ===

impl Meta {
    pub(crate) fn of(metadata: &ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            version: metadata.resource_version.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            generation: metadata.generation.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            labels: metadata.labels.clone().unwrap_or_default(),
            annotations: metadata.annotations.clone().unwrap_or_default(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
        }
    }

    /// Whether an annotation is set to "true".
    pub fn says(&self, annotation: &str) -> bool {
        self.annotations.get(annotation).is_some_and(|value| value == "true")
    }
}

// === impl Object ===

impl Object {
    /// Reads a route of `kind`; `None` for one without a name, which cannot be.
    pub fn read(kind: RouteKind, object: &DynamicObject) -> Option<Self> {
        let key = convert::key(&object.metadata).ok()?;
        let (spec, route) = match kind {
            RouteKind::InterceptorRoute => {
                read::<InterceptorRoute, _>(object, convert::interceptor_route, |it| Spec::Route(Box::new(it.spec)))
            }
            RouteKind::HttpScaledObject => {
                read::<HTTPScaledObject, _>(object, convert::http_scaled_object, |it| Spec::Http(Box::new(it.spec)))
            }
        };
        let status = object.data.get("status").cloned().unwrap_or_default();
        let listed = status.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let conditions: Vec<Condition> =
            listed.iter().filter_map(|condition| serde_json::from_value(condition.clone()).ok()).collect();
        let old_conditions = conditions.len() < listed.len();
        let subject = Subject { kind, key };
        Some(Self { subject, meta: Meta::of(&object.metadata), spec, route, conditions, old_conditions, status })
    }

    /// The port of interceptors that its status tells.
    pub fn told_port(&self) -> Option<u16> {
        self.status.pointer("/shadow/port")?.as_u64()?.try_into().ok()
    }

    /// For whom its status tells a port, as far as it can be read.
    pub(crate) fn claim(&self) -> Claim {
        let service = match (&self.route, &self.spec) {
            (Ok(route), _) => Some(route.target.service.clone()),
            (Err(_), Ok(Spec::Route(spec))) => {
                Some(ObjectKey::new(self.subject.key.namespace(), spec.target.service.as_str()))
            }
            (Err(_), _) => None,
        };
        Claim { created: self.meta.created, service }
    }

    /// The workload it scales, as far as it says so itself.
    pub fn workload(&self) -> Option<Workload> {
        let (api_version, kind, name) = match self.spec.as_ref().ok()? {
            Spec::Route(spec) => {
                let scaling = spec.scaling.as_ref()?;
                match &scaling.scale_target_ref {
                    Some(target) => (Some(&target.api_version), Some(&target.kind), &target.name),
                    None => (None, None, &spec.target.service),
                }
            }
            Spec::Http(spec) => {
                let target = &spec.scale_target_ref;
                (target.api_version.as_ref(), target.kind.as_ref(), target.name.as_ref()?)
            }
        };
        Some(Workload::new(self.subject.key.namespace(), api_version, kind, name))
    }
}

/// The spec and the route of a typed object, without its status: that is ours to write, whatever it holds.
fn read<K, E>(
    object: &DynamicObject,
    route: impl FnOnce(&K) -> Result<Route, E>,
    spec: impl FnOnce(K) -> Spec,
) -> (Result<Spec, String>, Result<Route, String>)
where
    K: Resource + DeserializeOwned,
    E: std::fmt::Display,
{
    let value = json!({
        "metadata": object.metadata,
        "spec": object.data.get("spec").cloned().unwrap_or_default(),
    });
    match serde_path_to_error::deserialize::<_, K>(value) {
        Ok(typed) => {
            let route = route(&typed).map_err(|error| error.to_string());
            (Ok(spec(typed)), route)
        }
        Err(error) => {
            let error = format!("{} cannot be read: {}", error.path(), error.inner());
            (Err(error.clone()), Err(error))
        }
    }
}

// === impl Workload ===

impl Workload {
    /// A workload of `namespace`; a Deployment unless told.
    pub fn new(namespace: &str, api_version: Option<&String>, kind: Option<&String>, name: &str) -> Self {
        let given = |text: Option<&String>, default: &str| {
            text.filter(|text| !text.is_empty()).cloned().unwrap_or_else(|| default.to_owned())
        };
        Self {
            api_version: given(api_version, "apps/v1"),
            kind: given(kind, "Deployment"),
            key: ObjectKey::new(namespace, name),
        }
    }
}

/// `ScaledObject`'s API version.
pub(crate) fn keda_version() -> String {
    ScaledObject::api_version(&()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: RouteKind, value: Value) -> Object {
        Object::read(kind, &serde_json::from_value(value).unwrap()).unwrap()
    }

    #[test]
    fn an_object_that_cannot_be_read_says_where() {
        let read = object(
            RouteKind::InterceptorRoute,
            json!({"metadata": {"namespace": "n", "name": "r", "generation": 3}, "spec": {
                "target": {"service": "web", "port": "eighty"}, "scalingMetric": {}}}),
        );
        assert_eq!(read.meta.generation, 3);
        let error = read.spec.unwrap_err();
        assert!(error.starts_with("spec.target.port cannot be read: invalid type: string"), "{error}");
    }

    #[test]
    fn a_value_that_cannot_be_leaves_the_spec_readable() {
        let read = object(
            RouteKind::HttpScaledObject,
            json!({"metadata": {"namespace": "n", "name": "r"}, "spec": {
                "scaleTargetRef": {"name": "app", "service": "web", "port": 80}, "timeouts": {"conditionWait": "soon"}}}),
        );
        assert!(read.spec.is_ok());
        assert!(read.route.as_ref().unwrap_err().contains("spec.timeouts.conditionWait is \"soon\""));
        let workload = Workload::new("n", None, None, "app");
        assert_eq!((workload.api_version.as_str(), workload.kind.as_str()), ("apps/v1", "Deployment"));
        assert_eq!(read.workload(), Some(workload));
    }

    #[test]
    fn a_status_of_whatever_form_harms_nothing() {
        let read = object(
            RouteKind::InterceptorRoute,
            json!({"metadata": {"namespace": "n", "name": "r"}, "spec": {
                "target": {"service": "web", "port": 80}, "scalingMetric": {"concurrency": {"targetValue": 1}}},
                "status": {"conditions": [{"type": "Ready", "status": "True", "timestamp": "old"}]}}),
        );
        assert!(read.route.is_ok() && read.old_conditions && read.conditions.is_empty());
    }
}
