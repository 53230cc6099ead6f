//! Which text format a scrape gets, and the older one made from the newer. The registry writes OpenMetrics 1.0; plain
//! HTTP clients and older scrapers expect Prometheus text 0.0.4, in which a counter's family carries its suffix.

use http::{HeaderValue, header::GetAll};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus text 0.0.4, what a client gets that does not ask.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

// === impl Format ===

impl Format {
    /// The most wanted of the two; the first on a tie.
    pub(super) fn negotiate(accept: &GetAll<'_, HeaderValue>) -> Self {
        let values = accept.iter().filter_map(|value| value.to_str().ok());
        let mut best = (0.0, Self::Prometheus);
        for range in values.flat_map(|value| value.split(',')) {
            let (kind, parameters) = range.split_once(';').unwrap_or((range, ""));
            let format = match kind.trim() {
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Prometheus,
                _ => continue,
            };
            let quality = quality(parameters);
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }
}

fn quality(parameters: &str) -> f32 {
    let found = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
    found.map_or(1.0, |text| text.trim().parse().unwrap_or(0.0))
}

/// Rewrites what the registry wrote: the lines about families differ between the formats, and the bounds of buckets.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take() {
                // The registry ends every help text with a full stop of its own.
                let text = text.strip_suffix('.').unwrap_or(text);
                out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if let Some((name, rest)) = line.split_once("_bucket{le=\"") {
            // The same bound under the same label as ever: 1, where OpenMetrics asks for 1.0.
            let (bound, rest) = rest.split_once('"').unwrap_or((rest, ""));
            out.extend([name, "_bucket{le=\"", bound.strip_suffix(".0").unwrap_or(bound), "\"", rest, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, header::ACCEPT};

    use super::*;

    fn negotiate(accept: &'static str) -> Format {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, HeaderValue::from_static(accept));
        Format::negotiate(&headers.get_all(ACCEPT))
    }

    #[test]
    fn the_format_with_the_higher_quality_wins() {
        assert_eq!(negotiate("*/*"), Format::Prometheus);
        assert_eq!(negotiate("application/openmetrics-text"), Format::OpenMetrics);
        assert_eq!(negotiate("text/plain;q=0.9, application/openmetrics-text;q=0.5"), Format::Prometheus);
        assert_eq!(negotiate("application/openmetrics-text;q=0"), Format::Prometheus);
        assert_eq!(negotiate("text/html"), Format::Prometheus);
        let prometheus = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
                          application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
        assert_eq!(negotiate(prometheus), Format::OpenMetrics);
    }

    #[test]
    fn whole_bounds_of_buckets_are_written_without_a_fraction_in_the_older_format() {
        let openmetrics = "d_bucket{le=\"1.0\",a=\"2.0\"} 1\nd_bucket{le=\"2.5\"} 1\nd_bucket{le=\"+Inf\"} 1\nd_sum{le=\"1.0\"} 1.0\n";
        let expected =
            "d_bucket{le=\"1\",a=\"2.0\"} 1\nd_bucket{le=\"2.5\"} 1\nd_bucket{le=\"+Inf\"} 1\nd_sum{le=\"1.0\"} 1.0\n";
        assert_eq!(to_prometheus(openmetrics), expected);
    }

    #[test]
    fn families_of_counters_and_infos_carry_their_suffix_in_the_older_format() {
        let openmetrics = "# HELP a Things.\n# TYPE a counter\na_total{x=\"# TYPE\"} 1\n# HELP t_seconds Time.\n\
                           # TYPE t_seconds gauge\n# UNIT t_seconds seconds\nt_seconds 2.5\n# EOF\n";
        let expected = "# HELP a_total Things\n# TYPE a_total counter\na_total{x=\"# TYPE\"} 1\n# HELP t_seconds Time\n\
                        # TYPE t_seconds gauge\nt_seconds 2.5\n";
        assert_eq!(to_prometheus(openmetrics), expected);
    }
}
