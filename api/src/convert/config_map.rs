//! A ConfigMap as response bodies.

use interceptor_core::index::ResponseBodies;
use k8s_openapi::api::core::v1::ConfigMap;

use super::{ConvertError, key};
use crate::names::RESPONSE_BODY_LABEL;

/// The data of `object`, if its label says that it may be served: nobody's other ConfigMaps are to be read over HTTP.
pub fn response_bodies(object: &ConfigMap) -> Result<Option<ResponseBodies>, ConvertError> {
    let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(RESPONSE_BODY_LABEL));
    if label.is_none_or(|value| value != "true") {
        return Ok(None);
    }
    let data = object.data.iter().flatten().map(|(key, value)| (key.as_str().into(), value.clone().into()));
    Ok(Some(ResponseBodies { key: key(&object.metadata)?, data: data.collect() }))
}
