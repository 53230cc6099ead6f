//! What is wrong from outside: a clear message that names it, and no harm to anybody else.

use integration::{Interceptor, Pod, World, eventually, soon};
use serde_json::json;

use crate::{HOST, assert_neighbour_is_well, cold, neighbour, warm};

// === the environment ===

#[tokio::test]
async fn an_environment_value_that_cannot_be_read_ends_the_start_and_names_the_variable() {
    let world = World::new();
    for (variable, value) in [
        ("KEDA_HTTP_PROXY_PORT", "80808"),
        ("KEDA_HTTP_ADMIN_PORT", "http"),
        ("KEDA_HTTP_REQUEST_TIMEOUT", "5"),
        ("KEDA_HTTP_READINESS_TIMEOUT", "soon"),
        ("KEDA_HTTP_RESPONSE_HEADER_TIMEOUT", "1d"),
        ("KEDA_HTTP_CONNECT_TIMEOUT", "-1s"),
        ("KEDA_HTTP_DRAIN_TIMEOUT", "never"),
        ("KEDA_HTTP_SHUTDOWN_DELAY", "x"),
        ("KEDA_CONDITION_WAIT_TIMEOUT", "x"),
        ("KEDA_RESPONSE_HEADER_TIMEOUT", "x"),
        ("KEDA_HTTP_MAX_IDLE_CONNS", "many"),
        ("KEDA_HTTP_MAX_IDLE_CONNS_PER_HOST", "1.5"),
        ("KEDA_HTTP_ENABLE_COLD_START_HEADER", "yes"),
        ("KEDA_HTTP_LOG_REQUESTS", "on"),
        ("ROUSE_GRPC_STATUS", "yes"),
        ("ROUSE_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("ROUSE_TRUSTED_PROXIES", "10.0.0.0/8,proxy.test"),
        ("OTEL_PROM_EXPORTER_ENABLED", "2"),
        ("OTEL_PROM_EXPORTER_PORT", "65536"),
        ("ROUSE_WORKERS", "two"),
        ("ROUSE_WORKERS", "0"),
        ("ROUSE_DATAPLANE", "warp"),
    ] {
        let (status, said) = Interceptor::fails(&world, &[(variable, value)]).await;
        assert!(status.is_some_and(|status| status != 0), "{variable}={value} ended with {status:?}");
        assert!(said.contains(variable) && said.contains(value), "{variable}={value} said: {said}");
        assert!(said.contains("expected"), "{variable}={value} said: {said}");
    }
}

#[tokio::test]
async fn a_required_variable_that_is_missing_is_named() {
    let world = World::new();
    for variable in ["KEDA_HTTP_PROXY_PORT", "KEDA_HTTP_ADMIN_PORT"] {
        let (status, said) = Interceptor::fails(&world, &[(variable, "")]).await;
        assert!(status.is_some_and(|status| status != 0) && said.contains(variable), "{said}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = Pod::start_at("0.0.0.0:0".parse().unwrap()).await;
    let world = World::new();
    for variable in ["KEDA_HTTP_ADMIN_PORT", "KEDA_HTTP_PROXY_PORT", "OTEL_PROM_EXPORTER_PORT"] {
        let port = taken.addr.port().to_string();
        let (status, said) = Interceptor::fails(&world, &[(variable, &port)]).await;
        assert!(status.is_some_and(|status| status != 0) && said.contains(&port), "{variable}: {said}");
    }
}

// === manifests ===

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_named_and_the_others_live_on() {
    let (world, interceptor) = cold(&[]).await;
    let _pod = neighbour(&world, &interceptor).await;
    world.file("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [unclosed\n");
    let problem = interceptor.problem("broken.yaml").await;
    assert!(problem.len() > "broken.yaml".len() + 20, "says what is wrong: {problem}");
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn one_bad_document_of_several_in_a_file_does_not_take_the_others_along() {
    let (world, interceptor) = cold(&[]).await;
    let route = |name: &str, host: &str| {
        format!(
            "apiVersion: http.keda.sh/v1beta1\nkind: InterceptorRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{target: {{service: app, port: 80}}, scalingMetric: {{concurrency: {{targetValue: 1}}}}, \
             rules: [{{hosts: [{host}]}}]}}\n"
        )
    };
    let middle =
        "kind: InterceptorRoute\napiVersion: http.keda.sh/v1beta1\nmetadata: {name: odd, namespace: shop}\nspec: 7\n";
    let text = [route("one", "one.test"), middle.to_owned(), route("two", "two.test")].join("---\n");
    world.file("several.yaml", &text);
    eventually("the good ones are there", async || {
        interceptor.queue("one").await?;
        interceptor.queue("two").await
    })
    .await;
    assert!(interceptor.problem("odd").await.contains("spec"));
    assert!(interceptor.log().contains("several.yaml"));
}

#[tokio::test]
async fn values_out_of_range_are_reported_with_object_and_field() {
    let (world, interceptor) = cold(&[]).await;
    let _pod = neighbour(&world, &interceptor).await;
    let rules = json!([{ "hosts": ["bad.test"] }]);
    for (name, more, words) in [
        ("bad-duration", json!({ "timeouts": { "readiness": "1 fortnight" } }), ["readiness", "1 fortnight"]),
        ("bad-port", json!({ "target": { "service": "app", "port": 70000 } }), ["port", "70000"]),
        ("no-port", json!({ "target": { "service": "app" } }), ["port", "portName"]),
        ("two-ports", json!({ "target": { "service": "app", "port": 1, "portName": "a" } }), ["port", "portName"]),
    ] {
        world.route_with(name, rules.clone(), more);
        let problem = interceptor.problem(name).await;
        for word in words {
            assert!(problem.contains(word), "{name}: {word} is not in {problem}");
        }
        assert_eq!(interceptor.queue(name).await, None, "{name}");
    }
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn an_edit_that_breaks_a_route_leaves_its_last_good_version_in_force() {
    let (world, pod, interceptor) = warm().await;
    let _pod = pod.answering("still here");
    world.route_with("app", json!([{ "hosts": [HOST] }]), json!({ "timeouts": { "request": "x" } }));
    interceptor.problem("app").await;
    assert_eq!(interceptor.get(HOST, "/").await.body, "still here");
    world.app("app", HOST);
    eventually("the problem is gone once it is mended", async || {
        interceptor.state().await["problems"].as_array()?.is_empty().then_some(())
    })
    .await;
}

// === clients ===

#[tokio::test]
async fn a_request_with_no_two_or_broken_hosts_is_a_bad_request() {
    let (world, pod, interceptor) = warm().await;
    let pod = pod.answering("never");
    let _neighbour = neighbour(&world, &interceptor).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.test\r\nHost: app.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.test\r\nHost: other.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.test/x\r\n\r\n",
    ] {
        let answer = refused(&interceptor, request).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {answer}");
    }
    assert_eq!(pod.requests(), 0);
    assert_neighbour_is_well(&interceptor).await;
}

/// All that comes back before the connection is closed, which must have a text and say that it is the end.
async fn refused(interceptor: &Interceptor, text: &str) -> String {
    let mut client = interceptor.client().await;
    let _ = client.try_send(text.as_bytes()).await;
    let answer = soon("the end of the connection", client.rest()).await;
    assert!(answer.contains("\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{text:?}: {answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{text:?}: {answer}");
    assert!(!answer.ends_with("\r\n\r\n"), "{text:?}: {answer}");
    answer
}

#[tokio::test]
async fn what_cannot_be_served_is_told_why_and_the_connection_ends() {
    let (world, pod, interceptor) = warm().await;
    let pod = pod.answering("never");
    let _neighbour = neighbour(&world, &interceptor).await;
    for (request, status) in [
        ("GET / HTTP/2.5\r\nHost: app.test\r\n\r\n", "505 HTTP Version Not Supported"),
        ("GET / HTTP/1.1\r\nHost: app.test\r\nExpect: cookies\r\n\r\n", "417 Expectation Failed"),
        ("GET nowhere HTTP/1.1\r\nHost: app.test\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nHost: app.test\r\nNo Name: x\r\n\r\n", "400 Bad Request"),
        ("hello\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = refused(&interceptor, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
    }
    assert_eq!(pod.requests(), 0);
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_mebibyte_of_headers_is_too_large() {
    let (world, pod, interceptor) = warm().await;
    let pod = pod.answering("never");
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    let line = format!("X-Fill: {}\r\n", "x".repeat(8 * 1024));
    let _ = client.try_send(b"GET / HTTP/1.1\r\nHost: app.test\r\n").await;
    for _ in 0..256 {
        if client.try_send(line.as_bytes()).await.is_err() {
            break;
        }
    }
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
    assert_eq!(pod.requests(), 0);
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_body_that_stops_half_way_ends_the_request_at_the_pod() {
    let (world, pod, interceptor) = warm().await;
    let _neighbour = neighbour(&world, &interceptor).await;
    for head in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\na\r\nhalf"] {
        let mut client = interceptor.client().await;
        client.send(&format!("POST / HTTP/1.1\r\nHost: app.test\r\n{head}")).await;
        let (mut upstream, _) = pod.request().await;
        interceptor.in_flight("app", 1).await;
        drop(client);
        let got = upstream.rest().await;
        assert!(got.contains("half") && !got.ends_with("0\r\n\r\n"), "the pod can tell that it is not all: {got:?}");
        interceptor.in_flight("app", 0).await;
    }
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn chunks_that_are_none_end_the_request() {
    let (world, pod, interceptor) = warm().await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let (mut upstream, _) = pod.request().await;
    client.send("zz\r\nnonsense\r\n").await;
    upstream.closed().await;
    client.closed().await;
    interceptor.in_flight("app", 0).await;
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_client_that_sends_one_byte_at_a_time_delays_nobody_else() {
    let (world, pod, interceptor) = warm().await;
    let pod = pod.answering("in the end");
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut slow = interceptor.client().await;
    // A pause stands between the bytes: the time the neighbour's whole request takes.
    for byte in b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nslow" {
        slow.send_bytes(&[*byte]).await;
        assert_neighbour_is_well(&interceptor).await;
    }
    assert_eq!(slow.response().await.body, "in the end");
    assert_eq!(pod.requests(), 1);
}

#[tokio::test]
async fn many_clients_that_never_finish_their_heads_delay_nobody_else() {
    let (world, interceptor) = cold(&[]).await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut client = interceptor.client().await;
        client.send(&"GET / HTTP/1.1\r\nHost: app.te"[..number % 28]).await;
        silent.push(client);
    }
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_flood_of_cold_requests_to_one_route_leaves_the_others_alone() {
    let (world, interceptor) = cold(&[]).await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut flood = Vec::new();
    for _ in 0..500 {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        flood.push(client);
    }
    interceptor.held("app", 500).await;
    assert_neighbour_is_well(&interceptor).await;
    drop(flood);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_sends_an_endless_head_is_a_bad_gateway() {
    let (world, pod, interceptor) = warm().await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    let _ = upstream.try_send(b"HTTP/1.1 200 OK\r\n").await;
    let line = format!("X-Fill: {}\r\n", "x".repeat(8 * 1024));
    for _ in 0..4096 {
        if upstream.try_send(line.as_bytes()).await.is_err() {
            break;
        }
    }
    assert_eq!(client.response().await.status(), 502);
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_pod_that_answers_more_than_it_was_asked_poisons_nobody_s_response() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/1").await;
    let (mut upstream, _) = pod.request().await;
    upstream
        .send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        .await;
    assert_eq!(client.response().await.body, "1");
    upstream.closed().await;
    client.get(HOST, "/2").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    assert_eq!(client.response().await.body, "2");
}

#[tokio::test]
async fn a_client_beyond_the_limit_waits_until_another_leaves() {
    let (_world, pod, interceptor) = crate::warm_with(&[("ROUSE_WORKERS", "1"), ("ROUSE_MAX_CONNECTIONS", "2")]).await;
    let _pod = pod.answering("served");
    let mut first = interceptor.client().await;
    let mut second = interceptor.client().await;
    for client in [&mut first, &mut second] {
        client.get(HOST, "/").await;
        assert_eq!(client.response().await.body, "served");
    }
    let mut third = interceptor.client().await;
    third.get(HOST, "/").await;
    assert_eq!(interceptor.ready().await.status(), 200, "operators are not among them");
    assert_eq!(third.arrived(), "");
    drop(first);
    assert_eq!(third.response().await.body, "served");
}

#[tokio::test]
async fn clients_cannot_use_up_the_descriptors_that_probes_and_pods_need() {
    let world = World::new();
    let interceptor = Interceptor::start_limited(&world, 100).await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut first = interceptor.client().await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(interceptor.client().await);
    }
    assert_eq!(interceptor.ready().await.status(), 200);
    first.get("neighbour.test", "/").await;
    assert_eq!(first.response().await.body, "well", "there is a descriptor for its pod");
    drop(crowd);
    assert_neighbour_is_well(&interceptor).await;
    assert!(!interceptor.log().contains("cannot accept"), "{}", interceptor.log());
}
