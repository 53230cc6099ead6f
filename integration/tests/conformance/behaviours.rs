//! What holds at each level.

use std::{collections::BTreeSet, net::TcpStream};

use integration::soon;
use serde_json::json;

use crate::site::{Level, Site, answer, name};

pub(crate) async fn a_request_to_a_workload_at_zero_is_demand_and_is_answered_by_its_first_pod(level: Level) {
    let site = Site::new(level, json!({})).await;
    let waiting = site.curl(&[], "/");
    site.until_concurrency(1).await;
    site.wake().await;
    assert_eq!(soon("an answer", answer(waiting)).await, name(0));
    site.until_concurrency(0).await;
    site.until_requests(1).await;
}

pub(crate) async fn requests_are_counted_once_each(level: Level) {
    let site = Site::new(level, json!({})).await;
    site.wake().await;
    for _ in 0..3 {
        // All of them over one connection.
        let urls = vec![site.url("/"); 9];
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        assert_eq!(answer(site.curl(&urls, "/")).await, name(0).repeat(10));
    }
    site.until_requests(30).await;
    site.until_concurrency(0).await;
    assert_eq!(site.requests().await, Some(30));
}

pub(crate) async fn a_request_in_flight_is_demand_until_its_answer_ends(level: Level) {
    let site = Site::new(level, json!({})).await;
    site.wake().await;
    let waiting = [site.curl(&[], "/wait"), site.curl(&[], "/wait")];
    site.until_concurrency(2).await;
    std::fs::write(site.folder.path().join("go"), "").unwrap();
    for curl in waiting {
        assert_eq!(soon("an answer", answer(curl)).await, name(0));
    }
    site.until_concurrency(0).await;
}

pub(crate) async fn a_client_that_leaves_while_it_waits_is_no_demand(level: Level) {
    let site = Site::new(level, json!({})).await;
    let mut waiting = site.curl(&[], "/");
    site.until_concurrency(1).await;
    waiting.kill().await.unwrap();
    site.until_concurrency(0).await;
}

pub(crate) async fn who_has_waited_as_long_as_the_route_allows_waits_no_longer(level: Level) {
    let site = Site::new(level, json!({ "timeouts": { "readiness": "300ms" } })).await;
    let waiting = site.curl(&["--fail"], "/");
    let output = soon("the end of the wait", waiting.wait_with_output()).await.unwrap();
    assert!(!output.status.success(), "nobody could have answered");
    site.until_concurrency(0).await;
}

pub(crate) async fn a_pod_that_is_ready_before_it_listens_fails_nobody(level: Level) {
    let site = Site::new(level, json!({})).await;
    let waiting = [site.curl(&[], "/"), site.curl(&[], "/")];
    site.until_concurrency(2).await;
    site.list(&[0]).await;
    site.start(0).await;
    for curl in waiting {
        assert_eq!(soon("an answer", answer(curl)).await, name(0));
    }
}

pub(crate) async fn what_has_waited_is_spread_over_the_pods(level: Level) {
    let site = Site::new(level, json!({})).await;
    let waiting: Vec<_> = (0..12).map(|_| site.curl(&[], "/")).collect();
    site.until_concurrency(12).await;
    site.start(0).await;
    site.start(1).await;
    site.list(&[0, 1]).await;
    let mut answered = BTreeSet::new();
    for curl in waiting {
        answered.insert(soon("an answer", answer(curl)).await);
    }
    assert_eq!(answered.len(), 2, "{answered:?}");
}

pub(crate) async fn bodies_pass_byte_for_byte_in_both_directions(level: Level) {
    let site = Site::new(level, json!({})).await;
    let text: String =
        (0..200_000).map(|number: u32| char::from(b"gopher"[number.wrapping_mul(40_503) as usize % 6])).collect();
    std::fs::write(site.folder.path().join("sent"), &text).unwrap();
    let sent = format!("@{}", site.folder.path().join("sent").display());
    let waiting = site.curl(&["--data-binary", &sent], "/echo");
    site.until_concurrency(1).await;
    site.wake().await;
    assert!(soon("an answer", answer(waiting)).await == text, "cold");
    assert!(answer(site.curl(&["--data-binary", &sent], "/echo")).await == text, "warm");
}

pub(crate) async fn a_workload_that_sleeps_again_is_woken_again(level: Level) {
    let site = Site::new(level, json!({})).await;
    site.start(0).await;
    for _ in 0..3 {
        let waiting = site.curl(&[], "/");
        site.until_concurrency(1).await;
        site.list(&[0]).await;
        assert_eq!(soon("an answer", answer(waiting)).await, name(0));
        site.until_concurrency(0).await;
        site.list(&[]).await;
    }
}

pub(crate) async fn an_open_connection_without_requests_is_no_demand(level: Level) {
    let site = Site::new(level, json!({})).await;
    site.wake().await;
    assert_eq!(site.get("/").await, name(0));
    let addr = site.address();
    let idle = site.client.run(move || TcpStream::connect(addr)).await.unwrap();
    site.until_requests(1).await;
    site.until_concurrency(0).await;
    assert_eq!(site.get("/").await, name(0));
    site.until_requests(2).await;
    site.until_concurrency(0).await;
    drop(idle);
}
