//! Who tells: the service's name and version, and what `OTEL_RESOURCE_ATTRIBUTES` adds.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

use crate::Service;

/// The resource of this process. The name given here beats `OTEL_SERVICE_NAME`, as it does in the add-on.
pub(crate) fn resource(service: Service) -> Resource {
    let own = [KeyValue::new("service.name", service.name), KeyValue::new("service.version", service.version)];
    Resource::builder().with_attributes(own).build()
}
