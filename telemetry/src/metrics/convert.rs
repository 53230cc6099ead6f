//! From the text that our registry writes (OpenMetrics 1.0) to OTLP's messages. The registry hands its values out in no
//! other form; what it never writes (timestamps, exemplars, summaries) is not read.
//! Reference: the OpenMetrics specification, and OpenTelemetry's "Prometheus and OpenMetrics Compatibility".

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric::Data,
        number_data_point,
    },
};

/// Families whose names in OpenTelemetry the KEDA HTTP Add-on has fixed; other families keep the registry's.
const NAMES: [(&str, &str); 8] = [
    ("interceptor_cold_start_duration_seconds", "interceptor.cold_start.duration"),
    ("interceptor_cold_start_rejections", "interceptor.cold_start.rejections"),
    ("interceptor_request_concurrency", "interceptor.request.concurrency"),
    ("interceptor_request_count", "interceptor.request.count"),
    ("interceptor_request_duration_seconds", "interceptor.request.duration"),
    ("scaler_pinger_fetch_duration_seconds", "scaler.pinger.fetch.duration"),
    ("scaler_pinger_fetch_errors", "scaler.pinger.fetch.errors"),
    ("scaler_pinger_unreachable_pods", "scaler.pinger.unreachable_pods"),
];

/// Gauges that are sums of ups and downs to the add-on.
const UP_DOWN: [&str; 1] = ["interceptor_request_concurrency"];

/// Labels that are numbers in OTLP.
const NUMBERS: [&str; 1] = ["code"];

/// When counting began, and now; nanoseconds since 1970.
#[derive(Clone, Copy)]
struct Times {
    start: u64,
    now: u64,
}

/// Reads the text; a line that makes no sense is left out.
pub(super) fn metrics(text: &str, started: SystemTime, now: SystemTime) -> Vec<Metric> {
    let times = Times { start: nanos(started), now: nanos(now) };
    let mut all: Vec<Metric> = Vec::new();
    let (mut help, mut family) = ("", "");
    for line in text.lines() {
        if let Some((_, text)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = text.strip_suffix('.').unwrap_or(text);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            family = name;
            if let Some(data) = data(name, kind) {
                all.push(Metric {
                    name: name_of(name).to_owned(),
                    description: std::mem::take(&mut help).to_owned(),
                    unit: if name.ends_with("_seconds") { "s" } else { "" }.to_owned(),
                    data: Some(data),
                    ..Metric::default()
                });
            } else {
                family = "";
            }
        } else if !family.is_empty()
            && let Some((suffix, labels, value)) = sample(line, family)
            && let Some(data) = all.last_mut().and_then(|metric| metric.data.as_mut())
        {
            _ = add(data, suffix, &labels, value, times);
        }
    }
    all
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn name_of(family: &str) -> &str {
    NAMES.iter().find(|(name, _)| *name == family).map_or(family, |(_, name)| name)
}

/// What a family of this kind holds; `None` for what OTLP has elsewhere, as the resource.
fn data(family: &str, kind: &str) -> Option<Data> {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    Some(match kind {
        "counter" => Data::Sum(Sum { is_monotonic: true, aggregation_temporality, ..Sum::default() }),
        "gauge" if UP_DOWN.contains(&family) => Data::Sum(Sum { aggregation_temporality, ..Sum::default() }),
        "gauge" | "unknown" => Data::Gauge(Gauge::default()),
        "histogram" => Data::Histogram(Histogram { aggregation_temporality, ..Histogram::default() }),
        _ => return None,
    })
}

type Labels<'a> = Vec<(&'a str, String)>;

/// A sample's suffix to its family's name, its labels and its value.
fn sample<'a>(line: &'a str, family: &str) -> Option<(&'a str, Labels<'a>, &'a str)> {
    let rest = line.strip_prefix(family)?;
    let (suffix, rest) = rest.split_at(rest.find(['{', ' '])?);
    let Some(mut rest) = rest.strip_prefix('{') else { return Some((suffix, Vec::new(), rest.trim())) };
    let mut labels = Vec::new();
    while !rest.starts_with('}') {
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = unquote(after)?;
        labels.push((name, value));
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some((suffix, labels, rest[1..].trim()))
}

/// The text up to its closing quote, and what follows that.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((text, &quoted[at + 1..])),
            '\\' => text.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => text.push(other),
        }
    }
    None
}

/// `None` when the sample does not fit its family.
fn add(data: &mut Data, suffix: &str, labels: &[(&str, String)], value: &str, times: Times) -> Option<()> {
    match (data, suffix) {
        (Data::Sum(sum), "" | "_total") => sum.data_points.push(number(labels, value, times)?),
        (Data::Gauge(gauge), "") => gauge.data_points.push(number(labels, value, times)?),
        (Data::Histogram(histogram), _) => add_to(&mut histogram.data_points, suffix, labels, value, times)?,
        _ => return None,
    }
    Some(())
}

fn number(labels: &[(&str, String)], value: &str, times: Times) -> Option<NumberDataPoint> {
    let value = match value.parse() {
        Ok(whole) => number_data_point::Value::AsInt(whole),
        Err(_fraction) => number_data_point::Value::AsDouble(value.parse().ok()?),
    };
    Some(NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

/// The registry writes a series' sum first, then its count, then its buckets, each with all below it.
fn add_to(
    points: &mut Vec<HistogramDataPoint>,
    suffix: &str,
    labels: &[(&str, String)],
    value: &str,
    times: Times,
) -> Option<()> {
    match suffix {
        "_sum" => points.push(HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: times.start,
            time_unix_nano: times.now,
            sum: Some(value.parse().ok()?),
            ..HistogramDataPoint::default()
        }),
        "_count" => points.last_mut()?.count = value.parse().ok()?,
        "_bucket" => {
            let point = points.last_mut()?;
            let (_, bound) = labels.iter().find(|(name, _)| *name == "le")?;
            let below: u64 = point.bucket_counts.iter().sum();
            point.bucket_counts.push(value.parse::<u64>().ok()?.saturating_sub(below));
            if bound != "+Inf" {
                point.explicit_bounds.push(bound.parse().ok()?);
            }
        }
        _ => return None,
    }
    Some(())
}

fn attributes(labels: &[(&str, String)]) -> Vec<KeyValue> {
    let value = |name: &str, text: &str| match text.parse() {
        Ok(number) if NUMBERS.contains(&name) => any_value::Value::IntValue(number),
        _ => any_value::Value::StringValue(text.to_owned()),
    };
    let attribute = |(name, text): &(&str, String)| KeyValue {
        key: (*name).to_owned(),
        value: Some(AnyValue { value: Some(value(name, text)) }),
        ..KeyValue::default()
    };
    labels.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::text::encode,
        metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram as Times, info::Info},
        registry::{Registry, Unit},
    };
    use proptest::prelude::*;

    use super::*;

    fn converted(registry: &Registry) -> Vec<Metric> {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        metrics(&text, UNIX_EPOCH, UNIX_EPOCH)
    }

    fn texts(attributes: &[KeyValue]) -> Vec<(String, any_value::Value)> {
        let value = |pair: &KeyValue| pair.value.clone().unwrap().value.unwrap();
        attributes.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
    }

    #[test]
    fn counters_are_monotonic_sums_under_the_names_of_the_add_on() {
        let (mut registry, counts) = (Registry::default(), Family::<Vec<(&str, &str)>, Counter>::default());
        registry.register("interceptor_request_count", "Requests", counts.clone());
        counts.get_or_create(&vec![("code", "200"), ("method", "GET")]).inc_by(7);
        let [metric] = &converted(&registry)[..] else { panic!("one family") };
        assert_eq!((&*metric.name, &*metric.description), ("interceptor.request.count", "Requests"));
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsInt(7)));
        let expected = [
            ("code".to_owned(), any_value::Value::IntValue(200)),
            ("method".to_owned(), any_value::Value::StringValue("GET".to_owned())),
        ];
        assert_eq!(texts(&sum.data_points[0].attributes), expected);
    }

    #[test]
    fn a_histogram_keeps_its_sum_count_bounds_and_the_counts_between_them() {
        let (mut registry, times) = (Registry::default(), Times::new([0.1, 1.0]));
        registry.register_with_unit("took", "Time", Unit::Seconds, times.clone());
        for seconds in [0.05, 0.5, 0.75, 4.0] {
            times.observe(seconds);
        }
        let [metric] = &converted(&registry)[..] else { panic!("one family") };
        assert_eq!((&*metric.name, &*metric.unit), ("took_seconds", "s"));
        let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.sum, point.count), (Some(5.3), 4));
        assert_eq!((&point.explicit_bounds[..], &point.bucket_counts[..]), (&[0.1, 1.0][..], &[1, 2, 1][..]));
    }

    #[test]
    fn the_concurrency_is_a_sum_of_ups_and_downs_and_other_gauges_are_gauges() {
        let mut registry = Registry::default();
        registry.register("interceptor_request_concurrency", "Now", Gauge::<i64>::default());
        registry.register("open", "Now", Gauge::<i64>::default());
        registry.register("target", "Who", Info::new(vec![("service_name", "x")]));
        let [concurrency, open] = &converted(&registry)[..] else { panic!("two families, and no info") };
        assert!(matches!(&concurrency.data, Some(Data::Sum(sum)) if !sum.is_monotonic && sum.data_points.len() == 1));
        assert!(matches!(&open.data, Some(Data::Gauge(gauge)) if gauge.data_points.len() == 1));
    }

    proptest! {
        #[test]
        fn labels_arrive_whatever_is_in_them(value in "\\PC*|[\"\\\\\n,{}= a]*") {
            let (mut registry, family) = (Registry::default(), Family::<Vec<(&str, String)>, Counter>::default());
            registry.register("a", "A", family.clone());
            family.get_or_create(&vec![("first", value.clone()), ("last", "x".to_owned())]).inc();
            let all = converted(&registry);
            let Some(Data::Sum(sum)) = &all[0].data else { panic!("{all:?}") };
            let texts = texts(&sum.data_points[0].attributes);
            prop_assert_eq!(&texts[0].1, &any_value::Value::StringValue(value));
            prop_assert_eq!(&texts[1].1, &any_value::Value::StringValue("x".to_owned()));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(# TYPE a (counter|histogram|gauge)\n)?(a(_total|_sum|_bucket)?[{} =\"a-z0-9,\\\\]*\n){0,4}\\PC*") {
            metrics(&text, UNIX_EPOCH, UNIX_EPOCH);
        }
    }
}
