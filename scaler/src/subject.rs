//! Whom a call of KEDA is about: read from the trigger's metadata. Pure; used by the service alone.

use interceptor_core::{ObjectKey, route::RouteKind};
use proto::externalscaler::ScaledObjectRef;
use thiserror::Error;

const INTERCEPTOR_ROUTE: &str = "interceptorRoute";
const HTTP_SCALED_OBJECT: &str = "httpScaledObject";
const INTERCEPTOR: &str = "interceptorTargetPendingRequests";

/// Whom a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A route, in the `ScaledObject`'s namespace.
    Route(RouteKind, ObjectKey),
    /// The interceptors themselves.
    Interceptor {
        /// The `ScaledObject` that asks.
        scaled_object: ObjectKey,
        /// Target of requests in flight per interceptor, as written.
        target: String,
    },
}

/// The metadata doesn't say whom the call is about.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SubjectError {
    /// None of the three keys is there.
    #[error(
        "unable to get HTTPScaledObject reference: the trigger metadata of ScaledObject {scaled_object} has none of \
         {INTERCEPTOR_ROUTE}, {HTTP_SCALED_OBJECT}, {INTERCEPTOR}"
    )]
    Missing {
        /// The `ScaledObject` that asks.
        scaled_object: ObjectKey,
    },
    /// The key is there without a name.
    #[error("trigger metadata {field} of ScaledObject {scaled_object} is empty, expected a name")]
    Empty {
        /// The `ScaledObject` that asks.
        scaled_object: ObjectKey,
        /// The metadata key.
        field: &'static str,
    },
}

// === impl Subject ===

impl Subject {
    /// Reads a call's reference. An `InterceptorRoute` wins over an `HTTPScaledObject`, and that over the interceptors.
    pub fn parse(reference: ScaledObjectRef) -> Result<Self, SubjectError> {
        let ScaledObjectRef { name, namespace, mut scaler_metadata } = reference;
        let scaled_object = ObjectKey::new(namespace.as_str(), name);
        let routes = [
            (INTERCEPTOR_ROUTE, RouteKind::InterceptorRoute), //
            (HTTP_SCALED_OBJECT, RouteKind::HttpScaledObject),
        ];
        for (field, kind) in routes {
            match scaler_metadata.remove(field) {
                Some(route) if route.is_empty() => return Err(SubjectError::Empty { scaled_object, field }),
                Some(route) => return Ok(Self::Route(kind, ObjectKey::new(namespace, route))),
                None => {}
            }
        }
        match scaler_metadata.remove(INTERCEPTOR) {
            Some(target) => Ok(Self::Interceptor { scaled_object, target }),
            None => Err(SubjectError::Missing { scaled_object }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(metadata: &[(&str, &str)]) -> Result<Subject, SubjectError> {
        Subject::parse(ScaledObjectRef {
            name: "so".into(),
            namespace: "ns".into(),
            scaler_metadata: metadata.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
        })
    }

    #[test]
    fn an_interceptor_route_wins_over_an_http_scaled_object_over_the_interceptors() {
        let all = [
            ("scalerAddress", "x:9090"),
            ("interceptorTargetPendingRequests", "200"),
            ("httpScaledObject", "old"),
            ("interceptorRoute", "new"),
        ];
        assert_eq!(parse(&all), Ok(Subject::Route(RouteKind::InterceptorRoute, ObjectKey::new("ns", "new"))));
        assert_eq!(parse(&all[..3]), Ok(Subject::Route(RouteKind::HttpScaledObject, ObjectKey::new("ns", "old"))));
        let scaled_object = ObjectKey::new("ns", "so");
        assert_eq!(parse(&all[..2]), Ok(Subject::Interceptor { scaled_object, target: "200".into() }));
    }

    #[test]
    fn metadata_without_a_reference_is_told_with_the_scaled_object_and_the_keys() {
        let error = parse(&[("scalerAddress", "x:9090")]).unwrap_err().to_string();
        assert!(error.starts_with("unable to get HTTPScaledObject reference"), "{error}");
        assert!(error.contains("ns/so") && error.contains("interceptorRoute"), "{error}");
        let error = parse(&[("interceptorRoute", "")]).unwrap_err().to_string();
        assert_eq!(error, "trigger metadata interceptorRoute of ScaledObject ns/so is empty, expected a name");
    }
}
