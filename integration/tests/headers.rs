//! What the pod sees of a request's head, and the client of a response's.

use integration::Head;

use crate::{HOST, warm, warm_with};

/// What the pod sees of a request with these header lines.
async fn seen(target: &str, lines: &str) -> Head {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send(&format!("GET {target} HTTP/1.1\r\n{lines}\r\n")).await;
    pod.request().await.1
}

/// What the client sees of a response with these header lines.
async fn answered(lines: &str) -> Head {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send(&format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n")).await;
    client.head().await
}

#[tokio::test]
async fn path_and_query_arrive_byte_for_byte() {
    let target = "/a//b/../c%2Fd%20e;v=1?b=2;c=3&a=1&z=%zz&&q=%C3%BC+'[]{}|^`";
    assert_eq!(seen(target, "Host: app.test\r\n").await.start, format!("GET {target} HTTP/1.1"));
}

#[tokio::test]
async fn the_host_is_kept_with_its_port_and_case() {
    assert_eq!(seen("/", "Host: App.Test:8080\r\n").await.all("host"), ["App.Test:8080"]);
}

#[tokio::test]
async fn the_host_of_an_absolute_target_wins() {
    let head = seen("http://app.test:81/x?y", "Host: other.test\r\n").await;
    assert_eq!((head.target(), head.all("host")), ("/x?y", vec!["app.test:81"]));
}

#[tokio::test]
async fn forwarded_headers_are_made_when_there_are_none() {
    let head = seen("/", "Host: app.test:8080\r\n").await;
    assert_eq!(head.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(head.all("x-forwarded-host"), ["app.test:8080"]);
    assert_eq!(head.all("x-forwarded-proto"), ["http"]);
    assert_eq!(head.get("x-forwarded-port"), None);
}

#[tokio::test]
async fn forwarded_headers_of_a_proxy_before_us_are_kept_and_extended() {
    let lines = "Host: app.test\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\nX-Forwarded-Host: keda.sh\r\n\
                 X-Forwarded-Proto: https\r\nX-Forwarded-Port: 8443\r\nForwarded: for=1.2.3.4\r\n";
    let head = seen("/", lines).await;
    assert_eq!(head.all("x-forwarded-for"), ["1.2.3.4, 5.6.7.8, 127.0.0.1"]);
    assert_eq!(head.all("x-forwarded-host"), ["keda.sh"]);
    assert_eq!(head.all("x-forwarded-proto"), ["https"]);
    assert_eq!(head.all("x-forwarded-port"), ["8443"]);
    assert_eq!(head.get("forwarded"), None);
}

#[tokio::test]
async fn only_trusted_proxies_are_believed_where_some_are() {
    let lines = "Host: app.test\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: keda.sh\r\nX-Forwarded-Proto: https\r\n\
                 Forwarded: for=1.2.3.4\r\n";
    for (trusted, chain, host, forwarded) in [
        (
            "127.0.0.0/8",
            "1.2.3.4, 127.0.0.1",
            "keda.sh",
            Some("for=1.2.3.4, for=127.0.0.1;host=\"app.test\";proto=http"),
        ),
        ("10.0.0.0/8,::1", "127.0.0.1", HOST, None),
    ] {
        let (_world, pod, interceptor) = warm_with(&[("ROUSE_TRUSTED_PROXIES", trusted)]).await;
        let mut client = interceptor.client().await;
        client.send(&format!("GET / HTTP/1.1\r\n{lines}\r\n")).await;
        let (_upstream, head) = pod.request().await;
        assert_eq!((head.all("x-forwarded-for"), head.all("x-forwarded-host")), (vec![chain], vec![host]), "{trusted}");
        assert_eq!(head.get("forwarded"), forwarded, "{trusted}");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_request_end_here() {
    let lines = "Host: app.test\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                 Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nProxy-Authenticate: Basic\r\n\
                 TE: gzip\r\nUpgrade-Insecure-Requests: 1\r\nX-End: 2\r\n";
    let head = seen("/", lines).await;
    for name in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te"] {
        assert_eq!(head.get(name), None, "{name}");
    }
    assert_eq!((head.get("x-end"), head.get("upgrade-insecure-requests")), (Some("2"), Some("1")));
}

#[tokio::test]
async fn the_wish_for_trailers_is_passed_on() {
    assert_eq!(seen("/", "Host: app.test\r\nTE: trailers, gzip\r\n").await.all("te"), ["trailers"]);
}

#[tokio::test]
async fn nothing_is_invented_for_the_pod() {
    let head = seen("/", "Host: app.test\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Empty:\r\nCookie: a=b\r\n").await;
    for name in ["user-agent", "accept-encoding", "accept", "content-length", "transfer-encoding", "x-rouse"] {
        assert_eq!(head.get(name), None, "{name}");
    }
    assert_eq!((head.all("x-twice"), head.all("x-empty")), (vec!["1", "2"], vec![""]));
    assert_eq!(head.get("cookie"), Some("a=b"));
}

#[tokio::test]
async fn bytes_that_are_not_ascii_pass_in_header_values() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send_bytes("GET / HTTP/1.1\r\nHost: app.test\r\nX-Name: Jürgen\r\n\r\n".as_bytes()).await;
    assert_eq!(pod.request().await.1.get("x-name"), Some("Jürgen"));
}

#[tokio::test]
async fn a_thousand_header_lines_are_passed_on() {
    let many = (0..1000).map(|number| format!("X-Field-{number}: {number}\r\n")).collect::<Vec<_>>().concat();
    let head = seen("/", &format!("Host: app.test\r\n{many}")).await;
    assert_eq!(head.get("x-field-999"), Some("999"));
}

#[tokio::test]
async fn names_pass_as_they_are_spelled() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nX-MiXed: 1\r\n\r\n").await;
    let mut upstream = pod.accept().await;
    while upstream.line().await != "X-MiXed: 1" {}
    while !upstream.line().await.is_empty() {}
    upstream.send("HTTP/1.1 200 OK\r\nETag: \"1\"\r\nConnection: close\r\n\r\n").await;
    drop(upstream);
    while client.line().await != "ETag: \"1\"" {}
}

#[tokio::test]
async fn names_made_here_are_spelled_as_usual() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await;
    let mut upstream = pod.accept().await;
    upstream.line().await;
    let mut lines = Vec::new();
    while let line = upstream.line().await
        && !line.is_empty()
    {
        lines.push(line.split(':').next().unwrap_or_default().to_owned());
    }
    assert_eq!(lines, ["Host", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"]);
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let response = client.rest().await;
    let names: Vec<_> =
        response.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    assert_eq!(names, ["X-Keda-Http-Cold-Start", "Content-Length", "Date", "Connection"]);
}

#[tokio::test]
async fn large_header_values_are_passed_on() {
    let cookie = "c".repeat(200_000);
    assert_eq!(seen("/", &format!("Host: app.test\r\nCookie: {cookie}\r\n")).await.get("cookie"), Some(&*cookie));
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_response_end_here() {
    let lines = "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-End: 2\r\n";
    let head = answered(lines).await;
    for name in ["x-hop", "keep-alive", "proxy-authenticate", "connection"] {
        assert_eq!(head.get(name), None, "{name}");
    }
    assert_eq!(head.get("x-end"), Some("2"));
}

#[tokio::test]
async fn a_response_passes_as_it_is() {
    let head =
        answered("Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: mine\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n").await;
    assert_eq!(head.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!((head.all("server"), head.all("date")), (vec!["mine"], vec!["Thu, 01 Jan 1970 00:00:00 GMT"]));
    assert_eq!(head.get("via"), None);
}

#[tokio::test]
async fn a_response_says_whether_it_was_a_cold_start() {
    let head = answered("").await;
    assert_eq!(head.all("x-keda-http-cold-start"), ["false"]);
}

#[tokio::test]
async fn the_cold_start_header_can_be_turned_off() {
    let (_world, pod, interceptor) = warm_with(&[("KEDA_HTTP_ENABLE_COLD_START_HEADER", "false")]).await;
    let _pod = pod.answering("x");
    assert_eq!(interceptor.get(HOST, "/").await.cold_start(), None);
}

#[tokio::test]
async fn a_client_of_http_1_0_is_answered_in_its_own_way() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("GET / HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.start, "GET / HTTP/1.1");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.start.as_str(), head.get("transfer-encoding")), ("HTTP/1.0 200 OK", None));
    assert_eq!(client.rest().await, "hello", "without chunks, ended by the end of the connection");
}

#[tokio::test]
async fn a_body_s_framing_is_the_client_s_own() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let mut client = interceptor.client().await;
    let mut kept = None;
    for (lines, length, coding) in [
        ("", None, None),
        ("Content-Length: 0\r\n", Some("0"), None),
        ("Transfer-Encoding: chunked\r\n", None, Some("chunked")),
    ] {
        for method in ["GET", "POST"] {
            client.send(&format!("{method} / HTTP/1.1\r\nHost: app.test\r\n{lines}\r\n")).await;
            if coding.is_some() {
                client.send("0\r\n\r\n").await;
            }
            let mut upstream = match kept.take() {
                Some(upstream) => upstream,
                None => pod.accept().await,
            };
            let head = upstream.head().await;
            assert_eq!(
                (head.get("content-length"), head.get("transfer-encoding")),
                (length, coding),
                "{method} {lines}"
            );
            upstream.body(&head).await;
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            assert_eq!(client.response().await.status(), 200);
            kept = Some(upstream);
        }
    }
}

#[tokio::test]
async fn large_headers_of_a_response_are_passed_on() {
    let value = "v".repeat(100_000);
    assert_eq!(answered(&format!("X-Large: {value}\r\n")).await.get("x-large"), Some(&*value));
}

#[tokio::test]
async fn a_client_that_wants_its_connection_closed_gets_that() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("bye");
    let mut client = interceptor.client().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.body.as_str(), response.head.get("connection")), ("bye", Some("close")));
    client.closed().await;
}

#[tokio::test]
async fn a_client_of_http_1_0_may_keep_its_connection() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("more");
    let mut client = interceptor.client().await;
    for _ in 0..3 {
        client.send("GET / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.body.as_str(), response.head.get("connection")), ("more", Some("keep-alive")));
    }
}

#[tokio::test]
async fn a_client_cannot_have_dropped_what_the_pod_must_see() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\n\
             Connection: Host, Content-Length, X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto\r\n\r\nhi",
        )
        .await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!((head.all("host"), head.all("x-forwarded-for")), (vec![HOST], vec!["127.0.0.1"]));
    assert_eq!((head.all("x-forwarded-host"), head.all("x-forwarded-proto")), (vec![HOST], vec!["http"]));
    assert_eq!(upstream.body(&head).await, "hi", "framed one way or the other");
}
