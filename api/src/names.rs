//! Names of labels, annotations, conditions and reasons, as users and other components know them.

/// API group of our custom resources.
pub const GROUP: &str = "http.keda.sh";

/// Label of an EndpointSlice: the Service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Label of an EndpointSlice: who wrote it.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// The value of that label for shadow slices, which list interceptors in place of a Service's pods.
pub const SHADOW_MANAGER: &str = "shadow.http.keda.sh";

/// Label of a shadow slice: the UID of the route that it is for.
pub const SHADOW_ROUTE_LABEL: &str = "http.keda.sh/shadow-of";

/// Label a ConfigMap needs before its data may be served as a response body.
pub const RESPONSE_BODY_LABEL: &str = "http.keda.sh/response-body";

/// Label of a Secret with a certificate that interceptors may use, and what for: `server` to show it to clients, `client` to
/// show it to pods.
pub const TLS_LABEL: &str = "http.keda.sh/tls";

/// Annotation of a Namespace: the hosts that its routes may claim, with commas between them.
pub use interceptor_core::index::ALLOWED_HOSTS_ANNOTATION;

/// Finalizer of an HTTPScaledObject.
pub const FINALIZER: &str = "httpscaledobject.http.keda.sh";

/// Annotation of an HTTPScaledObject: let go of the ScaledObject instead of owning it.
pub const ORPHAN_ANNOTATION: &str = "httpscaledobject.keda.sh/orphan-scaledobject";

/// Annotation of an HTTPScaledObject: make no ScaledObject.
pub const SKIP_ANNOTATION: &str = "httpscaledobject.keda.sh/skip-scaledobject-creation";

/// Annotation of an HTTPScaledObject: with the value "false", interceptors do not run the pods' readiness probe.
pub const PROBE_READINESS_ANNOTATION: &str = "http.keda.sh/probe-readiness";

/// Annotation of an HTTPScaledObject: most requests that an interceptor has at a pod while others are held; "0" for no limit.
pub const MAX_REQUESTS_PER_POD_ANNOTATION: &str = "http.keda.sh/max-requests-per-pod";

/// The field manager under which the operator writes.
pub const FIELD_MANAGER: &str = "http-add-on-operator";

/// Trigger metadata: the InterceptorRoute that a trigger stands for.
pub const INTERCEPTOR_ROUTE_KEY: &str = "interceptorRoute";

/// Trigger metadata: the HTTPScaledObject that a trigger stands for.
pub const HTTP_SCALED_OBJECT_KEY: &str = "httpScaledObject";

/// Metadata of a call that asks for another view of a route than KEDA has.
pub const VIEW_KEY: &str = "rouse.view";

/// That view: whether there is demand, and nothing but that.
pub const DEMAND_VIEW: &str = "demand";

/// Trigger metadata: the interceptor's own scaling, with its target of pending requests.
pub const INTERCEPTOR_TARGET_KEY: &str = "interceptorTargetPendingRequests";

/// Types of conditions.
pub mod condition {
    /// All of it works.
    pub const READY: &str = "Ready";
    /// The route's rules are taken, and no other route has them already.
    pub const ACCEPTED: &str = "Accepted";
    /// The target's Service and port exist.
    pub const TARGET_RESOLVED: &str = "TargetResolved";
    /// The fallback's Service and port exist; only where there is a fallback.
    pub const FALLBACK_RESOLVED: &str = "FallbackResolved";
    /// A ScaledObject scales the workload by this route.
    pub const SCALED_OBJECT: &str = "ScaledObject";
    /// There is demand, and KEDA acts on it.
    pub const ACTIVE: &str = "Active";
    /// Requests have a way to the target.
    pub const DATA_PATH: &str = "DataPath";
}

/// Reasons of conditions.
pub mod reason {
    /// All is as it should be.
    pub const RECONCILED: &str = "Reconciled";
    /// The ScaledObject could not be made.
    pub const CREATE_ERROR: &str = "CreateError";
    /// The rules are taken.
    pub const ACCEPTED: &str = "Accepted";
    /// The object can't be read or has a value that can't be.
    pub const INVALID: &str = "Invalid";
    /// Other routes have all of the rules already.
    pub const CONFLICT: &str = "Conflict";
    /// Other routes have some of the rules already.
    pub const PARTIAL_CONFLICT: &str = "PartialConflict";
    /// The namespace may not claim some or all of the hosts.
    pub const HOST_NOT_ALLOWED: &str = "HostNotAllowed";
    /// An InterceptorRoute of the same name stands before an HTTPScaledObject.
    pub const SHADOWED: &str = "Shadowed";
    /// There is no rule, so that no request is taken.
    pub const NO_RULES: &str = "NoRules";
    /// Service and port exist.
    pub const RESOLVED: &str = "Resolved";
    /// The Service does not exist.
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    /// The Service has no such port.
    pub const PORT_NOT_FOUND: &str = "PortNotFound";
    /// A ScaledObject of the user's names the route.
    pub const FOUND: &str = "Found";
    /// The operator wrote the ScaledObject.
    pub const CREATED: &str = "Created";
    /// A ScaledObject stands where the operator would write one, and is not the operator's.
    pub const FOREIGN: &str = "Foreign";
    /// There is no ScaledObject.
    pub const NOT_FOUND: &str = "NotFound";
    /// An annotation tells the operator to write none.
    pub const SKIPPED: &str = "Skipped";
    /// KEDA is not installed.
    pub const NO_KEDA: &str = "KedaNotFound";
    /// KEDA says that the ScaledObject does not work.
    pub const KEDA_ERROR: &str = "KedaError";
    /// There is demand.
    pub const DEMAND: &str = "Demand";
    /// There is no demand.
    pub const IDLE: &str = "Idle";
    /// KEDA was told to pause.
    pub const PAUSED: &str = "Paused";
    /// KEDA has not said yet.
    pub const PENDING: &str = "Pending";
    /// Requests go through an interceptor.
    pub const PROXY: &str = "Proxy";
    /// Clients reach pods without a proxy.
    pub const DIRECT: &str = "Direct";
    /// The same, and nobody stands in for pods where there is no agent.
    pub const DIRECT_ONLY: &str = "DirectOnly";
    /// The same, since the namespace has as many ports of interceptors as one may have.
    pub const PORT_LIMIT: &str = "PortLimit";
    /// Interceptors are listed as the Service's endpoints.
    pub const INTERCEPTORS: &str = "Interceptors";
    /// No request gets to the target.
    pub const NO_PATH: &str = "NoPath";
}
