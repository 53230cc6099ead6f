//! What passes through unchanged, over every pair of protocols: targets, bodies that are compressed, responses without a body.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use integration::{
    Interceptor, Peer, Pod, World,
    h2::{Client, first},
    soon,
};

use crate::{HOST, warm};

/// One request and what came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    fields: HeaderMap,
    body: String,
}

/// Asks over HTTP/1.1, and twice, so that a response that left the connection out of step would show.
async fn over_http_1(interceptor: &Interceptor, method: &str, target: &str) -> Vec<Answer> {
    let mut client = interceptor.client().await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        client.send(&format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        let head = client.head().await;
        let bodiless = method == "HEAD" || matches!(head.status(), 204 | 304);
        let body = if bodiless { String::new() } else { client.body(&head).await };
        let mut fields = HeaderMap::new();
        for (name, value) in &head.headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            fields.append(name, value.parse().unwrap());
        }
        answers.push(Answer { status: head.status(), fields, body });
    }
    answers
}

async fn over_http_2(interceptor: &Interceptor, method: &str, target: &str) -> Vec<Answer> {
    let client = Client::connect(interceptor.proxy).await;
    let request = || Request::builder().method(method).uri(format!("http://{HOST}{target}")).body(()).unwrap();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let (response, _) = client.send(request()).await.unwrap();
        let (head, body) = response.into_parts();
        answers.push(Answer { status: head.status.as_u16(), fields: head.headers, body });
    }
    answers
}

/// Both ways to ask, of pods of both protocols that answer everything with this status, these fields and this body. Returns
/// what came back and the targets that the pods saw.
async fn every_pair(
    method: &str,
    target: &str,
    answer: (u16, &[(&'static str, &'static str)], &str),
) -> (Vec<Answer>, Vec<String>) {
    let (mut answers, mut targets) = (Vec::new(), Vec::new());
    for h2c in [false, true] {
        let world = World::with_app("app", HOST);
        if h2c {
            world.h2c_service("app");
        }
        let pod = Pod::start().await;
        world.endpoints("app", &[pod.addr]);
        let interceptor = Interceptor::start_with(&world, &[("ROUSE_WORKERS", "1")]).await;
        interceptor.endpoints("app", 1).await;
        let asked = async {
            let mut all = over_http_1(&interceptor, method, target).await;
            all.extend(over_http_2(&interceptor, method, target).await);
            all
        };
        let seen = tokio::sync::Mutex::new(Vec::new());
        let served = async {
            if h2c {
                serve_http_2(pod.accept().await, method, answer, &seen).await;
            } else {
                serve_http_1(&pod, method, answer, &seen).await;
            }
        };
        tokio::select! {
            all = asked => answers.extend(all),
            () = served => panic!("the pod ended"),
        }
        targets.extend(seen.into_inner());
    }
    assert_eq!((answers.len(), targets.len()), (8, 8));
    (answers, targets)
}

async fn serve_http_1(
    pod: &Pod,
    method: &str,
    (status, fields, body): (u16, &[(&'static str, &'static str)], &str),
    seen: &tokio::sync::Mutex<Vec<String>>,
) {
    let lines: String = fields.iter().flat_map(|(name, value)| [*name, ": ", *value, "\r\n"]).collect();
    let body = if method == "HEAD" { "" } else { body };
    let mut upstream = pod.accept().await;
    while let Some(head) = upstream.try_head().await {
        assert!(head.start.starts_with(method) && head.get("accept-encoding").is_none(), "{head:?}");
        seen.lock().await.push(head.target().to_owned());
        upstream.send(&format!("HTTP/1.1 {status} Fine\r\n{lines}\r\n{body}")).await;
    }
    std::future::pending::<()>().await;
}

async fn serve_http_2(
    peer: Peer,
    method: &str,
    (status, fields, body): (u16, &[(&'static str, &'static str)], &str),
    seen: &tokio::sync::Mutex<Vec<String>>,
) {
    let mut server = integration::h2::serve(peer).await;
    while let Some(Ok((request, mut respond))) = server.accept().await {
        assert_eq!(request.method().as_str(), method);
        seen.lock().await.push(request.uri().path_and_query().unwrap().to_string());
        let mut head = Response::builder().status(status);
        for (name, value) in fields {
            head = head.header(*name, *value);
        }
        let ends = method == "HEAD" || body.is_empty();
        let mut stream = respond.send_response(head.body(()).unwrap(), ends).unwrap();
        if !ends {
            stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
        }
    }
}

#[tokio::test]
async fn targets_arrive_byte_for_byte() {
    let target = "/a//b/../c%2Fd;v=1?b=2;c=3&a=1&z=%zz&&q=%C3%BC+'";
    let (answers, targets) = every_pair("GET", target, (200, &[("content-length", "2")], "ok")).await;
    assert!(targets.iter().all(|seen| seen == target), "{targets:?}");
    assert!(answers.iter().all(|answer| answer.body == "ok"), "{answers:?}");
}

#[tokio::test]
async fn compressed_bodies_are_left_as_they_are() {
    let fields =
        [("content-encoding", "gzip"), ("content-length", "9"), ("etag", "\"1\""), ("vary", "accept-encoding")];
    let (answers, _) = every_pair("GET", "/", (200, &fields, "\u{1f}not gzip")).await;
    for answer in answers {
        for (name, value) in fields {
            assert_eq!(answer.fields[name], value, "{answer:?}");
        }
        assert_eq!(answer.body, "\u{1f}not gzip");
    }
}

#[tokio::test]
async fn a_response_to_head_says_how_long_it_would_be_and_is_empty() {
    let fields = [("content-length", "4096"), ("content-type", "text/plain")];
    let (answers, _) = every_pair("HEAD", "/file", (200, &fields, "never")).await;
    for answer in answers {
        assert_eq!(
            (answer.status, &answer.fields["content-length"], answer.body.as_str()),
            (200, &"4096".parse().unwrap(), "")
        );
    }
}

#[tokio::test]
async fn a_response_without_content_is_empty_and_says_no_length() {
    let (answers, _) = every_pair("DELETE", "/file", (204, &[("x-gone", "yes")], "")).await;
    for answer in answers {
        assert_eq!((answer.status, &answer.fields["x-gone"], answer.body.as_str()), (204, &"yes".parse().unwrap(), ""));
        assert_eq!((answer.fields.get("content-length"), answer.fields.get("transfer-encoding")), (None, None));
    }
}

#[tokio::test]
async fn a_response_that_nothing_has_changed_is_empty_and_keeps_its_fields() {
    let fields = [("etag", "\"1\""), ("content-length", "4096"), ("cache-control", "max-age=1")];
    let (answers, _) = every_pair("GET", "/file", (304, &fields, "")).await;
    for answer in answers {
        assert_eq!((answer.status, answer.body.as_str()), (304, ""));
        for (name, value) in fields {
            assert_eq!(answer.fields[name], value, "{answer:?}");
        }
        assert_eq!(answer.fields.get("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn an_upgrade_may_be_to_any_protocol_of_any_bytes() {
    let (_world, pod, interceptor) = warm().await;
    for protocol in ["tcp", "SPDY/3.1", "PostgreSQL/3.0", "h2c"] {
        let mut client = interceptor.client().await;
        client
            .send(&format!(
                "POST /attach HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            ))
            .await;
        let (mut upstream, head) = pod.request().await;
        assert_eq!((head.start.as_str(), head.get("upgrade")), ("POST /attach HTTP/1.1", Some(protocol)));
        upstream.send(&format!("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")).await;
        assert_eq!(client.head().await.status(), 101);
        let all: Vec<u8> = (0..128).collect();
        client.send_bytes(&all).await;
        assert_eq!(upstream.exactly(128).await.as_bytes(), all);
        upstream.send_bytes(&all).await;
        assert_eq!(client.exactly(128).await.as_bytes(), all);
    }
}

#[tokio::test]
async fn trailers_of_http_2_cannot_frame_or_route_a_message_of_http_1() {
    let world = World::with_app("app", HOST);
    world.h2c_service("app");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 1).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let mut exchange = first(pod.accept().await).await;
    let mut body = exchange.respond.send_response(Response::new(()), false).unwrap();
    body.send_data("x".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    for (name, value) in [("x-sum", "1"), ("content-length", "7"), ("host", "h")] {
        trailers.insert(name, value.parse().unwrap());
    }
    body.send_trailers(trailers).unwrap();
    let head = soon("a head", client.try_head()).await.unwrap();
    assert_eq!((head.status(), client.chunk().await.as_str(), client.chunk().await.as_str()), (200, "x", ""));
    assert_eq!(client.trailers().await, [("X-Sum".to_owned(), "1".to_owned())]);
}
