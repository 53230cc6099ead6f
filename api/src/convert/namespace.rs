//! A Namespace as what its routes may claim.

use std::sync::Arc;

use interceptor_core::index::AllowedHosts;
use k8s_openapi::api::core::v1::Namespace;

use super::{ConvertError, key};
use crate::names::ALLOWED_HOSTS_ANNOTATION;

/// Its name, and the hosts of its annotation, if it has one.
pub fn namespace(object: &Namespace) -> Result<(Arc<str>, Option<AllowedHosts>), ConvertError> {
    let name = key(&object.metadata)?.name().into();
    let text = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ALLOWED_HOSTS_ANNOTATION));
    Ok((name, text.map(|text| AllowedHosts::parse(text))))
}
