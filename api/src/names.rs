//! Names of labels, annotations, conditions and reasons, as users and other components know them.

/// API group of our custom resources.
pub const GROUP: &str = "http.keda.sh";

/// Label of an EndpointSlice: the Service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Label a ConfigMap needs before its data may be served as a response body.
pub const RESPONSE_BODY_LABEL: &str = "http.keda.sh/response-body";

/// Finalizer of an HTTPScaledObject.
pub const FINALIZER: &str = "httpscaledobject.http.keda.sh";

/// Annotation of an HTTPScaledObject: let go of the ScaledObject instead of owning it.
pub const ORPHAN_ANNOTATION: &str = "httpscaledobject.keda.sh/orphan-scaledobject";

/// Annotation of an HTTPScaledObject: make no ScaledObject.
pub const SKIP_ANNOTATION: &str = "httpscaledobject.keda.sh/skip-scaledobject-creation";

/// Annotation of an HTTPScaledObject: with the value "false", interceptors do not run the pods' readiness probe.
pub const PROBE_READINESS_ANNOTATION: &str = "http.keda.sh/probe-readiness";

/// The one condition type.
pub const READY: &str = "Ready";

/// Reason of a condition: all is as it should be.
pub const RECONCILED: &str = "Reconciled";

/// Reason of a condition: the ScaledObject could not be made.
pub const CREATE_ERROR: &str = "CreateError";

/// Trigger metadata: the InterceptorRoute that a trigger stands for.
pub const INTERCEPTOR_ROUTE_KEY: &str = "interceptorRoute";

/// Trigger metadata: the HTTPScaledObject that a trigger stands for.
pub const HTTP_SCALED_OBJECT_KEY: &str = "httpScaledObject";

/// Trigger metadata: the interceptor's own scaling, with its target of pending requests.
pub const INTERCEPTOR_TARGET_KEY: &str = "interceptorTargetPendingRequests";
