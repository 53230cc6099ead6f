//! A readiness probe from a route's status, for those who may ask pods by it.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use interceptor_core::probe::{Action, HttpGet, Probe, Probing};

use crate::{
    ReadinessProbe,
    readiness_probe::{GrpcProbe, HttpProbe, ProbeHeader, ProbeScheme, TcpProbe},
};

/// What a route says: whether it refuses to be probed, and the probe of its status. A probe that can't be run is none: it
/// is the operator's to report, and no reason not to route.
pub(super) fn probing(refused: bool, probe: Option<&ReadinessProbe>) -> Probing {
    if refused {
        return Probing::Refused;
    }
    probe.and_then(self::probe).map_or(Probing::Unsaid, |probe| Probing::By(Arc::new(probe)))
}

fn probe(probe: &ReadinessProbe) -> Option<Probe> {
    let ReadinessProbe {
        failure_threshold,
        grpc,
        http_get,
        initial_delay_seconds,
        period_seconds,
        success_threshold,
        tcp_socket,
        timeout_seconds,
    } = probe;
    let action = match (http_get, tcp_socket, grpc) {
        (Some(http), _, _) => Action::Http(self::http(http)?),
        (None, Some(TcpProbe { port }), _) => Action::Tcp(self::port(*port)?),
        (None, None, Some(GrpcProbe { port, service })) => {
            Action::Grpc { port: self::port(*port)?, service: service.clone() }
        }
        (None, None, None) => return None,
    };
    let seconds = |seconds: i32, least| Duration::from_secs(u64::try_from(seconds).unwrap_or(least).max(least));
    let times = |times: i32| u32::try_from(times).unwrap_or(1).max(1);
    Some(Probe {
        action,
        timeout: seconds(*timeout_seconds, 1),
        period: seconds(*period_seconds, 1),
        initial_delay: seconds(*initial_delay_seconds, 0),
        successes: times(*success_threshold),
        failures: times(*failure_threshold),
    })
}

fn http(probe: &HttpProbe) -> Option<HttpGet> {
    let HttpProbe { http_headers, path, port, scheme } = probe;
    let header = |ProbeHeader { name, value }: &ProbeHeader| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
    };
    Some(HttpGet {
        port: self::port(*port)?,
        path: path.clone(),
        tls: *scheme == ProbeScheme::Https,
        headers: http_headers.iter().map(header).collect::<Option<_>>()?,
    })
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Probing {
        probing(false, Some(&serde_yaml_ng::from_str(text).unwrap()))
    }

    #[test]
    fn a_probe_of_the_status_is_taken_over() {
        let Probing::By(probe) = read(
            "{httpGet: {port: 8080, path: /ready, scheme: HTTPS, httpHeaders: [{name: Host, value: a}]}, periodSeconds: 5}",
        ) else {
            panic!("it is a probe")
        };
        let headers = vec![(http::header::HOST, HeaderValue::from_static("a"))];
        let get = HttpGet { port: 8080, path: "/ready".to_owned(), tls: true, headers };
        assert_eq!(probe.action, Action::Http(get));
        assert_eq!((probe.period.as_secs(), probe.timeout.as_secs(), probe.successes, probe.failures), (5, 1, 1, 3));
        let Probing::By(probe) = read("{grpc: {port: 9, service: s}, timeoutSeconds: -4, successThreshold: 0}") else {
            panic!("it is a probe")
        };
        assert_eq!(probe.action, Action::Grpc { port: 9, service: "s".to_owned() });
        assert_eq!((probe.timeout.as_secs(), probe.successes), (1, 1));
    }

    #[test]
    fn what_cannot_be_run_is_no_probe_and_a_refusal_counts_whatever_the_status() {
        assert_eq!(probing(false, None), Probing::Unsaid);
        for text in ["{}", "{tcpSocket: {port: 0}}", "{httpGet: {port: 1, httpHeaders: [{name: 'a b', value: c}]}}"] {
            assert_eq!(read(text), Probing::Unsaid, "{text}");
        }
        let tcp = serde_yaml_ng::from_str("{tcpSocket: {port: 9}}").unwrap();
        assert_eq!(probing(true, Some(&tcp)), Probing::Refused);
    }
}
