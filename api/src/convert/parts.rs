//! Fields that both kinds of route have.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use interceptor_core::{
    ObjectKey, Route,
    go_duration::DurationError,
    route::{HeaderMatch, Holding, PortRef, Rate, Scaling, Target},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ConvertError;
use crate::{duration::GoDuration, interceptor_route::HeaderRule};

/// What a duration must look like.
const DURATION: &str = "a duration such as 300ms, 1m30s or 0s";

pub(super) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

pub(super) fn port(field: &str, value: i32) -> Result<u16, ConvertError> {
    let port = u16::try_from(value).ok().filter(|port| *port > 0);
    port.ok_or_else(|| ConvertError::new(field, value, "a port from 1 to 65535"))
}

/// A Service of `namespace` by name and either port number or port name; `path` is where they stand.
pub(super) fn target(
    path: &str,
    namespace: &str,
    (service_field, service): (&str, &str),
    number: Option<i32>,
    name: Option<&str>,
) -> Result<Target, ConvertError> {
    if service.is_empty() {
        return Err(ConvertError::new(format!("{path}.{service_field}"), "empty", "the name of a Service"));
    }
    let port = match (number, name) {
        (Some(number), None) => PortRef::Number(port(&format!("{path}.port"), number)?),
        (None, Some("")) => {
            return Err(ConvertError::new(
                format!("{path}.portName"),
                "empty",
                "the name of one of the Service's ports",
            ));
        }
        (None, Some(name)) => PortRef::Name(name.into()),
        (Some(_), Some(_)) => {
            return Err(ConvertError::new(path, "with both port and portName", "exactly one of them"));
        }
        (None, None) => return Err(ConvertError::new(path, "without port and portName", "exactly one of them")),
    };
    Ok(Target { service: ObjectKey::new(namespace, service), port })
}

pub(super) fn headers(path: &str, rules: &[HeaderRule]) -> Result<Vec<HeaderMatch>, ConvertError> {
    let header = |(index, rule): (usize, &HeaderRule)| {
        let HeaderRule { name, value } = rule;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_no_name: http::header::InvalidHeaderName| {
            ConvertError::new(format!("{path}[{index}].name"), quoted(name), "a header name")
        })?;
        Ok(HeaderMatch { name, value: value.as_ref().map(|value| value.clone().into_bytes()) })
    };
    rules.iter().enumerate().map(header).collect()
}

/// Fields of a response, by name.
pub(super) fn fields(path: &str, fields: &BTreeMap<String, String>) -> Result<HeaderMap, ConvertError> {
    let field = |(name, value): (&String, &String)| {
        let wrong =
            |part: &dyn fmt::Display, expected| ConvertError::new(format!("{path}[{}]", quoted(name)), part, expected);
        let parsed = HeaderName::from_bytes(name.as_bytes());
        let parsed =
            parsed.map_err(|_no_name: http::header::InvalidHeaderName| wrong(&"no header name", "a header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_no_value: http::header::InvalidHeaderValue| {
            wrong(&quoted(value), "a value without control characters")
        })?;
        Ok((parsed, value))
    };
    fields.iter().map(field).collect()
}

pub(super) fn duration(field: &str, text: &GoDuration) -> Result<Duration, ConvertError> {
    text.parse().map_err(|error| {
        let expected = match error {
            DurationError::Syntax => DURATION,
            DurationError::TooLong => "a duration of less than 292 years",
            DurationError::Negative => "a duration of 0s or more",
        };
        ConvertError::new(field, quoted(&text.0), expected)
    })
}

pub(super) fn positive(field: &str, value: i32) -> Result<u32, ConvertError> {
    let target = u32::try_from(value).ok().filter(|target| *target > 0);
    target.ok_or_else(|| ConvertError::new(field, value, "a number from 1"))
}

/// How requests are held when a pod shall get `per_pod` of them: zero is no limit, and nothing is the target of the scaling.
pub(super) fn holding(per_pod: Option<u32>, scaling: &Scaling) -> Holding {
    Holding { per_pod: per_pod.or(scaling.concurrency).and_then(NonZeroU32::new), ..Holding::default() }
}

/// A window or granularity of zero is the default, as the original has it.
pub(super) fn rate(
    path: &str,
    target: i32,
    window: &GoDuration,
    granularity: &GoDuration,
) -> Result<Rate, ConvertError> {
    let or_default = |field: &str, text: &GoDuration, default: Duration| {
        let value = duration(&format!("{path}.{field}"), text)?;
        Ok(if value.is_zero() { default } else { value })
    };
    Ok(Rate {
        target: positive(&format!("{path}.targetValue"), target)?,
        window: or_default("window", window, Duration::from_mins(1))?,
        granularity: or_default("granularity", granularity, Duration::from_secs(1))?,
    })
}

/// The route, if the table takes it.
pub(super) fn checked(route: Route) -> Result<Route, ConvertError> {
    route.check().map(|()| route).map_err(|error| {
        let text = error.to_string();
        match text.split_once(": expected ") {
            Some((what, expected)) => ConvertError::new("spec", what, expected),
            None => ConvertError::new("spec", text, "less"),
        }
    })
}

/// A foreign text for a message: quoted, its control characters escaped, and not longer than a line.
pub(super) fn quoted(text: &str) -> impl fmt::Display {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
