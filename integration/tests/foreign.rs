//! Clients that others wrote.

use std::process::Output;

use integration::soon;
use tokio::process::Command;

use crate::{HOST, cold, warm};

mod python;

/// Runs a foreign program; the test fails when it is not installed.
pub(crate) async fn run(program: &str, args: &[&str]) -> Output {
    let output = soon(program, Command::new(program).args(args).output()).await;
    output.unwrap_or_else(|error| panic!("{program}, which `cargo xtask setup` installs: {error}"))
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn curl_is_served_over_both_protocols() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("hello");
    let url = format!("http://{}/", interceptor.proxy);
    for (flag, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let host = format!("Host: {HOST}");
        let args = [flag, "-sS", "-H", &host, "-w", "|%{http_version}|%{http_code}", &url];
        let output = run("curl", &args).await;
        assert_eq!(text(&output), format!("hello|{version}|200"));
    }
}

#[tokio::test]
async fn curl_uploads_with_expect_and_chunks() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("stored");
    let url = format!("http://{HOST}/");
    let resolve = format!("{HOST}:80:127.0.0.1");
    let connect = format!("{HOST}:80:{}", interceptor.proxy);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("upload");
    std::fs::write(&file, vec![b'x'; 3 * 1024 * 1024]).unwrap();
    let file = file.to_str().unwrap();
    for header in ["Transfer-Encoding: chunked", "X-None: 1"] {
        let args = ["-sS", "--resolve", &resolve, "--connect-to", &connect, "-H", header, "-T", file, &url];
        assert_eq!(text(&run("curl", &args).await), "stored", "{header}");
    }
}

#[tokio::test]
async fn h2load_gets_every_one_of_its_answers_over_both_protocols() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("x");
    let url = format!("http://{HOST}/");
    let to = format!("--connect-to={}", interceptor.proxy);
    for args in [vec!["-n2000", "-c10", "-m10", &*to, &*url], vec!["--h1", "-n2000", "-c10", &*to, &*url]] {
        let output = text(&run("h2load", &args).await);
        let line = output.lines().find(|line| line.starts_with("status codes:"));
        assert_eq!(line, Some("status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{output}");
    }
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 4000);
}

#[tokio::test]
async fn nghttp_is_told_that_there_is_no_route() {
    let (_world, interceptor) = cold(&[]).await;
    let url = format!("http://{}/", interceptor.proxy);
    let output = text(&run("nghttp", &["-v", &url]).await);
    assert!(output.contains(":status: 404"), "{output}");
}

#[tokio::test]
async fn curl_that_offers_http_2_by_upgrade_is_served_over_http_1() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("hello");
    let url = format!("http://{}/", interceptor.proxy);
    let host = format!("Host: {HOST}");
    let output = run("curl", &["--http2", "-sS", "-H", &host, "-w", "|%{http_version}|%{http_code}", &url]).await;
    assert_eq!(text(&output), "hello|1.1|200");
}

#[tokio::test]
async fn nghttp_sees_early_hints_before_the_response() {
    let (_world, pod, interceptor) = warm().await;
    let url = format!("http://{}/", interceptor.proxy);
    let host = format!(":authority: {HOST}");
    let args = ["-v", "-H", &host, &url];
    let (output, ()) = tokio::join!(run("nghttp", &args), async {
        let (mut upstream, _) = pod.request().await;
        upstream.send("HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n").await;
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    });
    let output = text(&output);
    let places = [":status: 103", "link: <a>", ":status: 200"].map(|line| output.find(line));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{output}");
}
